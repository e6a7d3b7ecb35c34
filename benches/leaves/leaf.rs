//! The leaves, each over the same [`EVENTS`] generated events.

use bytes::Bytes;
use feed_worker::event::{Decoder, InteractionTypes, Verdict};
use feed_worker::export::file::{FileIdentity, OpenFile};
use feed_worker::produce::generator::{Generator, Record, Settings};
use feed_worker::produce::schemas::encoders;
use feed_worker::record::Chunk;
use feed_worker::row::{self, Coordinates, CopyOutParser, Rows};
use rdkafka::message::Timestamp;

/// Events of one run: as many as the Parquet writer is handed at once.
pub const EVENTS: usize = 4096;
/// 2026-11-21T00:00:00Z; everything is recorded on this day.
const NOW_MS: i64 = 1_795_219_200_000;
const PARTITION: i32 = 3;
/// As `export.row_group_rows` has it by default.
const ROW_GROUP_ROWS: usize = 262_144;
/// Runs that go into one file of the leaf `file`, so that sealing has its share as in a real one.
const RUNS_OF_A_FILE: usize = 16;

/// One step of the hot path, over all events.
pub trait Leaf {
    /// Something that depends on everything that was done.
    fn run(&mut self) -> usize;
}

type Make = fn() -> Box<dyn Leaf>;

pub const LEAVES: &[(&str, Make)] = &[
    ("chunk", || Box::new(IntoChunk(events(0.0, 0.0)))),
    ("decode_avro", || Box::new(Decode::new(0.0, 0.0))),
    ("decode_avro_v1", || Box::new(Decode::new(0.0, 1.0))),
    ("decode_json", || Box::new(Decode::new(1.0, 0.0))),
    ("tuple_avro", || Box::new(Tuple(Decode::new(0.0, 0.0), Vec::new()))),
    ("tuple_json", || Box::new(Tuple(Decode::new(1.0, 0.0), Vec::new()))),
    ("file", || Box::new(File::new())),
    ("row_hash", || Box::new(Hash(tuples()))),
    ("reread", || Box::new(Reread::new())),
];

/// Key and value of each event.
fn events(json_share: f64, avro_v1_share: f64) -> Vec<(String, Vec<u8>)> {
    let settings = Settings { json_share, avro_v1_share, ..Settings::default() };
    let schemas = encoders(1, 2, 3).expect("the schemas of this repository");
    let generator = Generator::new(settings, Some(schemas)).expect("shares between 0 and 1");
    let mut record = Record::default();
    let mut event = |index| {
        generator.write(index, NOW_MS, &mut record);
        (record.key.clone(), record.value().expect("no tombstone").to_vec())
    };
    (0..EVENTS as u64).map(&mut event).collect()
}

fn types() -> InteractionTypes {
    InteractionTypes::parse(InteractionTypes::default_text()).expect("the default")
}

struct IntoChunk(Vec<(String, Vec<u8>)>);

impl Leaf for IntoChunk {
    fn run(&mut self) -> usize {
        let mut chunk = Chunk::new(1);
        for (offset, (key, value)) in self.0.iter().enumerate() {
            let at = (PARTITION, offset as i64, Timestamp::LogAppendTime(NOW_MS));
            chunk.add(at, Some(key.as_bytes()), Some(value));
        }
        chunk.size_bytes()
    }
}

struct Decode {
    events: Vec<(String, Vec<u8>)>,
    decoder: Decoder,
    types: InteractionTypes,
}

impl Decode {
    fn new(json_share: f64, avro_v1_share: f64) -> Self {
        let mut decoder = Decoder::new(types());
        let schemas = [
            include_str!("../../schemas/feed.interactions.v1/interaction.avsc"),
            include_str!("../../schemas/feed.interactions.v1/interaction.v1.avsc"),
        ];
        for (id, schema) in (1..).zip(schemas) {
            decoder.add_schema(id, schema).expect("a schema of this repository");
        }
        Decode { events: events(json_share, avro_v1_share), decoder, types: types() }
    }
}

