//! What is resumed is fetched at once.
//!
//! The client (librdkafka 2.12) pauses every partition for a rebalance, those that stay too, and nothing wakes a
//! broker's thread when they are resumed: it sleeps on for up to a second (`rd_kafka_max_block_ms`). Any request
//! to the broker wakes it.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// How long the answers are waited for; nothing is polled meanwhile. The requests alone are enough, so longer helps
/// nobody while a broker is away; 0 would end the call before they are sent.
const ANSWER_MAX: Duration = Duration::from_millis(100);

/// Asks each broker that leads one of these partitions for their ends: one request a broker, side by side.
pub(super) fn wake_fetchers<C: ConsumerContext>(consumer: &BaseConsumer<C>, mut resumed: TopicPartitionList) {
    if resumed.count() == 0 || resumed.set_all_offsets(Offset::End).is_err() {
        return;
    }
    if let Err(error) = consumer.offsets_for_times(resumed, ANSWER_MAX) {
        tracing::debug!(%error, "the client's fetchers were not woken: they go on within a second");
    }
}
