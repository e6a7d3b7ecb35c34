//! The ledger in memory is held to the SQL: the same random operations on both, the same answers, and the
//! same state after each.

use std::collections::BTreeMap;
use std::time::Duration;

use feed_worker::config::{Config, Secret};
use feed_worker::event::{Interaction, InteractionTypes};
use feed_worker::kafka::rebalance::Candidate;
use feed_worker::outside::{Database, Session};
use feed_worker::postgres::lane::PartitionBatch;
use feed_worker::postgres::ledger::{Identity, LedgerError, NewFile, NewestObject, Owned, Stop};
use feed_worker::postgres::reread::{Range, Reread};
use feed_worker::postgres::transaction::Failure;
use feed_worker::postgres::{MIGRATIONS, Postgres};
use feed_worker::reject_limit::{RejectLimits, RejectWindow};
use feed_worker::row::{self, Coordinates};
use feed_worker::telemetry::traces::Times;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::checker::user;
use crate::ledger::{Ledger, keyed};
use crate::run::TOPIC;
use crate::server::Postgres as Server;

/// Sequences, and operations in each: enough that every answer of every operation is seen.
const SEQUENCES: u64 = 12;
const OPERATIONS: usize = 120;
const DAY: i32 = 20_500;
const LIMITS: RejectLimits = RejectLimits { run_max: 50, ratio_max: 1.0, window: 1_000 };

fn tuples(partition: i32, offsets: std::ops::Range<i64>, day: i32) -> Vec<u8> {
    let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
    let mut out = Vec::new();
    for offset in offsets {
        let recorded_at_ms = row::day_start_ms(day) + offset;
        let interaction = Interaction {
            user_id: user(partition, offset),
            video_id: user(partition, offset),
            interaction_type: types.lookup("view").unwrap(),
            occurred_at_ms: recorded_at_ms,
            watch_time_seconds: None,
            recommendation_score: None,
            position: None,
            event_id: None,
            algorithm: None,
            experiment_variant_id: None,
            feed_session_id: None,
            metadata: None,
        };
        let at = Coordinates { partition, offset, recorded_at_ms, ingested_at_ms: recorded_at_ms };
        row::encode(&mut out, &at, &interaction, &types);
    }
    out
}

/// Both, and chance.
struct Pair {
    sql: Postgres,
    session: Box<dyn Session>,
    model: Ledger,
    rng: SmallRng,
    answers: BTreeMap<String, u64>,
}

impl Pair {
    /// Mostly the true value, sometimes one beside it.
    fn near(&mut self, value: i64) -> i64 {
        if self.rng.random_bool(0.75) { value } else { value + self.rng.random_range(-2..=2) }
    }

    fn partition(&mut self) -> i32 {
        self.rng.random_range(0..3)
    }

    fn agree<T: std::fmt::Debug>(&mut self, what: &str, sql: T, model: T) {
        let (sql, model) = (format!("{sql:?}"), format!("{model:?}"));
        assert_eq!(sql, model, "{what}: Postgres, then the model");
        let kind: String = sql.chars().filter(|c| c.is_alphabetic()).take(24).collect();
        *self.answers.entry(format!("{what} {kind}")).or_default() += 1;
    }

