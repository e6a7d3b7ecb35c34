//! Why one Avro schema cannot read what another one writes.
//!
//! What this module guarantees: no finding for two schemas means that everything which one writes the other reads,
//! by Avro's rules of resolution; and each finding names the field. Stricter than the library's own answer, which
//! calls a union compatible when some of its branches are.

use std::cell::RefCell;
use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{Alias, EnumSchema, Name, RecordSchema};
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};

/// Schemas nest less deep, and this one is compared by recursion. What nests deeper is told as not compared.
const DEPTH_MAX: usize = 64;

/// What the reader cannot read, one sentence for each field.
pub fn unreadable(writer: &Schema, reader: &Schema) -> Vec<String> {
    let mut found = Vec::new();
    let mut names = [Names::new(), Names::new()];
    for (schema, names) in [writer, reader].into_iter().zip(&mut names) {
        collect(schema, names);
    }
    let [writers, readers] = names;
    let pair = Pair { writers, readers, under_way: RefCell::new(Vec::new()) };
    pair.compare(writer, reader, &Path::Root, &mut found);
    found
}

/// What a type that was named once is where only its name stands.
type Names<'s> = HashMap<&'s Name, &'s Schema>;

fn collect<'s>(schema: &'s Schema, names: &mut Names<'s>) {
    if let Some(name) = schema.name().filter(|_| !matches!(schema, Schema::Ref { .. })) {
        names.insert(name, schema);
    }
    match schema {
        Schema::Record(record) => record.fields.iter().for_each(|field| collect(&field.schema, names)),
        Schema::Array(array) => collect(&array.items, names),
        Schema::Map(map) => collect(&map.types, names),
        Schema::Union(union) => union.variants().iter().for_each(|branch| collect(branch, names)),
        _ => {}
    }
}

/// Two schemas while they are compared.
struct Pair<'s> {
    writers: Names<'s>,
    readers: Names<'s>,
    /// Records that are being compared: one that holds itself is not begun again.
    under_way: RefCell<Vec<(&'s Name, &'s Name)>>,
}

/// Where in the schema: told only when something is found.
enum Path<'p> {
    Root,
    Field(&'p Path<'p>, &'p str),
    Inside(&'p Path<'p>, &'static str),
}

impl Path<'_> {
    fn text(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::Field(Path::Root, name) => (*name).to_owned(),
            Path::Field(outer, name) => format!("{}.{name}", outer.text()),
            Path::Inside(outer, what) => format!("{}{what}", outer.text()),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Path::Root => 0,
            Path::Field(outer, _) | Path::Inside(outer, _) => outer.depth() + 1,
        }
    }

    fn tell(&self, what: &str, found: &mut Vec<String>) {
        let place = self.text();
        found.push(if place.is_empty() { what.to_owned() } else { format!("{place}: {what}") });
    }
}

impl<'s> Pair<'s> {
    fn compare(&self, writer: &'s Schema, reader: &'s Schema, path: &Path<'_>, found: &mut Vec<String>) {
        if path.depth() > DEPTH_MAX {
            return path.tell("nests too deep to be compared", found);
        }
        let (writer, reader) = (resolved(writer, &self.writers), resolved(reader, &self.readers));
        match (writer, reader) {
            (Schema::Record(writer), Schema::Record(reader)) => {
                let names = (&writer.name, &reader.name);
                if self.under_way.borrow().contains(&names) {
                    return;
                }
                self.under_way.borrow_mut().push(names);
                self.compare_records(writer, reader, path, found);
                self.under_way.borrow_mut().pop();
            }
            (Schema::Enum(writer), Schema::Enum(reader)) => compare_enums(writer, reader, path, found),
            (Schema::Array(writer), Schema::Array(reader)) => {
                self.compare(&writer.items, &reader.items, &Path::Inside(path, "[]"), found);
            }
            (Schema::Map(writer), Schema::Map(reader)) => {
                self.compare(&writer.types, &reader.types, &Path::Inside(path, "{}"), found);
            }
            (Schema::Union(branches), _) => {
                for branch in branches.variants() {
                    self.compare_to_any(branch, reader, path, found);
                }
            }
            (_, Schema::Union(_)) => self.compare_to_any(writer, reader, path, found),
            _ if reads(writer, reader) => {}
            _ => path.tell(&format!("{} cannot be read as {}", name(writer), name(reader)), found),
        }
    }

