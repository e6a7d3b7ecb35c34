//! Days that were closed after the backup: their manifests bind the ledger.

use std::collections::BTreeMap;

use anyhow::Context;

use super::bucket::{Bucket, Survey};
use super::refused;
use super::servers::{Servers, Stand};
use crate::command::Failure;
use crate::export::manifest::FileEntry;
use crate::postgres::reconcile::{self, TopicStand};
use crate::row::day_text;

/// Which manifests are held against the ledger.
pub(super) struct Scope {
    /// From this day on, with the files of every partition.
    pub from: i32,
    /// Before it, with those of partitions that the ledger did not have: from the first day that names them.
    pub begun: BTreeMap<i32, i32>,
}

impl Scope {
    fn has(&self, day: i32, partition: i32) -> bool {
        day >= self.from || self.begun.get(&partition).is_some_and(|first| *first <= day)
    }

    fn begins(&self) -> i32 {
        self.begun.values().copied().chain([self.from]).min().unwrap_or(self.from)
    }
}

/// Holds every manifest against the files that are entered now, and moves the topic's days; returns
/// them (closed, finished).
pub(super) async fn reconcile(
    servers: &mut Servers,
    bucket: &Bucket,
    topic: &str,
    stand: &Stand,
    survey: &Survey,
    scope: &Scope,
) -> Result<(i32, i32), Failure> {
    for day in survey.manifests.range(scope.begins()..) {
        check(servers, bucket, topic, *day, scope).await?;
    }
    let stand = &stand.topic;
    // A manifest is written only when the topic has closed the day, and with it every one before.
    let closed_day = survey.manifests.last().copied().unwrap_or(i32::MIN).max(stand.closed_day);
    // One that lacks its `_SUCCESS` is finished by the next worker, as are those after it.
    let finished = |day: &i32| survey.manifests.contains(day) && survey.successes.contains(day);
    let success_day = (stand.success_day + 1..).take_while(finished).last().unwrap_or(stand.success_day);
    let days = TopicStand { closed_day, success_day };
    if (closed_day, success_day) != (stand.closed_day, stand.success_day) {
        servers.move_topic(&days).await?;
    }
    Ok((closed_day, success_day))
}

/// A day's manifest says what the ledger says: the same files, and no gap less. A gap that was accepted
/// after the backup is entered again.
async fn check(
    servers: &mut Servers,
    bucket: &Bucket,
    topic: &str,
    day: i32,
    scope: &Scope,
) -> Result<(), Failure> {
    let (key, mut manifest) = bucket.manifest(day).await?;
    if manifest.topic != topic || manifest.day != day_text(day) {
        return Err(refused(format!("{key} is of {} and topic {}", manifest.day, manifest.topic)));
    }
    let mut files = servers.files(day, day).await?.concat();
    files.retain(|file| scope.has(day, file.partition));
    manifest.files.retain(|file| scope.has(day, file.partition));
    if let Some(file) = first_difference(&manifest.files, &files) {
        return Err(refused(format!(
            "{key} and the objects of its day disagree about {} (partition {}, from offset {})",
            file.key, file.partition, file.first_offset
        )));
    }
    let mut known = servers.gaps(day).await?;
    known.retain(|gap| scope.has(day, gap.partition));
    manifest.gaps.retain(|gap| scope.has(day, gap.partition));
    if let Some(gap) = known.iter().find(|gap| !manifest.gaps.contains(gap)) {
        return Err(refused(format!("{key} does not have the ledger's gap {gap:?}")));
    }
    for gap in manifest.gaps.iter().filter(|gap| !known.contains(gap)) {
        let tx = servers.of(gap.partition);
        reconcile::insert_gap(tx, topic, day, gap).await.context("entering a gap")?;
    }
    Ok(())
}

/// The first file that the two do not have alike.
fn first_difference<'a>(one: &'a [FileEntry], two: &'a [FileEntry]) -> Option<&'a FileEntry> {
    let only = |a: &'a [FileEntry], b: &'a [FileEntry]| a.iter().find(|file| !b.contains(file));
    only(one, two).or_else(|| only(two, one))
}
