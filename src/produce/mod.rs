//! The producer's side: realistic events with planted taste and planted faults, sent at a fixed pace,
//! with every delivery measured from the moment at which it was meant to be sent; and files of events, each line
//! judged before it is sent ([`backfill`]).
//!
//! The generator does no I/O; the command, the tests and the benchmarks share it.

pub mod avro;
pub mod backfill;
pub mod bad;
pub mod event;
pub mod generator;
pub mod json;
pub mod population;
pub mod report;
pub mod schemas;
pub mod sender;

pub use bad::{BadKind, PLANTED_REASON_HEADER};
pub use generator::{AvroSchemas, Encoding, Generator, Record, Settings};