    async fn operate(&mut self) {
        let partition = self.partition();
        let stand = self.model.owned(partition);
        let number = |of: fn(&Owned) -> i64| stand.as_ref().map_or(0, of);
        let (epoch, frontier) =
            (self.near(number(|o| o.epoch)), self.near(number(|o| o.persist_frontier)).max(0));
        let exported = self.near(number(|o| o.export_frontier)).max(0);
        let day = i32::try_from(self.near(number(|o| o.persist_day.into()))).unwrap().max(DAY);
        match self.rng.random_range(0..100) {
            0..12 => self.assign().await,
            12..42 => self.persist(partition, epoch, frontier, day).await,
            42..62 => self.enter_file(partition, epoch, exported).await,
            62..70 => {
                let to = day + self.rng.random_range(-1..3);
                let sql = self.sql.advance((partition, epoch, frontier), (day, to)).await.unwrap();
                let model = self.model.advance((partition, epoch, frontier), (day, to));
                self.agree("advance", sql, model);
            }
            70..82 => {
                let sql = self.sql.close_partition(partition, epoch, day).await.unwrap();
                if self.model.may_close(partition, epoch, day, self.model.commits) {
                    self.model.close(partition, day);
                }
                let model = self.model.closed(partition, epoch);
                self.agree("close partition", sql, model);
            }
            82..88 => {
                let partitions: Vec<i32> = (0..self.rng.random_range(1..5)).collect();
                let asked = partitions.clone();
                self.sql.close_topic(Box::pin(async { Some(asked) })).await.unwrap();
                self.model.close_topic(&partitions);
            }
            88..93 => {
                let day = DAY + self.rng.random_range(-2..4);
                self.sql.finished(day).await.unwrap();
                self.model.finished(day);
            }
            93..96 => {
                let sql = self.sql.reached(partition, epoch).await.unwrap();
                let model = self.model.reached(partition, epoch);
                self.agree("reached", sql, model);
            }
            96..97 => {
                let sql = self.sql.stop(partition, epoch, Stop::Gap, "why").await.unwrap();
                let model = self.model.stop(partition, epoch, Stop::Gap, "why");
                self.agree("stop", sql, model);
            }
            _ => self.read(partition, epoch, exported).await,
        }
        self.compare().await;
    }

    async fn assign(&mut self) {
        let who = Identity {
            topic: TOPIC.to_owned(),
            cluster_id: "cluster".to_owned(),
            group_id: "group".to_owned(),
            owner: "somebody".to_owned(),
        };
        let mut candidates = Vec::new();
        for partition in 0..3 {
            if self.rng.random_bool(0.6) {
                let low = if self.rng.random_bool(0.03) { 500 } else { 0 };
                let committed = self.rng.random_bool(0.3).then(|| self.rng.random_range(0..3));
                let is_short = self.rng.random_bool(0.02);
                candidates.push(Candidate { partition, low, high: 1_000, committed, is_short });
            }
        }
        let object = NewestObject {
            partition: 0,
            next_offset: self.rng.random_range(0..3),
            epoch: self.rng.random_range(0..3),
            key: "key".to_owned(),
        };
        let objects = if self.rng.random_bool(0.2) { vec![object] } else { Vec::new() };
        let sql = self.sql.assign(&who, &candidates, &objects, &LIMITS).await;
        let model = self.model.assign(&candidates, &objects, &LIMITS, 0);
        let stops = |stopped: &[(i32, String)]| -> Vec<(i32, String)> {
            stopped.iter().map(|(p, why)| (*p, why.split(':').next().unwrap_or("").to_owned())).collect()
        };
        match (sql, model) {
            (Ok(sql), Ok((owned, stopped, before))) => {
                self.agree("assign stops", stops(&sql.stopped), stops(&stopped));
                for (theirs, ours) in sql.owned.iter().zip(&owned) {
                    assert!(theirs.epoch >= ours.epoch, "the epoch went back: {theirs:?} {ours:?}");
                    if let Some(row) = self.model.partitions.get_mut(&theirs.partition) {
                        row.epoch = theirs.epoch;
                    }
                }
                let frontiers = |owned: &[Owned]| -> Vec<_> {
                    owned.iter().map(|o| (o.partition, o.persist_frontier, o.persist_day)).collect()
                };
                self.agree("assign", frontiers(&sql.owned), frontiers(&owned));
                let stood =
                    |before: BTreeMap<i32, Owned>| frontiers(&before.into_values().collect::<Vec<_>>());
                self.agree("stood before", stood(sql.before), stood(before));
            }
            (Err(LedgerError::Flood { partition, why }), Err(model)) => {
                self.agree("assign floods", (partition, why), model);
            }
            (sql, model) => panic!("assign: {sql:?}, {model:?}"),
        }
    }

