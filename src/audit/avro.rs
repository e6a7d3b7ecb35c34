//! Avro by the letter of its specification: a writer schema, read by this module itself, steps over a body
//! to its last byte. What the reader takes of it is decided as docs and schemas/ say: fields by name or by
//! alias, numbers promoted, text and bytes alike.

use std::collections::HashMap;

use serde_json::Value as Schema;

/// Types within each other, in a schema or in a body. Ours have four.
const DEPTH_MAX: usize = 64;

pub const INCOMPATIBLE: &str = "schema_incompatible";
pub const MALFORMED: &str = "avro_malformed";

/// What a field holds, as far as the reader wants to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Integer(i64),
    Double(f64),
    Text(String),
    Uuid([u8; 16]),
    Map(Vec<(String, Value)>),
    /// Nothing that the reader takes.
    Other,
}

/// What the reader wants of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Uuid,
    Text,
    Double,
    Int,
    Millis,
    Texts,
}

/// The reader's fields: name, alias, what is wanted, whether it must be there.
const READER: [(&str, &str, Wanted, bool); 12] = [
    ("userId", "", Wanted::Uuid, true),
    ("videoId", "", Wanted::Uuid, true),
    ("interactionType", "", Wanted::Text, true),
    ("timestamp", "", Wanted::Millis, true),
    ("watchTime", "", Wanted::Double, false),
    ("eventId", "", Wanted::Uuid, false),
    ("feedSessionId", "", Wanted::Text, false),
    ("algorithm", "", Wanted::Text, false),
    ("experimentVariantId", "", Wanted::Text, false),
    ("recommendationScore", "recommendation_score", Wanted::Double, false),
    ("position", "", Wanted::Int, false),
    ("metadata", "", Wanted::Texts, false),
];

/// A writer schema, ready to be read by.
#[derive(Debug)]
pub struct Writer {
    root: Schema,
    namespace: String,
    named: HashMap<String, (Schema, String)>,
    /// The writer's field names, each with the reader's field that is read from it.
    fields: Vec<Option<&'static str>>,
}

