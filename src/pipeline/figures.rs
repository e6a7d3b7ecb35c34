//! What the pipeline says about itself: gauges, the health snapshot, lag.
//!
//! 1. Lag is told for every partition that the group has given to this worker, also for one that is stopped.
//! 2. Frontiers are taken before ends, so that lag is never told too small.
//! 3. An age is that of a real record or row, never reckoned from a rate. What could not be found out is not told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

use super::{Done, Pipeline, Stopped};
use crate::export::exporter::OldestRow;
use crate::kafka::probe::Found;
use crate::lag::{LagStatus, Observation, Window};
use crate::outside::{Broker, Database};
use crate::partition::Wait;
use crate::placement::Placement;
use crate::postgres::ledger::Owned;
use crate::row;
use crate::telemetry::{health, metrics};

/// How often gauges are set and `/health` is written anew.
const REPORT: Duration = Duration::from_secs(1);
/// How often the topic's retention is asked for. Longer: a change is noticed later; shorter: an admin client more
/// often, for what hardly ever changes.
const ASK_RETENTION: Duration = Duration::from_secs(600);

const DAY_MS: i64 = 86_400_000;

/// What is remembered from one report to the next.
pub(super) struct Figures {
    reported_at: Instant,
    measured_at: Option<Instant>,
    measuring: bool,
    windows: BTreeMap<i32, Window>,
    /// The last day whose `_SUCCESS` is known.
    pub(super) success_day: Option<i32>,
    retention_ms: Option<u64>,
    retention_asked_at: Option<Instant>,
    unowned: Option<u64>,
}

impl Figures {
    pub(super) fn new(now: Instant) -> Self {
        Figures {
            reported_at: now,
            measured_at: None,
            measuring: false,
            windows: BTreeMap::new(),
            success_day: None,
            retention_ms: None,
            retention_asked_at: None,
            unowned: None,
        }
    }
}

/// A partition, before anybody is asked.
#[derive(Clone, Copy)]
struct Seen {
    id: i32,
    persisted: i64,
    exported: i64,
    /// Kafka's timestamp of the record at the persist frontier, if it is at hand.
    next_ms: Option<i64>,
    oldest_row: OldestRow,
    first_day: i32,
    stopped: bool,
}

/// A partition's lag.
pub struct Lag {
    id: i32,
    persisted: i64,
    /// Records that wait.
    persist_records: u64,
    export_records: u64,
    /// None: not found out.
    persist_ms: Option<i64>,
    export_ms: Option<i64>,
    stopped: bool,
}

/// What was found out for one report.
pub struct Measured {
    now_ms: i64,
    lags: Vec<Lag>,
    /// None: not asked for.
    retention: Option<Option<u64>>,
    unowned: Option<u64>,
}

impl Pipeline {
    /// Gauges and the health snapshot.
    pub(super) fn report(&mut self) {
        if self.figures.reported_at.elapsed() < REPORT {
            return;
        }
        self.figures.reported_at = Instant::now();
        let mut snapshot = Vec::new();
        let (mut behind, mut halted) = (0, 0);
        for partition in self.partitions.values() {
            let exporter = &partition.exporter;
            behind += u64::from(!exporter.is_live());
            halted += u64::from(exporter.halted().is_some());
            let state = match (partition.wait, exporter.halted(), exporter.is_live()) {
                (Some(Wait::Schema(_)), ..) => "waits for the registry",
                (Some(Wait::DeadLetters), ..) => "waits for the dead-letter topic",
                (Some(Wait::Day), ..) => "moves to the next day",
                (Some(Wait::Persist), ..) => "waits for postgres",
                (None, Some(_), _) => "export halted",
                (None, None, true) => "live",
                (None, None, false) => "export behind",
            };
            snapshot.push(health::PartitionStatus {
                partition: partition.id,
                persist_frontier: partition.frontier,
                export_frontier: exporter.frontier(),
                state: state.to_owned(),
            });
        }
        for (id, Stopped { why, away, .. }) in &self.stopped {
            snapshot.push(health::PartitionStatus {
                partition: *id,
                persist_frontier: -1,
                export_frontier: -1,
                state: if *away { format!("waits: {why}") } else { format!("stopped: {why}") },
            });
        }
        metrics::build_info(env!("CARGO_PKG_VERSION"), 1);
        metrics::export_state(behind, halted, self.memory_bytes() as u64, self.memory_budget() as u64);
        metrics::partitions_stopped(self.stopped.values().filter(|stopped| !stopped.away).count() as u64);
        metrics::owned_partitions(self.partitions.len() as u64);
        self.report_day();
        self.measure_lag();
        self.outside.health.set_partitions(snapshot);
    }

