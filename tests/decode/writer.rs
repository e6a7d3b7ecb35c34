//! Writer schemas made up at random, and events of them.

use apache_avro::types::Value;
use serde_json::{Value as Json, json};

use crate::support::{OCCURRED_AT_MS, Random, USER, VIDEO};

/// A writer's field: its name, and the branches of its type (one: no union).
pub struct Field {
    pub name: String,
    /// What the reader calls it, if it knows it.
    pub reader_name: Option<&'static str>,
    pub branches: Vec<Branch>,
}

impl Field {
    /// Whether an event with this branch can be accepted, as far as this field is concerned.
    fn is_good(&self, index: usize) -> bool {
        let branch = &self.branches[index];
        let is_required = |name| READER_FIELDS.contains(&(name, true));
        match (self.reader_name, &branch.value) {
            (None, _) => true,
            (Some(name), Kind::Null) => !is_required(name),
            _ => branch.fits,
        }
    }
}

#[derive(Clone)]
pub struct Branch {
    pub schema: Json,
    pub value: Kind,
    /// Whether the reader takes it.
    pub fits: bool,
}

/// How to make a value of a branch.
#[derive(Clone)]
pub enum Kind {
    Null,
    Id,
    IdBytes,
    IdFixed,
    IdUuid,
    Type(bool),
    Text(bool),
    Int,
    Long,
    Float,
    Double,
    Timestamp { int: bool, logical: bool },
    Map { bytes: bool, nullable: bool },
    Other(Value),
}

fn branch(schema: Json, value: Kind) -> Branch {
    let fits = !matches!(value, Kind::Other(_));
    Branch { schema, value, fits }
}

/// The types that a writer may have for a field of the reader, the reader's own first.
fn writer_types(reader_name: &str, names: &mut Names) -> Vec<Branch> {
    match reader_name {
        "userId" | "videoId" | "eventId" => vec![
            branch(json!({"type": "string", "logicalType": "uuid"}), Kind::IdUuid),
            branch(json!("string"), Kind::Id),
            branch(json!("bytes"), Kind::IdBytes),
            branch(
                json!({"type": "fixed", "name": names.next(), "size": 16, "logicalType": "uuid"}),
                Kind::IdFixed,
            ),
        ],
        "interactionType" => {
            vec![branch(json!("string"), Kind::Type(false)), branch(json!("bytes"), Kind::Type(true))]
        }
        "feedSessionId" | "algorithm" | "experimentVariantId" => {
            vec![branch(json!("string"), Kind::Text(false)), branch(json!("bytes"), Kind::Text(true))]
        }
        "watchTime" | "recommendationScore" => vec![
            branch(json!("double"), Kind::Double),
            branch(json!("float"), Kind::Float),
            branch(json!("long"), Kind::Long),
            branch(json!("int"), Kind::Int),
        ],
        "position" => vec![branch(json!("int"), Kind::Int)],
        "timestamp" => {
            let kind = |int, logical| Kind::Timestamp { int, logical };
            vec![
                branch(json!({"type": "long", "logicalType": "timestamp-millis"}), kind(false, true)),
                branch(json!("long"), kind(false, false)),
                branch(json!("int"), kind(true, false)),
            ]
        }
        "metadata" => [(false, false), (true, false), (false, true)]
            .map(|(bytes, nullable)| {
                let values = match (bytes, nullable) {
                    (true, _) => json!("bytes"),
                    (_, true) => json!(["null", "string"]),
                    _ => json!("string"),
                };
                branch(json!({"type": "map", "values": values}), Kind::Map { bytes, nullable })
            })
            .into(),
        other => panic!("{other}"),
    }
}

/// Names that no other type of the schema has.
struct Names(usize);

impl Names {
    fn next(&mut self) -> String {
        self.0 += 1;
        format!("T{}", self.0)
    }
}

