//! Events. What is accepted keeps every limit, says what a second opinion says, and its row is the same
//! bytes when it is read and encoded again.

use apache_avro::Schema;
use apache_avro::writer::datum::GenericDatumWriter;
use feed_worker::event::{Decoder, Interaction, READER_SCHEMA_JSON, RejectReason, Verdict};
use feed_worker::row::{self, Coordinates, RowRef};
use serde_json::{Map, Value, json};

use super::Target;
use super::json_oracle;
use crate::generate;
use crate::meter::{BYTES_MAX, Meter};
use crate::oracle::{self, Columns};
use crate::support::{self, Body, RECORDED_AT_MS, Random, USER, V1, V2, VIDEO, read_schema};
use crate::writer::{self, Kind};

/// Writer schemas that are made up for the Avro target, beside our own two.
const WRITER_SCHEMAS: u32 = 24;
const FIRST_WRITER: u32 = 100;
/// A schema whose values may nest without an end, and one whose fields take no bytes.
const CHAIN: u32 = 90;
const HOLLOW: u32 = 91;

/// A decoder under test, and one that lends its types.
struct Event {
    decoder: Decoder,
    types: Decoder,
    row: Vec<u8>,
    again: Vec<u8>,
}

impl Event {
    fn new(decoder: Decoder) -> Self {
        Self { decoder, types: support::decoder(), row: Vec::new(), again: Vec::new() }
    }

    /// Decodes twice: once measured, once to judge. `second_opinion` sees what was accepted.
    fn check(
        &mut self,
        input: &[u8],
        meter: &mut Meter,
        second_opinion: impl FnOnce(&Interaction<'_>, &Decoder),
    ) -> Option<RejectReason> {
        let mut first = None;
        meter.run(input.len(), BYTES_MAX, || {
            first = match self.decoder.decode(Some(input), RECORDED_AT_MS) {
                Verdict::Accept(_) | Verdict::NeedSchema(_) => None,
                Verdict::Reject(reject) => Some((reject.reason, reject.field)),
            };
        });
        match self.decoder.decode(Some(input), RECORDED_AT_MS) {
            Verdict::Accept(interaction) => {
                assert_eq!(first, None, "the verdict is another one the second time");
                support::check_limits(&interaction);
                interaction.metadata.map(check_metadata);
                check_row(&interaction, &self.types, &mut self.row, &mut self.again);
                second_opinion(&interaction, &self.types);
                None
            }
            Verdict::Reject(reject) => {
                assert_eq!(first, Some((reject.reason, reject.field)), "another verdict the second time");
                Some(reject.reason)
            }
            Verdict::NeedSchema(id) => {
                assert_eq!(input[..5], [&[0], &id.to_be_bytes()[..]].concat());
                Some(RejectReason::SchemaNotFound)
            }
        }
    }
}

/// What the text of an accepted event's metadata is, beside within its limits.
fn check_metadata(metadata: &str) {
    assert_canonical(metadata);
    let entries: Map<String, Value> = serde_json::from_str(metadata).unwrap();
    assert!(entries.len() <= 64);
    assert!(entries.iter().all(|(k, v)| !k.contains('\0') && v.as_str().is_some_and(|v| !v.contains('\0'))));
}

/// An object of strings as RFC 8785 wants it: keys by their UTF-16 code units, and written as serde_json
/// writes strings, which is how the RFC does.
pub fn assert_canonical(text: &str) {
    let object: Map<String, Value> = serde_json::from_str(text).unwrap();
    let units = |key: &String| key.encode_utf16().collect::<Vec<_>>();
    assert!(object.keys().is_sorted_by(|a, b| units(a) < units(b)), "{text}");
    assert_eq!(text, serde_json::to_string(&object).unwrap());
}

/// The row of the event, read, and encoded again from what was read.
fn check_row(event: &Interaction<'_>, decoder: &Decoder, row: &mut Vec<u8>, again: &mut Vec<u8>) {
    let types = decoder.types();
    let at = Coordinates {
        partition: 3,
        offset: 42,
        recorded_at_ms: RECORDED_AT_MS,
        ingested_at_ms: RECORDED_AT_MS,
    };
    row.clear();
    row::encode(row, &at, event, types);
    let read = RowRef::parse(row).unwrap();
    let back = Interaction {
        user_id: read.user_id(),
        video_id: read.video_id(),
        interaction_type: types.lookup(read.interaction_type()).unwrap(),
        occurred_at_ms: read.occurred_at_ms(),
        watch_time_seconds: read.watch_time_seconds(),
        recommendation_score: read.recommendation_score(),
        position: read.position(),
        event_id: read.event_id(),
        algorithm: read.algorithm(),
        experiment_variant_id: read.experiment_variant_id(),
        feed_session_id: read.feed_session_id(),
        metadata: read.metadata(),
    };
    assert_eq!(back, *event);
    again.clear();
    row::encode(again, &at, &back, types);
    assert!(again == row, "the row is another one when it is encoded again");
    again.clear();
    row::canonical_from_postgres(row, again).unwrap();
    assert!(again == row, "the row is not canonical");
}

/// JSON against serde_json.
pub struct Json(Event);

impl Json {
    pub fn new() -> Self {
        Self(Event::new(support::decoder()))
    }
}

impl Target for Json {
    fn name(&self) -> &'static str {
        "json"
    }
    fn share(&self) -> u64 {
        340
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        generate::json_event(random)
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        generate::huge_json(random)
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        if input.first() != Some(&b'{') {
            self.0.check(input, meter, |_, _| {});
            return false;
        }
        let opinion = |event: &Interaction<'_>, types: &Decoder| json_oracle::agree(input, event, types);
        match self.0.check(input, meter, opinion) {
            Some(RejectReason::JsonMalformed) => {
                json_oracle::assert_malformed(input);
                false
            }
            Some(_) => false,
            None => true,
        }
    }
}

