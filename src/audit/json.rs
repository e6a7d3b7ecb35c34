//! JSON by the letter of RFC 8259, with what an event's rules ask beside it: no key twice in an object, no
//! half of a surrogate pair, at most 32 levels; numbers keep their spelling, values their characters.

/// Objects and arrays within each other.
const LEVELS_MAX: usize = 32;

/// Why a text is not taken; the words are those of the dead letters' reasons.
pub const MALFORMED: &str = "json_malformed";
pub const DUPLICATE_KEY: &str = "json_duplicate_key";

#[derive(Debug, PartialEq)]
pub enum Json<'t> {
    Null,
    Bool(bool),
    /// As it is spelled.
    Number(&'t str),
    Text(String),
    Array,
    Object(Vec<Member<'t>>),
}

#[derive(Debug, PartialEq)]
pub struct Member<'t> {
    pub key: String,
    pub value: Json<'t>,
    /// The value's own characters.
    pub spelled: &'t str,
}

pub fn parse(bytes: &[u8]) -> Result<Json<'_>, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| MALFORMED)?;
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(1)?;
    parser.white();
    if parser.at == text.len() { Ok(value) } else { Err(MALFORMED) }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn white(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> Result<(), &'static str> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(MALFORMED)
        }
    }

    fn word(&mut self, word: &str) -> Result<(), &'static str> {
        if self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            self.at += word.len();
            Ok(())
        } else {
            Err(MALFORMED)
        }
    }

    fn value(&mut self, level: usize) -> Result<Json<'t>, &'static str> {
        self.white();
        match self.peek().ok_or(MALFORMED)? {
            b'{' | b'[' if level > LEVELS_MAX => Err(MALFORMED),
            b'{' => self.object(level),
            b'[' => self.array(level),
            b'"' => self.string().map(Json::Text),
            b'n' => self.word("null").map(|()| Json::Null),
            b't' => self.word("true").map(|()| Json::Bool(true)),
            b'f' => self.word("false").map(|()| Json::Bool(false)),
            _ => self.number(),
        }
    }

    fn object(&mut self, level: usize) -> Result<Json<'t>, &'static str> {
        self.eat(b'{')?;
        let mut members: Vec<Member<'t>> = Vec::new();
        self.white();
        if self.eat(b'}').is_ok() {
            return Ok(Json::Object(members));
        }
        loop {
            self.white();
            let key = self.string()?;
            self.white();
            self.eat(b':')?;
            self.white();
            let start = self.at;
            let value = self.value(level + 1)?;
            let spelled = self.text.get(start..self.at).ok_or(MALFORMED)?;
            members.push(Member { key, value, spelled });
            self.white();
            if self.eat(b',').is_err() {
                break;
            }
        }
        self.eat(b'}')?;
        // Sorted once: a comparison of each with each would take a hostile object too long.
        let mut keys: Vec<&str> = members.iter().map(|member| member.key.as_str()).collect();
        keys.sort_unstable();
        if keys.is_sorted_by(|a, b| a < b) { Ok(Json::Object(members)) } else { Err(DUPLICATE_KEY) }
    }

    fn array(&mut self, level: usize) -> Result<Json<'t>, &'static str> {
        self.eat(b'[')?;
        self.white();
        if self.eat(b']').is_ok() {
            return Ok(Json::Array);
        }
        loop {
            self.value(level + 1)?;
            self.white();
            if self.eat(b',').is_err() {
                break;
            }
        }
        self.eat(b']')?;
        Ok(Json::Array)
    }

    fn digits(&mut self) -> Result<(), &'static str> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(MALFORMED) }
    }

    fn number(&mut self) -> Result<Json<'t>, &'static str> {
        let start = self.at;
        let _ = self.eat(b'-');
        if self.eat(b'0').is_err() {
            self.digits()?;
        }
        if self.eat(b'.').is_ok() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        self.text.get(start..self.at).map(Json::Number).ok_or(MALFORMED)
    }

    fn string(&mut self) -> Result<String, &'static str> {
        self.eat(b'"')?;
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..).ok_or(MALFORMED)?;
            let stop = rest.find(|c: char| c == '"' || c == '\\' || c < ' ').ok_or(MALFORMED)?;
            out.push_str(rest.get(..stop).ok_or(MALFORMED)?);
            self.at += stop + 1;
            match rest.as_bytes().get(stop) {
                Some(b'"') => return Ok(out),
                Some(b'\\') => out.push(self.escaped()?),
                _ => return Err(MALFORMED),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, &'static str> {
        let byte = self.peek().ok_or(MALFORMED)?;
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex4()?;
                if !(0xd800..0xe000).contains(&unit) {
                    return char::from_u32(unit).ok_or(MALFORMED);
                }
                self.word("\\u")?;
                let low = self.hex4()?;
                if unit >= 0xdc00 || !(0xdc00..0xe000).contains(&low) {
                    return Err(MALFORMED);
                }
                return char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)).ok_or(MALFORMED);
            }
            _ => return Err(MALFORMED),
        })
    }

    fn hex4(&mut self) -> Result<u32, &'static str> {
        let digits = self.text.get(self.at..self.at + 4).ok_or(MALFORMED)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(MALFORMED);
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).map_err(|_| MALFORMED)
    }
}

