//! Partitions that the ledger does not have: those that came after the backup, and those that a worker has entered
//! beside it without ever owning them. Their first object says where they begin.

use std::collections::BTreeMap;

use anyhow::Context;

use super::bucket::{Bucket, Object, Survey};
use super::refused;
use super::servers::{Servers, Stand};
use crate::command::Failure;
use crate::postgres::reconcile::{self, Beginning, PartitionStand};

/// What is new in the ledgers.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// The first day that names them, of those that were not in the ledger.
    pub first_days: BTreeMap<i32, i32>,
    /// Those of which nothing is known but that they are on their server: they begin at the first offset.
    pub empty: Vec<i32>,
    /// Those that home does not know to be elsewhere, by server.
    pub missing: BTreeMap<usize, Vec<i32>>,
}

/// Lists everything that the ledgers may lack. With several servers these may be of different ages: where a partition
/// has no row, the others' days do not say how far back its objects go.
pub(super) async fn survey(
    servers: &Servers,
    bucket: &Bucket,
    stand: &Stand,
    first_day: i32,
) -> Result<Survey, Failure> {
    let survey = bucket.survey(first_day).await?;
    let is_owned = |partition: &i32| stand.partition(*partition).is_some_and(|p| p.epoch > 0);
    let mut known = survey.objects.keys().chain(stand.entered.keys());
    if !servers.are_several() || known.all(is_owned) {
        return Ok(survey);
    }
    let mut whole = bucket.survey(0).await?;
    for (partition, objects) in whole.objects.iter_mut().filter(|(partition, _)| is_owned(partition)) {
        objects.retain(|object| object.day >= first_day);
        tracing::debug!(partition, "is in the ledger: only days that are not finished count");
    }
    Ok(whole)
}

/// Enters what the ledgers lack, and takes it into their stand.
pub(super) async fn begin(
    servers: &mut Servers,
    bucket: &Bucket,
    topic: &str,
    stand: &mut Stand,
    survey: &Survey,
) -> Result<Begun, Failure> {
    let mut begun = Begun::default();
    for (partition, objects) in &survey.objects {
        let Some(first) = objects.first() else { continue };
        if let Some(at) = beginning(servers, stand, first)? {
            let first_day = first_day_of(servers, bucket, survey, *partition, stand).await?;
            let first_day = if servers.are_several() { first_day.min(first.day) } else { first_day };
            let at = Beginning { first_day, ..at };
            reconcile::begin_partition(servers.of(*partition), topic, &at)
                .await
                .context("entering a partition")?;
            begun.first_days.insert(*partition, first_day);
        }
    }
    let known: Vec<i32> = stand.entered.keys().copied().filter(|p| stand.partition(*p).is_none()).collect();
    for partition in known {
        begin_empty(servers, bucket, topic, stand, survey, partition).await?;
        begun.empty.push(partition);
    }
    stand.partitions.sort_by_key(|p| p.partition);
    for partition in stand.partitions.iter().map(|p| p.partition) {
        let server = servers.server_of(partition);
        if server > 0 && !stand.entered.contains_key(&partition) {
            begun.missing.entry(server).or_default().push(partition);
        }
    }
    Ok(begun)
}

/// Where a partition begins that has no row, or one that was never owned; none where the ledger knows better.
fn beginning(servers: &Servers, stand: &mut Stand, first: &Object) -> Result<Option<Beginning>, Failure> {
    let (partition, start) = (first.partition, first.first_offset);
    let several = servers.are_several();
    // With several servers the closed day may be a later one: another server's, that was not restored.
    let closed_day = if several { first.day - 1 } else { stand.topic.closed_day };
    let at = Beginning { partition, start, closed_day, first_day: 0 };
    if let Some(known) = stand.partitions.iter_mut().find(|p| p.partition == partition) {
        if known.epoch > 0 || (known.export_frontier <= start && !several) {
            return Ok(None);
        }
        (known.export_frontier, known.persist_frontier) = (start, start);
        known.closed_day = known.closed_day.min(closed_day);
        return Ok(Some(at));
    }
    refuse_moved(servers, stand, partition)?;
    stand.partitions.push(unowned(&at));
    Ok(Some(at))
}

fn unowned(at: &Beginning) -> PartitionStand {
    PartitionStand {
        partition: at.partition,
        epoch: 0,
        persist_frontier: at.start,
        persist_day: at.closed_day + 1,
        export_frontier: at.start,
        closed_day: at.closed_day,
        stopped: None,
    }
}

/// Home knows a partition of which its server has nothing, and the bucket neither: it was about to begin, or the server
/// has lost it. What was persisted of it is read again: the group's offset may be past it.
async fn begin_empty(
    servers: &mut Servers,
    bucket: &Bucket,
    topic: &str,
    stand: &mut Stand,
    survey: &Survey,
    partition: i32,
) -> Result<(), Failure> {
    refuse_moved(servers, stand, partition)?;
    let closed_day = super::closed_at_least(survey, stand, servers.server_of(partition));
    let first_day = first_day_of(servers, bucket, survey, partition, stand).await?;
    let at = Beginning { partition, start: 0, closed_day, first_day };
    reconcile::begin_partition(servers.of(partition), topic, &at).await.context("entering a partition")?;
    stand.partitions.push(unowned(&at));
    Ok(())
}

/// A number may mean another server than when the partition was entered, where the order of the URLs differs: then the
/// partition would be on two.
fn refuse_moved(servers: &Servers, stand: &Stand, partition: i32) -> Result<(), Failure> {
    let server = servers.server_of(partition);
    match stand.entered.get(&partition) {
        Some(place) if *place != servers.entry(server) => Err(refused(format!(
            "partition {partition} is on server {place} by server 0's ledger, and server {} has no row of it: either \
             postgres.more_urls names another server than it did, or the server was restored at another address from a \
             backup that does not have the partition. If it was, let it answer at the old address (a name in the DNS will \
             do) and run this again",
            servers.name(server)
        ))),
        _ => Ok(()),
    }
}

/// The day from which on manifests name a partition that came after the backup. Those that are written say it; the
/// next one that is written will name it.
async fn first_day_of(
    servers: &Servers,
    bucket: &Bucket,
    survey: &Survey,
    partition: i32,
    stand: &Stand,
) -> Result<i32, Failure> {
    let closed_day = stand.topic.closed_day;
    let mut first = survey.manifests.last().map_or(closed_day, |day| closed_day.max(*day)) + 1;
    // One that names it is followed by none that does not.
    for day in survey.manifests.iter().rev().copied() {
        if day <= closed_day && !servers.are_several() {
            break;
        }
        let (_, manifest) = bucket.manifest(day).await?;
        if !manifest.partitions.iter().any(|entry| entry.partition == partition) {
            break;
        }
        first = day;
    }
    Ok(first)
}