/// Avro against apache-avro, under writer schemas of every kind.
pub struct Avro {
    event: Event,
    writers: Vec<Writer>,
}

struct Writer {
    id: u32,
    schema: Schema,
    reader: Schema,
    /// Values that take no bytes are made one by one by the second opinion, however many are claimed.
    may_be_asked: bool,
    bodies: Vec<Vec<u8>>,
}

impl Avro {
    pub fn new() -> Self {
        // What a mutated length claims is not to be allocated by the second opinion either.
        apache_avro::util::max_allocation_bytes(1 << 20);
        let mut decoder = support::decoder();
        decoder.add_schema(CHAIN, &chain_schema()).unwrap();
        decoder.add_schema(HOLLOW, &hollow_schema()).unwrap();
        let reader = Schema::parse_str(READER_SCHEMA_JSON).unwrap();
        let first = Schema::parse_str(&read_schema("interaction.v1.avsc")).unwrap();
        let own = |id, schema, body: Body| Writer {
            id,
            schema,
            reader: reader.clone(),
            may_be_asked: true,
            bodies: vec![body.0],
        };
        let mut writers = vec![own(V1, first, Body::v1_full()), own(V2, reader.clone(), Body::v2_full())];
        for number in 0..WRITER_SCHEMAS {
            writers.push(made_up(FIRST_WRITER + number, &mut decoder));
        }
        Self { event: Event::new(decoder), writers }
    }
}

/// A generated writer schema with events of it.
fn made_up(id: u32, decoder: &mut Decoder) -> Writer {
    let random = &mut Random(u64::from(id));
    let fields = writer::generate(random);
    let writer_json = writer::schema_json(&fields, false);
    decoder.add_schema(id, &writer_json).unwrap();
    let schema = Schema::parse_str(&writer_json).unwrap();
    let bodies = (0..16).map(|_| {
        let (value, _) = writer::record(&fields, random);
        let encoder = GenericDatumWriter::builder(&schema).build().unwrap();
        Body::framed(id).raw(&encoder.write_value_to_vec(value).unwrap()).0
    });
    let bodies = bodies.collect();
    // As in the tests of resolution: aliases applied, and text where the writer sends bytes for an id.
    let renamed = Schema::parse_str(&writer::schema_json(&fields, true)).unwrap();
    let mut reader: Value = serde_json::from_str(READER_SCHEMA_JSON).unwrap();
    for field in &fields {
        let sends_bytes = field.branches.iter().any(|branch| matches!(branch.value, Kind::IdBytes));
        let Some(name) = field.reader_name.filter(|_| sends_bytes) else { continue };
        let known = reader["fields"].as_array_mut().unwrap();
        let known = known.iter_mut().find(|known| known["name"] == name).unwrap();
        known["type"] = if known["type"].is_array() { json!(["null", "string"]) } else { json!("string") };
    }
    let reader = Schema::parse_str(&reader.to_string()).unwrap();
    Writer { id, schema: renamed, reader, may_be_asked: !writer_json.contains("\"items\""), bodies }
}

const REQUIRED: &str = r#"{"name":"userId","type":"string"},{"name":"videoId","type":"string"},
    {"name":"interactionType","type":"string"},{"name":"timestamp","type":"long"}"#;

fn chain_schema() -> String {
    format!(
        r#"{{"type":"record","name":"E","fields":[{REQUIRED},{{"name":"chain","type":
        {{"type":"record","name":"Link","fields":[{{"name":"next","type":["null","Link"]}}]}}}}]}}"#
    )
}

