//! Decoding, as a caller sees it: `feed_worker::event` and the files in `schemas/`.

mod contract;
mod examples;
mod hostile;
mod one_contract;
mod oracle;
mod resolution;
mod rules;
mod rules_of_avro;
mod rules_of_metadata;
mod support;
mod windows;
mod writer;
