//! The real pipeline in a world that fails as a seed says. See docs/simulation.md.

mod bucket;
mod checker;
mod conformance;
mod database;
mod kafka;
mod ledger;
mod plan;
mod run;
mod scenarios;
#[path = "../support/postgres.rs"]
mod server;
mod shrink;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use plan::{Plan, Protection};
use run::{Outcome, run};

/// Seeds of one `cargo test`.
const SEEDS: u64 = 10_000;

/// Failing seeds after which no more are tried: enough to see whether they are one bug.
const FAILURES_MAX: u64 = 5;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: no number")))
}

/// Runs a plan; a panic inside is a failure like any other.
pub fn outcome(plan: &Plan, verbose: bool) -> Outcome {
    run(plan, verbose)
}

#[test]
fn nothing_is_lost_or_doubled_whatever_fails() {
    if let Some(seed) = number("FEED_SIM_SEED") {
        let outcome = outcome(&Plan::of(seed), true);
        println!("{:#?}", Plan::of(seed));
        outcome.log.iter().for_each(|line| println!("{line}"));
        assert!(outcome.wrong.is_empty(), "seed {seed}: {:#?}", outcome.wrong);
        return;
    }
    let seeds = number("FEED_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("FEED_SIM_FIRST").unwrap_or(0);
    let (next, failed) = (AtomicU64::new(first), AtomicU64::new(0));
    let counts: Mutex<BTreeMap<&'static str, u64>> = Mutex::default();
    let failures: Mutex<Vec<u64>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds || failed.load(Ordering::Relaxed) >= FAILURES_MAX {
                        break;
                    }
                    let outcome = outcome(&Plan::of(seed), false);
                    let mut counts = counts.lock().unwrap();
                    outcome.counts.iter().for_each(|(what, n)| *counts.entry(what).or_default() += n);
                    if !outcome.wrong.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("seed {seed}: {:?}", outcome.wrong);
                        failures.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    println!("over {seeds} seeds: {counts:#?}");
    if let Some(seed) = failures.into_inner().unwrap().into_iter().min() {
        panic!("{}", shrink::report(seed));
    }
    for (what, least) in HAPPENS_PER_MILLE {
        let happened = counts.get(what).copied().unwrap_or(0);
        assert!(seeds < 100 || happened * 1_000 >= least * seeds, "{what}: only {happened} times");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let (one, two) = (run(&Plan::of(seed), false), run(&Plan::of(seed), false));
        assert_eq!(one.trace, two.trace, "seed {seed}");
        assert_eq!(one.counts, two.counts, "seed {seed}");
    }
}

/// What has to happen at least, per thousand seeds: a simulation in which nothing happens proves nothing.
const HAPPENS_PER_MILLE: [(&str, u64); 14] = [
    ("worker killed", 1_500),
    ("worker stopped for a while", 400),
    ("worker shut down", 100),
    ("partitions lost", 100),
    ("request lost", 700),
    ("answer lost", 1_000),
    ("request late", 900),
    ("settled", 200),
    ("fenced", 20),
    ("evicted", 10),
    ("object was there", 400),
    ("midnight", 1_000),
    ("partition closed a day", 1_500),
    ("refused record", 200),
];

/// How many seeds a lack of each protection may take to be noticed. Some needs a rare meeting.
const NOTICED_WITHIN: u64 = 300;

#[test]
fn a_protection_that_is_missing_is_noticed() {
    let next = AtomicU64::new(0);
    let within = number("FEED_SIM_SEEDS").unwrap_or(NOTICED_WITHIN);
    let unnoticed: Mutex<Vec<Protection>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(without) = Protection::ALONE.get(next.fetch_add(1, Ordering::Relaxed) as usize)
                {
                    let fails = |seed: &u64| !outcome(&Plan::rough(*seed, *without), false).wrong.is_empty();
                    match (0..within).find(fails) {
                        Some(seed) => println!("without {without:?}: noticed by seed {seed}"),
                        None => unnoticed.lock().unwrap().push(*without),
                    }
                }
            });
        }
    });
    assert!(unnoticed.lock().unwrap().is_empty(), "not noticed: {unnoticed:?}");
}
