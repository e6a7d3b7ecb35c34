//! The targets of `tests/fuzz`, for libFuzzer: what must hold of an input is written once, there.

#![allow(dead_code, reason = "the generators are for the seeded harness")]

#[path = "../../tests/fuzz/allocations.rs"]
mod allocations;
#[path = "../../tests/fuzz/generate.rs"]
mod generate;
#[path = "../../tests/fuzz/meter.rs"]
mod meter;
#[path = "../../tests/decode/oracle.rs"]
mod oracle;
#[path = "../../tests/fuzz/properties/mod.rs"]
mod properties;
#[path = "../../tests/decode/support.rs"]
mod support;
#[path = "../../tests/decode/writer.rs"]
mod writer;

use std::cell::RefCell;

use meter::Meter;
use properties::{TARGETS, Target};

thread_local! {
    static RUNNING: RefCell<Option<(Box<dyn Target>, Meter)>> = const { RefCell::new(None) };
}

/// Runs one input; a panic is a finding.
pub fn check(name: &str, input: &[u8]) {
    RUNNING.with_borrow_mut(|running| {
        let (target, meter) = running.get_or_insert_with(|| {
            let target = TARGETS.iter().map(|make| make()).find(|target| target.name() == name);
            (target.expect("a target of this name"), Meter::default())
        });
        target.check(input, meter);
    });
}
