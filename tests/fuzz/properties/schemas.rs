//! Writer schemas, as a registry might answer. Whatever the text is, compiling it and decoding events
//! under it ends, within the bound.

use feed_worker::event::{Decoder, InteractionTypes, READER_SCHEMA_JSON, Verdict};

use super::Target;
use crate::generate;
use crate::meter::{BYTES_MAX, Meter};
use crate::support::{Body, RECORDED_AT_MS, Random, read_schema};
use crate::writer;

const WORDS: [&str; 16] = [
    "null",
    "boolean",
    "int",
    "long",
    "float",
    "double",
    "bytes",
    "string",
    "record",
    "enum",
    "array",
    "map",
    "fixed",
    "Interaction",
    "uuid",
    "timestamp-millis",
];

pub struct WriterSchema;

impl Target for WriterSchema {
    fn name(&self) -> &'static str {
        "schema"
    }
    fn share(&self) -> u64 {
        14
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let text = match random.below(3) {
            0 => READER_SCHEMA_JSON.to_owned(),
            1 => read_schema("interaction.v1.avsc"),
            _ => writer::schema_json(&writer::generate(random), false),
        };
        if random.one_in(3) {
            return text.into_bytes();
        }
        // One word becomes another: still a schema, more often than not.
        let quoted: Vec<&str> = text.split('"').collect();
        let from = format!("\"{}\"", quoted[1 + 2 * random.below(quoted.len() / 2)]);
        let to = format!("\"{}\"", random.pick(&WORDS));
        text.replacen(&from, &to, 1 + random.below(2)).into_bytes()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        let deep = |depth: usize| {
            let open = r#"{"type":"array","items":"#.repeat(depth);
            format!(
                r#"{{"type":"record","name":"E","fields":[{{"name":"d","type":{open}"int"{}}}]}}"#,
                "}".repeat(depth)
            )
        };
        match random.below(4) {
            0 => deep(60).into_bytes(),
            1 => deep(10_000).into_bytes(),
            2 => vec![b'['; 300_000],
            _ => vec![b' '; (1 << 18) + 1],
        }
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let text = String::from_utf8_lossy(input);
        // The parser of schemas is not ours, and takes some hundred bytes for every one of a schema.
        let bytes_max = BYTES_MAX + 400 * input.len();
        let mut accepted = false;
        let mut random = Random(input.len() as u64);
        let mut body = generate::avro_v2(&mut random);
        body[1..5].copy_from_slice(&7u32.to_be_bytes());
        let noise = Body::framed(7).raw(&input[..input.len().min(400)]).0;
        meter.run(input.len(), bytes_max, || {
            let mut decoder = Decoder::new(InteractionTypes::parse("view:1,like:2").unwrap());
            accepted = decoder.add_schema(7, &text).is_ok();
            for value in [&body, &noise] {
                let verdict = decoder.decode(Some(value), RECORDED_AT_MS);
                assert!(!matches!(verdict, Verdict::NeedSchema(_)));
                assert!(accepted || !matches!(verdict, Verdict::Accept(_)));
            }
        });
        accepted
    }
}
