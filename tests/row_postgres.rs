//! Rows that went through a real Postgres are the same bytes again: what the row hash rests on.

#[path = "support/postgres.rs"]
mod postgres;

use feed_worker::event::{Interaction, InteractionTypes, canonical_metadata};
use feed_worker::row::{self, COLUMNS, COPY_HEADER, COPY_TRAILER, Coordinates, CopyOutParser};
use futures::StreamExt;
use postgres::Postgres;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::Executor;
use uuid::Uuid;

const MIGRATION: &str = include_str!("../src/postgres/migrations/0001_interactions.sql");
const ROWS: usize = 5000;

/// Every kind of character that JSON or jsonb treats in a way of its own.
const CHARACTERS: &str = concat!(
    "aZ09 \"\\/\u{1}\u{1f}\u{7f}\n\t\r\u{8}\u{c}é€'{}[]:,",
    "\u{2028}\u{e000}\u{fffd}\u{1F600}\u{10ffff}",
);

struct Source(StdRng);

impl Source {
    fn text(&mut self) -> String {
        let characters: Vec<char> = CHARACTERS.chars().collect();
        let length = self.0.random_range(1..20);
        (0..length).map(|_| characters[self.0.random_range(0..characters.len())]).collect()
    }

    fn maybe_text(&mut self) -> Option<String> {
        self.0.random_bool(0.5).then(|| self.text())
    }

    /// Any finite double, the smallest and the negative zero too.
    fn maybe_double(&mut self) -> Option<f64> {
        let value = [f64::from_bits(self.0.random()), -0.0, 5e-324][self.0.random_range(0..3)];
        (value.is_finite() && self.0.random_bool(0.7)).then_some(value)
    }

    fn maybe_metadata(&mut self) -> Option<String> {
        let pairs: Vec<(String, String)> =
            (0..self.0.random_range(0..12)).map(|_| (self.text(), self.text())).collect();
        let mut json = String::new();
        canonical_metadata(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())), &mut json);
        self.0.random_bool(0.8).then_some(json)
    }

    fn tuples(&mut self) -> Vec<u8> {
        let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
        let names: Vec<String> = types.iter().map(|(name, _)| name.to_owned()).collect();
        let mut out = Vec::new();
        for number in 0..ROWS {
            let texts = [(); 3].map(|()| self.maybe_text());
            let metadata = self.maybe_metadata();
            let interaction = Interaction {
                watch_time_seconds: self.maybe_double(),
                recommendation_score: self.maybe_double(),
                position: self.0.random_bool(0.5).then(|| self.0.random_range(0..=i32::MAX)),
                event_id: self.0.random_bool(0.5).then(|| Uuid::from_u128(self.0.random())),
                user_id: Uuid::from_u128(self.0.random()),
                video_id: Uuid::from_u128(self.0.random()),
                interaction_type: types.lookup(&names[number % names.len()]).unwrap(),
                occurred_at_ms: self.0.random_range(946_684_800_000..4_000_000_000_000),
                algorithm: texts[0].as_deref(),
                experiment_variant_id: texts[1].as_deref(),
                feed_session_id: texts[2].as_deref(),
                metadata: metadata.as_deref(),
            };
            let at = Coordinates {
                partition: 5,
                offset: number as i64,
                recorded_at_ms: self.0.random_range(-1_000_000_000_000..4_000_000_000_000),
                ingested_at_ms: 1_771_200_000_123,
            };
            row::encode(&mut out, &at, &interaction, &types);
        }
        out
    }
}

#[tokio::test]
async fn postgres_gives_back_the_bytes_that_it_was_given() {
    let server = Postgres::start("rows");
    let mut connection = server.connect().await;
    connection.execute(MIGRATION).await.unwrap();
    let tuples = Source(StdRng::seed_from_u64(1)).tuples();
    let columns = COLUMNS.join(", ");

    let statement = format!("COPY user_interactions ({columns}) FROM STDIN (FORMAT binary)");
    let mut copy = connection.copy_in_raw(&statement).await.unwrap();
    for part in [COPY_HEADER, tuples.as_slice(), COPY_TRAILER.as_slice()] {
        copy.send(part).await.unwrap();
    }
    assert_eq!(copy.finish().await.unwrap(), ROWS as u64);

    let statement = format!(
        "COPY (SELECT {columns} FROM user_interactions ORDER BY kafka_offset) TO STDOUT (FORMAT binary)"
    );
    let (mut parser, mut read) = (CopyOutParser::new(), Vec::new());
    let mut stream = connection.copy_out_raw(&statement).await.unwrap();
    while let Some(chunk) = stream.next().await {
        parser.push(&chunk.unwrap(), &mut read).unwrap();
    }
    drop(stream);
    assert_eq!(parser.finish(), Ok(ROWS as u64));
    assert!(read == tuples);
    assert_eq!(row::row_hash(&read), row::row_hash(&tuples));
}
