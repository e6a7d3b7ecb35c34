//! What one event costs in each leaf of the hot path: wall time by criterion, or, for `benches/check`, a leaf
//! run a given number of times under a tool that counts instructions.
//!
//! ```text
//! cargo bench --bench leaves                       criterion
//! leaves --count tuple_avro 20000                  runs the leaf over so many events, and says nothing
//! leaves --list                                    the leaves
//! leaves --poll 1000000                            reads so many records of the topic, and nothing else (benches/limits)
//! ```

mod leaf;
mod poll;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};

use leaf::{EVENTS, LEAVES, Leaf};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list"] => LEAVES.iter().for_each(|(name, _)| println!("{name}")),
        ["--count", name, events] => count(name, events.parse().expect("a number of events")),
        ["--poll", records] => {
            poll::run(records.parse().expect("a number of records")).expect("a topic that can be read");
        }
        _ => measure(),
    }
}

fn leaf(name: &str) -> Box<dyn Leaf> {
    let (_, make) = LEAVES.iter().find(|(known, _)| *known == name).expect("a leaf of --list");
    make()
}

fn count(name: &str, events: usize) {
    let mut leaf = leaf(name);
    for _ in 0..events / EVENTS {
        black_box(leaf.run());
    }
}

fn measure() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    let mut group = criterion.benchmark_group("leaves");
    group.throughput(Throughput::Elements(EVENTS as u64));
    for (name, make) in LEAVES {
        let mut leaf = make();
        group.bench_function(*name, |bencher| bencher.iter(|| leaf.run()));
    }
    group.finish();
    criterion.final_summary();
}
