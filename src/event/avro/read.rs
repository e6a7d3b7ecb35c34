//! Runs a plan over a body.

use std::mem;

use uuid::Uuid;

use super::super::Scratch;
use super::super::interaction::{Checks, Interaction};
use super::super::metadata::{self, ENTRIES_MAX, Entry};
use super::super::raw::{Field, Raw, RawEvent, RawMetadata};
use super::super::reject::{Reject, RejectReason};
use super::super::uuid_text;
use super::cursor::{Cursor, Fault, Taken};
use super::plan::{Branch, Plan, Read, Step};
use super::skip::Skip;

#[inline]
pub(in super::super) fn decode<'a>(
    plan: &Plan,
    body: &'a [u8],
    checks: &Checks<'_>,
    scratch: &'a mut Scratch,
) -> Result<Interaction<'a>, Reject> {
    let mut run = Run {
        cursor: Cursor::new(body),
        named: &plan.named,
        raw: RawEvent::default(),
        entries: mem::take(&mut scratch.entries),
    };
    let accepted = match run.steps(&plan.steps) {
        Ok(()) => checks.apply(&run.raw, &mut run.entries, &mut scratch.canonical),
        Err((fault, field)) => {
            let position = body.len() - run.cursor.left();
            let reject = Reject::new(RejectReason::AvroMalformed).detail(format!(
                "{} (read to byte {position} of {})",
                fault.as_str(),
                body.len()
            ));
            Err(match field {
                Some(field) => reject.field(field.name()),
                None => reject,
            })
        }
    };
    scratch.entries = metadata::recycle(run.entries);
    accepted
}

struct Run<'p, 'v> {
    cursor: Cursor<'v>,
    named: &'p [Skip],
    raw: RawEvent<'v>,
    entries: Vec<Entry<'v>>,
}

impl<'v> Run<'_, 'v> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), (Fault, Option<Field>)> {
        for step in steps {
            match step {
                Step::Read(field, read) => self.read(*field, read).map_err(|f| (f, Some(*field)))?,
                Step::Branches(field, branches) => {
                    self.branches(*field, branches).map_err(|f| (f, Some(*field)))?;
                }
                Step::Skip(skip) => skip.run(&mut self.cursor, self.named).map_err(|f| (f, None))?,
            }
        }
        self.cursor.end().map_err(|fault| (fault, None))
    }

    fn branches(&mut self, field: Field, branches: &[Branch]) -> Taken<()> {
        let index = self.cursor.index(branches.len(), Fault::BadUnionIndex)?;
        match branches.get(index).ok_or(Fault::BadUnionIndex)? {
            Branch::Null => Ok(()),
            Branch::Read(read) => self.read(field, read),
            Branch::Mismatch(skip, type_name) => {
                skip.run(&mut self.cursor, self.named)?;
                self.raw.set(field, Raw::Other(type_name));
                Ok(())
            }
        }
    }

    fn read(&mut self, field: Field, read: &Read) -> Taken<()> {
        let raw = match read {
            Read::Text => Raw::Text(self.cursor.string()?),
            Read::UuidText => {
                let text = self.cursor.bytes()?;
                match uuid_text::parse(text) {
                    Some(uuid) => Raw::Uuid(uuid),
                    // The rules say what is wrong with it, unless it is no text at all.
                    None => Raw::Text(std::str::from_utf8(text).map_err(|_| Fault::BadUtf8)?),
                }
            }
            Read::UuidBytes => Raw::Uuid(Uuid::from_bytes(self.cursor.array()?)),
            Read::Int => Raw::Integer(i64::from(self.cursor.int()?)),
            Read::Long => Raw::Integer(self.cursor.long()?),
            Read::Float => Raw::Double(f64::from(self.cursor.float()?)),
            Read::Double => Raw::Double(self.cursor.double()?),
            Read::TextMap => return self.map(None),
            Read::BranchMap(branches) => return self.map(Some(branches)),
        };
        self.raw.set(field, raw);
        Ok(())
    }

    /// Reads the metadata; its values are text, or what `branches` say.
    fn map(&mut self, branches: Option<&[Branch]>) -> Taken<()> {
        let Self { cursor, named, raw, entries } = self;
        raw.metadata = RawMetadata::Entries;
        cursor.blocks(false, |cursor| {
            let key = cursor.string()?;
            let value = match branches {
                None => cursor.string()?,
                Some(branches) => match map_value(cursor, named, branches)? {
                    Ok(value) => value,
                    Err(type_name) => {
                        raw.metadata = RawMetadata::Other(type_name);
                        return Ok(());
                    }
                },
            };
            if entries.len() < ENTRIES_MAX {
                entries.push((key, value));
            } else if raw.metadata == RawMetadata::Entries {
                raw.metadata = RawMetadata::TooMany;
            }
            Ok(())
        })
    }
}

/// One value of a map whose values are a union: text, or the name of a type that is not wanted here.
fn map_value<'v>(
    cursor: &mut Cursor<'v>,
    named: &[Skip],
    branches: &[Branch],
) -> Taken<Result<&'v str, &'static str>> {
    let index = cursor.index(branches.len(), Fault::BadUnionIndex)?;
    match branches.get(index).ok_or(Fault::BadUnionIndex)? {
        Branch::Null => Ok(Err("null")),
        Branch::Read(_) => cursor.string().map(Ok),
        Branch::Mismatch(skip, type_name) => {
            skip.run(cursor, named)?;
            Ok(Err(type_name))
        }
    }
}