    async fn persist(&mut self, partition: i32, epoch: i64, first: i64, day_before: i32) {
        let next = first + self.rng.random_range(1..5);
        let day = day_before + self.rng.random_range(0..2);
        let rows_from = self.rng.random_range(first..=next);
        let batch = PartitionBatch {
            partition,
            epoch,
            first,
            next,
            day_before,
            day,
            rows: (next - rows_from).unsigned_abs(),
            tuples: tuples(partition, rows_from..next, day),
            last_record_hash: self.rng.random_bool(0.8).then(|| self.rng.random()),
            rejects: (rows_from - first).unsigned_abs(),
            window: RejectWindow { run: self.rng.random_range(0..52), ..RejectWindow::default() },
            oldest_ms: 0,
            times: Times::default(),
        };
        let job = vec![batch];
        self.session.connect().await.unwrap();
        let sql = match self.session.write(&job, Duration::from_secs(10)).await {
            Ok(()) => {
                self.session.commit().await.unwrap();
                "committed"
            }
            Err(Failure::Fenced(_)) => "fenced",
            Err(Failure::Duplicate) => "duplicate",
            Err(other) => panic!("persist: {other:?}"),
        };
        if sql == "duplicate" {
            self.session.disconnect();
        }
        let rows = keyed(&job[0].tuples);
        let model = if rows.iter().any(|(key, _)| self.model.rows.contains_key(key)) {
            "duplicate"
        } else if self.model.passes(&job[0]) {
            self.model.insert(rows);
            self.model.move_frontier(&job[0]);
            "committed"
        } else {
            "fenced"
        };
        self.agree("persist", sql, model);
        let sql = self.session.rows_exist(partition, first, next).await;
        if let Ok(sql) = sql {
            let model = self.model.rows_exist(partition, first, next);
            self.agree("rows exist", sql, model);
        }
    }

    async fn enter_file(&mut self, partition: i32, epoch: i64, first_offset: i64) {
        let next_offset = first_offset + self.rng.random_range(1..4);
        let file = NewFile {
            partition,
            epoch,
            first_offset,
            next_offset,
            day: DAY + self.rng.random_range(0..2),
            object_key: format!("{partition}/{first_offset}/{}", self.rng.random::<u64>()),
            rows: 1,
            bytes: 10,
            row_hash: "hash".to_owned(),
            recorded_at_min_ms: row::day_start_ms(DAY),
            recorded_at_max_ms: row::day_start_ms(DAY) + 5,
            written_by: epoch,
        };
        let sql = self.sql.enter_file(&file).await.unwrap();
        let model = self.model.enter_file(&file);
        self.agree("enter file", sql, model);
    }

    async fn read(&mut self, partition: i32, epoch: i64, from: i64) {
        let range = Range {
            partition,
            epoch,
            from,
            upto: from + self.rng.random_range(0..20),
            first_day: DAY + self.rng.random_range(0..2),
            rows_max: self.rng.random_range(1..6),
            bytes_max: self.rng.random_range(0..1500),
        };
        let sql = match self.sql.read(&range).await.unwrap() {
            Reread::Rows { tuples, rows, complete, export_frontier } => {
                Some((tuples, rows, complete, export_frontier))
            }
            Reread::Fenced => None,
        };
        let (tuples, rows, complete) = self.model.read(&range, u64::MAX);
        let stand = self.model.export_stand(partition).filter(|(epoch, _)| *epoch == range.epoch);
        let model = stand.map(|(_, frontier)| (tuples, rows, complete, frontier));
        self.agree("read", sql, model);
    }

