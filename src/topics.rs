//! `topics.yaml`: the contract of the topics, and how it differs from one environment to another.
//!
//! What this module guarantees: a contract that was read is complete and does not contradict itself, in any of
//! its environments. [`plan`] compares it with a cluster without touching it; [`cluster`] is what touches it.

pub mod cluster;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// The whole file. Unknown keys are refused everywhere: a misspelt key would be a silent default.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    version: u32,
    topics: Vec<Topic>,
    #[serde(default)]
    environments: BTreeMap<String, Environment>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topic {
    pub name: String,
    pub owner: String,
    pub description: String,
    /// The topic whose refused records these are.
    pub dead_letters_of: Option<String>,
    pub producers: Vec<String>,
    pub consumers: Vec<String>,
    pub partitions: i32,
    pub replication: i32,
    pub key: Key,
    pub value: Value,
    #[serde(default)]
    pub config: Config,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub field: String,
    pub format: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    pub formats: Vec<String>,
    pub subject: Option<String>,
    pub schema: Option<String>,
    pub compatibility: Option<Compatibility>,
    pub examples: Option<String>,
}

/// As the registry calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Compatibility {
    None,
    Backward,
    BackwardTransitive,
    Forward,
    ForwardTransitive,
    Full,
    FullTransitive,
}

impl Compatibility {
    /// Versions before the latest count too.
    pub fn is_transitive(self) -> bool {
        matches!(self, Self::BackwardTransitive | Self::ForwardTransitive | Self::FullTransitive)
    }

    /// The new schema has to read what older ones wrote.
    pub fn reads_old(self) -> bool {
        matches!(self, Self::Backward | Self::BackwardTransitive | Self::Full | Self::FullTransitive)
    }

    /// Older schemas have to read what the new one writes.
    pub fn is_read_by_old(self) -> bool {
        matches!(self, Self::Forward | Self::ForwardTransitive | Self::Full | Self::FullTransitive)
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Backward => "BACKWARD",
            Self::BackwardTransitive => "BACKWARD_TRANSITIVE",
            Self::Forward => "FORWARD",
            Self::ForwardTransitive => "FORWARD_TRANSITIVE",
            Self::Full => "FULL",
            Self::FullTransitive => "FULL_TRANSITIVE",
        }
    }
}

/// Settings by key. A key that stands there twice is refused: YAML's last one would silently win.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config(pub BTreeMap<String, Setting>);

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Config;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("settings, each once")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Config, A::Error> {
                let mut settings = BTreeMap::new();
                while let Some((key, setting)) = map.next_entry::<String, Setting>()? {
                    if settings.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("{key} stands there twice")));
                    }
                    settings.insert(key, setting);
                }
                Ok(Config(settings))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

/// A topic setting as the broker holds it: text, however YAML writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Scalar")]
pub struct Setting(pub String);

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl From<Scalar> for Setting {
    fn from(scalar: Scalar) -> Self {
        Self(match scalar {
            Scalar::Boolean(value) => value.to_string(),
            Scalar::Integer(value) => value.to_string(),
            Scalar::Float(value) => value.to_string(),
            Scalar::Text(value) => value,
        })
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Environment {
    replication: Option<i32>,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    topics: BTreeMap<String, Difference>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    partitions: Option<i32>,
    replication: Option<i32>,
    #[serde(default)]
    config: Config,
}

impl Contract {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("reading {}: run this in the repository, or say --file", path.display())
        })?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Errors: not YAML, an unknown or missing key, or topics that contradict themselves in some
    /// environment.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let contract: Self = serde_yaml::from_str(text)?;
        ensure!(contract.version == 1, "version {} is not known here", contract.version);
        let mut names = BTreeSet::new();
        for topic in &contract.topics {
            ensure!(names.insert(&topic.name), "topic {} stands there twice", topic.name);
        }
        for (environment, overrides) in &contract.environments {
            for name in overrides.topics.keys() {
                ensure!(names.contains(name), "environment {environment}: there is no topic {name}");
            }
            check(&contract.topics(Some(environment))?)
                .with_context(|| format!("environment {environment}"))?;
        }
        check(&contract.topics)?;
        Ok(contract)
    }

    /// The topics as one environment has them; without a name, as they are written.
    pub fn topics(&self, environment: Option<&str>) -> anyhow::Result<Vec<Topic>> {
        let Some(name) = environment else {
            return Ok(self.topics.clone());
        };
        let Some(overrides) = self.environments.get(name) else {
            let known: Vec<_> = self.environments.keys().map(String::as_str).collect();
            bail!("there is no environment {name}, only {}", known.join(", "));
        };
        Ok(self.topics.iter().map(|topic| overrides.apply(topic)).collect())
    }
}

