//! Where a partition is, written down at home: who first consumes a partition on another server than the first enters
//! it there, once and for good, before its ledger row begins on its server.
//!
//! 1. The entry is a row of the home server's ledger that is stopped, as [`ELSEWHERE`]: a worker that knows nothing of
//!    other servers does not consume the partition, nor does it close a day, for the row's day never moves. (A release
//!    that does not know such rows would write the manifest of a day that others have closed, without these
//!    partitions' files: docs/deploy.md says when placement may be configured.)
//! 2. One row of one table decides, whoever comes first: two workers that are configured differently cannot both begin
//!    a partition, each on another server. What is compared is the server's address, not only its number: the same
//!    number names another server where the configured order differs.
//! 3. Nobody ever removes an entry: the partition stays where it is.

use std::collections::BTreeMap;

use sqlx::PgExecutor;

use super::ledger::{Identity, LedgerError, check_identity};
use super::{Postgres, day};
use crate::placement::Placement;

/// What such a row is stopped for. The detail is the number of the server, and where it was then.
pub const ELSEWHERE: &str = "elsewhere";

/// Where a row says that its partition is, given why it is stopped: `1 host:port/database`.
pub fn place_of(reason: &str) -> Option<&str> {
    reason.strip_prefix(ELSEWHERE)?.strip_prefix(": ")
}

/// A place that is another one than the configuration says.
pub fn refusal(partition: i32, configured: &str, found: &str) -> String {
    format!(
        "postgres.placement: partition {partition} is configured for server {configured}, but its ledger is on server \
         {found}; a partition stays where it was first consumed: put postgres.placement (and the order of \
         postgres.more_urls) back for it. Nothing of it was consumed"
    )
}

/// Enters partitions that are to begin on another server, and returns the topic's closed day as it stands at home then:
/// from now on no day after it is closed before they have a row on their server.
pub async fn enter(
    home: &Postgres,
    who: &Identity,
    partitions: &[i32],
    (server, location): (usize, &str),
) -> Result<i32, LedgerError> {
    let mut tx = home.pool.begin().await?;
    check_identity(&mut tx, who).await?;
    let closed_day: Option<i32> = sqlx::query_scalar(
        "SELECT closed_day - date '1970-01-01' FROM topic_ledger WHERE topic = $1 FOR UPDATE",
    )
    .bind(&who.topic)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(closed_day) = closed_day else {
        return Err(LedgerError::World(format!("the topic is not entered at {} yet", home.location)));
    };
    insert_entries(&mut *tx, &who.topic, partitions, &entry(server, location), "").await?;
    let found: Vec<(i32, String)> =
        sqlx::query_as(&format!("{PLACES} AND partition = ANY($2) ORDER BY partition"))
            .bind(&who.topic)
            .bind(partitions)
            .fetch_all(&mut *tx)
            .await?;
    for (partition, place) in found {
        let wanted = format!("{server} ({location})");
        if place.is_empty() {
            return Err(LedgerError::Refused(refusal(partition, &wanted, &format!("0 ({})", home.location))));
        }
        // It has no row on this server: whoever entered it may begin it elsewhere at any time, unless that is here.
        if place != entry(server, location) {
            return Err(LedgerError::Refused(refusal(partition, &wanted, &place)));
        }
    }
    tx.commit().await?;
    Ok(closed_day)
}

/// What an entry says: the server's number, and where it was then.
pub fn entry(server: usize, location: &str) -> String {
    format!("{server} {location}")
}

/// Enters partitions that have no row at home; how many those were.
pub async fn insert_entries(
    executor: impl PgExecutor<'_>,
    topic: &str,
    partitions: &[i32],
    entry: &str,
    owner: &str,
) -> Result<u64, sqlx::Error> {
    sqlx::query(
        "INSERT INTO partition_ledger (topic, partition, epoch, owner, persist_frontier, persist_day,
             export_frontier, closed_day, first_day, cluster_id, group_id, stopped, stopped_detail)
         SELECT t.topic, n.partition, 0, $5, 0, t.closed_day + 1, 0, t.closed_day, date '9999-12-31', t.cluster_id,
             t.group_id, $3, $4
         FROM unnest($2::int[]) AS n (partition), topic_ledger t
         WHERE t.topic = $1 ORDER BY n.partition ON CONFLICT (topic, partition) DO NOTHING",
    )
    .bind(topic)
    .bind(partitions)
    .bind(ELSEWHERE)
    .bind(entry)
    .bind(owner)
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
}

