//! What the ledgers of all Postgres servers say of the topic's partitions, also while some of them are away.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use futures::future::join_all;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use crate::command::{Failure, ledger};
use crate::config::Config;
use crate::placement::Placement;
use crate::postgres::{places, reread};

/// A partition's row of the ledger.
#[derive(Default)]
pub(super) struct Standing {
    pub persist_frontier: i64,
    pub export_frontier: i64,
    closed_day: Option<i32>,
    pub owner: Option<String>,
    pub stopped: Option<String>,
    pub untouched_ms: i64,
    /// The number of the server that has it.
    server: usize,
}

impl Standing {
    /// Nobody has ever owned it: all of it waits.
    pub fn before(low: i64) -> Self {
        Standing { persist_frontier: low, export_frontier: low, ..Standing::default() }
    }

    fn of(row: &PgRow, server: usize) -> Self {
        Standing {
            persist_frontier: row.get("persist_frontier"),
            export_frontier: row.get("export_frontier"),
            closed_day: row.get("closed_day"),
            owner: row.get("owner"),
            stopped: row.get("stopped"),
            untouched_ms: row.get("untouched_ms"),
            server,
        }
    }
}

/// A server that did not answer, and what it has of the topic.
pub(super) struct Away {
    /// How it is called, without who goes there.
    pub server: String,
    partitions: BTreeSet<i32>,
    pub why: anyhow::Error,
}

impl Away {
    /// Its partitions, for people.
    pub fn named(&self) -> String {
        let named: Vec<String> = self.partitions.iter().map(i32::to_string).collect();
        named.join(", ")
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "server": self.server, "partitions": self.partitions, "why": format!("{:#}", self.why),
        })
    }
}

/// What all servers said.
pub(super) struct Found {
    /// The clock of the first that answered, ms since 1970.
    pub now_ms: i64,
    pub rows: BTreeMap<i32, Standing>,
    pub away: Vec<Away>,
}

impl Found {
    pub fn is_away(&self, partition: i32) -> bool {
        self.away.iter().any(|away| away.partitions.contains(&partition))
    }
}

/// The servers, by their numbers.
pub(super) struct Ledgers<'a> {
    config: &'a Config,
    placement: Placement,
    pools: Vec<PgPool>,
}

impl<'a> Ledgers<'a> {
    /// Connects to nothing yet.
    pub fn new(config: &'a Config) -> Result<Self, Failure> {
        let servers = 0..config.postgres.urls().count();
        let pools = servers.map(|server| ledger::pool(config, server)).collect::<Result<_, _>>()?;
        Ok(Ledgers { config, placement: config.postgres.placed(), pools })
    }

    /// Asks all servers side by side. Errors: none has answered.
    pub async fn read(&self, partitions: &[i32]) -> Result<Found, Failure> {
        let asked = self.pools.iter().enumerate().map(|(server, pool)| async move {
            let said = self.ask(server, pool).await;
            let reading = || format!("reading the ledger ({})", self.config.postgres.called(server));
            (server, said.with_context(reading))
        });
        let (mut rows, mut away, mut clock) = (BTreeMap::new(), Vec::new(), None);
        for (server, said) in join_all(asked).await {
            match said {
                Ok((now_ms, found)) => {
                    rows.extend(found);
                    clock.get_or_insert(now_ms);
                }
                Err(why) => {
                    let is_its = |partition: &&i32| self.placement.server_of(**partition) == server;
                    let partitions = partitions.iter().filter(is_its).copied().collect();
                    away.push(Away { server: self.config.postgres.location(server), partitions, why });
                }
            }
        }
        let Some(now_ms) = clock else {
            let first = away.into_iter().next().map(|away| away.why);
            return Err(first.unwrap_or_else(|| anyhow::anyhow!("no Postgres server is configured")).into());
        };
        // One that has nothing of the topic hides nothing.
        away.retain(|away| !away.partitions.is_empty());
        Ok(Found { now_ms, rows, away })
    }

    /// A server's clock and rows.
    async fn ask(&self, server: usize, pool: &PgPool) -> Result<(i64, BTreeMap<i32, Standing>), sqlx::Error> {
        let rows = sqlx::query(
            "SELECT partition, persist_frontier, export_frontier, closed_day - DATE '1970-01-01' AS closed_day, owner,
                    stopped || coalesce(': ' || stopped_detail, '') AS stopped,
                    (extract(epoch FROM clock_timestamp() - updated_at) * 1000)::bigint AS untouched_ms
             FROM partition_ledger WHERE topic = $1",
        )
        .bind(&self.config.kafka.topic)
        .fetch_all(pool)
        .await?;
        let now_ms = sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            .fetch_one(pool)
            .await?;
        let mut found: BTreeMap<i32, Standing> =
            rows.iter().map(|row| (row.get("partition"), Standing::of(row, server))).collect();
        if self.pools.len() > 1 {
            // Only says that the partition has its row on another server.
            found.retain(|_, row| row.stopped.as_deref().is_none_or(|why| places::place_of(why).is_none()));
        }
        Ok((now_ms, found))
    }

    /// When the partition's oldest row that is in no file was recorded, ms since 1970; none: there is no such row.
    pub async fn oldest_row_ms(&self, partition: i32, row: &Standing) -> Result<Option<i64>, sqlx::Error> {
        let Some(pool) = self.pools.get(row.server) else { return Ok(None) };
        let first_day = row.closed_day.unwrap_or(0) + 1;
        reread::oldest_row_ms(pool, partition, row.export_frontier, first_day).await
    }
}
