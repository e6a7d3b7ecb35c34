//! Which bytes a JSON string must escape, looked for in words of eight: most texts are short, and have none.

/// A quote, a backslash, or a control character.
#[inline]
pub(super) const fn is_special(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

/// Where the first special byte is, from `at` on; the text's length if there is none.
#[inline(always)]
pub(super) fn plain_end(text: &[u8], at: usize) -> usize {
    let mut rest = text.get(at..).unwrap_or_default();
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        let found = specials(u64::from_le_bytes(*word));
        if found != 0 {
            return text.len() - rest.len() + (found.trailing_zeros() / 8) as usize;
        }
        rest = behind;
    }
    let of_rest = rest.iter().position(|&byte| is_special(byte)).unwrap_or(rest.len());
    text.len() - rest.len() + of_rest
}

/// Whether no byte is special.
#[inline]
pub(super) fn is_plain(text: &[u8]) -> bool {
    let Some(last) = text.last_chunk::<8>() else {
        return is_short_plain(text);
    };
    let mut rest = text;
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        if specials(u64::from_le_bytes(*word)) != 0 {
            return false;
        }
        rest = behind;
    }
    // What is left over, and some bytes a second time.
    specials(u64::from_le_bytes(*last)) == 0
}

/// The same, of a text whose length is known beforehand.
#[inline(always)]
pub(super) fn is_plain_array<const LENGTH: usize>(text: &[u8; LENGTH]) -> bool {
    let Some(last) = text.last_chunk::<8>() else {
        return is_short_plain(text);
    };
    let found = |found, word: &[u8; 8]| found | specials(u64::from_le_bytes(*word));
    text.as_chunks::<8>().0.iter().chain([last]).fold(0, found) == 0
}

/// The same, of less than a word.
#[inline]
fn is_short_plain(text: &[u8]) -> bool {
    let (Some(first), Some(last)) = (text.first_chunk::<4>(), text.last_chunk::<4>()) else {
        return !text.iter().any(|&byte| is_special(byte));
    };
    let [a, b, c, d] = *first;
    let [e, f, g, h] = *last;
    specials(u64::from_le_bytes([a, b, c, d, e, f, g, h])) == 0
}

/// Zero if none of the word's bytes is special; else the lowest bit that is set is in the first of them.
#[inline]
const fn specials(word: u64) -> u64 {
    // Of the bytes below 0x80 only these borrow from their top bit, and the next byte: a borrow makes bits that mean
    // nothing, but only above the first. With one bit turned the quote is next to the control characters.
    let quotes_and_controls = (word ^ each(0x02)).wrapping_sub(each(0x21));
    let backslashes = (word ^ each(b'\\')).wrapping_sub(each(0x01));
    (quotes_and_controls | backslashes) & !word & each(0x80)
}

const fn each(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Special, beside what is special, and such bytes with another top bit.
    const KINDS: [u8; 14] =
        [0x00, 0x1f, b' ', b'!', b'"', b'#', b'[', b'\\', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff];

    #[test]
    fn every_byte_is_found_at_every_place_before_and_after_any_other() {
        for length in 0..=20 {
            for at in 0..length {
                for byte in 0..=255 {
                    let mut text = vec![b'x'; length];
                    text[at] = byte;
                    agrees(&text);
                    for neighbour in KINDS {
                        text[(at + 1) % length] = neighbour;
                        agrees(&text);
                    }
                }
            }
        }
    }

    #[test]
    fn all_words_of_two_kinds_of_bytes_are_searched_alike() {
        for (a, b) in KINDS.into_iter().flat_map(|a| KINDS.map(|b| (a, b))) {
            for choice in 0..512 {
                let text: Vec<u8> = (0..9).map(|bit| if choice & (1 << bit) == 0 { a } else { b }).collect();
                (0..=9).for_each(|length| agrees(&text[..length]));
            }
        }
    }

    fn agrees(text: &[u8]) {
        let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
        for at in 0..=text.len().min(2) {
            let expected = text[at..].iter().position(special).map_or(text.len(), |found| at + found);
            assert_eq!(plain_end(text, at), expected, "{at} {text:?}");
        }
        let is_expected = !text.iter().any(special);
        assert_eq!(is_plain(text), is_expected, "{text:?}");
        if let Ok(array) = <&[u8; 20]>::try_from(text) {
            assert_eq!(is_plain_array(array), is_expected, "{text:?}");
        }
    }
}
