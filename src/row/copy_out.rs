//! Rows as Postgres sends them in `COPY … TO STDOUT (FORMAT binary)`.

use super::{COLUMNS, COPY_HEADER, RowError, RowRef, push_jsonb};

const SIGNATURE_LEN: usize = 11;
/// Flags that a reader must know are the upper half; none is known here.
const CRITICAL_FLAGS: u32 = 0xffff_0000;
/// No row that this worker has written comes near: a larger one is not waited for.
const TUPLE_BYTES_MAX: usize = 1 << 20;

/// Appends the row that Postgres sent as `raw`, with its metadata put back into canonical form
/// (jsonb has an order and spaces of its own). Nothing else is changed.
pub fn canonical_from_postgres(raw: &[u8], out: &mut Vec<u8>) -> Result<(), RowError> {
    push_canonical(&RowRef::parse(raw)?, &mut String::new(), out)
}

fn push_canonical(row: &RowRef<'_>, scratch: &mut String, out: &mut Vec<u8>) -> Result<(), RowError> {
    let Some(json) = row.metadata() else {
        out.extend_from_slice(row.bytes());
        return Ok(());
    };
    scratch.clear();
    crate::event::recanonicalize(json, scratch).map_err(|error| RowError::Metadata(error.to_string()))?;
    // Metadata is the last column: its length, its version byte and its text end the tuple.
    let metadata_at = row.bytes().len() - json.len() - 5;
    out.extend_from_slice(&row.bytes()[..metadata_at]);
    push_jsonb(out, scratch);
    Ok(())
}

/// Takes the chunks of a COPY-binary stream, wherever they were cut, and gives canonical rows.
#[derive(Debug, Default)]
pub struct CopyOutParser {
    /// The bytes of what is not complete yet: at most a header or one row.
    pending: Vec<u8>,
    scratch: String,
    state: State,
    rows: u64,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Header,
    Rows,
    End,
}

impl CopyOutParser {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk and appends the rows that it completes to `out`; returns how many.
    /// After an error the parser is of no more use, and `out` ends with the last good row.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<u64, RowError> {
        let rows_before = self.rows;
        if self.pending.is_empty() {
            // Postgres sends whole rows: then nothing is copied but what goes into `out`.
            let used = self.consume(chunk, out)?;
            self.pending.extend_from_slice(&chunk[used..]);
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(chunk);
            let used = self.consume(&pending, out)?;
            pending.drain(..used);
            self.pending = pending;
        }
        Ok(self.rows - rows_before)
    }

    /// Rows seen so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether the trailer was seen. A stream that ends before it has lost rows.
    pub fn finish(self) -> Result<u64, RowError> {
        match self.state {
            State::End => Ok(self.rows),
            State::Header | State::Rows => Err(RowError::Truncated),
        }
    }

    /// Reads as far as `input` is complete; returns how far that is.
    fn consume(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, RowError> {
        let mut at = 0;
        if self.state == State::Header {
            match header_len(input)? {
                Some(length) => at = length,
                None => return Ok(0),
            }
            self.state = State::Rows;
        }
        while self.state == State::Rows {
            match next_tuple(&input[at..])? {
                Next::Incomplete => return Ok(at),
                Next::Trailer => {
                    at += 2;
                    self.state = State::End;
                }
                Next::Tuple(length) => {
                    let row = RowRef::parse(&input[at..at + length])?;
                    push_canonical(&row, &mut self.scratch, out)?;
                    at += length;
                    self.rows += 1;
                }
            }
        }
        match input.len() - at {
            0 => Ok(at),
            _ => Err(RowError::AfterCopyTrailer),
        }
    }
}

/// The length of the header, or `None` while it is not complete.
fn header_len(input: &[u8]) -> Result<Option<usize>, RowError> {
    let seen = input.len().min(SIGNATURE_LEN);
    if input[..seen] != COPY_HEADER[..seen] {
        return Err(RowError::CopyHeader);
    }
    let Some(flags) = be_u32(input, SIGNATURE_LEN) else { return Ok(None) };
    let Some(extension_len) = be_u32(input, SIGNATURE_LEN + 4) else { return Ok(None) };
    let length = COPY_HEADER.len() + extension_len as usize;
    if flags & CRITICAL_FLAGS != 0 || length > TUPLE_BYTES_MAX {
        return Err(RowError::CopyHeader);
    }
    Ok((input.len() >= length).then_some(length))
}

enum Next {
    Incomplete,
    Trailer,
    Tuple(usize),
}

/// Finds where the tuple that `input` begins with ends, without looking at its values.
fn next_tuple(input: &[u8]) -> Result<Next, RowError> {
    let Some(count) = input.first_chunk::<2>() else { return Ok(Next::Incomplete) };
    let count = i16::from_be_bytes(*count);
    if count == -1 {
        return Ok(Next::Trailer);
    }
    if usize::try_from(count) != Ok(COLUMNS.len()) {
        return Err(RowError::FieldCount(count));
    }
    let mut at = 2;
    for column in COLUMNS {
        let Some(length) = be_u32(input, at) else { return Ok(Next::Incomplete) };
        at += 4;
        let length = length.cast_signed();
        if length == -1 {
            continue;
        }
        match usize::try_from(length) {
            Ok(bytes) if at + bytes <= TUPLE_BYTES_MAX => at += bytes,
            _ => return Err(RowError::Length { column, length }),
        }
    }
    Ok(if input.len() >= at { Next::Tuple(at) } else { Next::Incomplete })
}

fn be_u32(input: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*input.get(at..)?.first_chunk()?))
}