fn hollow_schema() -> String {
    let nothing: Vec<String> = (0..1500).map(|n| format!(r#"{{"name":"n{n}","type":"null"}}"#)).collect();
    format!(
        r#"{{"type":"record","name":"E","fields":[{REQUIRED},{{"name":"items","type":{{"type":"array","items":
        {{"type":"record","name":"Item","fields":[{},{{"name":"b","type":"boolean"}}]}}}}}}]}}"#,
        nothing.join(",")
    )
}

fn required(id: u32) -> Body {
    Body::framed(id).string(USER).string(VIDEO).string("view").long(support::OCCURRED_AT_MS)
}

impl Target for Avro {
    fn name(&self) -> &'static str {
        "avro"
    }
    fn share(&self) -> u64 {
        320
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        if random.one_in(3) {
            return generate::avro_v2(random);
        }
        let writer = random.pick(&self.writers);
        random.pick(&writer.bodies).clone()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        let length = generate::size(random);
        match random.below(6) {
            // Two bytes an entry, as many as there is room for.
            0 => {
                let count = length / 2;
                let body = Body::v2_before_metadata().long(1).long(count as i64);
                body.raw(&vec![0; 2 * count]).long(0).0
            }
            1 => required(CHAIN).raw(&vec![2; length]).0,
            2 => required(CHAIN).raw(&[2; 50]).long(0).0,
            3 => required(HOLLOW).long(length as i64).raw(&vec![1; length]).long(0).0,
            4 => Body::v2_before_metadata().long(1).long(1).string("k").string(&"x".repeat(length)).long(0).0,
            // One entry a block.
            _ => Body::v2_before_metadata().long(1).raw(&[1, 4, 0, 0].repeat(length / 4)).long(0).0,
        }
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let Self { event, writers } = self;
        let opinion = |interaction: &Interaction<'_>, types: &Decoder| {
            let [0, a, b, c, d, body @ ..] = input else { return };
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            let Some(writer) = writers.iter().find(|writer| writer.id == id && writer.may_be_asked) else {
                return;
            };
            match oracle::decode(&writer.schema, &writer.reader, body) {
                Ok(record) => assert_eq!(Columns::of(interaction, types), Columns::of_record(&record)),
                // A logical type says nothing of the bytes of a field that is stepped over.
                Err(error) if error.contains("to UUID") => {}
                Err(error) => panic!("accepted, but the second opinion is: {error}"),
            }
        };
        event.check(input, meter, opinion).is_none()
    }
}

/// Short values of any kind: what stands in front of a body.
pub struct Framing(Event);

impl Framing {
    pub fn new() -> Self {
        let mut decoder = support::decoder();
        decoder.add_missing(8);
        assert!(decoder.add_schema(9, "{}").is_err());
        Self(Event::new(decoder))
    }
}

impl Target for Framing {
    fn name(&self) -> &'static str {
        "framing"
    }
    fn share(&self) -> u64 {
        60
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut value: Vec<u8> = (0..random.below(12)).map(|_| random.next() as u8).collect();
        match random.below(4) {
            0 => drop(value.splice(0..0, [0, 0, 0, 0, random.below(12) as u8])),
            1 => value.insert(0, b'{'),
            2 => return random.pick(&[Body::v2_full().0, Body::v1_full().0, support::json("")]).clone(),
            _ => {}
        }
        value
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        let first = *random.pick(b"\0{ \xff");
        let mut value = vec![first; (1 << 20) - 2 + random.below(5)];
        value[1..5].copy_from_slice(&(random.below(12) as u32).to_be_bytes());
        value
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let reason = self.0.check(input, meter, |_, _| {});
        let known = |ids: &[u8]| matches!(input, [0, 0, 0, 0, id, ..] if ids.contains(id));
        match (input.len(), input.first()) {
            (0, _) => assert_eq!(reason, Some(RejectReason::EmptyValue)),
            (length, _) if length > 1 << 20 => assert_eq!(reason, Some(RejectReason::ValueTooLarge)),
            (1..=4, Some(0)) => assert_eq!(reason, Some(RejectReason::BadFraming)),
            (_, Some(0)) if known(&[9]) => assert_eq!(reason, Some(RejectReason::SchemaIncompatible)),
            (_, Some(0)) if !known(&[1, 2]) => assert_eq!(reason, Some(RejectReason::SchemaNotFound)),
            (_, Some(0 | b'{')) => assert_ne!(reason, Some(RejectReason::BadFraming)),
            _ => assert_eq!(reason, Some(RejectReason::BadFraming)),
        }
        reason.is_none()
    }
}
