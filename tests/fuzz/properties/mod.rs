//! What is fuzzed, and what must hold of it.

mod events;
mod files;
mod json_oracle;
mod rows;
mod schemas;
mod texts;

use crate::meter::Meter;
use crate::support::Random;

/// One thing that reads bytes from outside.
pub trait Target {
    /// Also the name of its folder in the corpus.
    fn name(&self) -> &'static str;

    /// How many of a thousand inputs are for this one.
    fn share(&self) -> u64 {
        1
    }

    /// An input that is valid, or nearly so.
    fn generate(&mut self, random: &mut Random) -> Vec<u8>;

    /// An input of up to 1 MiB that would take memory or time out of proportion from a careless reader.
    fn huge(&mut self, random: &mut Random) -> Vec<u8>;

    /// Whether the input was accepted. Panics if it does harm, or if what was accepted is not right.
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool;
}

pub const TARGETS: &[fn() -> Box<dyn Target>] = &[
    || Box::new(events::Json::new()),
    || Box::new(events::Avro::new()),
    || Box::new(events::Framing::new()),
    || Box::new(rows::Copy::new()),
    || Box::new(rows::Jsonb),
    || Box::new(schemas::WriterSchema),
    || Box::new(texts::Manifests),
    || Box::new(texts::Keys),
    || Box::new(texts::Settings),
    || Box::new(files::Parquet::new()),
];
