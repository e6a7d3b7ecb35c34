//! One object, held against the table and loaded into it.

use anyhow::Context;

use super::bucket::{Bucket, Object};
use super::{Tx, refused};
use crate::command::Failure;
use crate::export::file::Claim;
use crate::export::read::RowReader;
use crate::postgres::ledger::NewFile;
use crate::postgres::reconcile;
use crate::row::{RowHasher, RowRef, Rows, day_of_ms, day_text};

/// What was seen of an object while it was read.
struct Seen {
    hasher: RowHasher,
    rows: u64,
    /// The offset behind the last row.
    next_offset: i64,
    recorded_at_min_ms: i64,
    recorded_at_max_ms: i64,
}

/// Adds the rows that the table lacks, a batch at a time; returns the object's entry and how many
/// were added. Whatever is not as it should be is a refusal: the caller's transaction is given up.
pub(super) async fn load(tx: &mut Tx, bucket: &Bucket, object: &Object) -> Result<(NewFile, u64), Failure> {
    let key = &object.key;
    let (claim, bytes) = bucket.claim(object).await?;
    let body = bucket.get(key).await?;
    let mut reader = RowReader::open(body).map_err(|e| refused(format!("{key}: {e}")))?;
    refuse_other_words(object, &claim, &reader)?;
    let mut seen = Seen {
        hasher: RowHasher::new(),
        rows: 0,
        next_offset: object.first_offset,
        recorded_at_min_ms: i64::MAX,
        recorded_at_max_ms: i64::MIN,
    };
    let (mut tuples, mut missing, mut added) = (Vec::new(), Vec::new(), 0);
    while reader.next_rows(&mut tuples).map_err(|e| refused(format!("{key}: {e}")))? {
        let from = seen.next_offset;
        take(&mut seen, object, &tuples)?;
        let table = reconcile::table_rows(tx, object.partition, from, seen.next_offset)
            .await
            .context("reading the table")?;
        added += difference(key, &tuples, &table, &mut missing)?;
        if !missing.is_empty() {
            reconcile::add_rows(tx, &missing).await.context("loading rows")?;
        }
    }
    let found = (seen.rows, seen.next_offset, seen.hasher.hex());
    if found != (claim.rows, claim.next_offset, claim.row_hash.clone()) {
        return Err(refused(format!("{key} holds (rows, end, hash) {found:?}, but says {claim:?}")));
    }
    let file = NewFile {
        partition: object.partition,
        epoch: claim.epoch,
        first_offset: object.first_offset,
        next_offset: claim.next_offset,
        day: object.day,
        object_key: key.clone(),
        rows: claim.rows.cast_signed(),
        bytes: bytes.cast_signed(),
        row_hash: claim.row_hash,
        recorded_at_min_ms: seen.recorded_at_min_ms,
        recorded_at_max_ms: seen.recorded_at_max_ms,
        written_by: claim.epoch,
    };
    tracing::info!(key, rows = file.rows, added, "an object is loaded");
    Ok((file, added))
}

/// The file says of itself what the object's metadata says.
fn refuse_other_words(object: &Object, claim: &Claim, reader: &RowReader) -> Result<(), Failure> {
    let words = [
        ("partition", object.partition.to_string()),
        ("first_offset", object.first_offset.to_string()),
        ("next_offset", claim.next_offset.to_string()),
        ("rows", claim.rows.to_string()),
        ("row_hash", claim.row_hash.clone()),
        ("epoch", claim.epoch.to_string()),
    ];
    for (name, wanted) in words {
        if reader.said(name) != Some(&wanted) {
            return Err(refused(format!(
                "{}: the file says {:?} as its {name}, the object's metadata {wanted}",
                object.key,
                reader.said(name)
            )));
        }
    }
    Ok(())
}

