//! The effective configuration, for people and for programs. Secrets stay out of both.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::keys::{Config, SECTIONS};
use super::{Provenance, Secret, properties};

/// How the configuration is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A file that `--config` takes, apart from the secrets, with each value's source beside it.
    #[default]
    Yaml,
    /// `{"values": {section: {key: value}}, "sources": {"section.key": source}}`.
    Json,
}

/// Keys whose values are secrets. By environment each may be given by a file instead: `…_FILE`.
pub(super) const SECRETS: [&str; 6] = [
    "postgres.url",
    "postgres.more_urls",
    "registry.password",
    "registry.token",
    "kafka.password",
    "kafka.private_key_password",
];

/// Whether the value of a key must never be shown.
pub(super) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key) || key.strip_prefix("kafka.properties.").is_some_and(properties::is_secret)
}

impl Config {
    /// The whole configuration with where each value came from, secrets redacted.
    pub fn dump(&self, provenance: &Provenance, format: Format) -> String {
        match format {
            Format::Yaml => self.yaml(provenance),
            Format::Json => {
                let values = self.values();
                let sources: Map<String, Value> = leaves(&values)
                    .map(|(_, key, _)| (key.clone(), Value::from(provenance.source(&key))))
                    .collect();
                format!("{:#}\n", json!({ "values": values, "sources": sources }))
            }
        }
    }

    /// Sections of keys of values, none of them secret.
    pub fn values(&self) -> Value {
        let mut values = serde_json::to_value(self).unwrap_or_default();
        if !self.postgres.url.is_empty() {
            values["postgres"]["url"] = Value::from(self.postgres.url.postgres_location());
        }
        if !self.postgres.more_urls.is_empty() {
            let urls = self.postgres.urls().skip(1);
            let shown: Vec<String> = urls.map(|url| Secret::new(url).postgres_location()).collect();
            values["postgres"]["more_urls"] = Value::from(shown.join(" "));
        }
        values
    }

    fn yaml(&self, provenance: &Provenance) -> String {
        let values = self.values();
        let mut lines: Vec<(String, String)> = Vec::new();
        let mut section_before = "";
        let mut in_properties = false;
        for (section, key, value) in leaves(&values) {
            if section != section_before {
                lines.push((format!("{section}:"), String::new()));
                section_before = section;
            }
            let name = key.strip_prefix(section).unwrap_or(&key).trim_start_matches('.').to_owned();
            let property = name.strip_prefix("properties.");
            if property.is_some() && !in_properties {
                lines.push(("  properties:".to_owned(), String::new()));
            }
            in_properties = property.is_some();
            let line = match property {
                // JSON's scalars are YAML's.
                Some(property) => format!("    {}: {value}", Value::from(property)),
                None => format!("  {name}: {value}"),
            };
            lines.push((line, provenance.source(&key).to_owned()));
        }
        in_columns(&lines)
    }
}

/// Every value with its section and its full key, in order of declaration.
fn leaves(values: &Value) -> impl Iterator<Item = (&'static str, String, &Value)> {
    SECTIONS
        .iter()
        .flat_map(move |section| section.keys.iter().map(move |key| (section.name, key.path)))
        .flat_map(move |(section, path)| {
            let name = path.strip_prefix(section).unwrap_or(path).trim_start_matches('.');
            match &values[section][name] {
                Value::Object(map) if !map.is_empty() => {
                    map.iter().map(|(name, value)| (section, format!("{path}.{name}"), value)).collect()
                }
                value => vec![(section, path.to_owned(), value)],
            }
        })
}

fn in_columns(lines: &[(String, String)]) -> String {
    const WIDTH_MAX: usize = 60;
    let width = lines.iter().map(|(line, _)| line.chars().count()).filter(|width| *width <= WIDTH_MAX).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for (line, source) in lines {
        // Writing to a String cannot fail.
        let _ = if source.is_empty() {
            writeln!(text, "{line}")
        } else {
            writeln!(text, "{line:width$}  # {source}")
        };
    }
    text
}
