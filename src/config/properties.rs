//! librdkafka properties that go through untouched.

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::secret::REDACTED;

/// Properties that decide whether the worker keeps its promises. It sets them itself.
const OWNED: &[&str] = &[
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.protocol",
    "partition.assignment.strategy",
];

/// Properties that have a key of their own in this configuration.
const NAMED: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("client.id", "kafka.client_id"),
    ("fetch.max.bytes", "kafka.queued_kbytes_max"),
    ("fetch.min.bytes", "kafka.fetch_wait_ms_max"),
    ("fetch.wait.max.ms", "kafka.fetch_wait_ms_max"),
    ("group.id", "kafka.group_id"),
    ("heartbeat.interval.ms", "kafka.heartbeat_interval_ms"),
    ("max.poll.interval.ms", "kafka.max_poll_interval_ms"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("queued.max.messages.kbytes", "kafka.queued_kbytes_max"),
    ("queued.min.messages", "kafka.queued_kbytes_max"),
    ("session.timeout.ms", "kafka.session_timeout_ms"),
    ("topic.metadata.refresh.interval.ms", "kafka.metadata_refresh_ms"),
];

/// A property whose name has one of these in it is a secret.
const SECRET: &[&str] =
    &["password", "secret", "token", "credential", "jaas", "assertion", "oauthbearer.config", ".pem"];

/// Property names and values, in order of name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    pub fn iter(&self) -> btree_map::Iter<'_, String, String> {
        self.0.iter()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn shown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| {
            let value = if is_secret(name) { REDACTED } else { value };
            (name.as_str(), value)
        })
    }
}

/// Whether a property's value must not be shown.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|part| name.contains(part))
}

/// Why a property may not be set, if it may not.
pub fn refusal(name: &str) -> Option<String> {
    if OWNED.contains(&name) {
        return Some("the worker's promises depend on it, so it sets it itself: remove it".to_owned());
    }
    let (_, key) = NAMED.iter().find(|(property, _)| *property == name)?;
    Some(format!("set `{key}` in its place"))
}

impl<'a> IntoIterator for &'a Properties {
    type Item = (&'a String, &'a String);
    type IntoIter = btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.shown()).finish()
    }
}

impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
        Ok(Self(values.into_iter().map(|(name, value)| (name, value.0)).collect()))
    }
}

/// YAML has `true` and `10`, librdkafka takes text.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, true or false")
            }
            fn visit_str<E>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar(value.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar(value.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
