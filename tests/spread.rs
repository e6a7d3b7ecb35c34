//! Several Postgres servers behind one: what happens to days and first rows while somebody else does something in
//! between. Two databases stand for two servers: nothing is shared but the machine.

#[path = "support/postgres.rs"]
mod postgres;

use std::time::{Duration, Instant};

use feed_worker::config::{Config, Secret};
use feed_worker::kafka::rebalance::Candidate;
use feed_worker::outside::Database;
use feed_worker::placement::Placement;
use feed_worker::postgres::ledger::{Assigned, Identity, LedgerError};
use feed_worker::postgres::{MIGRATIONS, Postgres, Spread, places};
use feed_worker::reject_limit::RejectLimits;
use postgres::Postgres as Server;

const TOPIC: &str = "feed.spread";
const DAY: i32 = 20_000;
/// Shorter may miss a slow machine's wait, which makes the test weaker and not wrong; longer comes near the 5 s after
/// which Postgres ends a transaction that does nothing.
const COMES_TO_A_LOCK_MAX: Duration = Duration::from_secs(3);
const LIMITS: RejectLimits = RejectLimits { run_max: 10, ratio_max: 0.5, window: 100 };

/// Two servers, with migrated tables and the topic at home.
struct Pair {
    _server: Server,
    urls: [String; 2],
    servers: [Postgres; 2],
    who: Identity,
}

fn config(urls: &[String], placement: &str) -> Config {
    let mut config = Config::default();
    config.kafka.topic = TOPIC.to_owned();
    config.postgres.url = Secret::new(&urls[0]);
    config.postgres.more_urls = Secret::new(urls[1..].join(" "));
    config.postgres.placement = placement.to_owned();
    config
}

impl Pair {
    async fn new(name: &str) -> Self {
        let server = Server::start(name);
        let mut connection = server.connect().await;
        sqlx::query("CREATE DATABASE more").execute(&mut connection).await.unwrap();
        let url = |database: &str| {
            format!("postgres://postgres@localhost/{database}?host={}", server.folder.display())
        };
        let urls = [url("postgres"), url("more")];
        let servers = [0, 1].map(|server| Postgres::on(&config(&urls, ""), server).unwrap());
        for server in &servers {
            MIGRATIONS.run(&server.pool).await.unwrap();
        }
        let who = Identity {
            topic: TOPIC.to_owned(),
            cluster_id: "cluster".to_owned(),
            group_id: "group".to_owned(),
            owner: "somebody".to_owned(),
        };
        Pair { _server: server, urls, servers, who }
    }

    fn spread(&self, placement: &str) -> Spread {
        let config = config(&self.urls, placement);
        let servers = [0, 1].map(|server| Postgres::on(&config, server).unwrap());
        Spread::new(&config, servers.into())
    }

    async fn assign(&self, spread: &Spread, partitions: &[i32]) -> Result<Assigned, LedgerError> {
        let candidate = |partition: &i32| Candidate {
            partition: *partition,
            low: 0,
            high: 0,
            committed: None,
            is_short: false,
        };
        let candidates: Vec<Candidate> = partitions.iter().map(candidate).collect();
        spread.assign(&self.who, &candidates, &[], &LIMITS).await
    }

    /// Both partitions are there, 0 at home and 1 on the other server, and have closed `DAY`.
    async fn with_closed_partitions(&self, spread: &Spread) {
        spread.enter_topic(&self.who, DAY).await.unwrap();
        let assigned = self.assign(spread, &[0, 1]).await.unwrap();
        assert_eq!(assigned.owned.len(), 2, "{assigned:?}");
        for owned in assigned.owned {
            let at = (owned.partition, owned.epoch, owned.persist_frontier);
            assert!(spread.advance(at, (owned.persist_day, DAY + 1)).await.unwrap());
            let closed = spread.close_partition(owned.partition, owned.epoch, DAY + 1).await.unwrap();
            assert_eq!(closed, Some(DAY));
        }
    }

    async fn closed_days(&self) -> [i32; 2] {
        let mut days = [0; 2];
        for (day, server) in days.iter_mut().zip(&self.servers) {
            *day = server.topic_days().await.unwrap().unwrap().0;
        }
        days
    }