impl Environment {
    fn apply(&self, topic: &Topic) -> Topic {
        let mut topic = topic.clone();
        let own = self.topics.get(&topic.name).cloned().unwrap_or_default();
        topic.partitions = own.partitions.unwrap_or(topic.partitions);
        topic.replication = own.replication.or(self.replication).unwrap_or(topic.replication);
        topic.config.0.extend(self.config.0.clone());
        topic.config.0.extend(own.config.0);
        topic
    }
}

impl Topic {
    fn number(&self, key: &str) -> anyhow::Result<Option<i64>> {
        let Some(Setting(text)) = self.config.0.get(key) else {
            return Ok(None);
        };
        let number = text.parse();
        let number = number.with_context(|| format!("topic {}: {key} is {text}", self.name))?;
        Ok(Some(number))
    }
}

fn check(topics: &[Topic]) -> anyhow::Result<()> {
    for topic in topics {
        let name = &topic.name;
        ensure!(
            is_legal_name(name),
            "`{name}` is no topic's name: 1 to 249 letters, digits, `.`, `_` or `-`"
        );
        for (what, text) in [("owner", &topic.owner), ("description", &topic.description)] {
            ensure!(!text.trim().is_empty(), "topic {name}: {what} is empty");
        }
        ensure!(topic.partitions > 0, "topic {name}: {} partitions", topic.partitions);
        ensure!(topic.replication > 0, "topic {name}: replication {}", topic.replication);
        if let Some(in_sync) = topic.number("min.insync.replicas")? {
            ensure!(
                in_sync <= i64::from(topic.replication),
                "topic {name}: min.insync.replicas {in_sync} cannot be met by {} replicas",
                topic.replication
            );
        }
        let Some(source) = &topic.dead_letters_of else {
            continue;
        };
        let source = topics.iter().find(|other| other.name == *source);
        let source = source.with_context(|| format!("topic {name}: dead_letters_of no topic here"))?;
        let (kept, source_kept) = (topic.number("retention.ms")?, source.number("retention.ms")?);
        let outlives = match (kept, source_kept) {
            (Some(kept), Some(source_kept)) => is_longer(kept, source_kept),
            (None, None) => false,
            _ => bail!("topic {name}: say retention.ms here and for {}", source.name),
        };
        ensure!(!outlives, "topic {name}: keeps records longer than {}", source.name);
    }
    Ok(())
}

pub fn is_legal_name(name: &str) -> bool {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_legal)
}