    /// The writer is no union; the reader may be one.
    fn compare_to_any(
        &self,
        writer: &'s Schema,
        reader: &'s Schema,
        path: &Path<'_>,
        found: &mut Vec<String>,
    ) {
        let Schema::Union(branches) = reader else {
            return self.compare(writer, reader, path, found);
        };
        let writer = resolved(writer, &self.writers);
        let mut finds_of_best: Option<Vec<String>> = None;
        for branch in branches.variants() {
            let branch = resolved(branch, &self.readers);
            let mut finds = Vec::new();
            self.compare(writer, branch, path, &mut finds);
            if finds.is_empty() {
                return;
            }
            // A branch of the same kind says more than "no branch fits".
            let is_alike = std::mem::discriminant(writer) == std::mem::discriminant(branch);
            if is_alike && finds_of_best.is_none() {
                finds_of_best = Some(finds);
            }
        }
        match finds_of_best {
            Some(finds) => found.extend(finds),
            None => path.tell(&format!("{} cannot be read as {}", name(writer), name(reader)), found),
        }
    }

    fn compare_records(
        &self,
        writer: &'s RecordSchema,
        reader: &'s RecordSchema,
        path: &Path<'_>,
        found: &mut Vec<String>,
    ) {
        let other_names = || reader.aliases.iter().flatten().map(Alias::name);
        let (wrote, reads) = (writer.name.name(), reader.name.name());
        if wrote != reads && !other_names().any(|other| other == wrote) {
            path.tell(&format!("the record is called {wrote}, and a {reads} is read"), found);
        }
        for field in &reader.fields {
            let names = std::iter::once(&field.name).chain(field.aliases.iter());
            let written =
                names.flat_map(|name| writer.fields.iter().find(|written| written.name == *name)).next();
            let path = Path::Field(path, &field.name);
            match written {
                Some(written) => self.compare(&written.schema, &field.schema, &path, found),
                None if field.default.is_some() => {}
                None => path.tell("is not written, and has no default where it is read", found),
            }
        }
    }
}

fn resolved<'s>(schema: &'s Schema, names: &Names<'s>) -> &'s Schema {
    match schema {
        Schema::Ref { name } => names.get(name).copied().unwrap_or(schema),
        schema => schema,
    }
}

fn reads(writer: &Schema, reader: &Schema) -> bool {
    SchemaCompatibility::can_read(writer, reader) == Ok(Compatibility::Full)
}

fn compare_enums(writer: &EnumSchema, reader: &EnumSchema, path: &Path<'_>, found: &mut Vec<String>) {
    if reader.default.is_some() {
        return;
    }
    let unknown: Vec<&str> =
        writer.symbols.iter().filter(|symbol| !reader.symbols.contains(symbol)).map(String::as_str).collect();
    if !unknown.is_empty() {
        path.tell(&format!("the symbols {} are not known where it is read", unknown.join(", ")), found);
    }
}

