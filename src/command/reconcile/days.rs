//! Days that were closed after the backup: their manifests bind the ledger.

use anyhow::Context;

use super::bucket::{Bucket, Survey};
use super::{Tx, refused};
use crate::command::Failure;
use crate::export::manifest::FileEntry;
use crate::postgres::reconcile::{self, TopicStand};
use crate::row::day_text;

/// Holds every manifest against the files that are entered now, and moves the topic's days; returns
/// them (closed, finished).
pub(super) async fn reconcile(
    tx: &mut Tx,
    bucket: &Bucket,
    topic: &str,
    stand: &TopicStand,
    survey: &Survey,
) -> Result<(i32, i32), Failure> {
    for day in survey.manifests.iter().copied().filter(|day| *day > stand.success_day) {
        check(tx, bucket, topic, day).await?;
    }
    // A manifest is written only when the topic has closed the day, and with it every one before.
    let closed_day = survey.manifests.last().copied().unwrap_or(i32::MIN).max(stand.closed_day);
    // One that lacks its `_SUCCESS` is finished by the next worker, as are those after it.
    let finished = |day: &i32| survey.manifests.contains(day) && survey.successes.contains(day);
    let success_day = (stand.success_day + 1..).take_while(finished).last().unwrap_or(stand.success_day);
    let days = TopicStand { closed_day, success_day };
    if (closed_day, success_day) != (stand.closed_day, stand.success_day) {
        reconcile::move_topic(tx, topic, &days).await.context("moving the topic's days")?;
    }
    Ok((closed_day, success_day))
}

/// A day's manifest says what the ledger says: the same files, and no gap less. A gap that was accepted
/// after the backup is entered again.
async fn check(tx: &mut Tx, bucket: &Bucket, topic: &str, day: i32) -> Result<(), Failure> {
    let (key, manifest) = bucket.manifest(day).await?;
    if manifest.topic != topic || manifest.day != day_text(day) {
        return Err(refused(format!("{key} is of {} and topic {}", manifest.day, manifest.topic)));
    }
    let files = crate::postgres::days::files(&mut **tx, topic, day, day)
        .await
        .context("reading the ledger's files")?;
    if let Some(file) = first_difference(&manifest.files, &files) {
        return Err(refused(format!(
            "{key} and the objects of its day disagree about {} (partition {}, from offset {})",
            file.key, file.partition, file.first_offset
        )));
    }
    let known = reconcile::gaps(tx, topic, day).await.context("reading the ledger's gaps")?;
    if let Some(gap) = known.iter().find(|gap| !manifest.gaps.contains(gap)) {
        return Err(refused(format!("{key} does not have the ledger's gap {gap:?}")));
    }
    for gap in manifest.gaps.iter().filter(|gap| !known.contains(gap)) {
        reconcile::insert_gap(tx, topic, day, gap).await.context("entering a gap")?;
    }
    Ok(())
}

/// The first file that the two do not have alike.
fn first_difference<'a>(one: &'a [FileEntry], two: &'a [FileEntry]) -> Option<&'a FileEntry> {
    let only = |a: &'a [FileEntry], b: &'a [FileEntry]| a.iter().find(|file| !b.contains(file));
    only(one, two).or_else(|| only(two, one))
}
