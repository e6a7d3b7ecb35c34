//! One pipeline in a quiet world, with the test in the place of its poll thread: what is too rare, or too slow, for
//! seeds to meet it.

use std::ops::Range;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use feed_worker::config::Config;
use feed_worker::kafka::rebalance::Candidate;
use feed_worker::kafka::source::{Command, PollEnd, Source, SourceEvent, Start};
use feed_worker::pipeline::Pipeline;
use feed_worker::record::Chunk;
use feed_worker::telemetry::health::Health;
use rdkafka::message::Timestamp;
use tokio::time::{Instant, sleep};

use crate::checker::user;
use crate::kafka::{Entry, Kind};
use crate::plan::{Plan, Rates};
use crate::run::{avro_value, config, midnight, outside};
use crate::world::{Me, Service, Shared, World, of};

/// Virtual time within which whatever is waited for must happen.
const SOON: Duration = Duration::from_secs(60);
const LATE_SCHEMA_ID: u32 = 99;

struct Stage {
    world: Shared,
    end: PollEnd,
    assignment: u64,
    health: Health,
    ended: Arc<Mutex<Option<String>>>,
}

/// Plays a scenario under a virtual clock.
fn play(change: impl FnOnce(&mut Config), scenario: impl AsyncFnOnce(Stage)) {
    feed_worker::retry::seed_jitter(0);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime needs nothing").block_on(async {
        let mut plan = Plan {
            workers: 1,
            partitions: 1,
            rates: Rates::default(),
            batch_rows: 1_000,
            batch_age_ms: 20,
            memory_bytes: 50_000_000,
            ..Plan::of(0)
        };
        plan.faults.clear();
        let world: Shared = Arc::new(Mutex::new(World::new(&plan, true)));
        of(&world).workers[0].alive = true;
        let me = Me { world: world.clone(), slot: 0, incarnation: 0 };
        let mut config = config(&plan);
        change(&mut config);
        let (source, events, end) = Source::pair();
        let outside = outside(&me);
        let health = outside.health.clone();
        let (mut pipeline, completions) =
            Pipeline::start(config, outside, source).expect("the weights are ours");
        let ended: Arc<Mutex<Option<String>>> = Arc::default();
        let told = ended.clone();
        tokio::spawn(async move {
            let end = pipeline.run(events, completions, std::future::pending()).await;
            *told.lock().unwrap() = Some(end.map_or_else(|why| why.to_string(), |()| "asked to".to_owned()));
        });
        scenario(Stage { world, end, assignment: 0, health, ended }).await;
    });
}

impl Stage {
    fn send(&self, event: SourceEvent) {
        assert!(self.end.events.send(event).is_ok(), "the pipeline ended: {:?}", self.ended());
    }

    fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap().clone()
    }

    /// Appends a record to partition 0; its offset.
    fn append(&self, kind: Kind, value: Option<Vec<u8>>) -> i64 {
        let mut world = of(&self.world);
        let (timestamp_ms, offset) = (world.broker_ms(), world.kafka.high(0));
        let user = user(0, offset);
        let value = value.unwrap_or_else(|| {
            format!(
                r#"{{"userId":"{user}","videoId":"{user}","interactionType":"view","timestamp":{timestamp_ms}}}"#
            )
            .into_bytes()
        });
        world.kafka.log.entry(0).or_default().push(Entry { kind, timestamp_ms, value });
        offset
    }

    fn append_good(&self, count: usize) {
        for _ in 0..count {
            self.append(Kind::Good, None);
        }
    }

    /// The same of an event that is fine, in the schema of this id.
    fn append_avro(&self, kind: Kind, schema_id: u32) -> i64 {
        let (offset, now_ms) = {
            let world = of(&self.world);
            (world.kafka.high(0), world.broker_ms())
        };
        self.append(kind, Some(avro_value(schema_id, &user(0, offset).to_string(), now_ms)))
    }

    /// The group gives partition 0; where it begins.
    async fn assign(&mut self) -> Option<Start> {
        self.assignment += 1;
        let (reply, answer) = channel();
        let candidate = Candidate {
            partition: 0,
            low: 0,
            high: of(&self.world).kafka.high(0),
            committed: None,
            is_short: false,
        };
        let until = Instant::now() + Duration::from_secs(4);
        let candidates = vec![candidate];
        self.send(SourceEvent::Assign { assignment: self.assignment, candidates, until, reply });
        let starts = answered(&answer).await;
        starts.first().map(|(_, start)| *start)
    }

    /// The group takes partition 0 away.
    async fn revoke(&self, lost: bool) {
        let (reply, answer) = channel();
        self.send(SourceEvent::Revoke { partitions: vec![0], lost, reply });
        answered(&answer).await;
    }

    /// Hands records over that the log has, one chunk each.
    fn deliver(&self, offsets: Range<i64>) {
        for offset in offsets {
            let mut chunk = Chunk::new(self.assignment);
            {
                let world = of(&self.world);
                let entry = &world.kafka.log[&0][usize::try_from(offset).unwrap()];
                let timestamp = Timestamp::LogAppendTime(entry.timestamp_ms);
                chunk.add((0, offset, timestamp), Some(b"key"), Some(&entry.value));
            }
            let outstanding = &self.end.outstanding;
            outstanding.fetch_add(chunk.size_bytes(), std::sync::atomic::Ordering::Relaxed);
            self.send(SourceEvent::Chunk(chunk));
        }
    }

    /// Waits until something is true of the world.
    async fn until(&self, what: &str, is_true: impl Fn(&World) -> bool) {
        let until = Instant::now() + SOON;
        while !is_true(&of(&self.world)) {
            assert!(Instant::now() < until, "not in time: {what}; ended: {:?}", self.ended());
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_persisted(&self, frontier: i64) {
        self.until("persisted", |world| world.ledger.partitions[&0].persist_frontier == frontier).await;
    }

    /// Waits until the pipeline wants partition 0 to begin again; where. None: not within that time.
    async fn restarted(&self, within: Duration) -> Option<i64> {
        let until = Instant::now() + within;
        while Instant::now() < until && self.ended().is_none() {
            while let Ok(command) = self.end.commands.try_recv() {
                if let Command::Restart(0, offset) = command {
                    return Some(offset);
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// Says that partition 0 began again.
    fn begin_again(&mut self) {
        self.assignment += 1;
        self.send(SourceEvent::Restarted { partition: 0, assignment: self.assignment });
    }

    fn stopped(&self) -> Option<String> {
        of(&self.world).ledger.partitions[&0].stopped.as_ref().map(|(why, _)| why.clone())
    }

    fn away(&self, service: Service, is_away: bool) {
        let mut world = of(&self.world);
        if is_away {
            world.away.insert(service, (Instant::now() + Duration::from_secs(100_000), false));
        } else {
            world.away.remove(&service);
        }
    }
}

async fn answered<T>(answer: &Receiver<T>) -> T {
    let until = Instant::now() + SOON;
    loop {
        match answer.try_recv() {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < until, "no answer of the pipeline: {why}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

fn usual(_: &mut Config) {}

#[test]
fn a_stale_answer_of_the_registry_costs_no_event_of_a_schema_that_came_late() {
    play(usual, async |mut stage| {
        stage.assign().await;
        stage.append_avro(Kind::Bad, LATE_SCHEMA_ID);
        stage.deliver(0..1);
        stage.until_persisted(1).await;
        assert_eq!(of(&stage.world).letters, [(0, 0)]);
        sleep(Duration::from_secs(600)).await;
        of(&stage.world).schemas.insert(LATE_SCHEMA_ID);
        of(&stage.world).stale_answers = 1;
        stage.append_avro(Kind::Good, LATE_SCHEMA_ID);
        stage.deliver(1..2);
        stage.until_persisted(2).await;
        assert_eq!(of(&stage.world).letters, [(0, 0)], "a good event is no dead letter");
        assert_eq!(of(&stage.world).ledger.rows.len(), 1);
    });
}

fn silence(config: &mut Config) {
    config.kafka.silence_ms_max = 5_000;
}

#[test]
fn an_unreadable_record_at_the_end_stops_its_partition_and_not_the_worker() {
    play(silence, async |mut stage| {
        stage.assign().await;
        stage.append_good(3);
        stage.deliver(0..2);
        // The client skips the last one, and says so.
        stage.send(SourceEvent::Unreadable);
        while let Some(offset) = stage.restarted(Duration::from_secs(30)).await {
            assert_eq!(offset, 2);
            stage.begin_again();
            stage.send(SourceEvent::Unreadable);
        }
        assert_eq!(stage.ended(), None);
        assert_eq!(stage.stopped().as_deref(), Some("unreadable"));
        assert_eq!(of(&stage.world).ledger.partitions[&0].persist_frontier, 2);
    });
}

#[test]
fn a_record_that_can_be_read_the_second_time_is_read() {
    play(silence, async |mut stage| {
        stage.assign().await;
        stage.append_good(3);
        stage.deliver(0..2);
        stage.send(SourceEvent::Unreadable);
        assert_eq!(stage.restarted(Duration::from_secs(30)).await, Some(2));
        stage.begin_again();
        stage.deliver(2..3);
        stage.until_persisted(3).await;
        sleep(Duration::from_secs(30)).await;
        assert_eq!(stage.ended(), None);
    });
}

#[test]
fn a_client_that_stays_silent_after_beginning_again_ends_the_worker() {
    for answers in [true, false] {
        play(silence, async |mut stage| {
            stage.assign().await;
            stage.append(Kind::Good, None);
            stage.send(SourceEvent::Unreadable);
            assert_eq!(stage.restarted(Duration::from_secs(30)).await, Some(0));
            if answers {
                stage.begin_again();
            }
            assert_eq!(stage.restarted(Duration::from_secs(30)).await, None);
            let ended = stage.ended().unwrap_or_default();
            assert!(ended.starts_with("the stream has stopped"), "{ended}");
        });
    }
}

#[test]
fn dead_letters_end_with_their_partition() {
    play(usual, async |mut stage| {
        stage.assign().await;
        stage.away(Service::DeadLetters, true);
        stage.append(Kind::Bad, Some(b"{".to_vec()));
        stage.deliver(0..1);
        stage.until("tried", |world| world.letters_tried.len() > 2).await;
        stage.revoke(true).await;
        let tried = of(&stage.world).letters_tried.len();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(of(&stage.world).letters_tried.len(), tried, "nobody here has the partition");
    });
}

#[test]
fn dead_letters_that_wait_take_a_bounded_memory() {
    let small = |config: &mut Config| config.batch.bytes_max = 40_000;
    play(small, async |mut stage| {
        stage.assign().await;
        stage.away(Service::DeadLetters, true);
        for _ in 0..100 {
            stage.append(Kind::Bad, Some([b"{".as_slice(), &[b' '; 2_000]].concat()));
        }
        stage.deliver(0..100);
        sleep(Duration::from_secs(10)).await;
        let tried = of(&stage.world).letters_tried.iter().max().copied();
        assert!(tried.is_some_and(|(_, offset)| (5..20).contains(&offset)), "{tried:?}");
        stage.away(Service::DeadLetters, false);
        stage.until_persisted(100).await;
        assert_eq!(of(&stage.world).letters.len(), 100);
    });
}

#[test]
fn rows_that_wait_take_a_bounded_memory() {
    let small = |config: &mut Config| config.batch.bytes_max = 40_000;
    play(small, async |mut stage| {
        stage.assign().await;
        stage.away(Service::Postgres, true);
        let filler = "x".repeat(2_000);
        for offset in 0..100 {
            let user = user(0, offset);
            let now_ms = of(&stage.world).broker_ms();
            let event = format!(
                r#"{{"userId":"{user}","videoId":"{user}","interactionType":"view","timestamp":{now_ms},"filler":"{filler}"}}"#
            );
            stage.append(Kind::Good, Some(event.into_bytes()));
        }
        stage.deliver(0..100);
        sleep(Duration::from_secs(10)).await;
        let held = stage.end.commands.try_iter().any(|command| matches!(command, Command::Hold(0, true)));
        assert!(held, "more is fetched although the rows of two batches wait");
        stage.away(Service::Postgres, false);
        stage.until_persisted(100).await;
    });
}

/// Three records are persisted; the partition comes back, and the one before the frontier is to be compared.
async fn comes_back(stage: &mut Stage) {
    stage.assign().await;
    stage.append_good(3);
    stage.deliver(0..3);
    stage.until_persisted(3).await;
    stage.revoke(false).await;
    assert_eq!(stage.assign().await, Some(Start::At(2)));
}

#[test]
fn a_partition_goes_on_when_the_record_before_its_frontier_is_gone() {
    play(usual, async |mut stage| {
        comes_back(&mut stage).await;
        stage.send(SourceEvent::OutOfRange { partition: 0, next: 2, low: 3, high: 3 });
        assert_eq!(stage.restarted(SOON).await, Some(3));
        stage.begin_again();
        stage.append(Kind::Good, None);
        stage.deliver(3..4);
        stage.until_persisted(4).await;
        assert_eq!(stage.stopped(), None);
    });
}

#[test]
fn a_partition_stops_when_more_than_the_record_before_its_frontier_is_gone() {
    for (low, high, why) in [(4, 5, "gap"), (0, 1, "ahead")] {
        play(usual, async |mut stage| {
            comes_back(&mut stage).await;
            stage.send(SourceEvent::OutOfRange { partition: 0, next: 2, low, high });
            stage.until(why, |world| world.ledger.partitions[&0].stopped.is_some()).await;
            assert_eq!(stage.stopped().as_deref(), Some(why));
        });
    }
}

#[test]
fn nobody_is_ready_before_the_ledger_was_reached() {
    play(usual, async |stage| {
        stage.away(Service::Postgres, true);
        stage.send(SourceEvent::Joined);
        sleep(Duration::from_secs(30)).await;
        assert!(!stage.health.ready());
        stage.away(Service::Postgres, false);
        stage.until("ready", |_| stage.health.ready()).await;
    });
}

#[test]
fn a_release_that_comes_to_nothing_after_a_revocation_is_forgotten() {
    let asked = |world: &World| {
        world.log.as_ref().map_or(0, |log| log.iter().filter(|line| line.ends_with("released?")).count())
    };
    play(usual, async |mut stage| {
        comes_back(&mut stage).await;
        stage.send(SourceEvent::OutOfRange { partition: 0, next: 2, low: 4, high: 5 });
        stage.until("stopped", |world| world.ledger.partitions[&0].stopped.is_some()).await;
        stage.until("asked whether it is released", |world| asked(world) > 0).await;
        // An operator decides; then nobody answers for longer than a takeover may take.
        stage.away(Service::Brokers, true);
        if let Some(row) = of(&stage.world).ledger.partitions.get_mut(&0) {
            row.stopped = None;
        }
        sleep(Duration::from_secs(5)).await;
        stage.away(Service::Postgres, true);
        stage.away(Service::Brokers, false);
        sleep(Duration::from_secs(3)).await;
        stage.revoke(false).await;
        sleep(Duration::from_secs(15)).await;
        stage.away(Service::Postgres, false);
        let before = asked(&of(&stage.world));
        sleep(Duration::from_secs(30)).await;
        assert_eq!(asked(&of(&stage.world)), before, "the partition is no longer this worker's");
    });
}

#[test]
fn an_owner_that_was_fenced_without_a_record_notices_it_when_a_day_closes() {
    play(usual, async |mut stage| {
        stage.assign().await;
        let day = of(&stage.world).ledger.partitions[&0].persist_day;
        midnight(&mut of(&stage.world), 0);
        stage.until("the next day", |world| world.ledger.partitions[&0].persist_day > day).await;
        // A takeover whose answer nobody got, in just this moment.
        stage.end.commands.try_iter().for_each(drop);
        {
            let mut world = of(&stage.world);
            let row = world.ledger.partitions.get_mut(&0).expect("it was given");
            assert_eq!(row.closed_day, day - 1, "the day is not closed yet");
            row.epoch += 1;
        }
        let until = Instant::now() + SOON;
        while !stage.end.commands.try_iter().any(|command| matches!(command, Command::Hold(0, true))) {
            assert!(Instant::now() < until, "it goes on with a partition that is another's");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(of(&stage.world).ledger.partitions[&0].closed_day, day - 1);
    });
}