    /// How late the oldest day is that should be closed.
    fn report_day(&self) {
        let Some(success) = self.figures.success_day else { return };
        let over_ms = row::day_start_ms(success + 1) + DAY_MS;
        metrics::day_late_seconds((self.clock_ms() - over_ms).max(0) as f64 / 1e3);
    }

    /// Starts finding out how far the frontiers are from the ends.
    fn measure_lag(&mut self) {
        let interval = Duration::from_millis(self.config.metrics.lag_interval_ms);
        let early = self.figures.measured_at.is_some_and(|at| at.elapsed() < interval);
        if early || self.figures.measuring || (self.partitions.is_empty() && self.stopped.is_empty()) {
            return;
        }
        self.figures.measured_at = Some(Instant::now());
        self.figures.measuring = true;
        let seen: Vec<Seen> = self
            .partitions
            .values()
            .map(|p| Seen {
                id: p.id,
                persisted: p.frontier,
                exported: p.exporter.frontier(),
                next_ms: p.oldest_ms(),
                oldest_row: p.exporter.oldest_row(),
                first_day: p.closed_day + 1,
                stopped: false,
            })
            .collect();
        let stopped = self.stopped.iter().map(|(id, stopped)| (*id, stopped.committed)).collect();
        let asks_retention = self.figures.retention_asked_at.is_none_or(|at| at.elapsed() >= ASK_RETENTION);
        if asks_retention {
            self.figures.retention_asked_at = Some(Instant::now());
        }
        let asked = Asked {
            database: self.outside.database.clone(),
            broker: self.outside.broker.clone(),
            placement: self.placement.clone(),
            clock: self.clock,
        };
        self.tasks.start(async move { Done::Measured(asked.measure(seen, stopped, asks_retention).await) });
    }

    pub(super) fn on_measured(&mut self, measured: Measured) {
        let figures = &mut self.figures;
        figures.measuring = false;
        if let Some(retention_ms) = measured.retention {
            figures.retention_ms = retention_ms;
        }
        figures.unowned = measured.unowned.or(figures.unowned.filter(|_| measured.lags.is_empty()));
        if let Some(unowned) = figures.unowned {
            metrics::unowned_partitions(unowned);
        }
        let told: Vec<i32> = measured.lags.iter().map(|lag| lag.id).collect();
        figures.windows.retain(|id, _| told.contains(id));
        for lag in measured.lags {
            let window = figures.windows.entry(lag.id).or_default();
            let waiting = lag.persist_records;
            window.push(Observation { at_ms: measured.now_ms, frontier: lag.persisted, lag: waiting });
            let status = if lag.stopped { LagStatus::Stop } else { window.status(measured.now_ms, waiting) };
            lag.report(status, figures.retention_ms);
        }
    }
}

impl Lag {
    fn report(&self, status: LagStatus, retention_ms: Option<u64>) {
        metrics::lag_persist_records(self.id, self.persist_records);
        metrics::lag_export_records(self.id, self.export_records);
        metrics::lag_status(self.id, status as u64);
        let seconds = |ms: i64| ms as f64 / 1e3;
        if let Some(ms) = self.export_ms {
            metrics::lag_export_seconds(self.id, seconds(ms));
        }
        let Some(waited_ms) = self.persist_ms else { return };
        metrics::lag_persist_seconds(self.id, seconds(waited_ms));
        if let Some(retention_ms) = retention_ms.filter(|ms| *ms > 0) {
            let left_ms = i64::try_from(retention_ms).unwrap_or(i64::MAX).saturating_sub(waited_ms);
            metrics::retention_left_seconds(self.id, seconds(left_ms.max(0)));
            metrics::retention_used_percent(self.id, 100.0 * waited_ms as f64 / retention_ms as f64);
        }
    }
}

/// Whom a report asks.
struct Asked {
    database: Arc<dyn Database>,
    broker: Arc<dyn Broker>,
    placement: Placement,
    clock: (i64, Instant),
}

impl Asked {
    /// Postgres's clock, as far as it is known.
    fn now_ms(&self) -> i64 {
        self.clock.0 + self.clock.1.elapsed().as_millis() as i64
    }

    async fn measure(
        &self,
        mut seen: Vec<Seen>,
        stopped: Vec<(i32, Option<i64>)>,
        asks_retention: bool,
    ) -> Measured {
        seen.extend(self.stopped(stopped).await);
        let lags = self.lags(seen).await.unwrap_or_else(|error| {
            metrics::retried("kafka");
            tracing::warn!(error = format!("{error:#}"), "lag is not known: the brokers do not answer");
            Vec::new()
        });
        let retention = if asks_retention { Some(self.retention().await) } else { None };
        let unowned = self.broker.unowned().await.ok().flatten().map(|unowned| unowned.len() as u64);
        Measured { now_ms: self.now_ms(), lags, retention, unowned }
    }

