//! Stepping over what only the writer knows, as strictly as if it were read.

use super::cursor::{Cursor, Fault, Taken};

/// Levels of nesting that are followed. A recursive type could otherwise make one byte a stack frame.
const DEPTH_MAX: usize = 64;

/// How to step over a value.
#[derive(Debug)]
pub(super) enum Skip {
    /// Takes no bytes: null, `fixed(0)`, a record of nothing else.
    Nothing,
    Boolean,
    Int,
    Long,
    Fixed(usize),
    Bytes,
    String,
    Enum(usize),
    Union(Box<[Skip]>),
    Array(Box<Skip>),
    Map(Box<Skip>),
    Record(Box<[Skip]>),
    /// One of the plan's named types.
    Named(usize),
}

impl Skip {
    pub fn run(&self, cursor: &mut Cursor<'_>, named: &[Self]) -> Taken<()> {
        self.step(cursor, named, 0)
    }

    fn step(&self, cursor: &mut Cursor<'_>, named: &[Self], depth: usize) -> Taken<()> {
        if depth > DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        let depth = depth + 1;
        match self {
            Self::Nothing => Ok(()),
            Self::Boolean => cursor.boolean(),
            Self::Int => cursor.int().map(drop),
            Self::Long => cursor.long().map(drop),
            Self::Fixed(size) => cursor.fixed(*size),
            Self::Bytes => cursor.bytes().map(drop),
            Self::String => cursor.string().map(drop),
            Self::Enum(symbols) => cursor.index(*symbols, Fault::BadEnumIndex).map(drop),
            Self::Union(branches) => {
                let index = cursor.index(branches.len(), Fault::BadUnionIndex)?;
                let branch = branches.get(index).ok_or(Fault::BadUnionIndex)?;
                branch.step(cursor, named, depth)
            }
            Self::Array(item) => {
                let items_are_empty = matches!(**item, Self::Nothing);
                cursor.blocks(items_are_empty, |cursor| item.step(cursor, named, depth))
            }
            Self::Map(value) => cursor.blocks(false, |cursor| {
                cursor.string()?;
                value.step(cursor, named, depth)
            }),
            Self::Record(fields) => fields.iter().try_for_each(|field| field.step(cursor, named, depth)),
            Self::Named(index) => match named.get(*index) {
                Some(skip) => skip.step(cursor, named, depth),
                None => Err(Fault::TooDeep),
            },
        }
    }
}