    /// A day that every known partition has left, with one that the ledger does not know, and without it. By chance
    /// alone hardly ever all of them are that far.
    async fn close_a_day(&mut self) {
        while self.model.partitions.len() < 3 {
            self.assign().await;
        }
        let before = self.model.topic_days();
        for partition in 0..3 {
            let Some(stand) = self.model.owned(partition) else { continue };
            let (at, day) = ((partition, stand.epoch, stand.persist_frontier), stand.persist_day);
            let (sql, model) =
                (self.sql.advance(at, (day, day + 1)).await, self.model.advance(at, (day, day + 1)));
            self.agree("advance", sql.unwrap(), model);
            self.sql.close_partition(partition, stand.epoch, day + 1).await.unwrap();
            if self.model.may_close(partition, stand.epoch, day + 1, self.model.commits) {
                self.model.close(partition, day + 1);
            }
        }
        for partitions in [vec![0, 1, 2, 3], vec![0, 1, 2]] {
            let asked = partitions.clone();
            self.sql.close_topic(Box::pin(async { Some(asked) })).await.unwrap();
            self.model.close_topic(&partitions);
            self.compare().await;
        }
        assert_ne!(self.model.topic_days(), before, "the day is closed in the end");
    }

    async fn compare(&mut self) {
        let of = |owned: &BTreeMap<i32, Owned>| format!("{owned:?}");
        assert_eq!(
            of(&self.sql.peek(&[]).await.unwrap()),
            of(&self.model.peek()),
            "Postgres, then the model"
        );
        assert_eq!(self.sql.topic_days().await.unwrap(), self.model.topic_days());
        assert_eq!(self.sql.least_closed().await.unwrap(), self.model.least_closed());
        assert_eq!(self.sql.released(&[0, 1, 2]).await.unwrap(), self.model.released(&[0, 1, 2]));
        assert_eq!(self.sql.partitions(DAY).await.unwrap(), self.model.day_partitions(DAY));
        assert_eq!(
            self.sql.files(DAY, DAY + 1).await.unwrap(),
            self.model.day_files(DAY, DAY + 1),
            "Postgres, then the model"
        );
    }
}

#[tokio::test]
async fn the_ledger_in_memory_is_the_sql() {
    let server = Server::start("ledger");
    let mut config = Config::default();
    config.kafka.topic = TOPIC.to_owned();
    let url = format!("postgres://postgres@localhost/postgres?host={}", server.folder.display());
    config.postgres.url = Secret::new(url);
    let sql = Postgres::new(&config).unwrap();
    MIGRATIONS.run(&sql.pool).await.unwrap();
    let who = Identity {
        topic: TOPIC.to_owned(),
        cluster_id: "cluster".to_owned(),
        group_id: "group".to_owned(),
        owner: "somebody".to_owned(),
    };
    let session = sql.session(0);
    let rng = SmallRng::seed_from_u64(1);
    let mut pair = Pair { sql, session, model: Ledger::default(), rng, answers: BTreeMap::new() };
    for _ in 0..SEQUENCES {
        let empty = "TRUNCATE user_interactions, export_files, partition_ledger, topic_ledger";
        sqlx::query(empty).execute(&pair.sql.pool).await.unwrap();
        pair.model = Ledger::default();
        pair.sql.enter_topic(&who, DAY).await.unwrap();
        pair.model.enter_topic(DAY);
        pair.close_a_day().await;
        for _ in 0..OPERATIONS {
            pair.operate().await;
        }
    }
    println!("{:#?}", pair.answers);
    for answer in [
        "persist committed",
        "persist fenced",
        "persist duplicate",
        "enter file Yes",
        "enter file Fenced",
        "advance true",
        "advance false",
        "close partition Some",
        "close partition None",
        "read Some",
        "read None",
        "stop true",
        "stop false",
        "assign floods",
    ] {
        let seen = pair.answers.keys().any(|known| known.starts_with(answer));
        assert!(seen, "never seen: {answer}");
    }
}
