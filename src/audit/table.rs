//! Postgres as the audit reads it: statements of its own, in sessions that cannot write. A partition's rows and files are
//! read from the server that has its ledger row; the topic's days stand at the first.
//!
//! 1. The frontiers are taken in one short snapshot; with it, whether any row lies above them.
//! 2. Everything below a frontier never changes, so the rest is read in short statements, one after the
//!    other: an audit of an hour holds back no vacuum.
//! 3. Rows come a few thousand at a time, in the order of their offsets.

use std::collections::{BTreeMap, VecDeque};
use std::str::FromStr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde::Serialize;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Row as _};

use super::Trouble;
use super::json::{self, Json};
use super::row::{Row, day_text};
use super::servers::{self, OfServer};

/// Rows in memory at a time: at 16 KiB of metadata each they are 64 MiB, usually 1 MiB.
const ROWS_MAX: i64 = 4000;
/// How often a statement is tried when the connection is lost. More hides an outage; fewer begins a long audit anew.
const ATTEMPTS_MAX: u32 = 5;

#[derive(Debug, Clone)]
pub struct Ledger {
    pub epoch: i64,
    pub persist_frontier: i64,
    pub export_frontier: i64,
    pub persist_day: i32,
    pub closed_day: i32,
    pub first_day: i32,
    /// Rows at or above the persist frontier, and the first of them.
    pub rows_above: i64,
    pub first_above: Option<i64>,
    /// Where its last file ends: later ones were entered after this was read.
    pub files_end: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gap {
    pub partition: i32,
    pub from_offset: i64,
    pub to_offset: i64,
    pub day: String,
    pub reason: String,
}

/// What stood in the ledger at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Closed and finished days of the topic; none = it is not in the ledger.
    pub topic: Option<(i32, i32)>,
    pub partitions: BTreeMap<i32, Ledger>,
    pub gaps: Vec<Gap>,
    /// Partition numbers of rows and files that the ledger does not have.
    pub strays: Vec<i32>,
    pub today: i32,
    /// Partitions that are on two servers, or not on the one that the first server names.
    pub misplaced: Vec<String>,
    /// The first day that this ledger has anything to say of: a partition's, or a file's.
    pub first_day: Option<i32>,
    pub rows_filed: i64,
}

/// An entry of `export_files`.
#[derive(Debug, Clone, PartialEq)]
pub struct FileEntry {
    pub partition: i32,
    pub first_offset: i64,
    pub next_offset: i64,
    pub day: i32,
    pub key: String,
    pub rows: i64,
    pub bytes: i64,
    pub row_hash: String,
    pub min_ms: i64,
    pub max_ms: i64,
    pub epoch: i64,
}

impl FileEntry {
    pub fn claims(&self, offset: i64) -> bool {
        (self.first_offset..self.next_offset).contains(&offset)
    }
}

#[derive(Clone)]
pub struct Table {
    servers: Vec<PgPool>,
    topic: String,
    /// Which server has a partition's ledger row; as the last snapshot found it.
    server_of: Arc<RwLock<BTreeMap<i32, usize>>>,
}

