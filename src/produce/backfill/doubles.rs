//! Lines that lie in the topic twice, because a broker took a request of a killed run after that run was taken to be over.
//!
//! What this module guarantees: every record of the run between two places in the topic is counted once, at the price
//! of one bit for each line of the input; a number that no line of the input has counts as nothing.

use serde::{Deserialize, Serialize};

/// From where on nobody has looked yet. The journal has it as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unchecked {
    /// The lines up to this one were acknowledged then: none of them can come again.
    pub lines: u64,
    pub offsets: super::tracker::Offsets,
}

/// Which lines were met.
#[derive(Debug)]
pub struct Met {
    after: u64,
    upto: u64,
    bits: Vec<u64>,
    pub doubles: u64,
}

impl Met {
    /// For the lines after `after`, up to and including `upto`.
    pub fn new(after: u64, upto: u64) -> Self {
        let lines = usize::try_from(upto.saturating_sub(after)).unwrap_or(usize::MAX);
        Met { after, upto, bits: vec![0; lines.div_ceil(64)], doubles: 0 }
    }

    pub fn take(&mut self, line: u64) {
        if line <= self.after || line > self.upto {
            return;
        }
        let at = line - self.after - 1;
        let (word, bit) = (usize::try_from(at / 64).unwrap_or(usize::MAX), 1_u64 << (at % 64));
        if let Some(word) = self.bits.get_mut(word) {
            self.doubles += u64::from(*word & bit != 0);
            *word |= bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_comes_again_is_a_double_and_no_other() {
        let mut met = Met::new(100, 300);
        for line in [101, 164, 165, 300, 164, 0, 100, 301, u64::MAX, 164] {
            met.take(line);
        }
        assert_eq!(met.doubles, 2);
        let mut none = Met::new(7, 7);
        none.take(7);
        none.take(8);
        assert_eq!((none.doubles, none.bits.len()), (0, 0));
    }

    #[test]
    fn a_million_lines_are_an_eighth_of_a_megabyte() {
        assert_eq!(Met::new(5, 1_000_005).bits.len() * 8, 125_000);
    }
}
