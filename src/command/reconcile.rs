//! `feed-worker ledger reconcile`: after Postgres was restored from a backup, the bucket knows more than
//! the ledger. What lies in it is loaded back, so that no row is dated or validated a second time.
//!
//! 1. It refuses while a worker may be alive: a session of one is open, or the ledger was updated so
//!    recently that a PUT may still be on its way.
//! 2. The objects must tile the offsets from each partition's export frontier on, and hold what their
//!    metadata says. What the table has of them must be the same rows. Else nothing is changed.
//! 3. All of it is one transaction. Run again, it finds nothing to do.

mod bucket;
mod days;
mod load;

use std::time::Duration;

use anyhow::Context;
use sqlx::{Postgres, Transaction};

pub(super) use self::bucket::insist;
use self::bucket::{Bucket, Object, Survey};
use super::Failure;
use super::ledger::log_action;
use crate::config::Config;
use crate::postgres::ledger::Stop;
use crate::postgres::reconcile::{self, PartitionStand, Target, TopicStand};
use crate::row::day_text;

type Tx = Transaction<'static, Postgres>;

/// What was done to a partition.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
struct Moved {
    partition: i32,
    files: usize,
    rows: u64,
    rows_added: u64,
    export_frontier: (i64, i64),
    persist_frontier: (i64, i64),
    closed_day: String,
    released: bool,
}

pub async fn run(config: &Config, reason: &str, dry_run: bool) -> Result<(), Failure> {
    let topic = &config.kafka.topic;
    let bucket = Bucket::connect(config).await?;
    let mut tx = reconcile::begin(config).await.context("connecting to postgres (DATABASE_URL)")?;
    let (stand, partitions) = lock(&mut tx, topic).await?;
    super::refuse_elsewhere(&mut *tx, topic, "ledger reconcile").await?;
    refuse_if_alive(&mut tx, config).await?;

    let closed = partitions.iter().map(|p| p.closed_day).min().unwrap_or(stand.closed_day);
    let first_day = closed.min(stand.closed_day).min(stand.success_day) + 1;
    let survey = bucket.survey(first_day).await?;
    let partitions = with_new_partitions(&mut tx, topic, &bucket, partitions, &stand, &survey).await?;
    refuse_overlaps(&mut tx, topic, first_day, &partitions, &survey).await?;

    let mut moved = Vec::new();
    for partition in &partitions {
        moved.extend(move_partition(&mut tx, topic, &bucket, &survey, partition).await?);
    }
    let days = days::reconcile(&mut tx, &bucket, topic, &stand, &survey).await?;
    if moved.is_empty() && days == stand_days(&stand) {
        println!("the ledger of {topic} knows all that lies in the bucket: nothing to do");
        return Ok(());
    }
    if dry_run {
        // Given up with everything in it: what was told is what the transaction would have left.
        tx.rollback().await.context("giving the transaction up")?;
        report(topic, &moved, days);
        println!("nothing was changed: this was a dry run");
        return Ok(());
    }
    let detail = serde_json::json!({
        "topic": topic, "partitions": moved,
        "closed_day": day_text(days.0), "success_day": day_text(days.1),
    });
    log_action(&mut tx, "ledger reconcile", reason, detail).await?;
    tx.commit().await.context("committing what was reconciled")?;
    report(topic, &moved, days);
    Ok(())
}

fn stand_days(stand: &TopicStand) -> (i32, i32) {
    (stand.closed_day, stand.success_day)
}

/// Why nothing was changed.
fn refused(why: impl Into<String>) -> Failure {
    Failure::Ledger(why.into())
}

async fn lock(tx: &mut Tx, topic: &str) -> Result<(TopicStand, Vec<PartitionStand>), Failure> {
    let stand = reconcile::lock_topic(tx, topic).await.context("reading the ledger")?;
    let Some(stand) = stand else {
        return Err(refused(format!(
            "the ledger has no topic {topic}: this database never was its ledger, or its backup is older \
             than the topic's first record; there is nothing that the bucket could be compared with"
        )));
    };
    let partitions = reconcile::lock_partitions(tx, topic).await.context("reading the ledger")?;
    Ok((stand, partitions))
}

/// The longest that a worker which has lost everything may still write: until the group has noticed,
/// and its last PUT has timed out.
fn quiet_time(config: &Config) -> Duration {
    Duration::from_millis(config.kafka.session_timeout_ms + config.s3.timeout_ms)
}