impl Table {
    pub fn open<'a>(
        urls: impl Iterator<Item = &'a str>,
        topic: &str,
        timeout: Duration,
    ) -> Result<Self, Trouble> {
        let servers = urls.map(|url| Self::connect(url, timeout)).collect::<Result<_, _>>()?;
        Ok(Table { servers, topic: topic.to_owned(), server_of: Arc::default() })
    }

    fn connect(url: &str, timeout: Duration) -> Result<PgPool, Trouble> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|error| Trouble::Broken(format!("a URL of Postgres: {error}")))?
            .application_name("feed-worker-audit")
            .options([
                ("default_transaction_read_only", "on"),
                ("statement_timeout", "600000"),
                ("timezone", "UTC"),
                ("extra_float_digits", "3"),
            ])
            .disable_statement_logging();
        Ok(PgPoolOptions::new().max_connections(2).acquire_timeout(timeout).connect_lazy_with(options))
    }

    fn server_of(&self, partition: i32) -> usize {
        self.server_of.read().ok().and_then(|servers| servers.get(&partition).copied()).unwrap_or(0)
    }

    /// Tries a read until the server answers, a few times.
    async fn read<T, F>(&self, server: usize, ask: impl Fn(PgPool) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let mut attempts = 1;
        loop {
            let Some(pool) = self.servers.get(server) else {
                return Err(Trouble::Broken(format!("there is no server {server}")));
            };
            match ask(pool.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => match trouble(&error) {
                    Trouble::Away(_) if attempts < ATTEMPTS_MAX => {
                        attempts += 1;
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    trouble => return Err(trouble),
                },
            }
        }
    }

    /// The frontiers and what stands beside them, at one moment of each server.
    pub async fn snapshot(&self) -> Result<Snapshot, Trouble> {
        let (mut merged, mut server_of) = self.snapshots().await?;
        // Servers are not read at one moment: a partition may have begun in between.
        if !merged.misplaced.is_empty() {
            (merged, server_of) = self.snapshots().await?;
        }
        if let Ok(mut known) = self.server_of.write() {
            *known = server_of;
        }
        Ok(merged)
    }

    async fn snapshots(&self) -> Result<(Snapshot, BTreeMap<i32, usize>), Trouble> {
        let mut found = Vec::new();
        for server in 0..self.servers.len() {
            found.push(self.read(server, |pool| snapshot(pool, self.topic.clone())).await?);
        }
        servers::merge(&self.topic, found)
    }

    /// The files of a partition that begin in `[from, upto)`, or of one day; at most a thousand, by offset.
    pub async fn files(&self, partition: i32, from: i64, upto: i64) -> Result<Vec<FileEntry>, Trouble> {
        self.read(self.server_of(partition), |pool| async move {
            let statement = format!(
                "{FILES} WHERE topic = $1 AND partition = $2 AND first_offset >= $3 AND first_offset < $4
                 ORDER BY first_offset LIMIT 1000"
            );
            let found = sqlx::query(&statement);
            let found =
                found.bind(&self.topic).bind(partition).bind(from).bind(upto).fetch_all(&pool).await?;
            Ok(found.iter().map(file_entry).collect())
        })
        .await
    }

    pub async fn files_of_day(&self, day: i32) -> Result<Vec<FileEntry>, Trouble> {
        let mut files = Vec::new();
        for server in 0..self.servers.len() {
            let of_server = self.read(server, |pool| async move {
                let statement = format!("{FILES} WHERE topic = $1 AND day = date '1970-01-01' + $2");
                let found = sqlx::query(&statement).bind(&self.topic).bind(day).fetch_all(&pool).await?;
                Ok(found.iter().map(file_entry).collect::<Vec<FileEntry>>())
            });
            files.extend(of_server.await?);
        }
        files.sort_by_key(|file| (file.partition, file.first_offset));
        Ok(files)
    }

    /// Which of these keys the ledger has.
    pub async fn known_keys(&self, keys: &[String]) -> Result<Vec<String>, Trouble> {
        let mut known = Vec::new();
        for server in 0..self.servers.len() {
            let of_server = self.read(server, |pool| async move {
                sqlx::query_scalar("SELECT object_key FROM export_files WHERE object_key = ANY($1)")
                    .bind(keys)
                    .fetch_all(&pool)
                    .await
            });
            let of_server: Vec<String> = of_server.await?;
            known.extend(of_server);
        }
        Ok(known)
    }

    /// Whether `maintain` has dropped a day: its rows are past retention, and it has no partition any more, wherever it
    /// was first.
    pub async fn is_dropped(&self, day: i32, oldest_kept: i32) -> Result<bool, Trouble> {
        if day >= oldest_kept {
            return Ok(false);
        }
        let name = format!("user_interactions_{}", day_text(day).replace('-', "_"));
        for server in 0..self.servers.len() {
            if self.is_dropped_on(server, day, &name).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn is_dropped_on(&self, server: usize, day: i32, name: &str) -> Result<bool, Trouble> {
        self.read(server, |pool| {
            let name = name.to_owned();
            async move {
                sqlx::query_scalar(
                    // Through the parent: whoever only reads has no right to its partitions.
                    "SELECT to_regclass($1) IS NULL AND NOT EXISTS (
                         SELECT FROM user_interactions
                         WHERE recorded_at >= (date '1970-01-01' + $2)::timestamp AT TIME ZONE 'UTC'
                           AND recorded_at < (date '1970-01-01' + $2 + 1)::timestamp AT TIME ZONE 'UTC')",
                )
                .bind(name)
                .bind(day)
                .fetch_one(&pool)
                .await
            }
        })
        .await
    }

    /// Rows of a day whose offsets no file of the day claims: how many, and the first.
    pub async fn unclaimed(&self, partition: i32, day: i32) -> Result<(i64, Option<i64>), Trouble> {
        self.read(self.server_of(partition), |pool| async move {
            sqlx::query_as(
                "SELECT count(*), min(kafka_offset) FROM user_interactions u
                 WHERE kafka_partition = $2
                   AND recorded_at >= (date '1970-01-01' + $3)::timestamp AT TIME ZONE 'UTC'
                   AND recorded_at < (date '1970-01-01' + $3 + 1)::timestamp AT TIME ZONE 'UTC'
                   AND NOT EXISTS (SELECT FROM export_files f
                                   WHERE f.topic = $1 AND f.partition = $2 AND f.day = date '1970-01-01' + $3
                                     AND u.kafka_offset >= f.first_offset AND u.kafka_offset < f.next_offset)",
            )
            .bind(&self.topic)
            .bind(partition)
            .bind(day)
            .fetch_one(&pool)
            .await
        })
        .await
    }

    /// The rows of `[from, upto)` in the order of their offsets.
    pub fn rows(&self, partition: i32, from: i64, upto: i64) -> Rows<'_> {
        Rows { table: self, partition, from, upto, ready: VecDeque::new(), complete: from >= upto }
    }

    async fn chunk(&self, partition: i32, from: i64, upto: i64) -> Result<Vec<Row>, Trouble> {
        let found = self
            .read(self.server_of(partition), |pool| async move {
                sqlx::query(ROWS).bind(partition).bind(from).bind(upto).bind(ROWS_MAX).fetch_all(&pool).await
            })
            .await?;
        found.iter().map(row_of).collect()
    }
}

