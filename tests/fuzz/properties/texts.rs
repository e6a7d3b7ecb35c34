//! Manifests, object keys and configuration.

use std::path::PathBuf;

use feed_worker::config::{Config, Format};
use feed_worker::export::manifest::{FileEntry, GapEntry, Manifest, file_key, parse_file_key};
use feed_worker::row::{day_text, parse_day};

use super::Target;
use crate::meter::{BYTES_MAX, Meter};
use crate::support::Random;

/// `_manifest.json`: what is accepted is written again as it means, and that is stable.
pub struct Manifests;

impl Target for Manifests {
    fn name(&self) -> &'static str {
        "manifest"
    }
    fn share(&self) -> u64 {
        20
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let files = (0..random.below(4)).map(|n| FileEntry {
            bytes: random.next(),
            first_offset: n as i64 * 10,
            key: file_key("exports", 20_500, "t", n as i32, n as i64 * 10),
            last_offset: n as i64 * 10 + 9,
            partition: n as i32,
            recorded_at_max: "2026-02-16T00:00:00.000Z".to_owned(),
            recorded_at_min: "2026-02-16T00:00:00.000Z".to_owned(),
            row_hash: "0".repeat(32),
            rows: 10,
        });
        let files = files.collect();
        let gap = GapEntry { from_offset: 1, partition: 0, reason: "\"why\"\n".to_owned(), to_offset: 3 };
        Manifest::new("t", 20_500, &[0, 1], files, vec![gap]).to_bytes()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        match random.below(2) {
            0 => vec![b'['; 400_000],
            _ => format!(r#"{{"day":"{}""#, "x".repeat(400_000)).into_bytes(),
        }
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let bytes_max = BYTES_MAX + 4 * input.len().saturating_sub(64 << 10);
        meter.run(input.len(), bytes_max, || drop(Manifest::from_bytes(input)));
        let Ok(manifest) = Manifest::from_bytes(input) else { return false };
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
        let mut sorted: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        sorted.sort_all_objects();
        assert_eq!(sorted.to_string().as_bytes(), bytes, "not canonical");
        let mut sent: serde_json::Value = serde_json::from_slice(input).unwrap();
        sent.sort_all_objects();
        // serde takes the fields one after the other in an array, too.
        let lists =
            ["files", "gaps", "partitions"].map(|name| sent.get(name).and_then(|list| list.as_array()));
        if lists.iter().all(|list| list.is_some_and(|list| list.iter().all(serde_json::Value::is_object))) {
            assert_eq!(sent, sorted, "something was lost");
        }
        true
    }
}

/// Keys in the bucket: what is taken for a file of ours is what we would call it.
pub struct Keys;

impl Target for Keys {
    fn name(&self) -> &'static str {
        "key"
    }
    fn share(&self) -> u64 {
        20
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let day = *random.pick(&[0, 20_500, -1, 2_932_896, i32::MAX, i32::MIN]);
        let offset = *random.pick(&[0, 42, i64::MAX, -1]);
        let partition = *random.pick(&[0, 11, i32::MAX, -1]);
        file_key(random.pick::<&str>(&["exports", "a/b", ""]), day, "feed.v1", partition, offset).into_bytes()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        random.pick(b"/+a").to_string().repeat(300_000).into_bytes()
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let Ok(key) = std::str::from_utf8(input) else { return false };
        let bytes_max = BYTES_MAX + 4 * input.len().saturating_sub(64 << 10);
        meter.run(input.len(), bytes_max, || drop(parse_file_key(key)));
        if let Some(day) = parse_day(key) {
            assert_eq!(day_text(day), key);
        }
        let Some((day, topic, partition, first_offset)) = parse_file_key(key) else { return false };
        let made = file_key("", day, &topic, partition, first_offset);
        assert!(key == made || key.ends_with(&format!("/{made}")), "{made}");
        true
    }
}

/// Configuration from flags, environment and file: no secret is repeated, whatever is wrong.
pub struct Settings;

const SECRET: &str = "hunter2";
const SECRET_KEYS: [&str; 4] =
    ["postgres.url", "registry.password", "kafka.properties.sasl.password", "kafka.properties.ssl.key.pem"];
