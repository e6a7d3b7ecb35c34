//! Whether a new schema goes with what is registered under its subject.
//!
//! What this module guarantees: a schema passes only if the registry and the comparison of our own both say so, for
//! every version that the subject's mode makes count, and if the worker can read what it writes.

pub mod client;
pub mod compare;

use std::fmt::Write as _;

use anyhow::Context;
use apache_avro::Schema;

use crate::event::{Decoder, InteractionTypes};
use crate::topics::Compatibility;
use client::{Client, Version};

/// What was found out about a schema.
#[derive(Debug)]
pub struct Findings {
    pub subject: String,
    pub mode: Compatibility,
    /// Not the registry's default.
    pub is_own_mode: bool,
    /// The mode that the contract wants, if it is another one.
    pub wanted_mode: Option<Compatibility>,
    pub versions: usize,
    /// The version that the schema is already.
    pub known: Option<Version>,
    /// Sentences; none: it goes.
    pub problems: Vec<String>,
}

/// What is checked.
pub struct Candidate<'c> {
    pub subject: &'c str,
    pub schema: &'c str,
    /// As the contract has it.
    pub wanted_mode: Option<Compatibility>,
    /// The worker reads what is written with it.
    pub is_event: bool,
}

/// Errors: a registry that does not answer, or a registered schema that cannot be read.
pub async fn check(client: &Client, candidate: &Candidate<'_>) -> anyhow::Result<Findings> {
    let Candidate { subject, schema, wanted_mode, is_event } = *candidate;
    let (mode, is_own_mode) = client.mode(subject).await?;
    let versions = client.versions(subject).await?;
    let mut findings = Findings {
        subject: subject.to_owned(),
        mode,
        is_own_mode,
        wanted_mode: wanted_mode.filter(|wanted| *wanted != mode),
        versions: versions.len(),
        known: None,
        problems: Vec::new(),
    };
    let parsed = match Schema::parse_str(schema) {
        Ok(parsed) => parsed,
        Err(error) => {
            findings.problems.push(format!("it is no Avro schema: {error}"));
            return Ok(findings);
        }
    };
    if !versions.is_empty() {
        findings.known = client.look_up(subject, schema).await?;
    }
    let modes = std::iter::once(mode).chain(findings.wanted_mode);
    for mode in modes {
        for version in counting(mode, &versions) {
            let registered = Schema::parse_str(&version.schema)
                .with_context(|| format!("version {} in the registry is no Avro schema", version.version))?;
            compare(mode, version.version, &registered, &parsed, &mut findings.problems);
        }
    }
    for version in counting(mode, &versions) {
        let opinion = client.opinion(subject, version.version, schema).await?;
        if !opinion.is_compatible {
            let mut told = format!("version {}: the registry says no", version.version);
            for message in opinion.messages {
                let _ = write!(told, "\n    {message}");
            }
            findings.problems.push(told);
        }
    }
    if is_event && let Some(refused) = refused_by_worker(schema) {
        findings.problems.push(format!("feed-worker would reject every event written with it: {refused}"));
    }
    Ok(findings)
}

/// The versions that a mode compares with.
fn counting(mode: Compatibility, versions: &[Version]) -> impl Iterator<Item = &Version> {
    let first = match mode {
        Compatibility::None => versions.len(),
        mode if mode.is_transitive() => 0,
        _ => versions.len().saturating_sub(1),
    };
    versions.iter().skip(first)
}

fn compare(mode: Compatibility, version: u32, registered: &Schema, new: &Schema, problems: &mut Vec<String>) {
    let mut tell = |found: Vec<String>, direction: &str| {
        for sentence in found {
            let told = format!("version {version}: {sentence} ({direction})");
            if !problems.contains(&told) {
                problems.push(told);
            }
        }
    };
    if mode.reads_old() {
        tell(compare::unreadable(registered, new), "the new schema reads what this version wrote");
    }
    if mode.is_read_by_old() {
        tell(compare::unreadable(new, registered), "this version reads what the new schema writes");
    }
}

/// What the worker says to a writer schema, if it does not take it.
fn refused_by_worker(schema: &str) -> Option<String> {
    let types = InteractionTypes::parse(InteractionTypes::default_text()).ok()?;
    Decoder::new(types).add_schema(1, schema).err().map(|refused| refused.to_string())
}

impl Findings {
    pub fn is_compatible(&self) -> bool {
        self.problems.is_empty()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let origin = if self.is_own_mode { "of the subject" } else { "the registry's default" };
        // Writing to a String cannot fail.
        let _ =
            writeln!(text, "{}: {} versions, {} ({origin})", self.subject, self.versions, self.mode.as_str());
        if let Some(wanted) = self.wanted_mode {
            let _ = writeln!(text, "  topics.yaml wants {}; both are checked", wanted.as_str());
        }
        if let Some(known) = &self.known {
            let _ = writeln!(text, "  it is version {}, schema {}", known.version, known.id);
        }
        for problem in &self.problems {
            let _ = writeln!(text, "  {problem}");
        }
        let _ = writeln!(text, "  {}", if self.is_compatible() { "compatible" } else { "not compatible" });
        text
    }
}