    /// Of partitions that wait, for an operator or for their server, only the ledger knows the frontiers; while their
    /// server is away, the group's offset (where it is known) stands for both.
    async fn stopped(&self, waiting: Vec<(i32, Option<i64>)>) -> Vec<Seen> {
        let mut by_server: BTreeMap<usize, Vec<i32>> = BTreeMap::new();
        for (id, _) in &waiting {
            by_server.entry(self.placement.server_of(*id)).or_default().push(*id);
        }
        // Each server is asked for its own: one that is away takes no other's figures.
        let ledgers = join_all(by_server.values().map(|ids| self.database.peek(ids))).await;
        let ledger: BTreeMap<i32, Owned> = ledgers.into_iter().flatten().flatten().collect();
        let seen = |(id, committed): (i32, Option<i64>)| {
            let row = ledger.get(&id);
            let persisted = row.map_or(committed, |row| Some(row.persist_frontier))?;
            Some(Seen {
                id,
                persisted,
                exported: row.map_or(persisted, |row| row.export_frontier),
                next_ms: None,
                oldest_row: OldestRow::Unknown,
                first_day: row.map_or(0, |row| row.closed_day + 1),
                stopped: true,
            })
        };
        waiting.into_iter().filter_map(seen).collect()
    }

    async fn lags(&self, seen: Vec<Seen>) -> anyhow::Result<Vec<Lag>> {
        let ids: Vec<i32> = seen.iter().map(|seen| seen.id).collect();
        let bounds = self.broker.bounds(&ids).await?;
        let ends: BTreeMap<i32, i64> = bounds.into_iter().map(|(id, _, end)| (id, end)).collect();
        let waits = |seen: &Seen| ends.get(&seen.id).is_some_and(|end| *end > seen.persisted);
        let unknown: Vec<(i32, i64)> = seen
            .iter()
            .filter(|seen| seen.next_ms.is_none() && waits(seen))
            .map(|seen| (seen.id, seen.persisted))
            .collect();
        let found = if unknown.is_empty() {
            BTreeMap::new()
        } else {
            self.broker.read_at(&unknown).await.unwrap_or_default()
        };
        let mut lags = Vec::with_capacity(seen.len());
        let mut away = BTreeSet::new();
        for seen in seen {
            let Some(end) = ends.get(&seen.id) else { continue };
            let next_ms = seen.next_ms.or_else(|| match found.get(&seen.id) {
                Some(Found::Record { timestamp_ms, .. }) => Some(*timestamp_ms),
                _ => None,
            });
            let is_empty = *end <= seen.persisted || found.get(&seen.id) == Some(&Found::End);
            // What ends a partition may be no record but a transaction's marker: it has an offset, and nobody will ever
            // persist or export it.
            let last = if is_empty { seen.persisted } else { *end };
            let persist_ms =
                if is_empty { Some(0) } else { next_ms.map(|at_ms| (self.now_ms() - at_ms).max(0)) };
            // A Postgres that is away is waited for once a report, or the other partitions' lag comes too late.
            let server = self.placement.server_of(seen.id);
            let answers = !away.contains(&server);
            let export_ms = if answers { self.export_ms(&seen, persist_ms).await } else { None };
            if export_ms.is_none() {
                away.insert(server);
            }
            lags.push(Lag {
                id: seen.id,
                persisted: seen.persisted,
                persist_records: last.saturating_sub(seen.persisted).max(0).cast_unsigned(),
                export_records: last.saturating_sub(seen.exported).max(0).cast_unsigned(),
                persist_ms,
                export_ms,
                stopped: seen.stopped,
            });
        }
        Ok(lags)
    }

    /// How long the oldest row waits that is in no file. What is not even in the table is not in a file either.
    async fn export_ms(&self, seen: &Seen, persist_ms: Option<i64>) -> Option<i64> {
        let oldest_ms = match seen.oldest_row {
            OldestRow::At(at_ms) => Some(at_ms),
            OldestRow::None => None,
            OldestRow::Unknown if seen.exported >= seen.persisted => None,
            OldestRow::Unknown => {
                self.database.oldest_row_ms(seen.id, seen.exported, seen.first_day).await.ok()?
            }
        };
        let row_ms = oldest_ms.map_or(0, |at_ms| (self.now_ms() - at_ms).max(0));
        Some(row_ms.max(persist_ms.unwrap_or(0)))
    }

    /// The topic's retention; none: not known, or for ever.
    async fn retention(&self) -> Option<u64> {
        self.broker.retention_ms().await.unwrap_or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                "the topic's retention is not known: the risk that lag overtakes it is not told"
            );
            None
        })
    }
}