impl Writer {
    /// Errors: what the schema is refused for.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let root: Schema = serde_json::from_str(text).map_err(|_| INCOMPATIBLE)?;
        let mut named = HashMap::new();
        define(&root, "", &mut named, 0)?;
        let mut writer = Writer { namespace: String::new(), root, named, fields: Vec::new() };
        if kind(&writer.root) != "record" {
            return Err(INCOMPATIBLE);
        }
        writer.namespace = full_name(&writer.root, "").map(|name| namespace_of(&name)).unwrap_or_default();
        writer.fields = writer.resolve()?;
        Ok(writer)
    }

    /// Which of the reader's fields each of the writer's is; refuses what can never be read.
    fn resolve(&self) -> Result<Vec<Option<&'static str>>, &'static str> {
        let fields = members(&self.root, "fields")?;
        let name_of = |field: &Schema| field.get("name").and_then(Schema::as_str).unwrap_or("").to_owned();
        let mut found: Vec<Option<&'static str>> = vec![None; fields.len()];
        for (name, alias, wanted, required) in READER {
            let by = |name: &str| fields.iter().position(|field| !name.is_empty() && name_of(field) == name);
            let Some(index) = by(name).or_else(|| by(alias)) else {
                if required {
                    return Err(INCOMPATIBLE);
                }
                continue;
            };
            let sent = fields.get(index).and_then(|field| field.get("type")).ok_or(INCOMPATIBLE)?;
            let (sent, space) = self.follow(sent, &self.namespace)?;
            let readable = match sent {
                Schema::Array(branches) => self.any_readable(branches, space, wanted)?,
                sent if kind(sent) == "null" => !required,
                sent => self.readable(sent, space, wanted)?,
            };
            if !readable {
                return Err(INCOMPATIBLE);
            }
            if let Some(slot) = found.get_mut(index) {
                *slot = Some(name);
            }
        }
        Ok(found)
    }

    fn any_readable(&self, branches: &[Schema], space: &str, wanted: Wanted) -> Result<bool, &'static str> {
        for branch in branches {
            let (branch, space) = self.follow(branch, space)?;
            if kind(branch) != "null" && self.readable(branch, space, wanted)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn readable(&self, sent: &Schema, space: &str, wanted: Wanted) -> Result<bool, &'static str> {
        let logical = sent.get("logicalType").and_then(Schema::as_str).unwrap_or("");
        let plain = logical.is_empty();
        let text = |kind: &str| match kind {
            "string" => plain || logical == "uuid",
            kind => kind == "bytes" && plain,
        };
        Ok(match (wanted, kind(sent)) {
            (Wanted::Text | Wanted::Uuid, kind) if text(kind) => true,
            (Wanted::Uuid, "fixed") => logical == "uuid" && size(sent) == Some(16),
            (Wanted::Int, "int") => plain,
            (Wanted::Double, "int" | "long" | "float" | "double") => plain,
            (Wanted::Millis, "int") => plain,
            (Wanted::Millis, "long") => plain || logical == "timestamp-millis",
            (Wanted::Texts, "map") => {
                let values = sent.get("values").ok_or(INCOMPATIBLE)?;
                match self.follow(values, space)? {
                    (Schema::Array(branches), space) => self.any_readable(branches, space, Wanted::Text)?,
                    (values, space) => self.readable(values, space, Wanted::Text)?,
                }
            }
            _ => false,
        })
    }

    /// A type with references followed and `{"type": …}` taken off, and the namespace that it lies in.
    fn follow<'s>(
        &'s self,
        mut schema: &'s Schema,
        mut space: &'s str,
    ) -> Result<(&'s Schema, &'s str), &'static str> {
        for _ in 0..DEPTH_MAX {
            schema = match schema {
                Schema::String(name) if !is_primitive(name) => {
                    let full = if name.contains('.') || space.is_empty() {
                        name.clone()
                    } else {
                        format!("{space}.{name}")
                    };
                    let (found, inside) =
                        self.named.get(&full).or_else(|| self.named.get(name)).ok_or(INCOMPATIBLE)?;
                    space = inside;
                    found
                }
                Schema::Object(object) => match object.get("type") {
                    Some(inner @ (Schema::Object(_) | Schema::Array(_))) => inner,
                    Some(Schema::String(name)) if !is_primitive(name) && !is_complex(name) => {
                        object.get("type").unwrap_or(schema)
                    }
                    _ => return Ok((schema, space)),
                },
                _ => return Ok((schema, space)),
            };
        }
        Err(INCOMPATIBLE)
    }

    /// The reader's fields of a body; every byte must be accounted for.
    pub fn read(&self, body: &[u8]) -> Result<HashMap<&'static str, Value>, &'static str> {
        let mut input = Input { rest: body, writer: self };
        let mut found = HashMap::new();
        for (field, target) in members(&self.root, "fields")?.iter().zip(&self.fields) {
            let schema = field.get("type").ok_or(MALFORMED)?;
            let value = input.value(schema, &self.namespace, 0)?;
            if let Some(name) = target {
                found.insert(*name, value);
            }
        }
        if input.rest.is_empty() { Ok(found) } else { Err(MALFORMED) }
    }
}

struct Input<'b, 'w> {
    rest: &'b [u8],
    writer: &'w Writer,
}

