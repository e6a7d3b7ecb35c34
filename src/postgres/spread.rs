//! Several Postgres servers behind one [`Database`]: each partition's rows, ledger row and files are on its server.
//!
//! 1. What names a partition goes to its server and to no other; servers are asked side by side, and one that is away
//!    holds up only what needs it.
//! 2. The first server, home, has the topic's row that says which days are closed and finished. That needs the word of
//!    every server, so a server that is away keeps the day open.
//! 3. There is no transaction over servers, and none is needed: docs/adr/0005 says why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{BoxFuture, join_all, try_join_all};
use sqlx::PgExecutor;
use tokio::time::timeout;

use super::ledger::{Assigned, Entered, Identity, LedgerError, NewFile, NewestObject, Owned, Stop};
use super::reread::{Range, Reread};
use super::{Postgres, day, days, ledger, places};
use crate::config::Config;
use crate::export::manifest::{FileEntry, GapEntry};
use crate::kafka::rebalance::Candidate;
use crate::outside::{Database, DatabaseFuture, Session};
use crate::placement::Placement;
use crate::reject_limit::{RejectLimits, RejectWindow};

/// How long a server may take to show that it is there before its partitions are left out of a takeover. Longer keeps
/// the others waiting for it; shorter leaves out what is only slow.
const PATIENCE: Duration = Duration::from_secs(2);

/// The servers, by their numbers, and which partition is on which.
pub struct Spread {
    servers: Vec<Postgres>,
    placement: Placement,
    topic: String,
    /// How long taking over may take at one server.
    assign_max: Duration,
    /// Whose tables and ledger were looked at.
    checked: Vec<AtomicBool>,
}

impl Spread {
    pub fn new(config: &Config, servers: Vec<Postgres>) -> Self {
        Spread {
            checked: servers.iter().map(|_| AtomicBool::new(false)).collect(),
            servers,
            placement: config.postgres.placed(),
            topic: config.kafka.topic.clone(),
            // Before the rebalance's own deadline, or the others would be lost with it.
            assign_max: Duration::from_millis(config.kafka.assign_deadline_ms) * 3 / 4,
        }
    }

    fn home(&self) -> &Postgres {
        &self.servers[0]
    }

    fn of(&self, partition: i32) -> &Postgres {
        // A number that no server has is refused with the configuration.
        self.servers.get(self.placement.server_of(partition)).unwrap_or(self.home())
    }

    fn servers_of(&self, partitions: &[i32]) -> BTreeSet<usize> {
        partitions.iter().map(|partition| self.placement.server_of(*partition)).collect()
    }

    fn is_on(&self, server: usize, partition: i32) -> bool {
        self.placement.server_of(partition) == server
    }

    /// Asks every server; all must answer. The answers are by server.
    async fn all<'a, T>(
        &'a self,
        ask: impl Fn(&'a Postgres) -> DatabaseFuture<'a, T>,
    ) -> Result<Vec<T>, sqlx::Error> {
        try_join_all(self.servers.iter().map(ask)).await
    }

    /// What home says; while it is away, what the first of the others says that counts.
    async fn home_or_another<'a, T>(
        &'a self,
        ask: impl Fn(&'a Postgres) -> DatabaseFuture<'a, T>,
        counts: impl Fn(&T) -> bool,
    ) -> Result<T, sqlx::Error> {
        let why = match timeout(PATIENCE, ask(self.home())).await {
            Ok(Ok(said)) => return Ok(said),
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::PoolTimedOut,
        };
        let others = join_all(self.servers[1..].iter().map(|server| timeout(PATIENCE, ask(server))));
        others.await.into_iter().flatten().flatten().find(counts).ok_or(why)
    }

    async fn assign_on(
        &self,
        server: usize,
        who: &Identity,
        candidates: &[Candidate],
        objects: &[NewestObject],
        limits: &RejectLimits,
    ) -> Result<Assigned, LedgerError> {
        let postgres = &self.servers[server];
        if !self.checked[server].load(Ordering::Relaxed) {
            let version = super::version(&postgres.pool).await?;
            if version < super::newest_version() {
                return Err(LedgerError::Refused(format!(
                    "the tables of Postgres server {server} ({}) are of version {version}, this program needs {}: run \
                     `feed-worker migrate`",
                    postgres.location,
                    super::newest_version()
                )));
            }
            self.checked[server].store(true, Ordering::Relaxed);
        }
        if server > 0 {
            self.begin(server, who, candidates).await?;
        }
        ledger::assign(&postgres.pool, who, candidates, objects, limits).await
    }