/// A type that the reader has no use for, with a value of it.
fn foreign(random: &mut Random, names: &mut Names, depth: usize) -> (Json, Value) {
    let kinds = if depth == 0 { 15 } else { 21 };
    match random.below(kinds) {
        0 => (json!("null"), Value::Null),
        1 => (json!("boolean"), Value::Boolean(random.one_in(2))),
        2 => (json!("int"), Value::Int(random.next() as i32)),
        3 => (json!("long"), Value::Long(random.next() as i64)),
        4 => (json!("float"), Value::Float(1.5)),
        5 => (json!("double"), Value::Double(-2.5)),
        6 => (json!("bytes"), Value::Bytes(vec![0xFF; random.below(9)])),
        7 => (json!("string"), Value::String("x".repeat(random.below(200)))),
        8 => (
            json!({"type": "enum", "name": names.next(), "symbols": ["A", "B", "C"]}),
            Value::Enum(1, "B".into()),
        ),
        9 => {
            let size = random.below(4);
            (json!({"type": "fixed", "name": names.next(), "size": size}), Value::Fixed(size, vec![7; size]))
        }
        10 => (json!({"type": "long", "logicalType": "timestamp-micros"}), Value::TimestampMicros(1)),
        11 => (json!({"type": "int", "logicalType": "date"}), Value::Date(20_000)),
        12 => (json!({"type": "int", "logicalType": "time-millis"}), Value::TimeMillis(1)),
        13 => (json!({"type": "string", "logicalType": "uuid"}), Value::Uuid(USER.parse().unwrap())),
        14 => {
            // A list that refers to itself.
            let name = names.next();
            let schema = json!({"type": "record", "name": name, "fields": [
                {"name": "next", "type": ["null", name]}, {"name": "n", "type": "int"}]});
            let mut list = Value::Union(0, Box::new(Value::Null));
            for n in 0..=random.below(5) {
                let fields = vec![("next".into(), list), ("n".into(), Value::Int(n as i32))];
                list = Value::Union(1, Box::new(Value::Record(fields)));
            }
            let Value::Union(_, record) = list else { unreachable!() };
            (schema, *record)
        }
        15 | 16 => {
            let (items, value) = foreign(random, names, depth - 1);
            let values = vec![value; random.below(4)];
            (json!({"type": "array", "items": items}), Value::Array(values))
        }
        17 => {
            let (values, value) = foreign(random, names, depth - 1);
            let entries = (0..random.below(4)).map(|n| (format!("k{n}"), value.clone()));
            (json!({"type": "map", "values": values}), Value::Map(entries.collect()))
        }
        18 => {
            let (schema, value) = foreign(random, names, depth - 1);
            if schema == json!("null") || schema.is_array() {
                return (json!(["null", "int"]), Value::Union(1, Box::new(Value::Int(1))));
            }
            let branch = if random.one_in(2) {
                Value::Union(1, Box::new(value))
            } else {
                Value::Union(0, Box::new(Value::Null))
            };
            (json!(["null", schema]), branch)
        }
        _ => {
            let name = names.next();
            let (schemas, values): (Vec<_>, Vec<_>) = (0..random.below(4))
                .map(|n| {
                    let (schema, value) = foreign(random, names, depth - 1);
                    let name = format!("f{n}");
                    (json!({"name": name, "type": schema}), (name, value))
                })
                .unzip();
            (json!({"type": "record", "name": name, "fields": schemas}), Value::Record(values))
        }
    }
}

const READER_FIELDS: [(&str, bool); 12] = [
    ("userId", true),
    ("videoId", true),
    ("interactionType", true),
    ("watchTime", false),
    ("timestamp", true),
    ("eventId", false),
    ("feedSessionId", false),
    ("algorithm", false),
    ("experimentVariantId", false),
    ("recommendationScore", false),
    ("position", false),
    ("metadata", false),
];

pub fn generate(random: &mut Random) -> Vec<Field> {
    let mut names = Names(0);
    let mut fields = Vec::new();
    for (reader_name, required) in READER_FIELDS {
        if !required && random.one_in(4) {
            continue;
        }
        let types = writer_types(reader_name, &mut names);
        let own = random.one_in(2);
        let mut branches = vec![if own { &types[0] } else { random.pick(&types) }.clone()];
        if random.one_in(2) {
            branches.push(branch(json!("null"), Kind::Null));
            if random.one_in(4) {
                // A branch that the reader has no use for in this field.
                let value = Kind::Other(Value::Boolean(true));
                branches.push(branch(json!("boolean"), value));
            }
            random.shuffle(&mut branches);
        }
        let is_aliased = reader_name == "recommendationScore" && random.one_in(3);
        let name = if is_aliased { "recommendation_score" } else { reader_name };
        fields.push(Field { name: name.into(), reader_name: Some(reader_name), branches });
    }
    for n in 0..random.below(5) {
        let (schema, value) = foreign(random, &mut names, 3);
        fields.push(Field {
            name: format!("extra{n}"),
            reader_name: None,
            branches: vec![branch(schema, Kind::Other(value))],
        });
    }
    random.shuffle(&mut fields);
    fields
}

