#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| feed_worker_fuzz::check("parquet", input));