    /// Enters at home which partitions begin on another server, before they do.
    async fn begin(
        &self,
        server: usize,
        who: &Identity,
        candidates: &[Candidate],
    ) -> Result<(), LedgerError> {
        let postgres = &self.servers[server];
        let known = places::places(&postgres.pool, &who.topic).await?;
        let new: Vec<i32> =
            candidates.iter().map(|c| c.partition).filter(|p| !known.contains_key(p)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let closed_day = places::enter(self.home(), who, &new, (server, &postgres.location)).await?;
        // A partition starts after the last closed day, which home may know better.
        let topic = (&*who.topic, &*who.cluster_id, &*who.group_id);
        places::raise_topic(&postgres.pool, topic, closed_day).await?;
        Ok(())
    }
}

/// A partition of which its server knows nothing: it is at its beginning, and has closed no day.
fn not_begun(partition: i32) -> Owned {
    Owned {
        partition,
        epoch: 0,
        persist_frontier: 0,
        persist_day: 0,
        export_frontier: 0,
        closed_day: -1,
        last_record_hash: None,
        window: RejectWindow::default(),
    }
}

/// The closed days of the partitions that have their ledger row here.
async fn closed_days(executor: impl PgExecutor<'_>, topic: &str) -> Result<Vec<(i32, i32)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT partition, closed_day - date '1970-01-01' FROM partition_ledger
         WHERE topic = $1 AND stopped IS DISTINCT FROM $2",
    )
    .bind(topic)
    .bind(places::ELSEWHERE)
    .fetch_all(executor)
    .await
}

impl Spread {
    /// Closes the topic's days up to the least closed day of its partitions, wherever they are.
    ///
    /// The topic's row is held on every server while the broker is asked, home's last, so that two who close wait for
    /// each other and never for one another. What others may do in between is argued in docs/adr/0005: the days of the
    /// other servers are committed first, each under the lock under which its partitions were looked at; home's, which
    /// alone says that a day is closed, last and only if all of those were.
    async fn close(&self, partitions: BoxFuture<'_, Option<Vec<i32>>>) -> Result<(), sqlx::Error> {
        let known: Option<(String, String, i32)> = sqlx::query_as(
            "SELECT cluster_id, group_id, closed_day - date '1970-01-01' FROM topic_ledger WHERE topic = $1",
        )
        .bind(&self.topic)
        .fetch_optional(&self.home().pool)
        .await?;
        let Some((cluster_id, group_id, closed_day)) = known else { return Ok(()) };
        let mut held = Vec::new();
        for server in (1..self.servers.len()).chain([0]) {
            let mut tx = self.servers[server].pool.begin().await?;
            if server > 0 {
                // Also where no partition has begun yet: one that begins now must wait.
                places::raise_topic(&mut *tx, (&self.topic, &cluster_id, &group_id), closed_day).await?;
            }
            sqlx::query("SELECT FROM topic_ledger WHERE topic = $1 FOR UPDATE")
                .bind(&self.topic)
                .execute(&mut *tx)
                .await?;
            held.push((server, tx));
        }
        let Some(partitions) = partitions.await else { return Ok(()) };
        let mut closed = BTreeMap::new();
        let mut elsewhere = BTreeMap::new();
        for (server, tx) in &mut held {
            let found = closed_days(&mut **tx, &self.topic).await?;
            closed.extend(found.into_iter().filter(|(partition, _)| self.is_on(*server, *partition)));
            if *server == 0 {
                elsewhere = places::places(&mut **tx, &self.topic).await?;
                elsewhere.retain(|_, place| !place.is_empty());
            }
        }
        // Brokers may be late in naming a partition that somebody has entered already.
        let least = partitions.iter().chain(elsewhere.keys()).map(|partition| closed.get(partition).copied());
        // A partition that no server knows keeps the day open.
        let Some(least) = least.collect::<Option<Vec<i32>>>().and_then(|days| days.into_iter().min()) else {
            return Ok(());
        };
        for (_, mut tx) in held {
            sqlx::query(concat!(
                "UPDATE topic_ledger SET closed_day = ",
                day!(2),
                ", updated_at = now() WHERE topic = $1 AND closed_day < ",
                day!(2)
            ))
            .bind(&self.topic)
            .bind(least)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
        }
        Ok(())
    }
}

