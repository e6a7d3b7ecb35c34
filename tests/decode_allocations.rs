//! What decoding allocates: nothing per event once it is warm, and never more than an event's own size
//! however much the event claims to hold. In a program of its own, because it replaces the allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use feed_worker::event::{Decoder, InteractionTypes, READER_SCHEMA_JSON, Verdict};

const RECORDED_AT_MS: i64 = 1_768_478_400_000;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn note(size: usize) {
    COUNT.with(|count| count.set(count.get() + 1));
    LARGEST.with(|largest| largest.set(largest.get().max(size)));
}

/// Allocations, and the largest of them, of `work` in this thread.
fn allocations(work: impl FnOnce()) -> (usize, usize) {
    COUNT.with(|count| count.set(0));
    LARGEST.with(|largest| largest.set(0));
    work();
    (COUNT.with(Cell::get), LARGEST.with(Cell::get))
}

fn decoder() -> Decoder {
    let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
    let mut decoder = Decoder::new(types);
    decoder.add_schema(2, READER_SCHEMA_JSON).unwrap();
    decoder
}

/// The value of an example that is kept as hexadecimal text.
fn avro_example() -> Vec<u8> {
    let path = "schemas/feed.interactions.v1/examples/valid/avro_v2_full.value.json";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let example: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let hex = example["value_hex"].as_str().unwrap();
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn json_example(name: &str) -> Vec<u8> {
    let path = format!("schemas/feed.interactions.v1/examples/valid/{name}.json");
    std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn an_event_costs_no_allocation_once_the_decoder_is_warm() {
    let mut decoder = decoder();
    let values = [
        avro_example(),
        json_example("json_full"),
        json_example("json_escapes"),
        json_example("json_unknown_keys_are_metadata"),
    ];
    let mut decode_all = || {
        for value in &values {
            let verdict = decoder.decode(Some(value), RECORDED_AT_MS);
            assert!(matches!(verdict, Verdict::Accept(_)), "{verdict:?}");
        }
    };
    decode_all();
    let (count, _) = allocations(|| (0..100).for_each(|_| decode_all()));
    assert_eq!(count, 0);
}

#[test]
fn no_claim_of_an_event_makes_the_decoder_allocate() {
    let mut decoder = decoder();
    let value = avro_example();
    // Huge lengths and counts at every place of the body.
    for at in 5..value.len() {
        for claim in [
            &[0xFE, 0xFF, 0xFF, 0xFF, 0x0F][..],
            &[0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
            &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
        ] {
            let bent = [&value[..at], claim, &value[at..]].concat();
            let (_, largest) = allocations(|| {
                let _ = decoder.decode(Some(&bent), RECORDED_AT_MS);
            });
            assert!(largest < 4096, "{largest} bytes at {at}");
        }
    }
}

#[test]
fn the_largest_values_cost_about_their_own_size() {
    let mut decoder = decoder();
    let mib = 1 << 20;
    for (open, piece, close) in [
        (r#"{"a":""#, r"\u0001", r#""}"#),
        (r#"{"a":[0"#, ",0", "]}"),
        (r#"{"a":[0"#, r#",{"a":0}"#, "]}"),
        (r#"{"a":{"":0"#, r#","a":0"#, "}}"),
        (r#"{"":0"#, r#","a":0"#, "}"),
        (r#"{"metadata":{"":0"#, r#","\u0061":0"#, "}}"),
        (r#"{"a":"#, "[", ""),
        (r#"{"a":"#, r#"{"":"#, ""),
    ] {
        let count = (mib - open.len() - close.len()) / piece.len();
        let value = [open, &piece.repeat(count), close].concat();
        let (_, largest) = allocations(|| {
            let verdict = decoder.decode(Some(value.as_bytes()), RECORDED_AT_MS);
            assert!(matches!(verdict, Verdict::Reject(_)), "{verdict:?}");
        });
        assert!(largest <= mib, "{largest} bytes for {open}");
    }
}