impl Leaf for Decode {
    fn run(&mut self) -> usize {
        let mut accepted = 0;
        for (_, value) in &self.events {
            match self.decoder.decode(Some(value), NOW_MS) {
                Verdict::Accept(interaction) => {
                    std::hint::black_box(interaction);
                    accepted += 1;
                }
                other => panic!("a good event: {other:?}"),
            }
        }
        accepted
    }
}

/// Decoded, and encoded as its COPY tuple.
struct Tuple(Decode, Vec<u8>);

impl Leaf for Tuple {
    fn run(&mut self) -> usize {
        let Tuple(decode, out) = self;
        out.clear();
        for (offset, (_, value)) in decode.events.iter().enumerate() {
            let Verdict::Accept(interaction) = decode.decoder.decode(Some(value), NOW_MS) else {
                panic!("a good event")
            };
            let at = Coordinates {
                partition: PARTITION,
                offset: offset as i64,
                recorded_at_ms: NOW_MS,
                ingested_at_ms: NOW_MS,
            };
            row::encode(out, &at, &interaction, &decode.types);
        }
        out.len()
    }
}

fn tuples() -> Vec<u8> {
    let mut tuple = Tuple(Decode::new(0.0, 0.0), Vec::new());
    tuple.run();
    tuple.1
}

/// Tuples into a Parquet file; one is sealed after [`RUNS_OF_A_FILE`] runs.
struct File {
    /// The same rows at the offsets of each run.
    runs: Vec<Vec<u8>>,
    open: OpenFile,
    run: usize,
}

impl File {
    fn new() -> Self {
        let tuples = tuples();
        let shifted = |run: usize| {
            let mut out = tuples.clone();
            let mut at = 0;
            for row in Rows::new(&tuples) {
                let row = row.expect("rows as they are encoded");
                let offset = row.offset() + (run * EVENTS) as i64;
                // Behind the field count, the partition, and the offset's length.
                out[at + 14..at + 22].copy_from_slice(&offset.to_be_bytes());
                at += row.bytes().len();
            }
            out
        };
        File { runs: (0..RUNS_OF_A_FILE).map(shifted).collect(), open: Self::empty(), run: 0 }
    }

    fn empty() -> OpenFile {
        let identity = FileIdentity {
            topic: "feed.interactions.v1".to_owned(),
            partition: PARTITION,
            first_offset: 0,
            day: row::day_of_ms(NOW_MS),
            epoch: 1,
        };
        OpenFile::new(identity, ROW_GROUP_ROWS).expect("a Parquet writer")
    }
}

impl Leaf for File {
    fn run(&mut self) -> usize {
        self.open.append(&self.runs[self.run]).expect("rows in order");
        self.run += 1;
        if self.run < RUNS_OF_A_FILE {
            return self.open.rows() as usize;
        }
        self.run = 0;
        let sealed = std::mem::replace(&mut self.open, Self::empty()).seal().expect("a file with rows");
        sealed.body.len()
    }
}

struct Hash(Vec<u8>);

impl Leaf for Hash {
    fn run(&mut self) -> usize {
        row::row_hash(&self.0).len()
    }
}

/// What Postgres sends when rows are read back, made rows again.
struct Reread {
    stream: Bytes,
    out: Vec<u8>,
}

impl Reread {
    fn new() -> Self {
        let stream = [row::COPY_HEADER, &tuples(), &row::COPY_TRAILER].concat();
        Reread { stream: stream.into(), out: Vec::new() }
    }
}

impl Leaf for Reread {
    fn run(&mut self) -> usize {
        self.out.clear();
        let mut parser = CopyOutParser::new();
        parser.push(&self.stream, &mut self.out).expect("what the worker wrote");
        parser.finish().expect("whole") as usize
    }
}
