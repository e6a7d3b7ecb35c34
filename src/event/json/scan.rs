//! A strict JSON scanner (RFC 8259) over text that is known to be UTF-8. It hands out slices and
//! copies nothing; recursion and memory are bounded whatever the text says.

use super::super::words::{is_plain_array, plain_end};
use super::token::{Kind, Token};

/// Objects and arrays within each other, the event itself included. Deeper, and a recursion per level
/// would cost stack that nobody accounts for.
pub const DEPTH_MAX: usize = 32;

/// Keys of nested objects that are remembered at once, to find duplicates. So many do not fit into
/// the metadata limit; without a bound a value of 1 MiB could make us remember 200,000.
const NESTED_KEYS_MAX: usize = 4096;

/// What is wrong with the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Malformed(&'static str),
    DuplicateKey,
    TooManyKeys,
}

type Scanned<T> = Result<T, Fault>;

#[derive(Debug)]
pub struct Scanner<'v> {
    text: &'v str,
    position: usize,
    /// Keys of the nested objects that are open.
    keys: Vec<Token<'v>>,
    has_escapes: bool,
}

impl<'v> Scanner<'v> {
    /// `keys` is an empty buffer to work with.
    pub fn new(text: &'v str, keys: Vec<Token<'v>>) -> Self {
        Self { text, position: 0, keys, has_escapes: false }
    }

