//! The generator, held to what the demo, the benchmarks and the trainer's test rely on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use feed_worker::event::{Decoder, InteractionTypes, RejectReason, Verdict};
use feed_worker::produce::{AvroSchemas, BadKind, Encoding, Generator, Record, Settings, generator, schemas};

const NOW_MS: i64 = 1_800_000_000_000;

fn registered() -> AvroSchemas {
    schemas::encoders(7, 6, 8).unwrap()
}

fn settings() -> Settings {
    Settings { users: 1000, videos: 500, tastes: 20, bad_share: 0.01, ..Settings::default() }
}

fn records(settings: Settings, now_ms: i64, indexes: impl Iterator<Item = u64>) -> Vec<Record> {
    let generator = Generator::new(settings, Some(registered())).unwrap();
    indexes
        .map(|index| {
            let mut record = Record::default();
            generator.write(index, now_ms, &mut record);
            record
        })
        .collect()
}

fn bytes(records: &[Record]) -> Vec<(String, Option<Vec<u8>>)> {
    records.iter().map(|r| (r.key.clone(), r.value().map(<[u8]>::to_vec))).collect()
}

#[test]
fn an_event_depends_on_seed_and_index_only() {
    let forwards = bytes(&records(settings(), NOW_MS, 0..3000));
    let mut backwards = bytes(&records(settings(), NOW_MS, (0..3000).rev()));
    backwards.reverse();
    assert!(forwards == backwards);
    let other_seed = bytes(&records(Settings { seed: 2, ..settings() }, NOW_MS, 0..3000));
    let same = forwards.iter().zip(&other_seed).filter(|(a, b)| a == b).count();
    assert!(same < 100, "{same} of 3000 events are those of another seed");
}

#[test]
fn only_the_timestamp_depends_on_the_time_of_sending() {
    let generator = Generator::new(settings(), Some(registered())).unwrap();
    for index in 0..1000 {
        let now = generator.event(index, NOW_MS);
        let mut later = generator.event(index, NOW_MS + 12_345);
        later.occurred_at_ms -= 12_345;
        assert_eq!(now, later);
        let delay_ms = NOW_MS - now.occurred_at_ms;
        assert!((-120_000..=6 * 3_600_000).contains(&delay_ms), "{delay_ms}");
    }
}

#[test]
fn shares_are_as_asked_for() {
    let mut counts: BTreeMap<Encoding, u32> = BTreeMap::new();
    for record in records(settings(), NOW_MS, 0..20_000) {
        *counts.entry(record.encoding()).or_default() += 1;
    }
    assert_eq!(counts[&Encoding::Bad], 200, "exact, whatever the seed");
    let expected = [
        (Encoding::Json, 19_800.0 * 0.2),
        (Encoding::AvroV1, 19_800.0 * 0.8 * 0.2),
        (Encoding::Avro, 19_800.0 * 0.8 * 0.8),
    ];
    for (encoding, expected) in expected {
        let ratio = f64::from(counts[&encoding]) / expected;
        assert!((0.9..1.1).contains(&ratio), "{encoding:?}: {ratio} of what was asked for");
    }
}

#[test]
fn every_kind_of_bad_record_is_planted() {
    let all_bad = Settings { bad_share: 1.0, ..settings() };
    let rounds = BadKind::ALL.len() as u64 * 8;
    let records = records(all_bad, NOW_MS, 0..rounds);
    let mut counts: HashMap<BadKind, u32> = HashMap::new();
    for record in &records {
        *counts.entry(record.planted.expect("all are bad")).or_default() += 1;
    }
    for kind in BadKind::ALL {
        let expected = match kind {
            BadKind::ValueTooLarge => 1,
            BadKind::WrongType => 15,
            _ => 8,
        };
        assert_eq!(counts.get(kind), Some(&expected), "{kind:?}");
    }
    let tombstones = records.iter().filter(|record| record.value().is_none()).count();
    assert_eq!(tombstones, 8);
}

#[test]
fn without_a_registry_no_record_needs_one() {
    let no_avro = Settings { json_share: 1.0, bad_share: 0.5, ..settings() };
    let generator = Generator::new(no_avro, None).unwrap();
    let mut record = Record::default();
    for index in 0..500 {
        generator.write(index, NOW_MS, &mut record);
        let framed = record.value().is_some_and(|value| value.len() >= 5 && value[0] == 0);
        assert!(!framed, "{:?} needs a schema", record.planted);
    }
    let error = Generator::new(settings(), None).unwrap_err().to_string();
    assert!(error.contains("registered schemas"), "{error}");
}

#[test]
fn shares_outside_of_0_and_1_are_refused() {
    for share in [-0.1, 1.1, f64::NAN] {
        let wrong = Settings { bad_share: share, ..settings() };
        assert!(Generator::new(wrong, Some(registered())).is_err(), "{share}");
    }
}