/// As the schema's text has it; of a record only the name.
fn name(schema: &Schema) -> String {
    match schema {
        Schema::Union(branches) => {
            let names: Vec<String> = branches.variants().iter().map(name).collect();
            format!("[{}]", names.join(", "))
        }
        other => match other.name() {
            Some(name) => name.name().to_owned(),
            None => match serde_json::to_value(other) {
                Ok(serde_json::Value::String(text)) => text,
                Ok(value) => value.to_string(),
                Err(_) => "another type".to_owned(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(fields: &str) -> Schema {
        Schema::parse_str(&format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#)).unwrap()
    }

    #[test]
    fn the_two_versions_of_the_event_read_each_other() {
        let [v1, v2] = [crate::produce::schemas::VERSION_1, crate::produce::schemas::CURRENT];
        let [v1, v2] = [v1, v2].map(|text| Schema::parse_str(text).unwrap());
        assert_eq!(unreadable(&v1, &v2), Vec::<String>::new());
        assert_eq!(unreadable(&v2, &v1), Vec::<String>::new());
    }

    #[test]
    fn each_finding_names_its_field() {
        const A: &str = r#"{"name":"a","type":"string"}"#;
        for (writer, reader, wanted) in [
            (A, r#"{"name":"b","type":"int"}"#, "b: is not written, and has no default"),
            (A, r#"{"name":"a","type":"int"}"#, "a: string cannot be read as int"),
            (r#"{"name":"a","type":["null","string"]}"#, A, "a: null cannot be read as string"),
            (
                r#"{"name":"a","type":"long"}"#,
                r#"{"name":"a","type":"int"}"#,
                "a: long cannot be read as int",
            ),
            (
                r#"{"name":"a","type":["null","long"]}"#,
                r#"{"name":"a","type":["null","int"]}"#,
                "a: long cannot be read as [null, int]",
            ),
            (
                r#"{"name":"a","type":{"type":"enum","name":"E","symbols":["X","Y"]}}"#,
                r#"{"name":"a","type":{"type":"enum","name":"E","symbols":["X"]}}"#,
                "a: the symbols Y are not known",
            ),
            (
                r#"{"name":"a","type":["null",{"type":"map","values":"string"}]}"#,
                r#"{"name":"a","type":["null",{"type":"map","values":"long"}]}"#,
                "a{}: string cannot be read as long",
            ),
            (
                r#"{"name":"a","type":{"type":"record","name":"I","fields":[]}}"#,
                r#"{"name":"a","type":{"type":"record","name":"I","fields":[{"name":"x","type":"int"}]}}"#,
                "a.x: is not written",
            ),
        ] {
            let found = unreadable(&record(writer), &record(reader));
            assert_eq!(found.len(), 1, "{wanted}: {found:?}");
            assert!(found[0].starts_with(wanted), "{wanted}: {found:?}");
        }
    }

    #[test]
    fn what_avro_resolves_is_no_finding() {
        for (writer, reader) in [
            (r#"{"name":"a","type":"int"}"#, r#"{"name":"a","type":"double"}"#),
            (r#"{"name":"a","type":"int"}"#, r#"{"name":"a","type":["null","long"]}"#),
            (r#"{"name":"a","type":"int"}"#, r#"{"name":"b","aliases":["a"],"type":"int"}"#),
            (r#"{"name":"a","type":"int"}"#, r#"{"name":"b","type":"int","default":1}"#),
            (r#"{"name":"a","type":"int"}"#, ""),
        ] {
            assert_eq!(
                unreadable(&record(writer), &record(reader)),
                Vec::<String>::new(),
                "{writer} {reader}"
            );
        }
    }

    /// A type stands there once, and then only its name: wherever that is, it is compared.
    #[test]
    fn a_name_is_the_type_that_it_names() {
        let point = |fields: &str| format!(r#"{{"type":"record","name":"P","fields":[{fields}]}}"#);
        let twice = |fields: &str| {
            record(&format!(r#"{{"name":"a","type":{}}},{{"name":"b","type":["null","P"]}}"#, point(fields)))
        };
        let only_b = |fields: &str| record(&format!(r#"{{"name":"b","type":["null",{}]}}"#, point(fields)));
        const X: &str = r#"{"name":"x","type":"int"}"#;
        const X_Y: &str = r#"{"name":"x","type":"int"},{"name":"y","type":"int"}"#;
        assert_eq!(unreadable(&twice(X), &twice(X)), Vec::<String>::new());
        assert_eq!(unreadable(&twice(X), &only_b(X)), Vec::<String>::new(), "a name beside a type");
        let found = unreadable(&twice(X), &only_b(X_Y));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("b.y: is not written"), "{found:?}");
        assert_eq!(unreadable(&twice(X), &twice(X_Y)).len(), 2, "where it stands, and where its name does");
    }

    #[test]
    fn a_record_that_holds_itself_is_compared_once() {
        let list = |kind: &str| {
            record(&format!(
                r#"{{"name":"value","type":"{kind}"}},{{"name":"next","type":["null","R"],"default":null}}"#
            ))
        };
        assert_eq!(unreadable(&list("int"), &list("long")), Vec::<String>::new());
        let found = unreadable(&list("long"), &list("int"));
        assert_eq!(found, ["value: long cannot be read as int"]);
    }

    #[test]
    fn what_lies_deep_is_compared_and_what_lies_too_deep_is_told() {
        let deep = |depth: usize, kind: &str| {
            let (open, close) = (r#"{"type":"array","items":"#.repeat(depth), "}".repeat(depth));
            record(&format!(r#"{{"name":"a","type":{open}"{kind}"{close}}}"#))
        };
        assert_eq!(unreadable(&deep(40, "int"), &deep(40, "long")), Vec::<String>::new());
        assert!(unreadable(&deep(40, "long"), &deep(40, "int"))[0].ends_with("long cannot be read as int"));
        assert!(unreadable(&deep(70, "long"), &deep(70, "int"))[0].contains("too deep"));
    }
}