/// Enters the topic on another server than home, or moves its closed day up to home's.
/// Its row is locked for as long as the transaction lasts, whether it was there or not.
pub async fn raise_topic(
    executor: impl PgExecutor<'_>,
    (topic, cluster_id, group_id): (&str, &str, &str),
    closed: i32,
) -> Result<(), sqlx::Error> {
    sqlx::query(concat!(
        "INSERT INTO topic_ledger AS t (topic, cluster_id, group_id, closed_day, success_day)
         VALUES ($1, $2, $3, ",
        day!(4),
        ", ",
        day!(4),
        ") ON CONFLICT (topic) DO UPDATE SET closed_day = greatest(t.closed_day, excluded.closed_day), updated_at = now()
           WHERE t.cluster_id = excluded.cluster_id AND t.group_id = excluded.group_id"
    ))
    .bind(topic)
    .bind(cluster_id)
    .bind(group_id)
    .bind(closed)
    .execute(executor)
    .await
    .map(drop)
}

/// Partitions and what their row says of their place: nothing where it is here.
const PLACES: &str =
    "SELECT partition, CASE WHEN stopped = 'elsewhere' THEN coalesce(nullif(stopped_detail, ''), '?') ELSE '' END
     FROM partition_ledger WHERE topic = $1";

/// What a server's ledger says of where partitions are; nothing where it is here.
pub async fn places(
    executor: impl PgExecutor<'_>,
    topic: &str,
) -> Result<BTreeMap<i32, String>, sqlx::Error> {
    let found: Vec<(i32, String)> = sqlx::query_as(PLACES).bind(topic).fetch_all(executor).await?;
    Ok(found.into_iter().collect())
}

/// A partition that this ledger has on another server, and where.
pub async fn one_elsewhere(
    executor: impl PgExecutor<'_>,
    topic: &str,
) -> Result<Option<(i32, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT partition, coalesce(stopped_detail, '?') FROM partition_ledger
         WHERE topic = $1 AND stopped = $2 ORDER BY partition LIMIT 1",
    )
    .bind(topic)
    .bind(ELSEWHERE)
    .fetch_optional(executor)
    .await
}

fn number(place: &str) -> Option<usize> {
    place.split(' ').next()?.parse().ok()
}

/// Holds the placement against the ledgers of the servers that answer: every row must be on its partition's server, and
/// every entry must name it.
pub async fn check(servers: &[Postgres], placement: &Placement, topic: &str) -> Result<(), LedgerError> {
    for (server, postgres) in servers.iter().enumerate() {
        let found = match postgres.in_time(places(&postgres.pool, topic)).await {
            Ok(found) => found,
            // Nothing begins on it before it answers; what has begun there is found by its own rows.
            Err(error) if server > 0 => {
                tracing::warn!(server, postgres.location, %error, "whose partitions it has is not known yet");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let locations: Vec<&str> = servers.iter().map(|postgres| &*postgres.location).collect();
        if let Some(why) = misplaced(&found, server, placement, &locations) {
            return Err(LedgerError::Refused(why));
        }
    }
    Ok(())
}

/// Why a server's ledger cannot be used with a placement: a partition is here and should not be, or is elsewhere, and
/// not where it should be.
pub fn misplaced(
    found: &BTreeMap<i32, String>,
    server: usize,
    placement: &Placement,
    locations: &[&str],
) -> Option<String> {
    let location = |server: usize| format!("{server} ({})", locations.get(server).unwrap_or(&"?"));
    found.iter().find_map(|(partition, place)| {
        let configured = placement.server_of(*partition);
        let wanted = location(configured);
        if place.is_empty() {
            return (configured != server).then(|| refusal(*partition, &wanted, &location(server)));
        }
        (number(place) != Some(configured)).then(|| refusal(*partition, &wanted, place))
    })
}