/// −1 is for ever.
fn is_longer(retention_ms: i64, other_ms: i64) -> bool {
    other_ms >= 0 && (retention_ms < 0 || retention_ms > other_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: &str = include_str!("../topics.yaml");

    fn error(text: &str) -> String {
        format!("{:#}", Contract::parse(text).unwrap_err())
    }

    #[test]
    fn the_committed_contract_says_what_the_worker_needs() {
        let contract = Contract::parse(COMMITTED).unwrap();
        let topics = contract.topics(None).unwrap();
        let source = &topics[0];
        assert_eq!(source.name, "feed.interactions.v1");
        assert_eq!((source.partitions, source.replication), (6, 3));
        assert_eq!(source.key.field, "userId");
        let setting = |topic: &Topic, key: &str| topic.config.0[key].0.clone();
        assert_eq!(setting(source, "retention.ms"), (7 * 86_400_000).to_string());
        assert_eq!(setting(source, "message.timestamp.type"), "LogAppendTime");
        assert_eq!(setting(source, "min.insync.replicas"), "2");
        let dlq = &topics[1];
        assert_eq!(dlq.name, "feed.interactions.v1.dlq");
        assert_eq!(dlq.dead_letters_of.as_deref(), Some("feed.interactions.v1"));
        assert_eq!(setting(dlq, "message.timestamp.type"), "CreateTime");
    }

    #[test]
    fn an_environment_overrides_what_it_names_and_nothing_else() {
        let contract = Contract::parse(COMMITTED).unwrap();
        assert_eq!(contract.topics(Some("production")).unwrap(), contract.topics(None).unwrap());
        for topic in contract.topics(Some("local")).unwrap() {
            assert_eq!((topic.partitions, topic.replication), (6, 1));
            assert_eq!(topic.config.0["min.insync.replicas"], Setting("1".to_owned()));
            assert!(topic.config.0.contains_key("message.timestamp.type"));
        }
        let unknown = contract.topics(Some("moon")).unwrap_err().to_string();
        assert!(unknown.contains("moon") && unknown.contains("local, production"), "{unknown}");
    }

    #[test]
    fn unknown_keys_are_refused_wherever_they_are() {
        for (from, to, path) in [
            ("version: 1", "version: 1\nversoin: 1", "`versoin`"),
            (
                "    partitions: 6",
                "    partitions: 6\n    partions: 6",
                "topics[0]: unknown field `partions`",
            ),
            (
                "      field: userId",
                "      field: userId\n      feild: userId",
                "topics[0].key: unknown field `feild`",
            ),
            (
                "      formats:",
                "      fromats: []\n      formats:",
                "topics[0].value: unknown field `fromats`",
            ),
            (
                "    replication: 1",
                "    replication: 1\n    replicas: 1",
                "environments.local: unknown field `replicas`",
            ),
        ] {
            let text = COMMITTED.replacen(from, to, 1);
            assert_ne!(text, COMMITTED);
            let error = error(&text);
            assert!(error.contains("unknown field") && error.contains(path), "{to}: {error}");
            assert!(error.contains("line"), "{to}: {error}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (from, to, part) in [
            ("version: 1", "version: 2", "version 2"),
            ("partitions: 6", "partitions: 0", "0 partitions"),
            ("min.insync.replicas: 2", "min.insync.replicas: 4", "cannot be met"),
            ("min.insync.replicas: 2", "min.insync.replicas: two", "is two"),
            ("retention.ms: 604800000", "retention.ms: 3600000", "longer than"),
            ("FULL_TRANSITIVE", "SIDEWAYS", "SIDEWAYS"),
            (
                "      cleanup.policy: delete",
                "      cleanup.policy: delete\n      cleanup.policy: compact",
                "twice",
            ),
            ("owner: feed-platform", "owner: \"\"", "owner is empty"),
            ("name: feed.interactions.v1\n", "name: feed interactions\n", "no topic's name"),
            ("name: feed.interactions.v1.dlq", "name: feed.interactions.v1", "twice"),
            ("dead_letters_of: feed.interactions.v1", "dead_letters_of: x", "no topic here"),
            ("    config:\n      min.insync.replicas: 1", "", "environment local"),
        ] {
            let text = COMMITTED.replacen(from, to, 1);
            assert_ne!(text, COMMITTED, "{from}");
            let error = error(&text);
            assert!(error.contains(part), "{to}: {error}");
        }
    }

    #[test]
    fn for_ever_is_longer_than_anything() {
        assert!(is_longer(-1, 1000) && is_longer(1001, 1000));
        assert!(!is_longer(1000, -1) && !is_longer(-1, -1) && !is_longer(1000, 1000));
    }
}
