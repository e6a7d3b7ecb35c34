//! Rows 8 and 37 of the fault matrix: the group's coordinator is loading, is somewhere else, moves; and brokers that
//! say of every partition that they lack an offset, which they have a moment later.
//!
//! A real broker says so when it likes, and for moments only; librdkafka's mock brokers do when they are told. The poll
//! thread is the worker's own, with the test in the place of its pipeline.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use feed_worker::config::Config;
use feed_worker::kafka::source::{Command, Source, SourceEvent, Start};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::{MockCluster, MockCoordinator};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::sync::mpsc::UnboundedReceiver;

const TOPIC: &str = "feed";
const GROUP: &str = "group";
const PARTITIONS: i32 = 2;
/// Within which whatever is waited for happens on a busy machine, too.
const SOON: Duration = Duration::from_secs(90);
const OUT_OF_RANGE: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE;
const LOADING: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
const ELSEWHERE: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR;
const NOWHERE: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE;

type Cluster = MockCluster<'static, DefaultProducerContext>;

/// What a pipeline would do with what the poll thread tells, and no more.
struct Told {
    source: Source,
    events: UnboundedReceiver<SourceEvent>,
    given: BTreeSet<i32>,
    /// How often partitions were given or taken.
    rebalances: u32,
    /// The offset after the last record of each partition; a record that does not follow ends the test.
    next: BTreeMap<i32, i64>,
}

impl Told {
    fn hear(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Assign { candidates, reply, .. } => {
                self.rebalances += 1;
                let start = |p| (p, Start::At(self.next.get(&p).copied().unwrap_or(0)));
                self.given.extend(candidates.iter().map(|c| c.partition));
                let _ = reply.send(candidates.iter().map(|c| start(c.partition)).collect());
            }
            SourceEvent::Revoke { partitions, reply, .. } => {
                self.rebalances += 1;
                self.given.retain(|p| !partitions.contains(p));
                let _ = reply.send(Vec::new());
            }
            SourceEvent::Chunk(chunk) => {
                self.source.release(chunk.size_bytes());
                for record in &chunk.records {
                    let next = self.next.entry(record.partition).or_insert(0);
                    assert_eq!(record.offset, *next, "of partition {}", record.partition);
                    *next += 1;
                }
            }
            SourceEvent::Fatal(why) => panic!("{why}"),
            _ => {}
        }
    }

    fn until(&mut self, what: &str, mut is_true: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + SOON;
        while !is_true(self) {
            while let Ok(event) = self.events.try_recv() {
                self.hear(event);
            }
            assert!(Instant::now() < until, "not in time: {what}; at {:?}, has {:?}", self.next, self.given);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_at(&mut self, offset: i64) {
        self.until("every record", |told| (0..PARTITIONS).all(|p| told.next.get(&p) == Some(&offset)));
    }
}

fn produce(producer: &BaseProducer, count: i64) {
    for partition in 0..PARTITIONS {
        for _ in 0..count {
            let record = BaseRecord::<(), _>::to(TOPIC).partition(partition).payload("{}");
            producer.send(record).expect("there is room");
        }
    }
    producer.flush(SOON).expect("the mock takes it");
}

fn committed(cluster: &Cluster) -> Option<Vec<i64>> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", cluster.bootstrap_servers()).set("group.id", GROUP);
    let consumer: BaseConsumer = client.create().ok()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(TOPIC, 0, PARTITIONS - 1);
    let found = consumer.committed_offsets(list, Duration::from_secs(5)).ok()?;
    found.elements().iter().map(|element| element.offset().to_raw()).collect()
}

struct Setting {
    cluster: Cluster,
    producer: BaseProducer,
    told: Told,
}

/// The poll thread, which has read 20 records of each partition.
fn setting(brokers: i32, session_ms: u64) -> Setting {
    let cluster = MockCluster::new(brokers).expect("a mock cluster starts");
    cluster.create_topic(TOPIC, PARTITIONS, brokers).unwrap();
    cluster.coordinator(MockCoordinator::Group(GROUP.to_owned()), 1).unwrap();
    let mut config = Config::default();
    config.kafka.bootstrap_servers = cluster.bootstrap_servers();
    config.kafka.topic = TOPIC.to_owned();
    config.kafka.group_id = GROUP.to_owned();
    config.kafka.session_timeout_ms = session_ms;
    config.kafka.heartbeat_interval_ms = 200;
    config.kafka.commit_interval_ms = 100;
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", cluster.bootstrap_servers()).create().unwrap();
    produce(&producer, 20);
    let (source, events) = Source::start(&config).unwrap();
    let mut told = Told { source, events, given: BTreeSet::new(), rebalances: 0, next: BTreeMap::new() };
    told.until_at(20);
    Setting { cluster, producer, told }
}

fn end(mut told: Told) {
    told.source.send(Command::Shutdown(Vec::new()));
    told.until("the end", |told| told.source.is_finished());
}

#[test]
fn a_coordinator_that_loads_or_moves_costs_neither_records_nor_commits() {
    let Setting { cluster, producer, mut told } = setting(3, 45_000);
    let before = told.rebalances;

    // More often than the client asks again by itself.
    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[LOADING; 8]);
    cluster.request_errors(RDKafkaApiKey::Heartbeat, &[LOADING, ELSEWHERE, NOWHERE]);
    told.source.send(Command::Commit((0..PARTITIONS).map(|p| (p, 20)).collect()));
    produce(&producer, 20);
    told.until_at(40);
    told.until("the commit", |_| committed(&cluster) == Some(vec![20; 2]));

    cluster.request_errors(RDKafkaApiKey::OffsetCommit, &[ELSEWHERE, NOWHERE]);
    cluster.request_errors(RDKafkaApiKey::FindCoordinator, &[NOWHERE, LOADING]);
    cluster.coordinator(MockCoordinator::Group(GROUP.to_owned()), 2).unwrap();
    told.source.send(Command::Commit((0..PARTITIONS).map(|p| (p, 40)).collect()));
    produce(&producer, 20);
    told.until_at(60);
    told.until("the next commit", |_| committed(&cluster) == Some(vec![40; 2]));
    assert_eq!(told.given, (0..PARTITIONS).collect(), "no partition is lost");
    // Taken and given once at most: one rebalance.
    assert!(told.rebalances <= before + 2, "{} times given or taken", told.rebalances - before);
    end(told);
}

/// What is logged, by whichever thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn offsets_out_of_range_that_are_not_make_the_worker_join_again_once() {
    // The mock coordinator does not let go of a member that leaves before its session is over.
    let Setting { cluster, producer, mut told } = setting(1, 3_000);
    let before = told.rebalances;
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_writer(move || writer.clone()).init();
    // The answer to one request, for both partitions.
    cluster.request_errors(RDKafkaApiKey::Fetch, &[OUT_OF_RANGE]);
    produce(&producer, 20);
    told.until_at(40);
    assert_eq!(told.rebalances, before + 2, "taken once, and given once");
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("no partition is: joining the group again").count(), 1, "{log}");
    end(told);
}
