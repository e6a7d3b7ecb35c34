//! The Kafka side: the source (one poll thread), dead letters, one-off reads.

pub mod broker;
pub mod dead_letters;
pub mod group;
pub mod msk_iam;
pub mod probe;
pub mod rebalance;
pub mod security;
pub mod source;
pub mod tokens;
mod wake;

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::config::Config;

/// The context of clients that look things up: what they meet is the caller's to tell.
#[derive(Debug, Default)]
pub struct Quiet {
    /// Whether the client was given a token.
    has_token: AtomicBool,
}

impl ClientContext for Quiet {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn error(&self, error: KafkaError, reason: &str) {
        if !security::tell_refusal(&error, reason) {
            tracing::debug!(%error, reason, "a client that looks something up reports an error");
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let token = tokens::current()?;
        self.has_token.store(true, Ordering::Relaxed);
        Ok(token)
    }
}

impl ConsumerContext for Quiet {}

/// What every client of this program shares: where the brokers are, security, the pass-through keys.
pub fn client_config(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.kafka.bootstrap_servers);
    client.set("client.id", &config.kafka.client_id);
    for (key, value) in &config.kafka.properties {
        client.set(key, value);
    }
    security::apply(config, &mut client);
    tokens::start(config);
    client
}

/// What one answer of a broker may bring, compressed, as a part of the prefetch: what a queue with room for one more
/// record may take on top. The client wants no less than its `message.max.bytes`; a broker gives no more than 55 MB.
const FETCH_SHARE: u64 = 16;
const FETCH_BYTES_MIN: u64 = 1 << 20;
const FETCH_BYTES_MAX: u64 = 50 << 20;
/// What one answer may bring of one partition; a first batch that is larger comes whole. Larger: an answer has but one or
/// two partitions, and a batch that it cuts off is sent again, a quarter of all bytes in a backlog of large ones. Smaller:
/// more requests.
const PARTITION_BYTES_MAX: u64 = 256 << 10;
/// An answer of so many bytes is worth sending before `kafka.fetch_wait_ms_max` is over. Larger: also at high rates every
/// answer waits as long; smaller: at middling rates brokers are asked more often than they need be.
const GATHERED_BYTES: u64 = 64 << 10;
/// The prefetch counts so many bytes for a record at least. The client's limit counts key and value alone, and its own
/// bookkeeping is 370 bytes a record: small ones would take three times the prefetch. Larger starves the poll thread;
/// smaller takes more memory than the budget says.
const RECORD_BYTES: u64 = 1 << 10;

/// The group's consumer. Our own invariants are set last: a pass-through key cannot undo them.
pub fn consumer_config(config: &Config) -> ClientConfig {
    let kafka = &config.kafka;
    let mut client = client_config(config);
    // Prefetch is part of the memory budget. More does not help: one poll thread empties it.
    let prefetch_bytes = kafka.queued_kbytes_max << 10;
    client.set("queued.max.messages.kbytes", kafka.queued_kbytes_max.to_string());
    client.set("queued.min.messages", (prefetch_bytes / RECORD_BYTES).clamp(1, 10_000_000).to_string());
    client.set("fetch.message.max.bytes", PARTITION_BYTES_MAX.to_string());
    // The queue is looked at before a fetch, not while one is answered.
    let fetch_bytes = (prefetch_bytes / FETCH_SHARE).clamp(FETCH_BYTES_MIN, FETCH_BYTES_MAX);
    client.set("fetch.max.bytes", fetch_bytes.to_string());
    if kafka.fetch_wait_ms_max > 0 {
        client.set("fetch.wait.max.ms", kafka.fetch_wait_ms_max.to_string());
        client.set("fetch.min.bytes", GATHERED_BYTES.to_string());
    }
    // The default of 1 s starves a consumer that keeps up; much less only costs wake-ups.
    client.set("fetch.queue.backoff.ms", "10");
    // Whatever partition is added is noticed within this time, and read from its beginning.
    client.set("topic.metadata.refresh.interval.ms", kafka.metadata_refresh_ms.to_string());
    client.set("group.id", &kafka.group_id);
    client.set("session.timeout.ms", kafka.session_timeout_ms.to_string());
    client.set("heartbeat.interval.ms", kafka.heartbeat_interval_ms.to_string());
    client.set("max.poll.interval.ms", kafka.max_poll_interval_ms.to_string());
    client.set("group.protocol", "classic");
    client.set("partition.assignment.strategy", "cooperative-sticky");
    // Offsets are the ledger's; Kafka's are told afterwards.
    client.set("enable.auto.commit", "false");
    client.set("enable.auto.offset.store", "false");
    // An offset that the broker does not have is never skipped silently.
    client.set("auto.offset.reset", "error");
    client.set("enable.partition.eof", "false");
    client.set("check.crcs", "true");
    if config.kafka.properties.get("enable.metrics.push").is_none() {
        // What the client would measure for the brokers takes a lock and a histogram with every record.
        client.set("enable.metrics.push", "false");
    }
    client
}
