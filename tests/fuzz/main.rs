//! Seeded mutation of everything that the worker reads from outside: events in both encodings, their
//! framing, writer schemas, rows as Postgres sends them, metadata as jsonb prints it, Parquet files,
//! manifests, object keys and configuration.
//!
//! Of every input: no panic, at most 1 MiB allocated ([`meter`] has the exceptions), processor time in
//! proportion to its length, and what is accepted agrees with a second opinion (`properties/`).
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FEED_FUZZ_INPUTS` | how many inputs, over all targets | 1,000,000 |
//! | `FEED_FUZZ_SEED` | a number, or `random` | 1 |
//! | `FEED_FUZZ_TARGET` | only the target of this name | all |
//!
//! Input `n` of a target depends on the seed, the target's name and `n` alone. One that fails is made
//! smaller, printed, and written to `target/tmp/fuzz/`; it belongs into `corpus/<target>/` with the fix.
//! Every file of the corpus is run as it is, and is mutated besides.

#[path = "allocations.rs"]
mod allocations;
mod generate;
mod harness;
mod hot_path;
#[path = "../../benches/leaves/leaf.rs"]
mod leaf;
mod meter;
mod mutate;
#[path = "../decode/oracle.rs"]
mod oracle;
mod properties;
#[allow(dead_code, reason = "shared with the tests of decoding")]
#[path = "../decode/support.rs"]
mod support;
#[path = "../decode/writer.rs"]
mod writer;

use harness::Settings;

#[test]
fn a_million_inputs_do_no_harm() {
    harness::run(&Settings::from_environment());
}

#[test]
fn every_input_of_the_corpus_does_no_harm() {
    let inputs = harness::run_corpus();
    // One that cannot be found would pass in silence.
    assert!(inputs >= 60, "{inputs}");
}

/// The harness itself: a target that fails must be found, and its input made smaller.
#[test]
fn a_harmful_input_is_found_and_made_smaller() {
    let (message, input) = harness::find_planted();
    assert!(message.contains("planted"), "{message}");
    assert_eq!(input, b"\xff");
    let (message, _) = harness::find_memory_hog();
    assert!(message.contains("bytes allocated"), "{message}");
    let (message, _) = harness::find_slow();
    assert!(message.contains("processor"), "{message}");
}
