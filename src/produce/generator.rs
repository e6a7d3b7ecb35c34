//! Event `i` of a seed, encoded: always the same apart from its timestamp, whoever asks and in
//! whatever order.

use anyhow::ensure;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::avro;
use super::bad::{self, BadKind};
use super::event::{self, Event};
use super::json;
use super::population::mix;
pub use super::population::{Population, user_id, video_id};

/// What to generate.
#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    pub users: u64,
    pub videos: u64,
    pub tastes: u64,
    /// Of the valid events; the others are Avro.
    pub json_share: f64,
    /// Of the Avro events; the others are of the current schema.
    pub avro_v1_share: f64,
    /// Of all records, to the event: evenly spread, every kind in turn.
    pub bad_share: f64,
    /// Metadata of so many bytes in every valid event; 0: none. Not said: drawn like everything else.
    pub metadata_bytes: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            users: 10_000,
            videos: 5_000,
            tastes: 25,
            json_share: 0.2,
            avro_v1_share: 0.2,
            bad_share: 0.0,
            metadata_bytes: None,
        }
    }
}

/// The schemas that Avro events are written with, and what the registry calls them.
#[derive(Debug, Clone)]
pub struct AvroSchemas {
    pub current: avro::Encoder,
    pub current_id: u32,
    pub v1: avro::Encoder,
    pub v1_id: u32,
    /// A registered schema that is no interaction at all.
    pub incompatible_id: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Encoding {
    Json,
    Avro,
    AvroV1,
    /// A bad record: whatever it is, it is no interaction.
    Bad,
}

impl Encoding {
    pub const ALL: [Self; 4] = [Self::Json, Self::Avro, Self::AvroV1, Self::Bad];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Avro => "avro",
            Self::AvroV1 => "avro_v1",
            Self::Bad => "bad",
        }
    }
}

/// One record, ready to be sent. Its buffers are used again for the next.
#[derive(Debug, Default)]
pub struct Record {
    /// `userId`, lower case.
    pub key: String,
    buffer: Vec<u8>,
    has_value: bool,
    /// None: a good event.
    pub planted: Option<BadKind>,
    encoding: Option<Encoding>,
}

impl Record {
    pub fn value(&self) -> Option<&[u8]> {
        self.has_value.then_some(&self.buffer)
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding.unwrap_or(Encoding::Bad)
    }
}

#[derive(Debug, Clone)]
pub struct Generator {
    settings: Settings,
    population: Population,
    schemas: Option<AvroSchemas>,
}

impl Generator {
    /// Without schemas every valid event must be JSON. Errors: settings that contradict each other.
    pub fn new(settings: Settings, schemas: Option<AvroSchemas>) -> anyhow::Result<Self> {
        let shares = [
            ("share of JSON", settings.json_share),
            ("share of Avro version 1", settings.avro_v1_share),
            ("share of bad events", settings.bad_share),
        ];
        for (what, share) in shares {
            ensure!((0.0..=1.0).contains(&share), "the {what} is {share}, not between 0 and 1");
        }
        if let Some(bytes) = settings.metadata_bytes {
            let allowed = event::FILLER_BYTES_MIN..=event::FILLER_BYTES_MAX;
            ensure!(
                bytes == 0 || allowed.contains(&bytes),
                "metadata of {bytes} bytes: 0, or {} to {}",
                allowed.start(),
                allowed.end()
            );
        }
        ensure!(
            schemas.is_some() || settings.json_share >= 1.0,
            "Avro events need registered schemas: give a registry, or a share of JSON of 1"
        );
        let population =
            Population::new(settings.users, settings.videos, settings.tastes).map_err(anyhow::Error::msg)?;
        Ok(Self { settings, population, schemas })
    }

    /// The event of an index, as it was before anything was done to it.
    pub fn event(&self, index: u64, now_ms: i64) -> Event {
        self.draw(index, now_ms).0
    }

    /// Writes the record of an index.
    pub fn write(&self, index: u64, now_ms: i64, record: &mut Record) {
        let (event, mut rng) = self.draw(index, now_ms);
        record.key.clear();
        let mut buffer = uuid::Uuid::encode_buffer();
        record.key.push_str(event.user_id.hyphenated().encode_lower(&mut buffer));
        record.buffer.clear();
        record.has_value = true;
        record.planted = self.bad_number(index).map(|number| {
            let kind = BadKind::in_turn(number, self.schemas.is_some());
            record.has_value = bad::write(kind, number, &event, self.schemas.as_ref(), &mut record.buffer);
            kind
        });
        record.encoding = Some(match record.planted {
            Some(_) => Encoding::Bad,
            None => self.encode(&event, &mut rng, &mut record.buffer),
        });
    }

    fn draw(&self, index: u64, now_ms: i64) -> (Event, SmallRng) {
        let mut rng = SmallRng::seed_from_u64(mix(self.settings.seed) ^ index);
        let mut event = Event::draw(&self.population, self.settings.seed, index, now_ms, &mut rng);
        if let Some(bytes) = self.settings.metadata_bytes {
            event.metadata = event::filler(bytes, self.settings.seed, index);
        }
        (event, rng)
    }

    fn encode(&self, event: &Event, rng: &mut SmallRng, out: &mut Vec<u8>) -> Encoding {
        let (json_draw, v1_draw): (f64, f64) = (rng.random(), rng.random());
        match &self.schemas {
            Some(schemas) if json_draw >= self.settings.json_share => {
                if v1_draw < self.settings.avro_v1_share {
                    avro::write_framing(schemas.v1_id, out);
                    schemas.v1.encode(event, out);
                    Encoding::AvroV1
                } else {
                    avro::write_framing(schemas.current_id, out);
                    schemas.current.encode(event, out);
                    Encoding::Avro
                }
            }
            _ => {
                json::encode(event, rng, out);
                Encoding::Json
            }
        }
    }

    /// Which bad record this is, if it is one: the index at which the share passes a whole number.
    fn bad_number(&self, index: u64) -> Option<u64> {
        let passed = |count: u64| (count as f64 * self.settings.bad_share) as u64;
        (passed(index + 1) > passed(index)).then(|| passed(index))
    }
}
