//! The one form of a uuid that is taken as text: 36 characters with hyphens, in either case.
//! A third of an Avro event's bytes are uuids, so they are read straight from the bytes: what is one is
//! ASCII, and need not be checked to be UTF-8 first.

use uuid::Uuid;

/// All digits go through the same steps, as vectors of them.
pub(super) fn parse(text: &[u8]) -> Option<Uuid> {
    let text: &[u8; 36] = text.try_into().ok()?;
    let mut fits = text[8] == b'-' && text[13] == b'-' && text[18] == b'-' && text[23] == b'-';
    let mut digits = [0; 32];
    digits[..8].copy_from_slice(&text[..8]);
    digits[8..12].copy_from_slice(&text[9..13]);
    digits[12..16].copy_from_slice(&text[14..18]);
    digits[16..20].copy_from_slice(&text[19..23]);
    digits[20..].copy_from_slice(&text[24..]);
    for digit in &mut digits {
        let decimal = digit.wrapping_sub(b'0');
        let letter = (*digit | 0x20).wrapping_sub(b'a');
        fits &= (decimal < 10) | (letter < 6);
        *digit = if decimal < 10 { decimal } else { letter.wrapping_add(10) };
    }
    let mut bytes = [0; 16];
    for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks().0) {
        *byte = (high << 4) | low;
    }
    fits.then(|| Uuid::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn takes_the_hyphenated_form_in_either_case_and_nothing_else() {
        let good = "01234567-89ab-CDEF-0011-ffEEddCCbbAA";
        assert_eq!(parse(good.as_bytes()).unwrap().to_string(), good.to_ascii_lowercase());
        for at in 0..36 {
            for byte in 0..=255u8 {
                let mut text = *good.as_bytes().first_chunk::<36>().unwrap();
                text[at] = byte;
                let is_hyphen = [8, 13, 18, 23].contains(&at);
                let fits = if is_hyphen { byte == b'-' } else { byte.is_ascii_hexdigit() };
                assert_eq!(parse(&text).is_some(), fits, "{at} {byte}");
            }
        }
        for text in [
            "",
            "0123456789abcdef0011ffeeddccbbaa",
            "{01234567-89ab-cdef-0011-ffeeddccbbaa}",
            "01234567-89ab-CDEF-0011-ffEEddCCbbA",
            "01234567-89ab-CDEF-0011-ffEEddCCbbAA0",
            "urn:uuid:01234567-89ab-cdef-0011-ffeeddccbbaa",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