/// A decoder that knows the generator's schemas, and that one id is nobody's.
fn decoder() -> Decoder {
    let types = InteractionTypes::parse(InteractionTypes::default_text()).unwrap();
    let mut decoder = Decoder::new(types);
    decoder.add_schema(7, schemas::CURRENT).unwrap();
    decoder.add_schema(6, schemas::VERSION_1).unwrap();
    decoder.add_schema(8, schemas::INCOMPATIBLE).unwrap_err();
    decoder
}

#[test]
fn the_worker_rejects_what_is_planted_for_the_planted_reason() {
    let planted: HashSet<_> = BadKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let known: HashSet<_> = RejectReason::ALL
        .iter()
        .filter(|reason| **reason != RejectReason::RefusedByPostgres)
        .map(|reason| reason.as_str())
        .collect();
    assert_eq!(planted, known);
    let mut decoder = decoder();
    // So many that every kind is met in every of its ways.
    let all_bad = Settings { bad_share: 1.0, ..settings() };
    for record in records(all_bad, NOW_MS, 0..17 * 24) {
        let reason = match decoder.decode(record.value(), NOW_MS) {
            Verdict::Reject(reject) => reject.reason,
            Verdict::NeedSchema(id) => {
                decoder.add_missing(id);
                RejectReason::SchemaNotFound
            }
            Verdict::Accept(_) => panic!("accepted: {record:?}"),
        };
        let expected = record.planted.unwrap().as_str();
        assert_eq!(reason.as_str(), expected, "{:?}", record.value().map(String::from_utf8_lossy));
    }
}

#[test]
fn the_worker_reads_good_events_as_they_were_drawn() {
    let good = Settings { bad_share: 0.0, ..settings() };
    let generator = Generator::new(good, Some(registered())).unwrap();
    let mut decoder = decoder();
    let mut record = Record::default();
    for index in 0..5000 {
        generator.write(index, NOW_MS, &mut record);
        let event = generator.event(index, NOW_MS);
        let encoding = record.encoding();
        let read = match decoder.decode(record.value(), NOW_MS) {
            Verdict::Accept(read) => read,
            other => panic!("{encoding:?} {index}: {other:?}"),
        };
        assert_eq!(read.user_id, event.user_id);
        assert_eq!(read.video_id, event.video_id);
        assert_eq!(read.occurred_at_ms, event.occurred_at_ms);
        assert_eq!(read.watch_time_seconds, event.watch_time_seconds);
        if encoding != Encoding::AvroV1 {
            assert_eq!(read.recommendation_score, event.recommendation_score, "{encoding:?} {index}");
            assert_eq!(read.position, event.position);
            assert_eq!(read.algorithm, event.algorithm);
            assert_eq!(read.experiment_variant_id, event.experiment_variant_id);
        }
        let sent: BTreeMap<_, _> = event.metadata.iter().flatten().cloned().collect();
        let kept: BTreeMap<String, String> =
            read.metadata.map_or_else(BTreeMap::new, |text| serde_json::from_str(text).unwrap());
        for (key, value) in &sent {
            assert_eq!(kept.get(*key), Some(value), "{encoding:?} {index}");
        }
    }
}

#[test]
fn metadata_is_as_large_as_asked_for_and_the_rest_is_as_without() {
    let good = Settings { bad_share: 0.0, ..settings() };
    let as_drawn = Generator::new(good.clone(), Some(registered())).unwrap();
    let mut decoder = decoder();
    for bytes in [0, 13, 14, 1024, 16_000] {
        let sized = Settings { metadata_bytes: Some(bytes), ..good.clone() };
        let generator = Generator::new(sized, Some(registered())).unwrap();
        let mut record = Record::default();
        let (mut json, mut avro) = (0, 0);
        for index in 0..1000 {
            generator.write(index, NOW_MS, &mut record);
            let encoding = record.encoding();
            let kept = match decoder.decode(record.value(), NOW_MS) {
                Verdict::Accept(read) => read.metadata.map_or(0, str::len),
                other => panic!("{bytes} bytes, {encoding:?} {index}: {other:?}"),
            };
            match encoding {
                Encoding::Json => {
                    assert!((bytes..=bytes + 200).contains(&kept), "{bytes} bytes, {index}: {kept}");
                    json += 1;
                }
                _ => {
                    assert_eq!(kept, bytes, "{encoding:?} {index}");
                    avro += 1;
                }
            }
            let (drawn, event) = (as_drawn.event(index, NOW_MS), generator.event(index, NOW_MS));
            assert_eq!(
                event,
                feed_worker::produce::event::Event { metadata: event.metadata.clone(), ..drawn }
            );
        }
        assert!(json > 100 && avro > 500, "{json} in JSON, {avro} in Avro");
    }
    for bytes in [1, 12, 16_001] {
        let wrong = Settings { metadata_bytes: Some(bytes), ..good.clone() };
        let error = Generator::new(wrong, Some(registered())).unwrap_err().to_string();
        assert!(error.contains("0, or 13 to 16000"), "{error}");
    }
}