/// Rows that are fetched as they are asked for.
pub struct Rows<'t> {
    table: &'t Table,
    partition: i32,
    from: i64,
    upto: i64,
    ready: VecDeque<Row>,
    complete: bool,
}

impl Rows<'_> {
    pub async fn next(&mut self) -> Result<Option<Row>, Trouble> {
        if self.ready.is_empty() && !self.complete {
            let mut rows = self.table.chunk(self.partition, self.from, self.upto).await?;
            if rows.len() < ROWS_MAX as usize {
                self.complete = true;
            } else if let Some(last) = rows.last().map(|row| row.offset) {
                // An offset may be there twice: all rows of it belong together.
                rows.retain(|row| row.offset < last);
                self.from = last;
            }
            self.ready = rows.into();
        }
        Ok(self.ready.pop_front())
    }
}

async fn snapshot(pool: PgPool, topic: String) -> Result<OfServer, sqlx::Error> {
    let mut tx = pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
    let days: Option<(i32, i32)> = sqlx::query_as(
        "SELECT closed_day - date '1970-01-01', success_day - date '1970-01-01' FROM topic_ledger WHERE topic = $1",
    )
    .bind(&topic)
    .fetch_optional(&mut *tx)
    .await?;
    let elsewhere: Vec<(i32, String)> = sqlx::query_as(
        "SELECT partition, coalesce(stopped_detail, '') FROM partition_ledger
         WHERE topic = $1 AND stopped = 'elsewhere' ORDER BY partition",
    )
    .bind(&topic)
    .fetch_all(&mut *tx)
    .await?;
    let ledgers = sqlx::query(
        "SELECT l.partition, l.epoch, l.persist_frontier, l.export_frontier,
                l.persist_day - date '1970-01-01' AS persist_day, l.closed_day - date '1970-01-01' AS closed_day,
                l.first_day - date '1970-01-01' AS first_day, above.rows, above.first,
                (SELECT next_offset FROM export_files f WHERE f.topic = l.topic AND f.partition = l.partition
                 ORDER BY first_offset DESC LIMIT 1) AS files_end
         FROM partition_ledger l CROSS JOIN LATERAL (
             SELECT count(*) AS rows, min(kafka_offset) AS first FROM user_interactions u
             WHERE u.kafka_partition = l.partition AND u.kafka_offset >= l.persist_frontier) above
         WHERE l.topic = $1 AND l.stopped IS DISTINCT FROM 'elsewhere'",
    )
    .bind(&topic)
    .fetch_all(&mut *tx)
    .await?;
    let gaps: Vec<(i32, i64, i64, String, String)> = sqlx::query_as(
        "SELECT partition, from_offset, to_offset, day::text, reason FROM ingest_gaps WHERE topic = $1
         ORDER BY partition, from_offset",
    )
    .bind(&topic)
    .fetch_all(&mut *tx)
    .await?;
    // From one partition number to the next by the primary key: a DISTINCT would read the whole table.
    let strays: Vec<i32> = sqlx::query_scalar(
        "WITH RECURSIVE numbers AS (
             SELECT min(kafka_partition) AS n FROM user_interactions
             UNION ALL
             SELECT (SELECT min(kafka_partition) FROM user_interactions WHERE kafka_partition > n)
             FROM numbers WHERE n IS NOT NULL)
         SELECT n FROM numbers WHERE n IS NOT NULL
         UNION SELECT DISTINCT partition FROM export_files WHERE topic = $1
         EXCEPT SELECT partition FROM partition_ledger WHERE topic = $1 AND stopped IS DISTINCT FROM 'elsewhere'
         ORDER BY 1",
    )
    .bind(&topic)
    .fetch_all(&mut *tx)
    .await?;
    let (today, first_day, rows_filed): (i32, Option<i32>, i64) = sqlx::query_as(
        "SELECT (now() AT TIME ZONE 'UTC')::date - date '1970-01-01',
                least(min(day), (SELECT min(first_day) FROM partition_ledger
                                 WHERE topic = $1 AND first_day > date '1970-01-01')) - date '1970-01-01',
                coalesce(sum(rows), 0)::bigint
         FROM export_files WHERE topic = $1",
    )
    .bind(&topic)
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let ledger = |row: &PgRow| {
        let ledger = Ledger {
            epoch: row.get("epoch"),
            persist_frontier: row.get("persist_frontier"),
            export_frontier: row.get("export_frontier"),
            persist_day: row.get("persist_day"),
            closed_day: row.get("closed_day"),
            first_day: row.get("first_day"),
            rows_above: row.get("rows"),
            first_above: row.get("first"),
            files_end: row.get("files_end"),
        };
        (row.get("partition"), ledger)
    };
    let gap = |(partition, from_offset, to_offset, day, reason)| Gap {
        partition,
        from_offset,
        to_offset,
        day,
        reason,
    };
    let found = Snapshot {
        topic: days,
        partitions: ledgers.iter().map(ledger).collect(),
        gaps: gaps.into_iter().map(gap).collect(),
        strays,
        misplaced: Vec::new(),
        today,
        first_day,
        rows_filed,
    };
    Ok(OfServer { found, elsewhere })
}

