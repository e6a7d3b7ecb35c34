//! Compiles a writer schema, against the reader's fields, into steps.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{InnerDecimalSchema, Name, RecordSchema, UuidSchema};

use super::super::raw::{Field, Wanted};
use super::SchemaRefused;
use super::skip::Skip;
use super::types::{defined_name, is_text, type_name, wanted_name};

/// Ours has 4 KiB. Compiling takes time in proportion, and the pipeline waits for it.
const SCHEMA_BYTES_MAX: usize = 1 << 18;

/// Types within each other, references followed. The compiler recurses over them.
const SCHEMA_DEPTH_MAX: usize = 128;

/// A writer schema, resolved: what to do with each of its fields, in its order.
#[derive(Debug)]
pub(in super::super) struct Plan {
    pub(super) steps: Box<[Step]>,
    pub(super) named: Box<[Skip]>,
}

#[derive(Debug)]
pub(super) enum Step {
    Read(Field, Read),
    /// The writer's union, branch by branch.
    Branches(Field, Box<[Branch]>),
    Skip(Skip),
}

/// How to read a value that the reader takes.
#[derive(Debug)]
pub(super) enum Read {
    Text,
    UuidText,
    UuidBytes,
    Int,
    Long,
    Float,
    Double,
    TextMap,
    BranchMap(Box<[Branch]>),
}

#[derive(Debug)]
pub(super) enum Branch {
    Null,
    Read(Read),
    /// The reader does not take this type: its name, for the reject.
    Mismatch(Skip, &'static str),
}

pub(in super::super) fn compile(writer_schema_json: &str) -> Result<Plan, SchemaRefused> {
    if writer_schema_json.len() > SCHEMA_BYTES_MAX {
        return Err(SchemaRefused::new(format!(
            "{} bytes of schema, at most {SCHEMA_BYTES_MAX}",
            writer_schema_json.len()
        )));
    }
    let schema = Schema::parse_str(writer_schema_json)
        .map_err(|error| SchemaRefused::new(format!("not an Avro schema: {error}")))?;
    let Schema::Record(record) = &schema else {
        return Err(SchemaRefused::new(format!("a record is wanted, this is {}", type_name(&schema))));
    };
    let mut compiler = Compiler::default();
    compiler.define(&schema)?;
    let steps = compiler.steps(record)?;
    Ok(Plan { steps, named: compiler.named.into() })
}

#[derive(Default)]
struct Compiler<'s> {
    definitions: HashMap<Name, &'s Schema>,
    /// Named types that something refers to, and where their steps are.
    indices: HashMap<Name, usize>,
    named: Vec<Skip>,
    /// Of the named types: whether a value takes no bytes.
    empty: HashMap<Name, bool>,
    depth: usize,
}

impl<'s> Compiler<'s> {
    /// Remembers every named type, so that a reference can be followed.
    fn define(&mut self, schema: &'s Schema) -> Result<(), SchemaRefused> {
        if let Some(name) = defined_name(schema)
            && self.definitions.insert(name.clone(), schema).is_some()
        {
            return Err(SchemaRefused::new(format!("type {} is defined twice", name.fullname(None))));
        }
        match schema {
            Schema::Record(record) => record.fields.iter().try_for_each(|field| self.define(&field.schema)),
            Schema::Union(union) => union.variants().iter().try_for_each(|v| self.define(v)),
            Schema::Array(array) => self.define(&array.items),
            Schema::Map(map) => self.define(&map.types),
            _ => Ok(()),
        }
    }

    fn steps(&mut self, record: &'s RecordSchema) -> Result<Box<[Step]>, SchemaRefused> {
        let sources: Vec<(Field, Option<&str>)> =
            Field::ALL.into_iter().map(|field| (field, source_of(field, record))).collect();
        for (field, source) in &sources {
            if source.is_none() && field.is_required() {
                return Err(SchemaRefused::new(format!(
                    "there is no field {}, which has no default",
                    field.name()
                )));
            }
        }
        record
            .fields
            .iter()
            .map(|sent| {
                let target = sources.iter().find(|(_, source)| *source == Some(&*sent.name));
                match target {
                    Some((field, _)) => self.step(*field, &sent.schema),
                    None => Ok(Step::Skip(self.skip(&sent.schema)?)),
                }
            })
            .collect()
    }

