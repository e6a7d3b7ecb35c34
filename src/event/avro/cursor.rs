//! Avro's primitives, read strictly from a slice.

/// How a body is not what its schema says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Truncated,
    VarintTooLong,
    IntOutOfRange,
    NegativeLength,
    LengthPastEnd,
    CountPastEnd,
    BadBlockSize,
    BadUtf8,
    BadBoolean,
    BadUnionIndex,
    BadEnumIndex,
    TooDeep,
    TrailingBytes,
}

impl Fault {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "ends early",
            Self::VarintTooLong => "varint longer than it must be",
            Self::IntOutOfRange => "int of more than 32 bits",
            Self::NegativeLength => "negative length",
            Self::LengthPastEnd => "length past the end",
            Self::CountPastEnd => "more items than bytes",
            Self::BadBlockSize => "block of another size than it says",
            Self::BadUtf8 => "string is not UTF-8",
            Self::BadBoolean => "boolean is neither 0 nor 1",
            Self::BadUnionIndex => "union index out of range",
            Self::BadEnumIndex => "enum index out of range",
            Self::TooDeep => "nested too deep",
            Self::TrailingBytes => "bytes left over",
        }
    }
}

pub(super) type Taken<T> = Result<T, Fault>;

#[derive(Debug)]
pub(super) struct Cursor<'v> {
    rest: &'v [u8],
}

impl<'v> Cursor<'v> {
    pub const fn new(body: &'v [u8]) -> Self {
        Self { rest: body }
    }

    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    pub fn end(&self) -> Taken<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Fault::TrailingBytes) }
    }

    /// A zigzag varint of at most 64 bits, in as few bytes as it needs.
    ///
    /// Indices and most lengths are one byte: only that is inlined, and it is some twenty times an event.
    #[inline(always)]
    pub fn long(&mut self) -> Taken<i64> {
        let Some((&first, rest)) = self.rest.split_first() else {
            return Err(Fault::Truncated);
        };
        if first < 0x80 {
            self.rest = rest;
            return Ok(unzigzag(u64::from(first)));
        }
        self.long_varint(u64::from(first & 0x7F), rest)
    }

    #[inline(never)]
    fn long_varint(&mut self, first: u64, rest: &'v [u8]) -> Taken<i64> {
        let mut value = first;
        let mut shift = 7;
        let mut rest = rest;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            // The tenth byte has room for one bit; a last byte of zero says nothing.
            if (shift == 63 && byte > 1) || byte == 0 {
                return Err(Fault::VarintTooLong);
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                self.rest = rest;
                return Ok(unzigzag(value));
            }
            shift += 7;
        }
        Err(Fault::Truncated)
    }

    pub fn int(&mut self) -> Taken<i32> {
        i32::try_from(self.long()?).map_err(|_| Fault::IntOutOfRange)
    }

    pub fn boolean(&mut self) -> Taken<()> {
        match self.array()? {
            [0 | 1] => Ok(()),
            _ => Err(Fault::BadBoolean),
        }
    }

    pub fn float(&mut self) -> Taken<f32> {
        self.array().map(f32::from_le_bytes)
    }

    pub fn double(&mut self) -> Taken<f64> {
        self.array().map(f64::from_le_bytes)
    }

    pub fn array<const N: usize>(&mut self) -> Taken<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn fixed(&mut self, size: usize) -> Taken<()> {
        let (_, rest) = self.rest.split_at_checked(size).ok_or(Fault::Truncated)?;
        self.rest = rest;
        Ok(())
    }

    #[inline]
    pub fn bytes(&mut self) -> Taken<&'v [u8]> {
        let length = self.length()?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Fault::LengthPastEnd)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    pub fn string(&mut self) -> Taken<&'v str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Fault::BadUtf8)
    }

    /// An index below `count`.
    #[inline]
    pub fn index(&mut self, count: usize, otherwise: Fault) -> Taken<usize> {
        match usize::try_from(self.long()?) {
            Ok(index) if index < count => Ok(index),
            _ => Err(otherwise),
        }
    }

    /// The items of an array or a map, block by block. If they take no bytes at all there may be any
    /// number of them, and `item` is not called.
    pub fn blocks(
        &mut self,
        items_are_empty: bool,
        mut item: impl FnMut(&mut Self) -> Taken<()>,
    ) -> Taken<()> {
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(());
            }
            // A negative count is followed by the size of the block in bytes.
            let size = if count < 0 { Some(self.length()?) } else { None };
            let before = self.left();
            if !items_are_empty {
                let count = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
                // Every item takes a byte at least: the loop is bounded by the body's length.
                if count > before {
                    return Err(Fault::CountPastEnd);
                }
                for _ in 0..count {
                    item(self)?;
                }
            }
            if size.is_some_and(|size| size != before - self.left()) {
                return Err(Fault::BadBlockSize);
            }
        }
    }

    #[inline]
    fn length(&mut self) -> Taken<usize> {
        let length = self.long()?;
        if length < 0 {
            return Err(Fault::NegativeLength);
        }
        usize::try_from(length).map_err(|_| Fault::LengthPastEnd)
    }
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