/// Notes a batch of rows; each must belong where it lies.
fn take(seen: &mut Seen, object: &Object, tuples: &[u8]) -> Result<(), Failure> {
    for row in Rows::new(tuples) {
        let row = row.map_err(|e| refused(format!("{}: {e}", object.key)))?;
        let (partition, offset, recorded_at_ms) = (row.partition(), row.offset(), row.recorded_at_ms());
        let day = day_of_ms(recorded_at_ms);
        if partition != object.partition || day != object.day || offset < seen.next_offset {
            return Err(refused(format!(
                "{} holds a row of partition {partition}, {}, at offset {offset}, after offset {}",
                object.key,
                day_text(day),
                seen.next_offset - 1
            )));
        }
        seen.rows += 1;
        seen.next_offset = offset + 1;
        seen.recorded_at_min_ms = seen.recorded_at_min_ms.min(recorded_at_ms);
        seen.recorded_at_max_ms = seen.recorded_at_max_ms.max(recorded_at_ms);
    }
    seen.hasher.update(tuples);
    Ok(())
}

/// Puts the file's rows that the table lacks into `missing`, and returns how many they are. A row that
/// only the table has, or that is not the same in both, is a refusal.
fn difference(key: &str, file: &[u8], table: &[u8], missing: &mut Vec<u8>) -> Result<u64, Failure> {
    missing.clear();
    let mut added = 0;
    let mut there = Rows::new(table);
    let mut next = advance(key, &mut there)?;
    for row in Rows::new(file) {
        let row = row.map_err(|e| refused(format!("{key}: {e}")))?;
        match next.filter(|next| next.offset() <= row.offset()) {
            Some(same) if same.bytes() == row.bytes() => next = advance(key, &mut there)?,
            Some(other) => {
                return Err(refused(format!(
                    "the table's row at offset {} of partition {} is not the one in {key}",
                    other.offset(),
                    other.partition()
                )));
            }
            None => {
                missing.extend_from_slice(row.bytes());
                added += 1;
            }
        }
    }
    match next {
        Some(row) => {
            Err(refused(format!("the table has a row at offset {} that is not in {key}", row.offset())))
        }
        None => Ok(added),
    }
}

fn advance<'a>(key: &str, rows: &mut Rows<'a>) -> Result<Option<RowRef<'a>>, Failure> {
    let row = rows.next().transpose();
    row.map_err(|e| refused(format!("a row of the table in the range of {key}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Interaction, InteractionTypes};
    use crate::row::{self, Coordinates};
    use uuid::Uuid;

    fn rows(offsets: &[i64], ingested_at_ms: i64) -> Vec<u8> {
        let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
        let mut out = Vec::new();
        for offset in offsets {
            let interaction = Interaction {
                user_id: Uuid::from_u128(1),
                video_id: Uuid::from_u128(2),
                interaction_type: types.lookup("view").unwrap(),
                occurred_at_ms: 1_771_200_000_000,
                watch_time_seconds: None,
                recommendation_score: None,
                position: None,
                algorithm: None,
                experiment_variant_id: None,
                feed_session_id: None,
                event_id: None,
                metadata: None,
            };
            let at = Coordinates {
                partition: 0,
                offset: *offset,
                recorded_at_ms: 1_771_200_000_000,
                ingested_at_ms,
            };
            row::encode(&mut out, &at, &interaction, &types);
        }
        out
    }

    fn missing_of(file: &[i64], table: &[u8]) -> Result<Vec<i64>, Failure> {
        let mut missing = vec![1];
        let added = difference("k", &rows(file, 7), table, &mut missing)?;
        let offsets: Vec<i64> = Rows::new(&missing).map(|row| row.unwrap().offset()).collect();
        assert_eq!(offsets.len() as u64, added);
        Ok(offsets)
    }

    #[test]
    fn what_the_table_lacks_is_added() {
        assert_eq!(missing_of(&[3, 5, 9], &[]).unwrap(), [3, 5, 9]);
        assert_eq!(missing_of(&[3, 5, 9], &rows(&[3, 5], 7)).unwrap(), [9]);
        assert_eq!(missing_of(&[3, 5, 9], &rows(&[5], 7)).unwrap(), [3, 9]);
        assert!(missing_of(&[3, 5, 9], &rows(&[3, 5, 9], 7)).unwrap().is_empty());
    }

    #[test]
    fn another_row_is_refused() {
        for table in [rows(&[5], 8), rows(&[4], 7), rows(&[1], 7), rows(&[9, 10], 7), rows(&[3, 3], 7)] {
            assert!(matches!(missing_of(&[3, 5, 9], &table), Err(Failure::Ledger(_))));
        }
    }
}
