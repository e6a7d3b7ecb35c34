//! The one form of a uuid that is taken as text: 36 characters with hyphens, in either case.
//! A third of an Avro event's bytes are uuids, so they are read straight from the bytes: what is one is
//! ASCII, and need not be checked to be UTF-8 first.

use uuid::Uuid;

pub(super) fn parse(text: &[u8]) -> Option<Uuid> {
    // Of the forms that the parser knows the length leaves this one only.
    if text.len() != 36 {
        return None;
    }
    Uuid::try_parse_ascii(text).ok()
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
