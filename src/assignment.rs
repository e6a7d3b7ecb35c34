//! Taking partitions over: everything that is asked before the first record is taken.
//!
//! 1. The topic's row says whose ledger this is; a foreign one is refused.
//! 2. A bucket that knows more than the ledger stops the partition: Postgres was restored.
//! 3. Only then are new epochs taken.
//! 4. If the bucket is away just then, partitions are taken over all the same, and it is asked as soon as it is
//!    back, about the stand before the assignment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::export::file::Claim;
use crate::export::manifest::parse_file_key;
use crate::export::object::{ObjectStore, StoreError};
use crate::kafka::probe::Found;
use crate::kafka::rebalance::Candidate;
use crate::outside::{Broker, Database};
use crate::postgres::ledger::{Assigned, Identity, LedgerError, NewestObject, Owned};
use crate::reject_limit::RejectLimits;
use crate::retry::Backoff;
use crate::row;
use crate::telemetry::metrics;

/// How long the bucket may take to be listed. Longer eats the callback's deadline; a bucket that is
/// away must not keep partitions from persisting: what was not checked here is asked later.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);

/// What an assignment needs.
#[derive(Clone)]
pub struct Assigner {
    pub database: Arc<dyn Database>,
    pub store: Arc<dyn ObjectStore>,
    pub broker: Arc<dyn Broker>,
    pub who: Identity,
    pub prefix: String,
    pub limits: RejectLimits,
}

