//! Writing a day's missing objects again.
//!
//! 1. Only what the ledger has entered is written, under its key, from the rows of the table; and only if that
//!    gives the row hash, the rows and, with the settings of then, the very bytes that the ledger says.
//! 2. Everything is looked at before anything is written. A wrong object in the way, or a row that the table no
//!    longer has, is a refusal that leaves the bucket as it was.
//! 3. Objects are written if absent; the manifest after the files, `_SUCCESS` after the manifest.

use bytes::Bytes;

use super::day::{Day, Filed, Outside, State, identity};
use super::ledgers::Ledgers;
use crate::command::Failure;
use crate::export::file::{OpenFile, SealedFile};
use crate::export::object::PutOutcome;
use crate::row::{Rows, day_text};

/// Offsets that are read back at a time. More is memory; less is more statements.
const OFFSETS_MAX: i64 = 20_000;

pub(super) async fn run(
    outside: &Outside,
    ledgers: &mut Ledgers,
    day: i32,
    dry_run: bool,
) -> Result<(), Failure> {
    let found = Day::look(outside, ledgers, day, false).await?;
    refuse_if_in_the_way(&found)?;
    let missing: Vec<&Filed> = found.files.iter().filter(|file| file.state == State::Missing).collect();
    let marks = [&found.manifest_state, &found.success_state].map(|state| *state == State::Missing);
    if missing.is_empty() && marks == [false, false] {
        println!("{} lacks nothing in the bucket", day_text(day));
        return Ok(());
    }
    // All of them once before the first is written: half a rebuilt day helps nobody who then is refused.
    for file in &missing {
        build(outside, ledgers, day, file).await?;
        if dry_run {
            println!("would write {}: {} rows, {} bytes", file.entry.key, file.entry.rows, file.entry.bytes);
        }
    }
    if dry_run {
        for (key, _) in
            found.states().filter(|(key, state)| **state == State::Missing && !key.ends_with(".parquet"))
        {
            println!("would write {key}");
        }
        return Ok(());
    }
    for file in &missing {
        let built = build(outside, ledgers, day, file).await?;
        let (body, metadata) = (built.body.clone(), built.object_metadata());
        put(outside, &file.entry.key, body, SealedFile::CONTENT_TYPE, &metadata).await?;
        println!("written: {}: {} rows, {} bytes", file.entry.key, built.rows, built.body.len());
    }
    let bodies = [Bytes::from(found.manifest.to_bytes()), Bytes::new()];
    let kinds = ["application/json", "application/octet-stream"];
    let keys: Vec<&str> =
        found.states().map(|(key, _)| key).filter(|key| !key.ends_with(".parquet")).collect();
    for (((key, body), kind), is_missing) in keys.into_iter().zip(bodies).zip(kinds).zip(marks) {
        if is_missing {
            put(outside, key, body, kind, &[]).await?;
            println!("written: {key}");
        }
    }
    let faults = Day::look(outside, ledgers, day, true).await?.faults();
    if let Some(fault) = faults.first() {
        return Err(Failure::Differs(format!("{} is not well yet: {fault}", day_text(day))));
    }
    println!("{}: {} files are back; nothing was overwritten", day_text(day), missing.len());
    Ok(())
}

fn refuse_if_in_the_way(day: &Day) -> Result<(), Failure> {
    for (key, state) in day.states() {
        match state {
            State::Wrong(why) => {
                return Err(Failure::Ledger(format!(
                    "{key} is in the way: {why}. Nothing was written. Move it out of the folder (or bring its \
                     earlier version back), then run this again"
                )));
            }
            State::TooMuch => {
                return Err(Failure::Ledger(format!(
                    "{key} is there, but the ledger has not closed {}: was Postgres restored? See `feed-worker \
                     ledger reconcile`",
                    day_text(day.day)
                )));
            }
            State::Right | State::Missing => {}
        }
    }
    Ok(())
}

/// The file, as it was written the first time.
async fn build(
    outside: &Outside,
    ledgers: &mut Ledgers,
    day: i32,
    file: &Filed,
) -> Result<SealedFile, Failure> {
    let entry = &file.entry;
    let identity = identity(&outside.topic, entry, file.epoch, day);
    let mut open = OpenFile::new(identity, outside.row_group_rows).map_err(anyhow::Error::from)?;
    let end = entry.last_offset + 1;
    let mut from = entry.first_offset;
    while from < end {
        let upto = end.min(from.saturating_add(OFFSETS_MAX));
        let tuples = ledgers.table_rows(entry.partition, from, upto).await?;
        if let Err(error) = open.append(&tuples) {
            return Err(Failure::Ledger(format!(
                "{}: the table's rows are not of this file: {error}",
                entry.key
            )));
        }
        debug_assert!(Rows::new(&tuples).all(|row| row.is_ok()));
        from = upto;
    }
    if open.rows() == 0 {
        return Err(Failure::Ledger(format!(
            "{}: the table no longer has these rows (day.retention_days?): they can only come back from a version or \
             a copy of the bucket, or of Postgres. Nothing was written",
            entry.key
        )));
    }
    let built = open.seal().map_err(anyhow::Error::from)?;
    if (built.rows, built.next_offset, &built.row_hash) != (entry.rows, end, &entry.row_hash) {
        return Err(Failure::Ledger(format!(
            "{}: the table has {} rows of it up to {} with hash {}, the ledger {} up to {end} with hash {}. Nothing was \
             written; `feed-worker audit --day {}` says more",
            entry.key,
            built.rows,
            built.next_offset,
            built.row_hash,
            entry.rows,
            entry.row_hash,
            day_text(day)
        )));
    }
    if built.body.len() as u64 != entry.bytes {
        return Err(Failure::Ledger(format!(
            "{}: the same rows make {} bytes here, {} in the ledger and the manifest. Nothing was written; the release and \
             the `export.row_group_rows` that wrote it make its bytes",
            entry.key,
            built.body.len(),
            entry.bytes
        )));
    }
    Ok(built)
}

/// Once, and never over something: an answer that was lost is asked for by the same condition.
async fn put(
    outside: &Outside,
    key: &str,
    body: Bytes,
    kind: &str,
    metadata: &[(String, String)],
) -> Result<(), Failure> {
    let mut attempts = 1;
    loop {
        match outside.store.put_if_absent(key, body.clone(), kind, metadata).await {
            Ok(PutOutcome::Created) => return Ok(()),
            // Mine, of which I did not hear, or a worker's, who finishes the same day: the next look says which.
            Ok(PutOutcome::Exists) if attempts > 1 || metadata.is_empty() => return Ok(()),
            Ok(PutOutcome::Exists) => {
                return Err(Failure::Ledger(format!("{key} has come to be there meanwhile: run this again")));
            }
            Err(error) if attempts >= 5 => {
                return Err(Failure::Deadline(format!("writing {key}: {error}; run this again")));
            }
            Err(_) => attempts += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}
