//! Where values come from. Every layer is a figment provider whose metadata is the name that people see.

use std::path::Path;

use figment::value::{Dict, Map, Value};
use figment::{Error, Metadata, Profile, Provider};

use super::dump::SECRETS;
use super::error::ConfigError;
use super::keys::SECTIONS;

/// Names the YAML file; the one `FEED_WORKER_` variable that is no key.
pub const PATH_VARIABLE: &str = "FEED_WORKER_CONFIG";

const PREFIX: &str = "FEED_WORKER_";

/// Variables that other programs use too, and the keys that they are another name for.
const ALIASES: &[(&str, [&str; 2])] =
    &[("DATABASE_URL", ["postgres", "url"]), ("INTERACTION_WEIGHTS", ["interactions", "weights"])];

/// Values with the name of the place that they came from.
pub struct Layer {
    pub source: String,
    pub values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

impl Layer {
    /// A single value. It stays text until a key asks for a number: a password of digits is no number.
    fn of_one(source: String, path: &[String], text: &str) -> Self {
        let mut value = Value::from(text);
        for name in path.iter().skip(1).rev() {
            value = Value::from(Dict::from([(name.clone(), value)]));
        }
        let values = path.first().map(|name| Dict::from([(name.clone(), value)]));
        Self { source, values: values.unwrap_or_default() }
    }
}

/// Reads a YAML file. A key without a value is as good as absent; a key that stands there twice is refused.
pub fn file(path: &Path) -> Result<Layer, ConfigError> {
    let source = format!("file {}", path.display());
    let wrong = |what: String| ConfigError::one("--config", &source, what);

    let text = std::fs::read_to_string(path)
        .map_err(|error| wrong(format!("cannot be read: {error}; name a file that can")))?;
    let yaml: serde_yaml::Value =
        serde_yaml::from_str(&text).map_err(|error| wrong(format!("is not valid YAML: {error}")))?;
    let value = Value::serialize(yaml).map_err(|error| wrong(format!("holds what no key takes: {error}")))?;
    match value {
        Value::Dict(_, values) => Ok(Layer { source, values: without_empty(values) }),
        Value::Empty(..) => Ok(Layer { source, values: Dict::new() }),
        _ => Err(wrong("must be a map of sections: `kafka:`, `postgres:`, …".to_owned())),
    }
}

fn without_empty(values: Dict) -> Dict {
    values
        .into_iter()
        .filter_map(|(name, value)| match value {
            Value::Empty(..) => None,
            Value::Dict(tag, inner) => Some((name, Value::Dict(tag, without_empty(inner)))),
            value => Some((name, value)),
        })
        .collect()
}

/// One layer per variable, aliases first, so that the longer name goes before the alias.
pub fn environment(variables: &[(String, String)]) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = Vec::new();
    for (alias, path) in ALIASES {
        for (name, value) in variables {
            if name == alias && !value.is_empty() {
                layers.push(Layer::of_one(variable(name), &path.map(str::to_owned), value));
            }
        }
    }
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        // An empty variable is what a template leaves of a value that was not given.
        if name == PATH_VARIABLE || value.is_empty() || is_service_link(rest) {
            continue;
        }
        let path = variable_path(rest).map_err(|hint| ConfigError::one(name, "environment", hint))?;
        match secret_of_file(&path) {
            Some(path) => {
                let source = format!("file {value}, named by environment variable {name}");
                let secret = read_secret(value).map_err(|why| ConfigError::one(name, "environment", why))?;
                layers.push(Layer::of_one(source, &path, &secret));
            }
            None => layers.push(Layer::of_one(variable(name), &path, value)),
        }
    }
    Ok(layers)
}

fn variable(name: &str) -> String {
    format!("environment variable {name}")
}

/// `KAFKA__SESSION_TIMEOUT_MS` → `kafka`, `session_timeout_ms`.
fn variable_path(rest: &str) -> Result<Vec<String>, String> {
    let rest = rest.to_ascii_lowercase();
    let Some((section, key)) = rest.split_once("__") else {
        let hint = SECTIONS.iter().find_map(|section| {
            let key = rest.strip_prefix(section.name)?.strip_prefix('_')?;
            Some(format!("{}__{}", section.name, key).to_ascii_uppercase())
        });
        return Err(match hint {
            Some(name) => format!("is no key; two underscores part section and key: {PREFIX}{name}"),
            None => format!("is no key; they are {PREFIX}<SECTION>__<KEY>, see docs/configuration.md"),
        });
    };
    // librdkafka's names have dots, which few shells allow in a variable.
    if let (PROPERTIES_SECTION, Some(property)) = (section, key.strip_prefix("properties__")) {
        let property = property.replace('_', ".");
        return Ok(vec![section.to_owned(), PROPERTIES.to_owned(), property]);
    }
    Ok(vec![section.to_owned(), key.to_owned()])
}

/// `registry.password_file` → `registry.password`, and so on for every secret.
fn secret_of_file(path: &[String]) -> Option<Vec<String>> {
    let joined = path.join(".");
    let key = joined.strip_suffix("_file").filter(|key| SECRETS.contains(key))?;
    Some(key.split('.').map(str::to_owned).collect())
}

/// A secret as it is mounted: without the line break that editors put at the end.
fn read_secret(path: &str) -> Result<String, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("names a file that cannot be read: {error}; name one that can"))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err("names a file that is empty: write the secret into it".to_owned()),
        secret => Ok(secret.to_owned()),
    }
}

const PROPERTIES_SECTION: &str = "kafka";
const PROPERTIES: &str = "properties";

/// Kubernetes gives every pod `FEED_WORKER_SERVICE_HOST`, `FEED_WORKER_PORT_8080_TCP_ADDR` and so on as soon
/// as there is a Service called feed-worker. They are none of ours, and no typing error either.
fn is_service_link(rest: &str) -> bool {
    let numbered = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    rest == "PORT"
        || rest == "SERVICE_HOST"
        || rest == "SERVICE_PORT"
        || rest.starts_with("SERVICE_PORT_")
        || rest.strip_prefix("PORT_").is_some_and(numbered)
}

/// One layer per `--set key.path=value`, in the order given.
pub fn flags(sets: &[String]) -> Result<Vec<Layer>, ConfigError> {
    sets.iter().map(|set| flag(set)).collect()
}

fn flag(set: &str) -> Result<Layer, ConfigError> {
    let Some((key, value)) = set.split_once('=') else {
        // What was meant as a value may be a secret: it is not repeated.
        let problem = "needs a key and a value: --set kafka.topic=feed.interactions.v1";
        return Err(ConfigError::one("--set", "flag", problem));
    };
    let key = key.trim();
    let path: Vec<String> = match key.split_once('.') {
        Some((PROPERTIES_SECTION, rest)) if rest.starts_with("properties.") => {
            let property = rest.trim_start_matches("properties.");
            vec![PROPERTIES_SECTION.to_owned(), PROPERTIES.to_owned(), property.to_owned()]
        }
        _ => key.split('.').map(str::to_owned).collect(),
    };
    if path.iter().any(String::is_empty) {
        return Err(ConfigError::one(key, "flag --set", "is no key; they are <section>.<key>"));
    }
    Ok(Layer::of_one(format!("flag --set {key}"), &path, value))
}