impl Assigner {
    /// Takes the partitions over, or says why not. Postgres being away is waited for up to the
    /// deadline.
    pub async fn assign(&self, candidates: &[Candidate], until: Instant) -> Result<Assigned, LedgerError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match tokio::time::timeout_at(until, self.try_assign(candidates)).await {
                Err(_) => return Err(sqlx::Error::PoolTimedOut.into()),
                Ok(Err(error @ (LedgerError::Sql(_) | LedgerError::World(_)))) => {
                    metrics::retried("postgres");
                    tracing::warn!(%error, "partitions are not taken over yet: trying again");
                    backoff.wait().await;
                }
                Ok(other) => return other,
            }
        }
    }

    async fn try_assign(&self, candidates: &[Candidate]) -> Result<Assigned, LedgerError> {
        let given: Vec<i32> = candidates.iter().map(|c| c.partition).collect();
        let mut away = self.database.away(&given).await;
        let candidates: Vec<Candidate> =
            candidates.iter().filter(|c| !away.contains_key(&c.partition)).cloned().collect();
        if candidates.is_empty() && !away.is_empty() {
            return Ok(Assigned { away, ..Assigned::default() });
        }
        let mut assigned = self.assign_there(&candidates).await?;
        assigned.away.append(&mut away);
        Ok(assigned)
    }

    /// Of partitions whose servers are there.
    async fn assign_there(&self, candidates: &[Candidate]) -> Result<Assigned, LedgerError> {
        let (known, now_ms) = self.database.topic_known().await?;
        if !known {
            let first_day = self.first_day(now_ms).await?;
            self.database.enter_topic(&self.who, first_day).await?;
        }
        let given: Vec<i32> = candidates.iter().map(|c| c.partition).collect();
        let rows = self.database.peek(&given).await?;
        let candidates = self.with_fresh_ends(candidates, &rows).await?;
        let listed = tokio::time::timeout(LIST_TIMEOUT, self.newest_objects(&rows)).await;
        let objects = match listed {
            Ok(Ok(objects)) => Some(objects),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the bucket cannot be listed: whether Postgres was restored is asked later");
                None
            }
            Err(_) => {
                tracing::warn!("the bucket does not answer: whether Postgres was restored is asked later");
                None
            }
        };
        let known = objects.as_deref().unwrap_or_default();
        let mut assigned = self.database.assign(&self.who, &candidates, known, &self.limits).await?;
        assigned.is_bucket_asked = objects.is_some();
        Ok(assigned)
    }

    /// Asks the bucket until it answers; returns the partitions that were restored, with what proves it.
    /// `before` is where they stood before the assignment that gave them the `epochs`.
    pub async fn restored_before(
        &self,
        before: &BTreeMap<i32, Owned>,
        epochs: &BTreeMap<i32, i64>,
    ) -> Vec<(i32, String)> {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        loop {
            backoff.wait().await;
            match tokio::time::timeout(LIST_TIMEOUT * 15, self.foreign_objects(before, epochs)).await {
                Ok(Ok(objects)) => {
                    let proof = |object: &NewestObject| {
                        let (_, detail) = object.proves_restore(before.get(&object.partition)?)?;
                        Some((object.partition, detail))
                    };
                    return objects.iter().filter_map(proof).collect();
                }
                Ok(Err(error)) => tracing::debug!(%error, "whether Postgres was restored is not known yet"),
                Err(_) => tracing::debug!("whether Postgres was restored is not known yet"),
            }
        }
    }

    /// The newest object of each partition that lies past where the ledger stood, and that the present owner
    /// has not written since.
    async fn foreign_objects(
        &self,
        before: &BTreeMap<i32, Owned>,
        epochs: &BTreeMap<i32, i64>,
    ) -> Result<Vec<NewestObject>, StoreError> {
        let mut past: BTreeMap<i32, Vec<(i64, String)>> = BTreeMap::new();
        for (partition, first_offset, key) in self.objects(before).await? {
            if before.get(&partition).is_some_and(|row| first_offset >= row.export_frontier) {
                past.entry(partition).or_default().push((first_offset, key));
            }
        }
        let mut found = Vec::new();
        for (partition, mut objects) in past {
            objects.sort_unstable();
            for (first_offset, key) in objects.into_iter().rev() {
                let object = self.claimed(partition, first_offset, key).await?;
                if Some(&object.epoch) != epochs.get(&partition) {
                    found.push(object);
                    break;
                }
            }
        }
        Ok(found)
    }

    /// A partition that seems to end before its frontier is asked again: until the ledger gives out a new
    /// epoch, its owner goes on, past an end that was asked for earlier. An end that was asked for after
    /// the frontier was read is never below it, unless records are gone.
    async fn with_fresh_ends(
        &self,
        candidates: &[Candidate],
        rows: &BTreeMap<i32, Owned>,
    ) -> Result<Vec<Candidate>, LedgerError> {
        let mut candidates = candidates.to_vec();
        let frontier = |c: &Candidate| rows.get(&c.partition).map_or(0, |row| row.persist_frontier);
        let short: Vec<i32> =
            candidates.iter().filter(|c| c.high < frontier(c)).map(|c| c.partition).collect();
        if short.is_empty() {
            return Ok(candidates);
        }
        let bounds = self.broker.bounds(&short).await;
        let bounds = bounds.map_err(|e| LedgerError::World(format!("the ends of partitions: {e:#}")))?;
        for (partition, low, high) in bounds {
            if let Some(candidate) = candidates.iter_mut().find(|c| c.partition == partition) {
                (candidate.low, candidate.high) = (low, high);
                candidate.is_short = high < frontier(candidate);
            }
        }
        Ok(candidates)
    }

    /// The day of the oldest record that the topic still has; today if it has none.
    async fn first_day(&self, now_ms: i64) -> Result<i32, LedgerError> {
        // Decided once and for good: half an answer is none.
        let first_ms = first_timestamp_ms(self.broker.as_ref())
            .await
            .map_err(|error| LedgerError::World(format!("the topic's first records: {error:#}")))?;
        Ok(row::day_of_ms(first_ms.unwrap_or(now_ms).min(now_ms)))
    }

    /// The newest object of each partition that the ledger has not entered yet. It is listed before
    /// the ledger's rows are locked: whatever lies in the bucket by then, the ledger must know of.
    async fn newest_objects(&self, rows: &BTreeMap<i32, Owned>) -> Result<Vec<NewestObject>, StoreError> {
        let mut newest: BTreeMap<i32, (i64, String)> = BTreeMap::new();
        for (partition, first_offset, key) in self.objects(rows).await? {
            let entry = newest.entry(partition).or_insert((first_offset, key.clone()));
            if first_offset > entry.0 {
                *entry = (first_offset, key);
            }
        }
        let mut found = Vec::new();
        for (partition, (first_offset, key)) in newest {
            // Below the export frontier it is entered: nothing more to ask.
            if rows.get(&partition).is_some_and(|row| first_offset < row.export_frontier) {
                continue;
            }
            found.push(self.claimed(partition, first_offset, key).await?);
        }
        Ok(found)
    }

    /// Partition, first offset and key of every object in the folders of open days.
    async fn objects(&self, rows: &BTreeMap<i32, Owned>) -> Result<Vec<(i32, i64, String)>, StoreError> {
        // A ledger without rows may be a fresh database beside an old bucket: then all of it counts.
        let oldest_open = rows.values().map(|r| r.closed_day + 1).min().unwrap_or(0);
        let folder = format!("{}/", self.prefix);
        let after = format!("{folder}{}", row::day_text(oldest_open));
        let listed = self.store.list(&folder, Some(&after)).await?;
        let ours = listed.into_iter().filter_map(|object| {
            let (_, topic, partition, first_offset) = parse_file_key(&object.key)?;
            (topic == self.who.topic).then_some((partition, first_offset, object.key))
        });
        Ok(ours.collect())
    }

    /// An object with what it says of itself.
    async fn claimed(
        &self,
        partition: i32,
        first_offset: i64,
        key: String,
    ) -> Result<NewestObject, StoreError> {
        let info = self.store.head(&key).await?;
        let claim = info.and_then(|info| Claim::read(&info.metadata));
        let (next_offset, epoch) = claim.map_or((first_offset + 1, 0), |c| (c.next_offset, c.epoch));
        Ok(NewestObject { partition, next_offset, epoch, key })
    }
}

async fn first_timestamp_ms(broker: &dyn Broker) -> anyhow::Result<Option<i64>> {
    let partitions = broker.partitions().await?;
    let bounds = broker.bounds(&partitions).await?;
    let firsts: Vec<(i32, i64)> = bounds.iter().map(|(p, low, _)| (*p, *low)).collect();
    let found = broker.read_at(&firsts).await?;
    anyhow::ensure!(found.len() == partitions.len(), "some partitions did not answer in time");
    let timestamps = found.values().filter_map(|found| match found {
        Found::Record { timestamp_ms, .. } => Some(*timestamp_ms),
        Found::End => None,
    });
    // Producers' timestamps can be anything; a time before the first possible event is none.
    let timestamps = timestamps.filter(|ms| *ms >= 946_684_800_000);
    Ok(timestamps.min())
}