async fn refuse_if_alive(tx: &mut Tx, config: &Config) -> Result<(), Failure> {
    let signs = reconcile::signs_of_life(tx, &config.kafka.topic).await;
    let (sessions, age_s) = signs.context("looking for workers")?;
    if sessions > 0 {
        return Err(refused(format!(
            "{sessions} sessions of `feed-worker` are open on this database: stop every worker first"
        )));
    }
    let quiet_s = quiet_time(config).as_secs_f64();
    match age_s {
        Some(age_s) if age_s < quiet_s => Err(refused(format!(
            "a worker updated the ledger {age_s:.0} s ago: stop every worker, and try again in {:.0} s \
             (kafka.session_timeout_ms and s3.timeout_ms, so that no PUT is on its way any more)",
            (quiet_s - age_s).ceil()
        ))),
        _ => Ok(()),
    }
}

/// Partitions that came after the backup, or that a worker has entered beside it without ever owning
/// them: their first object says where they begin.
async fn with_new_partitions(
    tx: &mut Tx,
    topic: &str,
    bucket: &Bucket,
    mut partitions: Vec<PartitionStand>,
    stand: &TopicStand,
    survey: &Survey,
) -> Result<Vec<PartitionStand>, Failure> {
    for (partition, objects) in &survey.objects {
        let Some(start) = objects.first().map(|object| object.first_offset) else { continue };
        let known = partitions.iter_mut().find(|p| p.partition == *partition);
        match known {
            Some(known) if known.epoch > 0 || known.export_frontier <= start => continue,
            Some(known) => (known.export_frontier, known.persist_frontier) = (start, start),
            None => partitions.push(PartitionStand {
                partition: *partition,
                epoch: 0,
                persist_frontier: start,
                persist_day: stand.closed_day + 1,
                export_frontier: start,
                closed_day: stand.closed_day,
                stopped: None,
            }),
        }
        let first_day = first_day_of(bucket, survey, *partition, stand).await?;
        reconcile::begin_partition(tx, topic, *partition, (start, first_day))
            .await
            .context("entering a partition")?;
    }
    partitions.sort_by_key(|p| p.partition);
    Ok(partitions)
}

/// The day from which on manifests name a partition that came after the backup. Those that are written say it; the
/// next one that is written will name it.
async fn first_day_of(
    bucket: &Bucket,
    survey: &Survey,
    partition: i32,
    stand: &TopicStand,
) -> Result<i32, Failure> {
    let mut next = stand.closed_day + 1;
    for day in survey.manifests.iter().copied().filter(|day| *day > stand.closed_day) {
        let (_, manifest) = bucket.manifest(day).await?;
        if manifest.partitions.iter().any(|entry| entry.partition == partition) {
            return Ok(day);
        }
        next = day + 1;
    }
    Ok(next)
}

/// An object below an export frontier that the ledger has not entered lies across others.
async fn refuse_overlaps(
    tx: &mut Tx,
    topic: &str,
    first_day: i32,
    partitions: &[PartitionStand],
    survey: &Survey,
) -> Result<(), Failure> {
    let entered = crate::postgres::days::files(&mut **tx, topic, first_day, survey.last_day.max(first_day));
    let entered = entered.await.context("reading the ledger's files")?;
    for stand in partitions {
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

/// Loads what the bucket has of a partition past its export frontier, and moves it there.
async fn move_partition(
    tx: &mut Tx,
    topic: &str,
    bucket: &Bucket,
    survey: &Survey,
    stand: &PartitionStand,
) -> Result<Option<Moved>, Failure> {
    let closed_day = survey.manifests.last().copied().unwrap_or(i32::MIN).max(stand.closed_day);
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
    reconcile::move_partition(tx, topic, stand.partition, &target).await.context("moving a partition")?;
    refuse_contradictions(tx, topic, stand.partition, closed_day).await?;
    Ok(Some(Moved {
        partition: stand.partition,
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
            "the table has rows of partition {partition} of {} or before that lie in no object, but the bucket has \
             that day's manifest",
            day_text(closed_day)
        )));
    }
    Ok(())
}

fn report(topic: &str, moved: &[Moved], (closed_day, success_day): (i32, i32)) {
    for m in moved {
        println!(
            "partition {}: {} files with {} rows entered, {} of them loaded into the table; \
             exported {} → {}, persisted {} → {}, closed up to {}{}",
            m.partition,
            m.files,
            m.rows,
            m.rows_added,
            m.export_frontier.0,
            m.export_frontier.1,
            m.persist_frontier.0,
            m.persist_frontier.1,
            m.closed_day,
            if m.released { "; no longer stopped" } else { "" },
        );
    }
    println!(
        "{topic}: closed up to {}, finished up to {}; workers go on from Kafka at the persist frontiers",
        day_text(closed_day),
        day_text(success_day)
    );
}