impl<'b, 'w> Input<'b, 'w> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(MALFORMED)?;
        self.rest = rest;
        Ok(taken)
    }

    fn long(&mut self) -> Result<i64, &'static str> {
        let mut value: u64 = 0;
        for shift in (0..).step_by(7) {
            let byte = *self.take(1)?.first().ok_or(MALFORMED)?;
            // The shortest form only; the tenth byte has room for one bit.
            if (shift > 0 && byte == 0) || (shift == 63 && byte > 1) || shift > 63 {
                return Err(MALFORMED);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    fn int(&mut self) -> Result<i64, &'static str> {
        let value = self.long()?;
        i32::try_from(value).map(i64::from).map_err(|_| MALFORMED)
    }

    fn bytes(&mut self) -> Result<&'b [u8], &'static str> {
        let length = usize::try_from(self.long()?).map_err(|_| MALFORMED)?;
        self.take(length)
    }

    fn value(&mut self, schema: &'w Schema, space: &'w str, depth: usize) -> Result<Value, &'static str> {
        if depth > DEPTH_MAX {
            return Err(MALFORMED);
        }
        let writer = self.writer;
        let (schema, space) = writer.follow(schema, space)?;
        if let Schema::Array(branches) = schema {
            let index = usize::try_from(self.long()?).map_err(|_| MALFORMED)?;
            return self.value(branches.get(index).ok_or(MALFORMED)?, space, depth + 1);
        }
        let logical = schema.get("logicalType").and_then(Schema::as_str).unwrap_or("");
        Ok(match kind(schema) {
            "null" => Value::Null,
            "boolean" => match self.take(1)? {
                [0 | 1] => Value::Other,
                _ => return Err(MALFORMED),
            },
            "int" => number(self.int()?, logical),
            "long" => number(self.long()?, logical),
            "float" => Value::Double(f64::from(f32::from_le_bytes(array(self.take(4)?)?))),
            "double" => Value::Double(f64::from_le_bytes(array(self.take(8)?)?)),
            "string" => Value::Text(text(self.bytes()?)?),
            // Bytes that are read as text must be text; others are only stepped over.
            "bytes" => match (logical, text(self.bytes()?)) {
                ("", Ok(text)) => Value::Text(text),
                _ => Value::Other,
            },
            "fixed" => {
                let bytes = self.take(size(schema).ok_or(MALFORMED)?)?;
                match (logical, <[u8; 16]>::try_from(bytes)) {
                    ("uuid", Ok(id)) => Value::Uuid(id),
                    _ => Value::Other,
                }
            }
            "enum" => {
                let index = usize::try_from(self.long()?).map_err(|_| MALFORMED)?;
                members(schema, "symbols")?.get(index).map(|_| Value::Other).ok_or(MALFORMED)?
            }
            "array" => self.blocks(schema.get("items").ok_or(MALFORMED)?, space, depth, false)?,
            "map" => self.blocks(schema.get("values").ok_or(MALFORMED)?, space, depth, true)?,
            "record" => {
                let inside = full_name(schema, space).map(|name| namespace_of(&name)).unwrap_or_default();
                let space = if inside == space { space } else { writer.known_space(&inside) };
                for field in members(schema, "fields")? {
                    self.value(field.get("type").ok_or(MALFORMED)?, space, depth + 1)?;
                }
                Value::Other
            }
            _ => return Err(MALFORMED),
        })
    }

    /// The blocks of an array or a map, each with a count and perhaps its size.
    fn blocks(
        &mut self,
        each: &'w Schema,
        space: &'w str,
        depth: usize,
        keyed: bool,
    ) -> Result<Value, &'static str> {
        let mut entries = Vec::new();
        loop {
            let mut count = self.long()?;
            let mut end = None;
            if count == 0 {
                return Ok(if keyed { Value::Map(entries) } else { Value::Other });
            }
            if count < 0 {
                count = count.checked_neg().ok_or(MALFORMED)?;
                let size = usize::try_from(self.long()?).map_err(|_| MALFORMED)?;
                end = Some(self.rest.len().checked_sub(size).ok_or(MALFORMED)?);
            }
            // Items of no bytes could be without number; nobody's events have such.
            if usize::try_from(count).map_err(|_| MALFORMED)? > self.rest.len() {
                return Err(MALFORMED);
            }
            for _ in 0..count {
                let key = if keyed { text(self.bytes()?)? } else { String::new() };
                let value = self.value(each, space, depth + 1)?;
                if keyed {
                    entries.push((key, value));
                }
            }
            if end.is_some_and(|end| end != self.rest.len()) {
                return Err(MALFORMED);
            }
        }
    }
}

impl Writer {
    /// A namespace that outlives the schema's own text.
    fn known_space(&self, space: &str) -> &str {
        self.named.values().map(|(_, inside)| inside.as_str()).find(|inside| *inside == space).unwrap_or("")
    }
}

/// Dates and times of day are numbers to Avro, but not to the reader.
fn number(value: i64, logical: &str) -> Value {
    match logical {
        "" | "timestamp-millis" => Value::Integer(value),
        _ => Value::Other,
    }
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| MALFORMED)
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], &'static str> {
    bytes.try_into().map_err(|_| MALFORMED)
}

fn kind(schema: &Schema) -> &str {
    match schema {
        Schema::String(name) => name,
        Schema::Object(object) => object.get("type").and_then(Schema::as_str).unwrap_or(""),
        _ => "",
    }
}

fn size(schema: &Schema) -> Option<usize> {
    schema.get("size").and_then(Schema::as_u64).and_then(|size| usize::try_from(size).ok())
}

fn members<'s>(schema: &'s Schema, name: &str) -> Result<&'s [Schema], &'static str> {
    schema.get(name).and_then(Schema::as_array).map(Vec::as_slice).ok_or(INCOMPATIBLE)
}

fn is_primitive(name: &str) -> bool {
    matches!(name, "null" | "boolean" | "int" | "long" | "float" | "double" | "bytes" | "string")
}

fn is_complex(name: &str) -> bool {
    matches!(name, "record" | "enum" | "fixed" | "array" | "map" | "error")
}

fn full_name(schema: &Schema, space: &str) -> Option<String> {
    let name = schema.get("name")?.as_str()?;
    if name.contains('.') {
        return Some(name.to_owned());
    }
    let space = schema.get("namespace").and_then(Schema::as_str).unwrap_or(space);
    Some(if space.is_empty() { name.to_owned() } else { format!("{space}.{name}") })
}