    fn step(&mut self, field: Field, schema: &'s Schema) -> Result<Step, SchemaRefused> {
        let refused = |why: &str| SchemaRefused::new(format!("field {}: {why}", field.name()));
        match self.follow(schema)? {
            Schema::Null if field.is_required() => Err(refused("null where a value is required")),
            Schema::Null => Ok(Step::Skip(Skip::Nothing)),
            Schema::Union(union) => {
                let branches = self.branches(field.wanted(), union.variants())?;
                if takes_a_value(&branches) {
                    Ok(Step::Branches(field, branches))
                } else {
                    Err(refused("no branch of the union can be read"))
                }
            }
            other => match self.read(field.wanted(), other)? {
                Some(read) => Ok(Step::Read(field, read)),
                None => Err(refused(&format!(
                    "{} cannot be read as {}",
                    type_name(other),
                    wanted_name(field.wanted())
                ))),
            },
        }
    }

    fn branches(&mut self, wanted: Wanted, variants: &'s [Schema]) -> Result<Box<[Branch]>, SchemaRefused> {
        variants
            .iter()
            .map(|variant| {
                let variant = self.follow(variant)?;
                if matches!(variant, Schema::Null) {
                    return Ok(Branch::Null);
                }
                Ok(match self.read(wanted, variant)? {
                    Some(read) => Branch::Read(read),
                    None => Branch::Mismatch(self.skip(variant)?, type_name(variant)),
                })
            })
            .collect()
    }

    /// How the reader takes this type, if it does.
    fn read(&mut self, wanted: Wanted, sent: &'s Schema) -> Result<Option<Read>, SchemaRefused> {
        Ok(match (wanted, sent) {
            (Wanted::String, sent) if is_text(sent) => Some(Read::Text),
            (Wanted::Uuid, sent) if is_text(sent) => Some(Read::UuidText),
            (Wanted::Uuid, Schema::Uuid(UuidSchema::Fixed(_))) => Some(Read::UuidBytes),
            (Wanted::Int | Wanted::Double, Schema::Int) => Some(Read::Int),
            (Wanted::Double, Schema::Long) => Some(Read::Long),
            (Wanted::Double, Schema::Float) => Some(Read::Float),
            (Wanted::Double, Schema::Double) => Some(Read::Double),
            (Wanted::TimestampMillis, Schema::Int) => Some(Read::Int),
            (Wanted::TimestampMillis, Schema::Long | Schema::TimestampMillis) => Some(Read::Long),
            (Wanted::StringMap, Schema::Map(map)) => match self.follow(&map.types)? {
                values if is_text(values) => Some(Read::TextMap),
                Schema::Union(union) => {
                    let branches = self.branches(Wanted::String, union.variants())?;
                    takes_a_value(&branches).then_some(Read::BranchMap(branches))
                }
                _ => None,
            },
            _ => None,
        })
    }

    fn skip(&mut self, schema: &'s Schema) -> Result<Skip, SchemaRefused> {
        self.deeper(|compiler| {
            if compiler.is_empty(schema)? {
                return Ok(Skip::Nothing);
            }
            compiler.skip_some(schema)
        })
    }

    fn skip_some(&mut self, schema: &'s Schema) -> Result<Skip, SchemaRefused> {
        Ok(match schema {
            Schema::Null => Skip::Nothing,
            Schema::Boolean => Skip::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => Skip::Int,
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => Skip::Long,
            Schema::Float => Skip::Fixed(4),
            Schema::Double => Skip::Fixed(8),
            Schema::Bytes | Schema::BigDecimal | Schema::Uuid(UuidSchema::Bytes) => Skip::Bytes,
            Schema::String | Schema::Uuid(UuidSchema::String) => Skip::String,
            Schema::Fixed(fixed) | Schema::Duration(fixed) | Schema::Uuid(UuidSchema::Fixed(fixed)) => {
                Skip::Fixed(fixed.size)
            }
            Schema::Decimal(decimal) => match &decimal.inner {
                InnerDecimalSchema::Bytes => Skip::Bytes,
                InnerDecimalSchema::Fixed(fixed) => Skip::Fixed(fixed.size),
            },
            Schema::Enum(enumeration) => Skip::Enum(enumeration.symbols.len()),
            Schema::Union(union) => Skip::Union(self.skip_all(union.variants().iter())?),
            Schema::Array(array) => Skip::Array(Box::new(self.skip(&array.items)?)),
            Schema::Map(map) => Skip::Map(Box::new(self.skip(&map.types)?)),
            Schema::Record(record) => {
                Skip::Record(self.skip_fields(record.fields.iter().map(|field| &field.schema))?)
            }
            Schema::Ref { name } => Skip::Named(self.named(name)?),
        })
    }