const FILES: &str =
    "SELECT partition, first_offset, next_offset, day - date '1970-01-01' AS day, object_key, rows, bytes,
        row_hash, epoch, (extract(epoch FROM recorded_at_min) * 1000)::bigint AS min_ms,
        (extract(epoch FROM recorded_at_max) * 1000)::bigint AS max_ms
    FROM export_files";

fn file_entry(row: &PgRow) -> FileEntry {
    FileEntry {
        partition: row.get("partition"),
        first_offset: row.get("first_offset"),
        next_offset: row.get("next_offset"),
        day: row.get("day"),
        key: row.get("object_key"),
        rows: row.get("rows"),
        bytes: row.get("bytes"),
        row_hash: row.get("row_hash"),
        min_ms: row.get("min_ms"),
        max_ms: row.get("max_ms"),
        epoch: row.get("epoch"),
    }
}

const ROWS: &str =
    "SELECT kafka_partition, kafka_offset, (extract(epoch FROM recorded_at) * 1000000)::bigint AS recorded,
        (extract(epoch FROM occurred_at) * 1000000)::bigint AS occurred,
        (extract(epoch FROM ingested_at) * 1000000)::bigint AS ingested, uuid_send(user_id) AS user_id,
        uuid_send(video_id) AS video_id, interaction_type, interaction_weight, watch_time_seconds,
        recommendation_score, position, algorithm, experiment_variant_id, feed_session_id,
        uuid_send(event_id) AS event_id, metadata::text AS metadata
    FROM user_interactions WHERE kafka_partition = $1 AND kafka_offset >= $2 AND kafka_offset < $3
    ORDER BY kafka_offset, recorded_at LIMIT $4";

