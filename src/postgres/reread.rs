//! Reading back: table → rows, for an exporter that is behind.
//!
//! A chunk carries what the ledger said *after* the rows were read: as long as the epoch is still
//! mine, nobody else can have closed the day, so rows that were not there are rows that do not exist.

use futures::StreamExt;
use sqlx::postgres::PgPool;

use crate::failpoint::failpoint;
use crate::outside::Database;
use crate::row::{self, CopyOutParser};

/// What to read: rows of `[from, upto)`, at most so many, up to the one that makes so many bytes full.
#[derive(Clone, Debug)]
pub struct Range {
    pub partition: i32,
    pub epoch: i64,
    pub from: i64,
    pub upto: i64,
    /// No row of the range is older than this day: Postgres prunes the table's partitions by it.
    pub first_day: i32,
    pub rows_max: u64,
    pub bytes_max: usize,
}

/// Rows that were read back.
#[derive(Debug)]
pub enum Reread {
    Rows {
        tuples: Vec<u8>,
        rows: u64,
        /// Whether this is all there is up to `upto`.
        complete: bool,
        /// The ledger's export frontier.
        export_frontier: i64,
    },
    /// Another owner has the partition.
    Fenced,
}

/// Reads one chunk, in the order of offsets.
pub async fn read(pool: &PgPool, topic: &str, range: &Range) -> Result<Reread, sqlx::Error> {
    failpoint!("reread.before-rows");
    let mut connection = pool.acquire().await?;
    let statement = format!(
        "COPY (SELECT {} FROM user_interactions
               WHERE kafka_partition = {} AND kafka_offset >= {} AND kafka_offset < {}
                 AND recorded_at >= '{} 00:00:00+00'
               ORDER BY kafka_offset LIMIT {}) TO STDOUT (FORMAT binary)",
        row::COLUMNS.join(", "),
        range.partition,
        range.from,
        range.upto,
        row::day_text(range.first_day),
        range.rows_max,
    );
    let mut tuples = Vec::new();
    let mut parser = CopyOutParser::new();
    let mut full = false;
    {
        let mut stream = connection.copy_out_raw(&statement).await?;
        while !full && let Some(bytes) = stream.next().await {
            parser.push(&bytes?, &mut tuples).map_err(|e| sqlx::Error::Decode(e.into()))?;
            full = !tuples.is_empty() && tuples.len() >= range.bytes_max;
        }
    }
    let rows = if full {
        // Postgres would send the rest, however much that is: nothing but the connection's end makes it stop.
        connection.close_on_drop();
        drop(connection);
        connection = pool.acquire().await?;
        parser.rows()
    } else {
        parser.finish().map_err(|e| sqlx::Error::Decode(e.into()))?
    };
    failpoint!("reread.after-rows");
    let ledger: Option<(i64, i64)> = sqlx::query_as(
        "SELECT epoch, export_frontier FROM partition_ledger WHERE topic = $1 AND partition = $2",
    )
    .bind(topic)
    .bind(range.partition)
    .fetch_optional(&mut *connection)
    .await?;
    Ok(match ledger {
        Some((epoch, export_frontier)) if epoch == range.epoch => {
            Reread::Rows { tuples, rows, complete: !full && rows < range.rows_max, export_frontier }
        }
        _ => Reread::Fenced,
    })
}

/// When the first row at or above an offset was recorded. No such row is older than `first_day`, which bounds the
/// table's partitions that Postgres has to look into.
pub async fn oldest_row_ms(
    pool: &PgPool,
    partition: i32,
    from: i64,
    first_day: i32,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT (extract(epoch FROM recorded_at) * 1000)::bigint FROM user_interactions
         WHERE kafka_partition = $1 AND kafka_offset >= $2
           AND recorded_at >= (DATE '1970-01-01' + $3::int)::timestamp AT TIME ZONE 'UTC'
         ORDER BY kafka_offset LIMIT 1",
    )
    .bind(partition)
    .bind(from)
    .bind(first_day)
    .fetch_optional(pool)
    .await
}

/// What a range of the table holds.
#[derive(Debug)]
pub struct Summary {
    pub rows: u64,
    pub hash: String,
    pub recorded_at_min_ms: i64,
    pub recorded_at_max_ms: i64,
}

/// Reads a whole range and sums it up; none when another owner has the partition.
pub async fn summarize(database: &dyn Database, range: &Range) -> Result<Option<Summary>, sqlx::Error> {
    let mut hasher = row::RowHasher::new();
    let (mut rows_total, mut min_ms, mut max_ms) = (0, i64::MAX, i64::MIN);
    let mut range = range.clone();
    loop {
        let Reread::Rows { tuples, rows, complete, .. } = database.read(&range).await? else {
            return Ok(None);
        };
        hasher.update(&tuples);
        rows_total += rows;
        for tuple in row::Rows::new(&tuples) {
            let tuple = tuple.map_err(|e| sqlx::Error::Decode(e.into()))?;
            min_ms = min_ms.min(tuple.recorded_at_ms());
            max_ms = max_ms.max(tuple.recorded_at_ms());
            range.from = tuple.offset() + 1;
        }
        if complete {
            return Ok(Some(Summary {
                rows: rows_total,
                hash: hasher.hex(),
                recorded_at_min_ms: min_ms,
                recorded_at_max_ms: max_ms,
            }));
        }
    }
}