    /// What takes no bytes is left out: a thousand such fields in the items of an array would cost a
    /// thousand steps for every byte of an event.
    fn skip_fields(
        &mut self,
        schemas: impl Iterator<Item = &'s Schema>,
    ) -> Result<Box<[Skip]>, SchemaRefused> {
        let mut steps = self.skip_all(schemas)?.into_vec();
        steps.retain(|step| !matches!(step, Skip::Nothing));
        Ok(steps.into())
    }

    fn skip_all(&mut self, schemas: impl Iterator<Item = &'s Schema>) -> Result<Box<[Skip]>, SchemaRefused> {
        schemas.map(|schema| self.skip(schema)).collect()
    }

    /// The index of a named type's steps, which are made when it is first referred to.
    fn named(&mut self, name: &Name) -> Result<usize, SchemaRefused> {
        if let Some(index) = self.indices.get(name) {
            return Ok(*index);
        }
        let definition = self.definition(name)?;
        let index = self.named.len();
        // Entered before it is made: a recursive type refers to itself.
        self.indices.insert(name.clone(), index);
        self.named.push(Skip::Nothing);
        let skip = self.skip(definition)?;
        if let Some(slot) = self.named.get_mut(index) {
            *slot = skip;
        }
        Ok(index)
    }

    fn definition(&self, name: &Name) -> Result<&'s Schema, SchemaRefused> {
        self.definitions
            .get(name)
            .copied()
            .ok_or_else(|| SchemaRefused::new(format!("type {} is not defined", name.fullname(None))))
    }

    fn follow(&self, schema: &'s Schema) -> Result<&'s Schema, SchemaRefused> {
        match schema {
            Schema::Ref { name } => self.definition(name),
            other => Ok(other),
        }
    }

    /// Whether a value takes no bytes at all. Such values must not be stepped over one by one: an
    /// array may have 2⁶³ of them in ten bytes.
    fn is_empty(&mut self, schema: &'s Schema) -> Result<bool, SchemaRefused> {
        match schema {
            Schema::Null => Ok(true),
            Schema::Fixed(fixed) => Ok(fixed.size == 0),
            Schema::Record(record) => {
                if let Some(known) = self.empty.get(&record.name) {
                    return Ok(*known);
                }
                // A record within itself has no finite value; reading one fails on its depth.
                self.empty.insert(record.name.clone(), false);
                let mut is_empty = true;
                for field in &record.fields {
                    is_empty &= self.is_empty(&field.schema)?;
                }
                self.empty.insert(record.name.clone(), is_empty);
                Ok(is_empty)
            }
            Schema::Ref { name } => {
                let definition = self.definition(name)?;
                self.deeper(|compiler| compiler.is_empty(definition))
            }
            _ => Ok(false),
        }
    }

    fn deeper<T>(
        &mut self,
        compile: impl FnOnce(&mut Self) -> Result<T, SchemaRefused>,
    ) -> Result<T, SchemaRefused> {
        if self.depth >= SCHEMA_DEPTH_MAX {
            return Err(SchemaRefused::new(format!("types are nested more than {SCHEMA_DEPTH_MAX} deep")));
        }
        self.depth += 1;
        let compiled = compile(self);
        self.depth -= 1;
        compiled
    }
}

/// The writer's field that this one is read from: of the same name, else of an alias.
fn source_of(field: Field, record: &RecordSchema) -> Option<&str> {
    let names = std::iter::once(field.name()).chain(field.aliases().iter().copied());
    names
        .into_iter()
        .find_map(|name| record.fields.iter().find(|sent| sent.name == name))
        .map(|sent| &*sent.name)
}

fn takes_a_value(branches: &[Branch]) -> bool {
    branches.iter().any(|b| matches!(b, Branch::Read(_)))
}