fn row_of(row: &PgRow) -> Result<Row, Trouble> {
    let broken = |error: sqlx::Error| Trouble::Broken(format!("a row of user_interactions: {error}"));
    let id = |name: &str| -> Result<Option<[u8; 16]>, Trouble> {
        let bytes: Option<Vec<u8>> = row.try_get(name).map_err(broken)?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()))
    };
    let metadata: Option<String> = row.try_get("metadata").map_err(broken)?;
    Ok(Row {
        partition: row.try_get("kafka_partition").map_err(broken)?,
        offset: row.try_get("kafka_offset").map_err(broken)?,
        recorded_us: row.try_get("recorded").map_err(broken)?,
        occurred_us: row.try_get("occurred").map_err(broken)?,
        ingested_us: row.try_get("ingested").map_err(broken)?,
        user: id("user_id")?.unwrap_or_default(),
        video: id("video_id")?.unwrap_or_default(),
        kind: row.try_get("interaction_type").map_err(broken)?,
        weight: row.try_get("interaction_weight").map_err(broken)?,
        watch_time: row.try_get("watch_time_seconds").map_err(broken)?,
        score: row.try_get("recommendation_score").map_err(broken)?,
        position: row.try_get("position").map_err(broken)?,
        algorithm: row.try_get("algorithm").map_err(broken)?,
        variant: row.try_get("experiment_variant_id").map_err(broken)?,
        session: row.try_get("feed_session_id").map_err(broken)?,
        event: id("event_id")?,
        metadata: metadata.map(|text| canonical(&text)),
    })
}

/// jsonb as Postgres spells it → canonical. What is no object of texts stays as it is, and then differs.
fn canonical(text: &str) -> String {
    let Ok(Json::Object(members)) = json::parse(text.as_bytes()) else { return text.to_owned() };
    let mut entries = Vec::new();
    for member in members {
        let Json::Text(value) = member.value else { return text.to_owned() };
        entries.push((member.key, value));
    }
    json::canonical(&mut entries)
}

fn trouble(error: &sqlx::Error) -> Trouble {
    let text = format!("Postgres: {error}");
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => {
            Trouble::Away(text)
        }
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // Shutting down, starting up, no room, connection lost.
            Some(code) if ["57P", "08", "53"].iter().any(|class| code.starts_with(class)) => {
                Trouble::Away(text)
            }
            Some("42P01" | "3D000") => Trouble::Refused(format!("{text}: there is nothing to audit")),
            _ => Trouble::Broken(text),
        },
        _ => Trouble::Broken(text),
    }
}