fn namespace_of(full: &str) -> String {
    full.rsplit_once('.').map(|(space, _)| space.to_owned()).unwrap_or_default()
}

/// Remembers every named type.
fn define(
    schema: &Schema,
    space: &str,
    named: &mut HashMap<String, (Schema, String)>,
    depth: usize,
) -> Result<(), &'static str> {
    if depth > DEPTH_MAX {
        return Err(INCOMPATIBLE);
    }
    match schema {
        Schema::Array(branches) => {
            branches.iter().try_for_each(|branch| define(branch, space, named, depth + 1))
        }
        Schema::Object(object) => {
            let mut inside = space.to_owned();
            if matches!(kind(schema), "record" | "enum" | "fixed") {
                let name = full_name(schema, space).ok_or(INCOMPATIBLE)?;
                inside = namespace_of(&name);
                if named.insert(name, (schema.clone(), inside.clone())).is_some() {
                    return Err(INCOMPATIBLE);
                }
            }
            for name in ["type", "items", "values"] {
                if let Some(inner @ (Schema::Object(_) | Schema::Array(_))) = object.get(name) {
                    define(inner, &inside, named, depth + 1)?;
                }
            }
            let fields = object.get("fields").and_then(Schema::as_array);
            fields.into_iter().flatten().try_for_each(|field| {
                field.get("type").map_or(Err(INCOMPATIBLE), |kind| define(kind, &inside, named, depth + 1))
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = r#"{"type":"record","name":"E","namespace":"n","fields":[
        {"name":"userId","type":{"type":"fixed","name":"Id","size":16,"logicalType":"uuid"}},
        {"name":"videoId","type":"Id"},
        {"name":"interactionType","type":["null","bytes"]},
        {"name":"timestamp","type":{"type":"long","logicalType":"timestamp-millis"}},
        {"name":"extra","type":{"type":"array","items":{"type":"enum","name":"n.F","symbols":["A"]}}},
        {"name":"recommendation_score","type":["null","float"]},
        {"name":"metadata","type":{"type":"map","values":["int","string"]}}]}"#;

    fn body() -> Vec<u8> {
        let mut body = vec![7; 32];
        body.extend_from_slice(b"\x02\x08view\x02");
        body.extend_from_slice(b"\x03\x04\x00\x00\x00"); // a block of two with its size, then the end
        body.extend_from_slice(b"\x02\x00\x00\xc0\x3f"); // 1.5
        body.extend_from_slice(b"\x02\x02k\x02\x02v\x00");
        body
    }

    #[test]
    fn a_body_is_read_by_its_writer_schema() {
        let found = Writer::parse(SCHEMA).unwrap().read(&body()).unwrap();
        assert_eq!(found["videoId"], Value::Uuid([7; 16]));
        assert_eq!(found["interactionType"], Value::Text("view".to_owned()));
        assert_eq!(found["timestamp"], Value::Integer(1));
        assert_eq!(found["recommendationScore"], Value::Double(1.5));
        assert_eq!(found["metadata"], Value::Map(vec![("k".to_owned(), Value::Text("v".to_owned()))]));
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn every_byte_counts() {
        let (writer, body) = (Writer::parse(SCHEMA).unwrap(), body());
        for length in 0..body.len() {
            assert_eq!(writer.read(&body[..length]), Err(MALFORMED), "{length}");
        }
        assert_eq!(writer.read(&[&body[..], b"\0"].concat()), Err(MALFORMED));
        let mut long = body.clone();
        long.splice(32..33, [0x82, 0x00]); // the union's index in two bytes where one is enough
        assert_eq!(writer.read(&long), Err(MALFORMED));
    }

    #[test]
    fn what_can_never_be_read_is_refused_as_a_whole() {
        for (from, to) in [
            (r#""userId""#, r#""user""#),
            (r#"["null","bytes"]"#, r#"["null","int"]"#),
            (r#""logicalType":"timestamp-millis""#, r#""logicalType":"timestamp-micros""#),
            (r#"["null","float"]"#, r#"["null","string"]"#),
            (r#"["int","string"]"#, r#"["int","null"]"#),
            (r#""type":"Id""#, r#""type":"Nobody""#),
        ] {
            assert!(SCHEMA.contains(from));
            assert_eq!(Writer::parse(&SCHEMA.replacen(from, to, 1)).err(), Some(INCOMPATIBLE), "{to}");
        }
        assert_eq!(Writer::parse(r#""string""#).err(), Some(INCOMPATIBLE));
        assert_eq!(Writer::parse("{").err(), Some(INCOMPATIBLE));
    }
}
