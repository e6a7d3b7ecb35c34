//! `feed-worker ledger reconcile`: after Postgres was restored from a backup, the bucket knows more than
//! the ledger. What lies in it is loaded back, so that no row is dated or validated a second time.
//!
//! 1. It refuses while a worker may be alive: a session of one is open, or the ledger was updated so
//!    recently that a PUT may still be on its way.
//! 2. The objects must tile the offsets from each partition's export frontier on, and hold what their
//!    metadata says. What the table has of them must be the same rows. Else nothing is changed.
//! 3. All of it is one transaction of each server, and none is committed before all is decided. Run again, it finds
//!    nothing to do, or what is left.

mod begin;
mod bucket;
mod days;
mod load;
mod report;
mod servers;

use std::time::Duration;

use anyhow::Context;
use sqlx::{Postgres, Transaction};

pub(super) use self::bucket::insist;
use self::bucket::{Bucket, Object, Survey};
use self::days::Scope;
use self::report::{Done, Moved};
use self::servers::{Servers, Stand};
use super::Failure;
use crate::config::Config;
use crate::postgres::ledger::Stop;
use crate::postgres::reconcile::{self, PartitionStand, Target};
use crate::row::day_text;

type Tx = Transaction<'static, Postgres>;

pub async fn run(config: &Config, reason: &str, dry_run: bool) -> Result<(), Failure> {
    let topic = &config.kafka.topic;
    let bucket = Bucket::connect(config).await?;
    let (mut servers, mut stand) = Servers::lock(config).await?;

    let first_day = stand.first_day();
    let survey = begin::survey(&servers, &bucket, &stand, first_day).await?;
    let begun = begin::begin(&mut servers, &bucket, topic, &mut stand, &survey).await?;
    refuse_overlaps(&mut servers, first_day, &stand, &survey).await?;

    let mut moved = Vec::new();
    for partition in &stand.partitions {
        moved.extend(move_partition(&mut servers, topic, &bucket, &survey, &stand, partition).await?);
    }
    let scope = match servers.are_several() {
        // Another server's days may be finished that this one's backup does not have.
        true => Scope { from: first_day, begun: begun.first_days.clone() },
        false => Scope { from: stand.topic.success_day + 1, begun: Default::default() },
    };
    let days = days::reconcile(&mut servers, &bucket, topic, &stand, &survey, &scope).await?;
    let done = Done::new(&servers, topic, moved, begun, days);
    if done.is_nothing() && days == (stand.topic.closed_day, stand.topic.success_day) {
        println!("the ledger of {topic} knows all that lies in the bucket: nothing to do");
        return Ok(());
    }
    if dry_run {
        // Given up with everything in it: what was told is what the transactions would have left.
        servers.rollback().await?;
        done.tell();
        println!("nothing was changed: this was a dry run");
        return Ok(());
    }
    servers.log(reason, done.detail(), done.by_server()).await?;
    servers.enter(config, &done.entered).await?;
    servers.commit().await?;
    done.tell();
    Ok(())
}

/// Why nothing was changed.
fn refused(why: impl Into<String>) -> Failure {
    Failure::Ledger(why.into())
}

/// The longest that a worker which has lost everything may still write: until the group has noticed,
/// and its last PUT has timed out.
fn quiet_time(config: &Config) -> Duration {
    Duration::from_millis(config.kafka.session_timeout_ms + config.s3.timeout_ms)
}

/// Why a server may still be written to; none if nobody does.
async fn sign_of_life(tx: &mut Tx, config: &Config) -> Result<Option<String>, Failure> {
    let signs = reconcile::signs_of_life(tx, &config.kafka.topic).await;
    let (sessions, age_s) = signs.context("looking for workers")?;
    if sessions > 0 {
        return Ok(Some(format!(
            "{sessions} sessions of `feed-worker` are open on this database: stop every worker first"
        )));
    }
    let quiet_s = quiet_time(config).as_secs_f64();
    Ok(age_s.filter(|age_s| *age_s < quiet_s).map(|age_s| {
        format!(
            "a worker updated the ledger {age_s:.0} s ago: stop every worker, and try again in {:.0} s \
             (kafka.session_timeout_ms and s3.timeout_ms, so that no PUT is on its way any more)",
            (quiet_s - age_s).ceil()
        )
    }))
}

