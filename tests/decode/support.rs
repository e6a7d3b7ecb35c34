//! What the tests of decoding share: a decoder, one valid event in every format, and a small encoder
//! that is not the one under test.

use std::path::PathBuf;

use feed_worker::event::{
    Decoder, Interaction, InteractionTypes, READER_SCHEMA_JSON, Reject, RejectReason, Verdict, recanonicalize,
};

/// 2026-01-15T12:00:00Z, Kafka's timestamp of every event in the tests and the examples.
pub const RECORDED_AT_MS: i64 = 1_768_478_400_000;
pub const OCCURRED_AT_MS: i64 = 1_768_478_399_123;
pub const USER: &str = "6f1c2a80-5d0e-4a55-9c3b-0a1d6f3e7b21";
pub const VIDEO: &str = "c0ffee00-1234-4abc-8def-0123456789ab";
pub const V1: u32 = 1;
pub const V2: u32 = 2;

pub fn schemas() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas/feed.interactions.v1")
}

pub fn read_schema(name: &str) -> String {
    std::fs::read_to_string(schemas().join(name)).unwrap()
}

pub fn decoder() -> Decoder {
    let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
    let mut decoder = Decoder::new(types);
    decoder.add_schema(V1, &read_schema("interaction.v1.avsc")).unwrap();
    decoder.add_schema(V2, READER_SCHEMA_JSON).unwrap();
    decoder
}

/// The reject of a value that must be one.
pub fn rejected(decoder: &mut Decoder, value: &[u8]) -> Reject {
    match decoder.decode(Some(value), RECORDED_AT_MS) {
        Verdict::Reject(reject) => reject,
        other => panic!("{other:?} for {}", value.escape_ascii()),
    }
}

pub fn reason(decoder: &mut Decoder, value: &[u8]) -> RejectReason {
    rejected(decoder, value).reason
}

pub fn accepted<'a>(decoder: &'a mut Decoder, value: &'a [u8]) -> Interaction<'a> {
    match decoder.decode(Some(value), RECORDED_AT_MS) {
        Verdict::Accept(interaction) => interaction,
        other => panic!("{other:?} for {}", value.escape_ascii()),
    }
}

/// A JSON event of what is required, and `more` (which begins with a comma, or is empty).
pub fn json(more: &str) -> Vec<u8> {
    format!(
        r#"{{"userId":"{USER}","videoId":"{VIDEO}","interactionType":"view","timestamp":{OCCURRED_AT_MS}{more}}}"#
    )
    .into_bytes()
}

/// Avro bodies, piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    pub fn framed(id: u32) -> Self {
        let mut body = vec![0];
        body.extend(id.to_be_bytes());
        Self(body)
    }

    pub fn long(mut self, value: i64) -> Self {
        let mut zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while zigzag >= 0x80 {
            self.0.push((zigzag & 0x7F) as u8 | 0x80);
            zigzag >>= 7;
        }
        self.0.push(zigzag as u8);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.long(bytes.len() as i64).raw(bytes)
    }

    pub fn string(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub fn double(self, value: f64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    /// The fields of version 2 up to `metadata`, with everything in them.
    pub fn v2_before_metadata() -> Self {
        Self::framed(V2)
            .string(USER)
            .string(VIDEO)
            .string("complete")
            .long(1)
            .double(31.5)
            .long(OCCURRED_AT_MS)
            .long(1)
            .string("018f4e7a-9b1c-7c3d-a5e6-112233445566")
            .long(1)
            .string("fs-20260115-0007")
            .long(1)
            .string("lightfm-warp")
            .long(1)
            .string("treatment-b")
            .long(1)
            .double(0.8125)
            .long(1)
            .long(3)
    }

    pub fn v2_full() -> Self {
        Self::v2_before_metadata()
            .long(1)
            .long(2)
            .string("network")
            .string("wifi")
            .string("appVersion")
            .string("5.2.1")
            .long(0)
    }

    pub fn v1_full() -> Self {
        Self::framed(V1)
            .string(USER)
            .string(VIDEO)
            .string("like")
            .long(1)
            .double(12.25)
            .long(OCCURRED_AT_MS)
            .long(1)
            .long(1)
            .string("network")
            .string("wifi")
            .long(0)
    }
}

/// Numbers that look random and are the same every time (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// What was accepted is within every limit.
pub fn check_limits(interaction: &Interaction<'_>) {
    let day = 86_400_000;
    assert!((946_684_800_000..=RECORDED_AT_MS + day).contains(&interaction.occurred_at_ms));
    assert!(interaction.watch_time_seconds.is_none_or(|s| s.is_finite() && s >= 0.0));
    assert!(interaction.recommendation_score.is_none_or(f64::is_finite));
    assert!(interaction.position.is_none_or(|p| p >= 0));
    for text in [interaction.algorithm, interaction.experiment_variant_id, interaction.feed_session_id] {
        assert!(text.is_none_or(|text| (1..=256).contains(&text.len()) && !text.contains('\0')));
    }
    if let Some(metadata) = interaction.metadata {
        assert!(metadata.len() <= 16 * 1024);
        let mut again = String::new();
        recanonicalize(metadata, &mut again).unwrap();
        assert_eq!(metadata, again);
    }
}