    /// Ends whoever holds a lock on a server, as a time-out or a crash would.
    async fn end_transactions(&self, server: usize) {
        let ended: i64 = sqlx::query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND state = 'idle in transaction'",
        )
        .fetch_one(&self.servers[server].pool)
        .await
        .unwrap();
        assert_eq!(ended, 1);
    }

    /// Until somebody waits for a lock on a server, or would have come to it.
    async fn wait_for_who_waits(&self, server: usize) {
        let begun = Instant::now();
        while begun.elapsed() < COMES_TO_A_LOCK_MAX {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(&self.servers[server].pool)
            .await
            .unwrap();
            if waiting > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// From now on a transaction that closes a day of the topic fails when it commits.
    async fn fail_commits(&self, server: usize) {
        let statements = "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE 'no commit'; END $$;
             CREATE CONSTRAINT TRIGGER fail AFTER UPDATE ON topic_ledger DEFERRABLE INITIALLY DEFERRED
                 FOR EACH ROW WHEN (new.closed_day > old.closed_day) EXECUTE FUNCTION fail()";
        sqlx::raw_sql(statements).execute(&self.servers[server].pool).await.unwrap();
    }

    async fn let_commits(&self, server: usize) {
        sqlx::raw_sql("DROP TRIGGER fail ON topic_ledger").execute(&self.servers[server].pool).await.unwrap();
    }

    /// (partition, first day) of the ledger rows that a server has, entries of other places left out.
    async fn rows(&self, server: usize) -> Vec<(i32, i32)> {
        sqlx::query_as(
            "SELECT partition, first_day - date '1970-01-01' FROM partition_ledger WHERE stopped IS NULL ORDER BY 1",
        )
        .fetch_all(&self.servers[server].pool)
        .await
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_closes_only_by_the_locks_under_which_it_was_looked_at() {
    let pair = Pair::new("spread-close").await;
    let spread = pair.spread("1: 1, 3-9: 1");
    pair.with_closed_partitions(&spread).await;
    assert_eq!(spread.least_closed().await.unwrap(), Some(DAY));

    // A partition that no server knows, or a broker that does not answer, keeps the day open.
    spread.close_topic(Box::pin(async { Some(vec![0, 1, 2]) })).await.unwrap();
    spread.close_topic(Box::pin(async { Some(vec![0, 1, 3]) })).await.unwrap();
    spread.close_topic(Box::pin(async { None })).await.unwrap();
    assert_eq!(pair.closed_days().await, [DAY - 1; 2]);

    // The other server's lock is lost: somebody could have begun a partition there, so home is not reached.
    let close = spread.close_topic(Box::pin(async {
        pair.end_transactions(1).await;
        Some(vec![0, 1])
    }));
    close.await.unwrap_err();
    assert_eq!(pair.closed_days().await, [DAY - 1; 2]);

    let close = spread.close_topic(Box::pin(async {
        pair.end_transactions(0).await;
        Some(vec![0, 1])
    }));
    close.await.unwrap_err();
    assert_eq!(pair.closed_days().await, [DAY - 1; 2]);

    // The other server fails as late as it can: home's day is not closed.
    pair.fail_commits(1).await;
    spread.close_topic(Box::pin(async { Some(vec![0, 1]) })).await.unwrap_err();
    assert_eq!(pair.closed_days().await, [DAY - 1; 2]);
    pair.let_commits(1).await;

    // Home does: the other server is ahead, which only makes partitions begin later.
    pair.fail_commits(0).await;
    spread.close_topic(Box::pin(async { Some(vec![0, 1]) })).await.unwrap_err();
    assert_eq!(pair.closed_days().await, [DAY - 1, DAY]);
    pair.let_commits(0).await;
    pair.assign(&spread, &[3]).await.unwrap();
    assert_eq!(pair.rows(1).await, [(1, DAY), (3, DAY + 1)]);

    // The next attempt says the same again; a partition that began later does not keep it.
    spread.close_topic(Box::pin(async { Some(vec![0, 1, 3]) })).await.unwrap();
    assert_eq!(pair.closed_days().await, [DAY; 2]);
    spread.close_topic(Box::pin(async { Some(vec![0, 1, 3]) })).await.unwrap();
    assert_eq!(pair.closed_days().await, [DAY; 2], "and changes nothing");
    assert_eq!(spread.partitions(DAY).await.unwrap(), [0, 1]);
    assert_eq!(spread.partitions(DAY + 1).await.unwrap(), [0, 1, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_begins_while_a_day_closes_begins_after_it() {
    let pair = Pair::new("spread-begin").await;
    let spread = pair.spread("1: 1, 3-9: 1");
    pair.with_closed_partitions(&spread).await;
    let other = pair.spread("1: 1, 3-9: 1");
    let (hold, held) = tokio::sync::oneshot::channel();
    let at = &pair;
    let close = spread.close_topic(Box::pin(async move {
        hold.send(()).unwrap();
        // Asked for before partition 3 came to be; its taking over has to wait for the closing.
        at.wait_for_who_waits(0).await;
        Some(vec![0, 1])
    }));
    let begin = async {
        held.await.unwrap();
        pair.assign(&other, &[3]).await
    };
    let (closed, begun) = tokio::join!(close, begin);
    closed.unwrap();
    assert_eq!(begun.unwrap().owned.len(), 1);
    assert_eq!(pair.closed_days().await, [DAY; 2]);
    assert_eq!(pair.rows(1).await, [(1, DAY), (3, DAY + 1)]);

    // A server that knew nothing of the topic's days learns them from home before anything begins there.
    sqlx::query("UPDATE topic_ledger SET closed_day = closed_day - 5, success_day = closed_day - 5")
        .execute(&pair.servers[1].pool)
        .await
        .unwrap();
    pair.assign(&spread, &[4]).await.unwrap();
    assert_eq!(pair.rows(1).await, [(1, DAY), (3, DAY + 1), (4, DAY + 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_begins_on_one_server_however_workers_are_configured() {
    let pair = Pair::new("spread-place").await;
    let (here, there) = (pair.spread("9: 1"), pair.spread("0-9: 1"));
    here.enter_topic(&pair.who, DAY).await.unwrap();
    // Whoever comes first: at home, or on the other server.
    assert_eq!(pair.assign(&here, &[0]).await.unwrap().owned.len(), 1);
    assert_eq!(pair.assign(&there, &[1]).await.unwrap().owned.len(), 1);
    for (spread, partition) in [(&there, 0), (&here, 1)] {
        match pair.assign(spread, &[partition]).await {
            Err(LedgerError::Refused(why)) => {
                assert!(why.contains(&format!("partition {partition} is configured for server")), "{why}");
            }
            other => panic!("partition {partition}: {other:?}"),
        }
    }
    // Both at once, again and again: one of them is refused, and no partition is on two servers.
    for partition in 2..9 {
        let (at, of) = ([partition], [partition]);
        let both = tokio::join!(pair.assign(&here, &at), pair.assign(&there, &of));
        let taken =
            [&both.0, &both.1].iter().filter(|one| one.as_ref().is_ok_and(|a| !a.owned.is_empty())).count();
        assert_eq!(taken, 1, "partition {partition}: {both:?}");
    }
    // The same number is another server where the order differs: what is entered for one begins on no other.
    let entered = places::enter(&pair.servers[0], &pair.who, &[10], (1, "elsewhere:5432/other")).await;
    assert_eq!(entered.unwrap(), DAY - 1);
    assert!(matches!(pair.assign(&pair.spread("10: 1"), &[10]).await, Err(LedgerError::Refused(_))));
    let rows = [pair.rows(0).await, pair.rows(1).await].concat();
    let mut partitions: Vec<i32> = rows.iter().map(|(partition, _)| *partition).collect();
    partitions.sort_unstable();
    assert_eq!(partitions, (0..9).collect::<Vec<_>>());
    // Nobody whose configuration does not fit finishes a day: its manifest would lack files.
    here.partitions(DAY).await.unwrap_err();
    there.partitions(DAY).await.unwrap_err();
    pair.servers[0].partitions(DAY).await.unwrap_err();
    // What the workers ask at their start: one placement cannot be right for all of these.
    for placement in ["9: 1", "0-9: 1"] {
        let placed = Placement::parse(placement).unwrap();
        assert!(matches!(places::check(&pair.servers, &placed, TOPIC).await, Err(LedgerError::Refused(_))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_all_its_rows_has_closed_no_day() {
    let pair = Pair::new("spread-lost").await;
    let spread = pair.spread("1: 1");
    pair.with_closed_partitions(&spread).await;
    sqlx::query("DELETE FROM partition_ledger").execute(&pair.servers[1].pool).await.unwrap();
    // How far back the bucket is asked whether Postgres was restored goes by the least closed day.
    let found = spread.peek(&[0, 1]).await.unwrap();
    let days: Vec<(i32, i32)> = found.values().map(|owned| (owned.partition, owned.closed_day)).collect();
    assert_eq!(days, [(0, DAY), (1, -1)]);
    assert_eq!(spread.peek(&[0]).await.unwrap().len(), 1, "of partitions that are asked for");
}