impl Database for Spread {
    fn session(&self, server: usize) -> Box<dyn Session> {
        self.servers.get(server).unwrap_or(self.home()).session(server)
    }

    fn away<'a>(&'a self, partitions: &'a [i32]) -> BoxFuture<'a, BTreeMap<i32, String>> {
        Box::pin(async move {
            let asked = self.servers_of(partitions).into_iter().map(|server| async move {
                let why = match timeout(PATIENCE, self.servers[server].topic_known()).await {
                    Ok(Ok(_)) => return None,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no answer within {PATIENCE:?}"),
                };
                Some((server, format!("Postgres server {server} ({}): {why}", self.servers[server].location)))
            });
            let away: BTreeMap<usize, String> = join_all(asked).await.into_iter().flatten().collect();
            let why = |partition: &i32| away.get(&self.placement.server_of(*partition));
            partitions.iter().filter_map(|partition| Some((*partition, why(partition)?.clone()))).collect()
        })
    }

    /// Home enters a topic first: where any server knows it, home does.
    fn topic_known(&self) -> DatabaseFuture<'_, (bool, i64)> {
        Box::pin(self.home_or_another(Postgres::topic_known, |(known, _)| *known))
    }

    fn enter_topic<'a>(&'a self, who: &'a Identity, first_day: i32) -> DatabaseFuture<'a, ()> {
        self.home().enter_topic(who, first_day)
    }

    fn peek<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, BTreeMap<i32, Owned>> {
        Box::pin(async move {
            let asked = self.servers_of(partitions).into_iter().map(|server| async move {
                let mut found = self.servers[server].peek(&[]).await?;
                found.retain(|partition, _| self.is_on(server, *partition));
                if found.is_empty() {
                    // It may have lost them all, while other servers' rows are of today: all that the bucket has counts,
                    // as with one server whose ledger has no rows.
                    let mine = partitions.iter().filter(|partition| self.is_on(server, **partition));
                    found.extend(mine.map(|partition| (*partition, not_begun(*partition))));
                }
                Ok::<_, sqlx::Error>(found)
            });
            Ok(try_join_all(asked).await?.into_iter().flatten().collect())
        })
    }

    /// A server that does not give its partitions leaves them for later; the others' are taken.
    fn assign<'a>(
        &'a self,
        who: &'a Identity,
        candidates: &'a [Candidate],
        objects: &'a [NewestObject],
        limits: &'a RejectLimits,
    ) -> BoxFuture<'a, Result<Assigned, LedgerError>> {
        Box::pin(async move {
            let given: Vec<i32> = candidates.iter().map(|c| c.partition).collect();
            let asked = self.servers_of(&given).into_iter().map(|server| async move {
                let mine: Vec<Candidate> =
                    candidates.iter().filter(|c| self.is_on(server, c.partition)).cloned().collect();
                let taken = self.assign_on(server, who, &mine, objects, limits);
                let taken = timeout(self.assign_max, taken).await;
                let why = match taken.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into())) {
                    Err(error @ (LedgerError::Sql(_) | LedgerError::World(_))) => error.to_string(),
                    other => return other,
                };
                let why = format!("Postgres server {server} ({}): {why}", self.servers[server].location);
                let away = mine.iter().map(|c| (c.partition, why.clone())).collect();
                Ok(Assigned { away, ..Assigned::default() })
            });
            let mut all = Assigned::default();
            for assigned in try_join_all(asked).await? {
                all.owned.extend(assigned.owned);
                all.stopped.extend(assigned.stopped);
                all.away.extend(assigned.away);
                all.before.extend(assigned.before);
                all.now_ms = all.now_ms.max(assigned.now_ms);
            }
            Ok(all)
        })
    }

    fn stop<'a>(
        &'a self,
        partition: i32,
        epoch: i64,
        stop: Stop,
        detail: &'a str,
    ) -> DatabaseFuture<'a, bool> {
        self.of(partition).stop(partition, epoch, stop, detail)
    }

    /// Also those without a row: their server was away when they were to begin.
    fn released<'a>(&'a self, partitions: &'a [i32]) -> DatabaseFuture<'a, Vec<i32>> {
        Box::pin(async move {
            let asked = self.servers_of(partitions).into_iter().map(|server| async move {
                let mine: Vec<i32> =
                    partitions.iter().copied().filter(|partition| self.is_on(server, *partition)).collect();
                let postgres = &self.servers[server];
                let waiting =
                    postgres.in_time(ledger::waiting(&postgres.pool, &self.topic, &mine)).await.ok()?;
                Some(mine.into_iter().filter(|partition| !waiting.contains(partition)).collect::<Vec<i32>>())
            });
            Ok(join_all(asked).await.into_iter().flatten().flatten().collect())
        })
    }

    fn enter_file<'a>(&'a self, file: &'a NewFile) -> DatabaseFuture<'a, Entered> {
        self.of(file.partition).enter_file(file)
    }

    fn read<'a>(&'a self, range: &'a Range) -> DatabaseFuture<'a, Reread> {
        self.of(range.partition).read(range)
    }

    fn oldest_row_ms(&self, partition: i32, from: i64, first_day: i32) -> DatabaseFuture<'_, Option<i64>> {
        self.of(partition).oldest_row_ms(partition, from, first_day)
    }

    /// Home's; while it is away, that of the first server that answers.
    fn now_ms(&self) -> DatabaseFuture<'_, i64> {
        Box::pin(self.home_or_another(Postgres::now_ms, |_| true))
    }

    fn advance(&self, at: (i32, i64, i64), days: (i32, i32)) -> DatabaseFuture<'_, bool> {
        self.of(at.0).advance(at, days)
    }

    fn reached(&self, partition: i32, epoch: i64) -> DatabaseFuture<'_, Option<i32>> {
        self.of(partition).reached(partition, epoch)
    }

    fn close_partition(&self, partition: i32, epoch: i64, day: i32) -> DatabaseFuture<'_, Option<i32>> {
        self.of(partition).close_partition(partition, epoch, day)
    }

    fn topic_days(&self) -> DatabaseFuture<'_, Option<(i32, i32)>> {
        self.home().topic_days()
    }

    fn least_closed(&self) -> DatabaseFuture<'_, Option<i32>> {
        Box::pin(async {
            let found = self.all(|server| server.in_time(closed_days(&server.pool, &self.topic))).await?;
            let by_server = found.into_iter().enumerate();
            let closed =
                by_server.flat_map(|(server, found)| found.into_iter().map(move |row| (server, row)));
            Ok(closed.filter(|(server, (p, _))| self.is_on(*server, *p)).map(|(_, (_, day))| day).min())
        })
    }

    fn close_topic<'a>(&'a self, partitions: BoxFuture<'a, Option<Vec<i32>>>) -> DatabaseFuture<'a, ()> {
        self.home().in_time(self.close(partitions))
    }

    fn files(&self, from: i32, to: i32) -> DatabaseFuture<'_, Vec<FileEntry>> {
        Box::pin(async move {
            let mut files: Vec<FileEntry> =
                self.all(|server| server.files(from, to)).await?.into_iter().flatten().collect();
            files.sort_by_key(|file| (file.partition, file.first_offset));
            Ok(files)
        })
    }

    fn partitions(&self, of: i32) -> DatabaseFuture<'_, Vec<i32>> {
        Box::pin(async move {
            let locations: Vec<&str> = self.servers.iter().map(|server| &*server.location).collect();
            let places = self.all(|server| server.in_time(places::places(&server.pool, &self.topic))).await?;
            for (server, found) in places.iter().enumerate() {
                // As with one server that does not know of others.
                if let Some(why) = places::misplaced(found, server, &self.placement, &locations) {
                    return Err(sqlx::Error::Protocol(why));
                }
            }
            let found =
                self.all(|server| server.in_time(days::partitions(&server.pool, &self.topic, of))).await?;
            let by_server = found.into_iter().enumerate();
            let mut partitions: Vec<i32> = by_server
                .flat_map(|(server, found)| found.into_iter().filter(move |p| self.is_on(server, *p)))
                .collect();
            partitions.sort_unstable();
            Ok(partitions)
        })
    }

    fn gaps(&self, of: i32) -> DatabaseFuture<'_, Vec<GapEntry>> {
        Box::pin(async move {
            let mut gaps: Vec<GapEntry> =
                self.all(|server| server.gaps(of)).await?.into_iter().flatten().collect();
            gaps.sort_by_key(|gap| (gap.partition, gap.from_offset));
            Ok(gaps)
        })
    }

    fn finished(&self, day: i32) -> DatabaseFuture<'_, ()> {
        self.home().finished(day)
    }
}
