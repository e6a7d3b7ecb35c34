//! Lines of an input, with what tells a later run that it reads the same input.
//!
//! What this module guarantees: memory is bounded whatever the input holds; the position after a line (its number,
//! bytes and hash) is that of everything up to and including the line, every byte of it.

use std::io::{self, BufRead};

use xxhash_rust::xxh3::Xxh3Default;

use crate::event::VALUE_BYTES_MAX;

/// How far an input was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    pub lines: u64,
    pub bytes: u64,
    /// xxh3-128 of all of these bytes.
    pub hash: u128,
    /// The last line had its line feed.
    pub is_terminated: bool,
}

/// One line, without its line feed and a carriage return before it.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'b> {
    Whole(&'b [u8]),
    /// No event is that long; it was read past and not kept.
    TooLong {
        bytes: u64,
    },
}

pub struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    hash: Xxh3Default,
    position: Position,
}

/// Room for the line's end.
const KEPT_BYTES_MAX: usize = VALUE_BYTES_MAX + 2;

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), hash: Xxh3Default::new(), position: Position::default() }
    }

    /// After the line that was read last.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The next line, and the position after it; None at the end of the input.
    pub fn read(&mut self) -> io::Result<Option<(Position, Line<'_>)>> {
        self.buffer.clear();
        let (mut bytes, mut is_terminated) = (0_u64, false);
        while !is_terminated {
            let ready = match self.input.fill_buf() {
                Ok([]) => break,
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = ready.iter().position(|byte| *byte == b'\n');
            is_terminated = end.is_some();
            let taken = end.map_or(ready.len(), |at| at + 1);
            let part = ready.get(..taken).unwrap_or_default();
            self.hash.update(part);
            let room = KEPT_BYTES_MAX.saturating_sub(self.buffer.len());
            self.buffer.extend_from_slice(part.get(..room.min(taken)).unwrap_or_default());
            self.input.consume(taken);
            bytes += taken as u64;
        }
        if bytes == 0 {
            return Ok(None);
        }
        self.position.lines += 1;
        self.position.bytes += bytes;
        self.position.hash = self.hash.digest128();
        self.position.is_terminated = is_terminated;
        if bytes > self.buffer.len() as u64 {
            return Ok(Some((self.position.clone(), Line::TooLong { bytes })));
        }
        let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
        Ok(Some((self.position.clone(), Line::Whole(line.strip_suffix(b"\r").unwrap_or(line)))))
    }

    /// Reads up to the position of an earlier run. False: this is another input.
    pub fn skip_to(&mut self, wanted: &Position) -> io::Result<bool> {
        while self.position.bytes < wanted.bytes {
            if self.read()?.is_none() {
                return Ok(false);
            }
        }
        // A last line without an end that has grown since is not the line that was read.
        Ok(self.position == *wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn all(input: &[u8], capacity: usize) -> (Vec<String>, Position) {
        let mut lines = Lines::new(BufReader::with_capacity(capacity, input));
        let mut found = Vec::new();
        while let Some((_, line)) = lines.read().unwrap() {
            found.push(match line {
                Line::Whole(line) => String::from_utf8_lossy(line).into_owned(),
                Line::TooLong { bytes } => format!("<{bytes}>"),
            });
        }
        (found, lines.position.clone())
    }

    #[test]
    fn lines_end_as_they_may_and_the_position_does_not_depend_on_the_reads() {
        let input = b"one\ntwo\r\n\nfour";
        let (lines, position) = all(input, 4096);
        assert_eq!(lines, ["one", "two", "", "four"]);
        assert_eq!((position.lines, position.bytes, position.is_terminated), (4, input.len() as u64, false));
        assert_eq!(all(input, 1), (lines, position));
        assert_eq!(all(b"", 16).0, Vec::<String>::new());
    }

    #[test]
    fn a_line_that_is_too_long_is_not_kept() {
        let mut input = vec![b'x'; 3 * KEPT_BYTES_MAX];
        input.extend_from_slice(b"\nshort\n");
        let (lines, _) = all(&input, 8192);
        assert_eq!(lines, [format!("<{}>", 3 * KEPT_BYTES_MAX + 1), "short".to_owned()]);
        let mut lines = Lines::new(&input[..]);
        lines.read().unwrap();
        assert!(lines.buffer.len() <= KEPT_BYTES_MAX);
    }

    #[test]
    fn an_input_is_known_again_and_another_is_not() {
        let mut first = Lines::new(&b"a\nb\nc\n"[..]);
        first.read().unwrap();
        first.read().unwrap();
        let mark = first.position().clone();
        let skip = |input: &'static [u8]| {
            let mut lines = Lines::new(input);
            let same = lines.skip_to(&mark).unwrap();
            (same, lines.read().unwrap().map(|(_, line)| matches!(line, Line::Whole(b"c"))))
        };
        assert_eq!(skip(b"a\nb\nc\n"), (true, Some(true)));
        assert_eq!(skip(b"a\nb\n"), (true, None));
        assert!(!skip(b"a\nB\nc\n").0);
        assert!(!skip(b"a\n").0);
        assert!(!skip(b"a\nbb\nc\n").0);
        // The last line went on after it had been read.
        let mut unfinished = Lines::new(&b"a\nb"[..]);
        while unfinished.read().unwrap().is_some() {}
        let mark = unfinished.position().clone();
        assert!(Lines::new(&b"a\nb"[..]).skip_to(&mark).unwrap());
        assert!(!Lines::new(&b"a\nbc\n"[..]).skip_to(&mark).unwrap());
    }
}
