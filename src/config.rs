//! The configuration: defaults < YAML file < environment < flags.
//!
//! 1. A key that nobody knows is refused, wherever it comes from.
//! 2. What does not go together is refused before anything outside is touched, and both keys are named.
//! 3. A secret is never shown: not in a dump, not in an error message, not by `{:?}`.

mod check;
mod dump;
mod error;
mod keys;
mod layers;
mod properties;
mod secret;
mod section;
mod servers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::Kind;
use figment::value::{Dict, Value};

pub use check::Address;
pub use dump::Format;
pub use error::{ConfigError, Problem};
pub use keys::*;
pub use properties::Properties;
pub use secret::{REDACTED, Secret};
pub use section::{Key, Section};

use layers::Layer;

/// Where every value that is no default came from.
#[derive(Debug, Clone, Default)]
pub struct Provenance(BTreeMap<String, String>);

impl Provenance {
    /// `default`, `file …`, `environment variable …` or `flag --set …`.
    pub fn source(&self, key: &str) -> &str {
        self.0.get(key).map_or("default", String::as_str)
    }
}

impl Config {
    /// The configuration of this process, complete and checked.
    pub fn load(path: Option<&Path>, sets: &[String]) -> Result<(Self, Provenance), ConfigError> {
        let (config, provenance) = Self::load_partial(path, sets)?;
        config.require(&provenance)?;
        Ok((config, provenance))
    }

    /// As [`load`](Self::load), but addresses may be missing: for commands that need only some of them.
    pub fn load_partial(path: Option<&Path>, sets: &[String]) -> Result<(Self, Provenance), ConfigError> {
        Self::load_from(path, &variables()?, sets)
    }

    /// As [`load_partial`](Self::load_partial), from a given environment.
    pub fn load_from(
        path: Option<&Path>,
        variables: &[(String, String)],
        sets: &[String],
    ) -> Result<(Self, Provenance), ConfigError> {
        let named =
            || variables.iter().find(|(name, value)| name == layers::PATH_VARIABLE && !value.is_empty());
        let path = path.map(Path::to_owned).or_else(|| named().map(|(_, value)| PathBuf::from(value)));

        let mut figment = Figment::new();
        if let Some(path) = path {
            figment = figment.merge(layers::file(&path)?);
        }
        for layer in layers::environment(variables)?.into_iter().chain(layers::flags(sets)?) {
            figment = figment.merge(layer);
        }
        if let Some(derived) = derived_defaults(&figment) {
            figment = figment.join(derived);
        }

        let config: Self = figment.extract_lossy().map_err(unusable)?;
        let provenance = provenance(&figment);
        check::check(&config, &provenance)?;
        Ok((config, provenance))
    }

    /// Refuses a configuration that lacks an address.
    pub fn require(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        check::require(self, provenance, &Address::ALL)
    }

    /// Refuses a configuration that lacks one of these.
    pub fn require_only(&self, provenance: &Provenance, addresses: &[Address]) -> Result<(), ConfigError> {
        check::require(self, provenance, addresses)
    }
}

/// The environment, sorted, so that the outcome never depends on its order.
fn variables() -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if name.starts_with("FEED_WORKER_") => {
                return Err(ConfigError::one(&name, "environment", "is not UTF-8: write it anew"));
            }
            Err(_) => {}
        }
    }
    variables.sort();
    Ok(variables)
}

/// Two deadlines follow a session timeout that was set, unless they were set themselves.
fn derived_defaults(figment: &Figment) -> Option<Layer> {
    let session_ms: u64 = figment.extract_inner_lossy("kafka.session_timeout_ms").ok()?;
    let kafka = Dict::from([
        ("heartbeat_interval_ms".to_owned(), Value::from((session_ms / 15).max(1))),
        ("revoke_deadline_ms".to_owned(), Value::from((session_ms / 3).min(5_000))),
    ]);
    Some(Layer {
        source: "default, from kafka.session_timeout_ms".to_owned(),
        values: Dict::from([("kafka".to_owned(), Value::from(kafka))]),
    })
}

fn provenance(figment: &Figment) -> Provenance {
    let mut sources = BTreeMap::new();
    if let Ok(values) = figment.extract::<Value>() {
        collect_sources(figment, &values, String::new(), &mut sources);
    }
    Provenance(sources)
}

fn collect_sources(figment: &Figment, value: &Value, key: String, sources: &mut BTreeMap<String, String>) {
    if let Value::Dict(_, values) = value {
        for (name, value) in values {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            collect_sources(figment, value, key, sources);
        }
    } else if let Some(metadata) = figment.get_metadata(value.tag()) {
        sources.insert(key, metadata.name.to_string());
    }
}

/// Says in our words what figment found. Its own message would repeat the value, secret or not.
fn unusable(error: figment::Error) -> ConfigError {
    let source = error.metadata.as_ref().map_or("default", |metadata| &metadata.name).to_owned();
    let key = error.path.join(".");
    let problem = match &error.kind {
        Kind::UnknownField(_, expected) if error.path.len() < 2 => {
            format!("is no section; there are {}", expected.join(", "))
        }
        Kind::UnknownField(_, expected) => format!("is no key; this section has {}", expected.join(", ")),
        Kind::InvalidType(found, expected) if !dump::is_secret(&key) => {
            format!("found {found}, but it takes {}", in_words(expected))
        }
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("takes {}", in_words(expected))
        }
        Kind::UnknownVariant(_, expected) => format!("takes one of {}", expected.join(", ")),
        Kind::Message(message) if !dump::is_secret(&key) => message.clone(),
        _ => "has a value that this key does not take".to_owned(),
    };
    ConfigError::one(&key, &source, problem)
}

/// Rust's names for types say little to whoever writes YAML.
fn in_words(expected: &str) -> &str {
    match expected {
        "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text (in YAML, quote what looks like a number)",
        other if other.starts_with("struct ") => "keys of its own",
        other => other,
    }
}