const LINES: [&str; 14] = [
    "kafka.bootstrap_servers=localhost:9092",
    "kafka.session_timeout_ms=45000",
    "kafka.properties.security.protocol=SASL_SSL",
    "batch.rows_max=99999999999999999999",
    "roll.bytes_max=-1",
    "registry.url=http://user@host",
    "s3.prefix=/x/",
    "interactions.weights=view:1,view:2",
    "log.level=everything",
    "FEED_WORKER_KAFKA__TOPIC=a topic",
    "FEED_WORKER_KAFKA__SESSION_TIMEOUT_MS=1e3",
    "DATABASE_URL=postgres://u:hunter2@h/db",
    "no.such.key=1",
    "kafka=1",
];

impl Target for Settings {
    fn name(&self) -> &'static str {
        "config"
    }
    fn share(&self) -> u64 {
        5
    }
    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let mut lines: Vec<String> =
            (0..random.below(4)).map(|_| (*random.pick(&LINES)).to_owned()).collect();
        let secret =
            *random.pick(&["hunter2", "postgres://u:hunter2@h/db", "postgres://u:hunter2@h:99999/db"]);
        lines.push(format!("{}={secret}", random.pick(&SECRET_KEYS)));
        if random.one_in(3) {
            lines = vec![format!(
                "---\nregistry:\n  password: {SECRET}\n  timeout_ms: [1]\nkafka: {{topic: 1}}\n"
            )];
        }
        lines.join("\n").into_bytes()
    }
    fn huge(&mut self, random: &mut Random) -> Vec<u8> {
        match random.below(3) {
            0 => format!("---\n{}", "[".repeat(20_000)).into_bytes(),
            1 => format!("---\n{}", "a: &a [*a]\n".repeat(2_000)).into_bytes(),
            _ => format!("kafka.topic={}", "x".repeat(200_000)).into_bytes(),
        }
    }
    fn check(&mut self, input: &[u8], meter: &mut Meter) -> bool {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let lines: Vec<&str> = text.lines().collect();
        let is_variable = |line: &str| line.starts_with("FEED_WORKER_") || line.starts_with("DATABASE_URL");
        let mut variables = Vec::new();
        let mut sets = Vec::new();
        let mut path: Option<PathBuf> = None;
        if text.starts_with("---") {
            let name =
                format!("feed-worker-fuzz-{}-{:?}.yaml", std::process::id(), std::thread::current().id());
            let file = std::env::temp_dir().join(name);
            std::fs::write(&file, text).unwrap();
            path = Some(file);
        } else {
            for line in lines {
                match line.split_once('=') {
                    // The one variable that makes it read another file.
                    Some(("FEED_WORKER_CONFIG", _)) => {}
                    Some((name, value)) if is_variable(line) => {
                        variables.push((name.to_owned(), value.to_owned()));
                    }
                    _ => sets.push(line.to_owned()),
                }
            }
        }
        // What a key that nobody knows says is not ours to judge: it may be a secret's key, misspelt.
        let load = || Config::load_from(path.as_deref(), &variables, &sets);
        meter.run(input.len(), BYTES_MAX + 100 * input.len(), || drop(load()));
        let loaded = load();
        if let Some(path) = &path {
            std::fs::remove_file(path).unwrap();
        }
        match loaded {
            Ok((config, provenance)) => {
                let keeps = |text: &str| assert!(!says_secret(&config, text), "the secret is shown: {text}");
                keeps(&config.dump(&provenance, Format::Yaml));
                keeps(&format!("{config:?}"));
                true
            }
            Err(error) => {
                let shown = error.to_string();
                let keys = SECRET_KEYS
                    .iter()
                    .any(|key| sets.iter().any(|set| set.starts_with(&format!("{key}={SECRET}"))));
                assert!(!keys || !shown.contains(SECRET), "the secret is shown: {shown}");
                false
            }
        }
    }
}

/// Whether a text shows the secret although the key that has it is a secret's.
fn says_secret(config: &Config, text: &str) -> bool {
    let plain =
        [&config.kafka.topic, &config.kafka.bootstrap_servers, &config.s3.prefix, &config.registry.url];
    let password_is_it =
        config.registry.password.as_ref().is_some_and(|password| password.expose() == SECRET);
    password_is_it && text.contains(SECRET) && !plain.iter().any(|value| value.contains(SECRET))
}
