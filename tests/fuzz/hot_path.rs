//! What an event costs in allocations once every buffer is there.

use crate::allocations;
use crate::leaf::{EVENTS, LEAVES, Leaf};

/// Runs before counting, and while counting: of the leaf `file`, two files each.
const RUNS: usize = 32;
/// Of decoding and encoding, whatever the encoding: a buffer that grew once more, and nothing for each event.
const DECODING_PER_EVENT_MAX: f64 = 2.0 / EVENTS as f64;
/// Of the whole way from Kafka to the COPY tuple.
const WAY_PER_EVENT_MAX: f64 = 0.05;
/// Of a file, beside it. The Parquet writer allocates for each column of each 4,096 rows, some twenty times, and for pages.
const FILE_PER_EVENT_MAX: f64 = 0.1;

fn allocations_per_event(leaf: &mut dyn Leaf) -> f64 {
    let mut runs = || (0..RUNS).map(|_| leaf.run()).sum::<usize>();
    assert!(runs() > 0);
    let before = allocations::calls();
    assert!(runs() > 0);
    (allocations::calls() - before) as f64 / (RUNS * EVENTS) as f64
}

fn cost(name: &str) -> f64 {
    let (_, make) = LEAVES.iter().find(|(known, _)| *known == name).expect("a leaf");
    allocations_per_event(&mut *make())
}

#[test]
fn an_event_costs_almost_no_allocation() {
    for name in ["decode_avro", "decode_avro_v1", "decode_json", "tuple_avro", "tuple_json", "row_hash"] {
        let found = cost(name);
        assert!(found <= DECODING_PER_EVENT_MAX, "{name}: {found} allocations per event");
    }
    let (way, file) = (cost("chunk") + cost("tuple_avro"), cost("file"));
    assert!(way <= WAY_PER_EVENT_MAX, "{way} allocations per event from Kafka to its tuple");
    assert!(file <= FILE_PER_EVENT_MAX, "{file} allocations per row of a file");
}