/// Avro as another implementation reads it, JSON as another parser reads it.
#[test]
fn good_events_can_be_read_by_others() {
    let generator = Generator::new(settings(), Some(registered())).unwrap();
    let current = apache_avro::Schema::parse_str(schemas::CURRENT).unwrap();
    let v1 = apache_avro::Schema::parse_str(schemas::VERSION_1).unwrap();
    let mut record = Record::default();
    for index in 0..2000 {
        generator.write(index, NOW_MS, &mut record);
        let event = generator.event(index, NOW_MS);
        let Some(value) = record.value() else {
            continue;
        };
        let (user, kind) = match record.encoding() {
            Encoding::Bad => continue,
            Encoding::Json => {
                let object: serde_json::Value = serde_json::from_slice(value).unwrap();
                let text = |key: &str| object[key].as_str().unwrap().to_lowercase();
                (text("userId"), text("interactionType"))
            }
            avro => {
                let (schema, id) = if avro == Encoding::Avro { (&current, 7) } else { (&v1, 6) };
                assert_eq!(value[..5], [0, 0, 0, 0, id]);
                let mut body = &value[5..];
                let reader = apache_avro::reader::datum::GenericDatumReader::builder(schema);
                let read = reader.build().unwrap().read_value(&mut body).unwrap();
                assert!(body.is_empty(), "{} bytes too many", body.len());
                let apache_avro::types::Value::Record(fields) = read else { panic!("no record") };
                let text = |key: &str| {
                    let field = fields.iter().find(|(name, _)| name == key);
                    match &field.unwrap().1 {
                        apache_avro::types::Value::Uuid(id) => id.to_string(),
                        apache_avro::types::Value::String(text) => text.clone(),
                        apache_avro::types::Value::Enum(_, symbol) => symbol.clone(),
                        other => panic!("{key}: {other:?}"),
                    }
                };
                (text("userId"), text("interactionType"))
            }
        };
        assert_eq!(user, event.user_id.to_string());
        assert_eq!(user, record.key);
        assert_eq!(kind, event.interaction_type);
    }
}

/// What the trainer's test needs: videos that people of one taste complete, not what all watch.
#[test]
fn a_users_taste_says_more_than_popularity() {
    let generator = Generator::new(Settings { bad_share: 0.0, ..settings() }, Some(registered())).unwrap();
    let mut liked: HashMap<uuid::Uuid, HashSet<uuid::Uuid>> = HashMap::new();
    let mut popularity: HashMap<uuid::Uuid, u32> = HashMap::new();
    for index in 0..60_000 {
        let event = generator.event(index, NOW_MS);
        if !["complete", "share", "comment", "like"].contains(&event.interaction_type) {
            continue;
        }
        liked.entry(event.user_id).or_default().insert(event.video_id);
        *popularity.entry(event.video_id).or_default() += 1;
    }
    let mut top: Vec<_> = popularity.into_iter().collect();
    top.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), *id));
    let top: Vec<_> = top.into_iter().take(20).map(|(id, _)| id).collect();
    // Of what a user likes, most comes from the videos of one taste; the hits cover much less.
    let population = generator::Population::new(1000, 500, 20).unwrap();
    let (mut own, mut hits, mut all) = (0_u32, 0_u32, 0_u32);
    for user in 0..1000 {
        let taste = population.taste_of_user(user);
        let Some(liked) = liked.get(&generator::user_id(user)) else {
            continue;
        };
        let of_taste: HashSet<_> = (0..500)
            .filter(|video| population.taste_of_video(*video) == taste)
            .map(generator::video_id)
            .collect();
        own += liked.intersection(&of_taste).count() as u32;
        hits += top.iter().filter(|video| liked.contains(video)).count() as u32;
        all += liked.len() as u32;
    }
    assert!(own * 10 > all * 8, "{own} of {all} likes are of the own taste");
    assert!(hits * 2 < own, "the {} hits cover {hits} of {all} likes", top.len());
}

/// A load generator that is slower than what it loads measures itself.
#[test]
fn generates_more_than_100_000_events_a_second() {
    let generator = Generator::new(settings(), Some(registered())).unwrap();
    let mut record = Record::default();
    // The fastest of several short rounds: other tests run on the same cores.
    let fastest = (0..10)
        .map(|round| {
            let started = Instant::now();
            for index in round * 3000..(round + 1) * 3000 {
                generator.write(index, NOW_MS, &mut record);
            }
            3000.0 / started.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max);
    println!("{fastest:.0} events/s");
    assert!(fastest > 100_000.0, "{fastest:.0} events/s");
}