    pub fn into_keys(self) -> Vec<Token<'v>> {
        self.keys
    }

    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether any string so far has one, nested ones included.
    pub fn has_escapes(&self) -> bool {
        self.has_escapes
    }

    pub fn open_object(&mut self) -> Scanned<()> {
        self.skip_space();
        self.expect(b'{', "an object is wanted")
    }

    pub fn at_object(&mut self) -> bool {
        self.skip_space();
        self.peek() == Some(b'{')
    }

    /// The next key of the object that was opened, with its colon, or `None` at the closing brace.
    /// Duplicates are the caller's affair.
    #[inline(always)]
    pub fn key(&mut self, is_first: bool) -> Scanned<Option<Token<'v>>> {
        self.skip_space();
        match self.peek() {
            Some(b'}') => {
                self.position += 1;
                return Ok(None);
            }
            Some(b',') if !is_first => {
                self.position += 1;
                self.skip_space();
            }
            _ if is_first => {}
            _ => return Err(Fault::Malformed("a comma or a closing brace is wanted")),
        }
        let key = match self.plain_string() {
            Some(key) => key,
            None => self.string()?,
        };
        self.skip_space();
        self.expect(b':', "a colon is wanted")?;
        Ok(Some(key))
    }

    /// The next value, checked to its end. `depth` objects and arrays are open around it.
    #[inline(always)]
    pub fn value(&mut self, depth: usize) -> Scanned<Token<'v>> {
        self.skip_space();
        if let Some(plain) = self.plain_string() {
            return Ok(plain);
        }
        // Taken out and put back, so that a plain string never goes through memory.
        let other = self.other_value(depth)?;
        Ok(other)
    }

    /// The next value, if it is a string of `LENGTH` bytes without escapes: where it ends need not be looked for.
    #[inline(always)]
    pub fn plain_value<const LENGTH: usize>(&mut self) -> Option<Token<'v>> {
        self.skip_space();
        let (b'"', from_text) = self.rest().split_first()? else {
            return None;
        };
        let (text, from_quote) = from_text.split_first_chunk::<LENGTH>()?;
        if from_quote.first() != Some(&b'"') || !is_plain_array(text) {
            return None;
        }
        let start = self.position + 1;
        let end = start + LENGTH;
        self.position = end + 1;
        Some(Token { kind: Kind::String, text: self.slice(start, end) })
    }

    /// Any value, a string too.
    fn other_value(&mut self, depth: usize) -> Scanned<Token<'v>> {
        let start = self.position;
        let kind = match self.peek() {
            Some(b'"') => return self.string(),
            Some(b'{') => {
                self.nested_object(depth + 1)?;
                Kind::Object
            }
            Some(b'[') => {
                self.nested_array(depth + 1)?;
                Kind::Array
            }
            Some(b't') => {
                self.literal("true")?;
                Kind::Boolean
            }
            Some(b'f') => {
                self.literal("false")?;
                Kind::Boolean
            }
            Some(b'n') => {
                self.literal("null")?;
                Kind::Null
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Kind::Number
            }
            _ => return Err(Fault::Malformed("a value is wanted")),
        };
        let text = self.slice(start, self.position);
        Ok(Token { kind, text })
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Scanned<()> {
        self.skip_space();
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(Fault::Malformed("something follows the object")),
        }
    }

    fn nested_object(&mut self, depth: usize) -> Scanned<()> {
        check_depth(depth)?;
        self.position += 1;
        let outer_keys = self.keys.len();
        let mut is_first = true;
        while let Some(key) = self.key(is_first)? {
            is_first = false;
            if self.keys.len() >= NESTED_KEYS_MAX {
                return Err(Fault::TooManyKeys);
            }
            self.keys.push(key);
            self.value(depth)?;
        }
        let own_keys = self.keys.get_mut(outer_keys..).unwrap_or_default();
        own_keys.sort_unstable_by(Token::cmp_value);
        if own_keys.array_windows().any(|[a, b]| a.same(b)) {
            return Err(Fault::DuplicateKey);
        }
        self.keys.truncate(outer_keys);
        Ok(())
    }

    fn nested_array(&mut self, depth: usize) -> Scanned<()> {
        check_depth(depth)?;
        self.position += 1;
        self.skip_space();
        if self.peek() == Some(b']') {
            self.position += 1;
            return Ok(());
        }
        loop {
            self.value(depth)?;
            self.skip_space();
            match self.peek() {
                Some(b',') => self.position += 1,
                Some(b']') => {
                    self.position += 1;
                    return Ok(());
                }
                _ => return Err(Fault::Malformed("a comma or a closing bracket is wanted")),
            }
        }
    }

    /// The string that begins here, if it has no escape, as most: it is one run of plain bytes.
    #[inline(always)]
    fn plain_string(&mut self) -> Option<Token<'v>> {
        let bytes = self.text.as_bytes();
        if bytes.get(self.position) != Some(&b'"') {
            return None;
        }
        let start = self.position + 1;
        let end = plain_end(bytes, start);
        if bytes.get(end) != Some(&b'"') {
            return None;
        }
        let text = self.text.get(start..end)?;
        self.position = end + 1;
        Some(Token { kind: Kind::String, text })
    }

    /// Any string: runs of plain bytes, and escapes.
    fn string(&mut self) -> Scanned<Token<'v>> {
        self.expect(b'"', "a string is wanted")?;
        let start = self.position;
        let mut kind = Kind::String;
        loop {
            let end = plain_end(self.text.as_bytes(), self.position);
            if end == self.text.len() {
                return Err(Fault::Malformed("a string has no end"));
            }
            self.position = end;
            match self.peek() {
                Some(b'"') => {
                    let text = self.slice(start, self.position);
                    self.position += 1;
                    return Ok(Token { kind, text });
                }
                Some(b'\\') => {
                    kind = Kind::Escaped;
                    self.has_escapes = true;
                    self.escape()?;
                }
                _ => return Err(Fault::Malformed("a control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Scanned<()> {
        self.position += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.position += 1;
                Ok(())
            }
            Some(b'u') => {
                self.position += 1;
                match self.hex4()? {
                    0xD800..=0xDBFF => {
                        const LONE: &str = "half a surrogate pair";
                        self.expect(b'\\', LONE)?;
                        self.expect(b'u', LONE)?;
                        match self.hex4()? {
                            0xDC00..=0xDFFF => Ok(()),
                            _ => Err(Fault::Malformed(LONE)),
                        }
                    }
                    0xDC00..=0xDFFF => Err(Fault::Malformed("half a surrogate pair")),
                    _ => Ok(()),
                }
            }
            _ => Err(Fault::Malformed("an unknown escape")),
        }
    }

    fn hex4(&mut self) -> Scanned<u32> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|b| char::from(b).to_digit(16));
            value = value * 16 + digit.ok_or(Fault::Malformed("an escape of four hex digits"))?;
            self.position += 1;
        }
        Ok(value)
    }

    fn number(&mut self) -> Scanned<()> {
        const BAD: &str = "not a number";
        if self.peek() == Some(b'-') {
            self.position += 1;
        }
        if self.peek() == Some(b'0') {
            self.position += 1;
        } else {
            self.digits(BAD)?;
        }
        if self.peek() == Some(b'.') {
            self.position += 1;
            self.digits(BAD)?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.position += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.position += 1;
            }
            self.digits(BAD)?;
        }
        Ok(())
    }

    fn digits(&mut self, what: &'static str) -> Scanned<()> {
        let rest = self.rest();
        let count = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        self.position += count;
        if count == 0 {
            return Err(Fault::Malformed(what));
        }
        Ok(())
    }

    fn literal(&mut self, word: &str) -> Scanned<()> {
        if !self.rest().starts_with(word.as_bytes()) {
            return Err(Fault::Malformed("an unknown word"));
        }
        self.position += word.len();
        Ok(())
    }

    #[inline]
    fn expect(&mut self, byte: u8, what: &'static str) -> Scanned<()> {
        if self.peek() != Some(byte) {
            return Err(Fault::Malformed(what));
        }
        self.position += 1;
        Ok(())
    }

    #[inline]
    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.position += 1;
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    #[inline]
    fn rest(&self) -> &'v [u8] {
        self.text.as_bytes().get(self.position..).unwrap_or_default()
    }

    /// Both ends are next to ASCII, so this is never empty for want of a character's boundary.
    #[inline]
    fn slice(&self, start: usize, end: usize) -> &'v str {
        self.text.get(start..end).unwrap_or_default()
    }
}

fn check_depth(depth: usize) -> Scanned<()> {
    if depth > DEPTH_MAX {
        return Err(Fault::Malformed("nested too deep"));
    }
    Ok(())
}

/// Whether `text` is one JSON number and nothing else.
pub fn is_number(text: &str) -> bool {
    let mut scanner = Scanner::new(text, Vec::new());
    scanner.number().is_ok() && scanner.position == text.len()
}
