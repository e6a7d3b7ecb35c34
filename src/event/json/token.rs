//! Values as they stand in the text, not copied.

use std::borrow::Cow;
use std::cmp::Ordering;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A string whose text is its value.
    String,
    /// A string with escapes: its text has yet to be unescaped.
    Escaped,
    Number,
    Boolean,
    Null,
    Object,
    Array,
}

/// One value as it stands in the text; of a string what is between the quotes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Token<'v> {
    pub kind: Kind,
    pub text: &'v str,
}

impl<'v> Token<'v> {
    pub const NULL: Token<'static> = Token { kind: Kind::Null, text: "null" };

    pub fn is_string(&self) -> bool {
        matches!(self.kind, Kind::String | Kind::Escaped)
    }

    /// Characters of a string's value.
    pub fn chars(&self) -> Unescaped<'v> {
        Unescaped(self.text.chars(), self.kind == Kind::Escaped)
    }

    /// A string's value.
    pub fn decoded(&self) -> Cow<'v, str> {
        match self.kind {
            Kind::Escaped => Cow::Owned(self.chars().collect()),
            _ => Cow::Borrowed(self.text),
        }
    }

    /// Whether the string's value is `name`.
    pub fn is(&self, name: &str) -> bool {
        match self.kind {
            Kind::Escaped => self.chars().eq(name.chars()),
            _ => self.text == name,
        }
    }

    /// Whether two strings have the same value.
    pub fn same(&self, other: &Self) -> bool {
        if self.kind == Kind::Escaped || other.kind == Kind::Escaped {
            self.chars().eq(other.chars())
        } else {
            self.text == other.text
        }
    }

    pub fn cmp_value(&self, other: &Self) -> Ordering {
        if self.kind == Kind::Escaped || other.kind == Kind::Escaped {
            self.chars().cmp(other.chars())
        } else {
            self.text.cmp(other.text)
        }
    }
}

/// Characters of a string whose escapes were checked by the scanner.
#[derive(Debug, Clone)]
pub struct Unescaped<'v>(std::str::Chars<'v>, bool);

impl Unescaped<'_> {
    fn hex4(&mut self) -> u32 {
        let mut digits = self.0.by_ref().take(4);
        digits.try_fold(0, |value, c| Some(value * 16 + c.to_digit(16)?)).unwrap_or(0)
    }
}

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let c = self.0.next()?;
        if c != '\\' || !self.1 {
            return Some(c);
        }
        Some(match self.0.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let mut unit = self.hex4();
                if (0xD800..0xDC00).contains(&unit) {
                    self.0.by_ref().take(2).for_each(drop);
                    let low = self.hex4();
                    unit = 0x10000 + ((unit & 0x3FF) << 10) + (low & 0x3FF);
                }
                char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            other => other,
        })
    }
}