/// An object below an export frontier that the ledger has not entered lies across others.
async fn refuse_overlaps(
    servers: &mut Servers,
    first_day: i32,
    stand: &Stand,
    survey: &Survey,
) -> Result<(), Failure> {
    let entered = servers.files(first_day, survey.last_day.max(first_day)).await?;
    for stand in &stand.partitions {
        let entered = &entered[servers.server_of(stand.partition)];
        for object in survey.of(stand.partition) {
            let below = object.first_offset < stand.export_frontier;
            if below && !entered.iter().any(|file| file.key == object.key) {
                return Err(refused(format!(
                    "{} begins below the export frontier ({}) of partition {} and is not in the ledger",
                    object.key, stand.export_frontier, stand.partition
                )));
            }
        }
    }
    Ok(())
}

/// The day that every partition of a server had closed before anything was restored: the last one that has a manifest,
/// or that home says is closed; another server may have committed a later one for its own before home did.
fn closed_at_least(survey: &Survey, stand: &Stand, server: usize) -> i32 {
    let written = survey.manifests.last().copied().unwrap_or(i32::MIN);
    written.max(stand.topic.closed_day).max(stand.closed[server])
}

/// Loads what the bucket has of a partition past its export frontier, and moves it there.
async fn move_partition(
    servers: &mut Servers,
    topic: &str,
    bucket: &Bucket,
    survey: &Survey,
    all: &Stand,
    stand: &PartitionStand,
) -> Result<Option<Moved>, Failure> {
    let closed_day = closed_at_least(survey, all, servers.server_of(stand.partition)).max(stand.closed_day);
    let mut target = Target {
        end: stand.export_frontier,
        persist_day: stand.persist_day.max(closed_day + 1),
        closed_day,
        epoch_seen: 0,
    };
    let (mut files, mut rows, mut rows_added) = (0, 0, 0);
    let mut day = stand.closed_day + 1;
    for object in survey.of(stand.partition) {
        if object.first_offset < stand.export_frontier {
            continue;
        }
        refuse_misplaced(object, target.end, day)?;
        servers.touch().await?;
        let tx = servers.of(stand.partition);
        let (file, added) = load::load(tx, bucket, object).await?;
        crate::postgres::ledger::insert_file(tx, topic, &file).await.context("entering a file")?;
        files += 1;
        rows += file.rows.unsigned_abs();
        rows_added += added;
        day = object.day;
        target.end = file.next_offset;
        target.persist_day = target.persist_day.max(day);
        target.epoch_seen = target.epoch_seen.max(file.written_by);
    }
    let released = stand.stopped.as_deref() == Some(Stop::Restored.as_str());
    let moves_days = target.persist_day > stand.persist_day || closed_day > stand.closed_day;
    if files == 0 && !released && !moves_days {
        return Ok(None);
    }
    let is_closed = match servers.are_several() {
        true => "server 0 has closed that day, or the bucket has its manifest",
        false => "the bucket has that day's manifest",
    };
    let tx = servers.of(stand.partition);
    reconcile::move_partition(tx, topic, stand.partition, &target).await.context("moving a partition")?;
    refuse_contradictions(tx, topic, stand.partition, closed_day, is_closed).await?;
    Ok(Some(Moved {
        partition: stand.partition,
        server: servers.number_of(stand.partition),
        files,
        rows,
        rows_added,
        export_frontier: (stand.export_frontier, target.end),
        persist_frontier: (stand.persist_frontier, stand.persist_frontier.max(target.end)),
        closed_day: day_text(closed_day),
        released,
    }))
}

/// Objects tile the offsets, and their days do not go back.
fn refuse_misplaced(object: &Object, end: i64, day: i32) -> Result<(), Failure> {
    if object.first_offset != end {
        return Err(refused(format!(
            "{} begins at offset {}, but what lies before it ends at {end}: the objects do not tile the offsets",
            object.key, object.first_offset
        )));
    }
    if object.day < day {
        let day = day_text(day);
        return Err(refused(format!(
            "{} lies in an earlier day than {day}, which was reached before it",
            object.key
        )));
    }
    Ok(())
}

async fn refuse_contradictions(
    tx: &mut Tx,
    topic: &str,
    partition: i32,
    closed_day: i32,
    is_closed: &str,
) -> Result<(), Failure> {
    let (beyond, unexported) =
        reconcile::contradictions(tx, topic, partition).await.context("comparing table and ledger")?;
    if beyond {
        return Err(refused(format!(
            "the table has rows of partition {partition} past its persist frontier: ledger and table disagree"
        )));
    }
    if unexported {
        return Err(refused(format!(
            "the table has rows of partition {partition} of {} or before that lie in no object, but {is_closed}",
            day_text(closed_day)
        )));
    }
    Ok(())
}
