//! What must be true in the end. It looks only at the log, the table, the bucket and the DLQ.

use std::collections::{BTreeMap, BTreeSet};

use feed_worker::export::manifest::{Manifest, manifest_key, parse_file_key, success_key};
use feed_worker::export::read::RowReader;
use feed_worker::row;
use uuid::Uuid;

use crate::bucket::PREFIX;
use crate::kafka::Kind;
use crate::run::{TOPIC, today};
use crate::world::World;

/// The user of the record at an offset: what a row says of where it came from.
pub fn user(partition: i32, offset: i64) -> Uuid {
    Uuid::from_u128((u128::from(partition.unsigned_abs()) << 64) | u128::from(offset.unsigned_abs()))
}

/// What still has to happen, once there are no more faults.
pub fn left_to_do(world: &World) -> Vec<String> {
    let mut left = Vec::new();
    for (partition, log) in &world.kafka.log {
        let Some(last) = log.iter().rposition(|entry| entry.kind != Kind::Marker) else { continue };
        let Some(row) = world.ledger.partitions.get(partition) else {
            left.push(format!("{partition} has no row in the ledger"));
            continue;
        };
        if row.persist_frontier <= last as i64 {
            left.push(format!(
                "{partition} is persisted to {} of {}: {row:?}",
                row.persist_frontier,
                last + 1
            ));
        }
        let last_row = world.ledger.rows.range((*partition, 0, 0)..(*partition + 1, 0, 0)).next_back();
        if last_row.is_some_and(|((_, offset, _), _)| *offset >= row.export_frontier) {
            left.push(format!(
                "{partition} is exported to {} of {:?}",
                row.export_frontier,
                last_row.map(|r| r.0)
            ));
        }
    }
    let yesterday = today(world) - 1;
    match world.ledger.topic {
        Some(topic) if topic.success_day >= yesterday => {}
        topic => left.push(format!("days up to {yesterday} are not closed: {topic:?}")),
    }
    left
}

pub fn check(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    check_records(world, &mut wrong);
    check_rows(world, &mut wrong);
    check_files(world, &mut wrong);
    check_days(world, &mut wrong);
    wrong
}

/// Every record is in the table or in the DLQ, once, and where it belongs.
fn check_records(world: &World, wrong: &mut Vec<String>) {
    let mut rows: BTreeMap<(i32, i64), u64> = BTreeMap::new();
    for (partition, offset, _) in world.ledger.rows.keys() {
        *rows.entry((*partition, *offset)).or_default() += 1;
    }
    let letters: BTreeSet<(i32, i64)> = world.letters.iter().copied().collect();
    for (partition, log) in &world.kafka.log {
        let frontier = world.ledger.partitions.get(partition).map_or(0, |row| row.persist_frontier);
        for (offset, entry) in log.iter().enumerate().take(usize::try_from(frontier).unwrap_or(0)) {
            let at = (*partition, offset as i64);
            let in_table = rows.get(&at).copied().unwrap_or(0);
            let expected = match entry.kind {
                Kind::Good => (1, false),
                Kind::Bad | Kind::Refused => (0, true),
                Kind::Marker => (0, false),
            };
            if (in_table, letters.contains(&at)) != expected {
                let found = if in_table > 1 { "doubled" } else { "lost or misplaced" };
                wrong.push(format!(
                    "{found}: {at:?} is {:?}, {in_table} times in the table, in the DLQ: {}",
                    entry.kind,
                    letters.contains(&at)
                ));
            }
        }
    }
    for at in rows.keys().chain(&letters) {
        if at.1 >= world.kafka.high(at.0) {
            wrong.push(format!("{at:?} is nowhere in the log"));
        }
    }
}

/// A row says what its record says, and its day never goes back in the order of offsets.
fn check_rows(world: &World, wrong: &mut Vec<String>) {
    let mut reached: BTreeMap<i32, i32> = BTreeMap::new();
    for ((partition, offset, recorded_at_ms), stored) in &world.ledger.rows {
        let Ok(tuple) = row::RowRef::parse(&stored.tuple) else {
            wrong.push(format!("the row {partition}/{offset} cannot be read"));
            continue;
        };
        let entry = world.kafka.log.get(partition).and_then(|log| log.get(usize::try_from(*offset).ok()?));
        let Some(entry) = entry else { continue };
        let day = row::day_of_ms(*recorded_at_ms);
        let lifted = *recorded_at_ms > entry.timestamp_ms && *recorded_at_ms == row::day_start_ms(day);
        if tuple.user_id() != user(*partition, *offset)
            || tuple.occurred_at_ms() != entry.timestamp_ms
            || (*recorded_at_ms != entry.timestamp_ms && !lifted)
        {
            wrong.push(format!("the row {partition}/{offset} is not its record"));
        }
        let before = reached.insert(*partition, day);
        if before.is_some_and(|before| before > day) {
            wrong.push(format!("the day of {partition} goes back at offset {offset}"));
        }
    }
}