/// As the writer has it, or with the reader's names.
pub fn schema_json(fields: &[Field], as_reader: bool) -> String {
    let fields: Vec<Json> = fields
        .iter()
        .map(|field| {
            let name = match field.reader_name {
                Some(name) if as_reader => name,
                _ => &field.name,
            };
            let schema = match &field.branches[..] {
                [one] => one.schema.clone(),
                many => many.iter().map(|branch| branch.schema.clone()).collect(),
            };
            json!({"name": name, "type": schema})
        })
        .collect();
    json!({"type": "record", "name": "Anything", "fields": fields}).to_string()
}

fn value_of(kind: &Kind, random: &mut Random) -> Value {
    let id = *random.pick(&[USER, VIDEO, "00000000-0000-0000-0000-00000000abcd"]);
    let uuid: uuid::Uuid = id.parse().unwrap();
    let texts = ["a", "größer", "line\nbreak \"quoted\" \\ \u{1F600}", "x-1"];
    let text_or_bytes = |text: &str, bytes: bool| {
        if bytes { Value::Bytes(text.into()) } else { Value::String(text.into()) }
    };
    match kind {
        Kind::Null => Value::Null,
        Kind::Id => Value::String(id.to_ascii_uppercase()),
        Kind::IdBytes => Value::Bytes(id.into()),
        Kind::IdFixed | Kind::IdUuid => Value::Uuid(uuid),
        Kind::Type(bytes) => {
            let name = *random.pick(&["view", "Like", "SKIP", "complete"]);
            text_or_bytes(name, *bytes)
        }
        Kind::Text(bytes) => {
            let text = *random.pick(&texts);
            text_or_bytes(text, *bytes)
        }
        Kind::Int => Value::Int((random.next() as i32) & i32::MAX),
        Kind::Long => Value::Long((random.next() as i64) & i64::MAX),
        Kind::Float => Value::Float(random.below(100_000) as f32 / 7.0),
        Kind::Double => Value::Double(random.below(100_000) as f64 / 7.0),
        // As an int no timestamp is after January 1970: it is read, and then out of its limits.
        Kind::Timestamp { int: true, .. } => Value::Int(random.next() as i32),
        Kind::Timestamp { logical, .. } => {
            let ms = OCCURRED_AT_MS - random.below(1_000_000_000) as i64;
            if *logical { Value::TimestampMillis(ms) } else { Value::Long(ms) }
        }
        Kind::Map { bytes, nullable } => {
            let entries = (0..random.below(6)).map(|n| {
                let key = format!("{}{n}", random.pick(&texts));
                let text = *random.pick(&texts);
                let value = if *nullable && random.one_in(20) {
                    Value::Union(0, Box::new(Value::Null))
                } else if *nullable {
                    Value::Union(1, Box::new(Value::String(text.into())))
                } else {
                    text_or_bytes(text, *bytes)
                };
                (key, value)
            });
            Value::Map(entries.collect())
        }
        Kind::Other(value) => value.clone(),
    }
}

/// A record of the writer's, and whether every branch in it is one that the reader takes.
pub fn record(fields: &[Field], random: &mut Random) -> (Value, bool) {
    let mut all_fit = true;
    let values = fields
        .iter()
        .map(|field| {
            let mut index = random.below(field.branches.len());
            // Null for one of four required fields would leave few events that are accepted.
            while !field.is_good(index) && !random.one_in(16) {
                index = random.below(field.branches.len());
            }
            let branch = &field.branches[index];
            all_fit &= branch.fits || field.reader_name.is_none();
            let value = value_of(&branch.value, random);
            let value = match field.branches.len() {
                1 => value,
                _ => Value::Union(index as u32, Box::new(value)),
            };
            (field.name.clone(), value)
        })
        .collect();
    (Value::Record(values), all_fit)
}