/// An object of texts as RFC 8785 writes it: keys in the order of their UTF-16 units, no white space.
pub fn canonical(entries: &mut [(String, String)]) -> String {
    entries.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    let mut out = String::from("{");
    for (index, (key, value)) in entries.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        quote(key, &mut out);
        out.push(':');
        quote(value, &mut out);
    }
    out.push('}');
    out
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "",
            "{",
            "{}x",
            "{\"a\":1,}",
            "{\"a\" 1}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":+1}",
            "{\"a\":nul}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\\ud800\\u0041\"}",
            "{\"a\":\"\\udc00\\udc00\"}",
            "{\"a\":\"\u{1}\"}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u00g0\"}",
            "{\"a\":NaN}",
            "[1 2]",
            "{\"a\":\"",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(MALFORMED), "{text}");
        }
        assert_eq!(parse(b"{\"a\":\"\xff\"}"), Err(MALFORMED));
        assert_eq!(parse(br#"{"a":1,"b":{"c":1,"\u0063":2}}"#), Err(DUPLICATE_KEY));
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert_eq!(parse(nested(32).as_bytes()), Ok(Json::Array));
        assert_eq!(parse(nested(33).as_bytes()), Err(MALFORMED));
        assert_eq!(parse(nested(100_000).as_bytes()), Err(MALFORMED));
    }

    #[test]
    fn values_keep_their_characters() {
        let Ok(Json::Object(members)) =
            parse(b" {\"a\": [1, {\"b\":2}] , \"n\":-1.50e+3,\"s\":\"\\ud83d\\ude00\\n\"} ")
        else {
            panic!("an object");
        };
        let spelled: Vec<&str> = members.iter().map(|member| member.spelled).collect();
        assert_eq!(spelled, ["[1, {\"b\":2}]", "-1.50e+3", "\"\\ud83d\\ude00\\n\""]);
        assert_eq!(members[2].value, Json::Text("\u{1f600}\n".to_owned()));
    }

    #[test]
    fn canonical_text_sorts_by_utf16() {
        let pairs = [("\u{10000}", "x"), ("\u{ffff}", "\u{1}"), ("b", "\"\\"), ("a", "\n")];
        let mut entries: Vec<(String, String)> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        assert_eq!(
            canonical(&mut entries),
            "{\"a\":\"\\n\",\"b\":\"\\\"\\\\\",\"\u{10000}\":\"x\",\"\u{ffff}\":\"\\u0001\"}"
        );
    }
}
