//! Parquet files that were cut or bent: an error or rows, never a panic.

use bytes::Bytes;
use feed_worker::export::file::{FileIdentity, OpenFile};
use feed_worker::export::read::RowReader;
use feed_worker::row::Rows;

use super::Target;
use crate::generate;
use crate::meter::{BYTES_MAX, Meter};
use crate::support::{self, RECORDED_AT_MS, Random};

pub struct Parquet(Vec<u8>);

impl Parquet {
    pub fn new() -> Self {
        let decoder = support::decoder();
        let mut random = Random(1);
        let day = feed_worker::row::day_of_ms(RECORDED_AT_MS);
        let identity =
            FileIdentity { topic: "t".to_owned(), partition: 0, first_offset: 0, day, epoch: RECORDED_AT_MS };
        let mut file = OpenFile::new(identity, 10_000).unwrap();
        for offset in 0..8 {
            let mut row = Vec::new();
            generate::row(&mut row, offset, decoder.types(), &mut random);
            // Partition 0, and a time that every Parquet file can hold.
            row[6..10].fill(0);
            row.copy_within(26..34, 38);
            let mut canonical = Vec::new();
            feed_worker::row::canonical_from_postgres(&row, &mut canonical).unwrap();
            file.append(&canonical).unwrap();
        }
        Self(file.seal().unwrap().body.to_vec())
    }
}

fn read(body: Bytes) -> Option<u64> {
    let mut reader = RowReader::open(body).ok()?;
    let mut tuples = Vec::new();
    let mut rows = 0;
    while reader.next_rows(&mut tuples).ok()? {
        for row in Rows::new(&tuples) {
            row.expect("what is given out is a row");
            rows += 1;
        }
        assert_eq!(rows, reader.rows());
    }
    Some(rows)
}

impl Target for Parquet {
    fn name(&self) -> &'static str {
        "parquet"
    }
    fn share(&self) -> u64 {
        5
    }
    fn generate(&mut self, _: &mut Random) -> Vec<u8> {
        self.0.clone()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        let mut body = b"PAR1".to_vec();
        body.resize(100_000, random.next() as u8);
        body.extend(((random.below(100_010)) as u32).to_le_bytes());
        body.extend(b"PAR1");
        body
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let body = Bytes::copy_from_slice(input);
        let mut rows = None;
        // Not ours, and it makes room for a batch of rows in every column.
        meter.run(input.len(), 64 * BYTES_MAX, || rows = read(body));
        rows.is_some()
    }
}