/// The files tile the offsets, hold the table's rows, and lie where the ledger says.
fn check_files(world: &World, wrong: &mut Vec<String>) {
    let ledger = &world.ledger;
    for (partition, stand) in &ledger.partitions {
        let mut next = 0;
        for ((.., first), file) in ledger.files.range((*partition, 0)..(*partition + 1, 0)) {
            if *first != next || file.next_offset <= *first {
                wrong.push(format!("gap or overlap: {} does not begin at {next}", file.object_key));
            }
            next = file.next_offset;
            let of = (*partition, *first, i64::MIN)..(*partition, file.next_offset, i64::MIN);
            let mut tuples = Vec::new();
            for ((_, offset, ms), row) in ledger.rows.range(of) {
                tuples.extend_from_slice(&row.tuple);
                if row::day_of_ms(*ms) != file.day {
                    wrong.push(format!("misfiled: {partition}/{offset} lies in {}", file.object_key));
                }
            }
            check_file(world, file, &tuples, wrong);
        }
        if next != stand.export_frontier {
            wrong.push(format!(
                "the files of {partition} end at {next}, the export at {}",
                stand.export_frontier
            ));
        }
    }
    let entered: BTreeSet<&str> = ledger.files.values().map(|file| file.object_key.as_str()).collect();
    for key in world.bucket.keys().filter(|key| parse_file_key(key).is_some()) {
        if !entered.contains(key.as_str()) {
            wrong.push(format!("orphan: {key}"));
        }
    }
}

fn check_file(
    world: &World,
    file: &feed_worker::postgres::ledger::NewFile,
    tuples: &[u8],
    wrong: &mut Vec<String>,
) {
    let Some(object) = world.bucket.get(&file.object_key) else {
        wrong.push(format!("{} is not in the bucket", file.object_key));
        return;
    };
    let mut read = Vec::new();
    let in_file = RowReader::open(object.body.clone()).and_then(|mut reader| {
        let mut some = Vec::new();
        while reader.next_rows(&mut some)? {
            read.extend_from_slice(&some);
        }
        Ok(())
    });
    if in_file.is_err() || read != tuples {
        wrong.push(format!("{} does not hold the table's rows", file.object_key));
    }
    let key = parse_file_key(&file.object_key);
    if key != Some((file.day, TOPIC.to_owned(), file.partition, file.first_offset))
        || file.row_hash != row::row_hash(tuples)
        || file.rows != row::Rows::new(tuples).count() as i64
        || file.bytes != object.body.len() as i64
    {
        wrong.push(format!("{} is not what the ledger says: {file:?}", file.object_key));
    }
}

/// A day with `_SUCCESS` has its manifest, and the manifest is the ledger's.
fn check_days(world: &World, wrong: &mut Vec<String>) {
    let ledger = &world.ledger;
    let Some(topic) = ledger.topic else { return };
    let first = ledger.partitions.values().map(|row| row.first_day).min().unwrap_or(topic.success_day + 1);
    for day in first..=topic.success_day {
        let files = ledger.day_files(day, day);
        let manifest = Manifest::new(TOPIC, day, &ledger.day_partitions(day), files, ledger.day_gaps(day));
        let there = world.bucket.get(&manifest_key(PREFIX, day)).map(|object| object.body.to_vec());
        if there != Some(manifest.to_bytes()) || !world.bucket.contains_key(&success_key(PREFIX, day)) {
            wrong.push(format!("day {day} is closed, and its manifest or _SUCCESS is not the ledger's"));
        }
    }
    for key in world.bucket.keys().filter(|key| key.ends_with("_SUCCESS")) {
        let day = key.split('/').nth(1).and_then(row::parse_day);
        if day.is_none_or(|day| day > topic.success_day) {
            wrong.push(format!("{key} is there, and the ledger knows nothing of it: {topic:?}"));
        }
    }
}
