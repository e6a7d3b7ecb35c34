//! What no single key can know. Every check names the keys, where their values came from, and what to do.

mod security;
mod servers;

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use super::error::{ConfigError, Problem};
use super::keys::Config;
use super::{Provenance, properties};
use crate::event::InteractionTypes;

/// Collects what is wrong, so that it can be put right in one go.
struct Checks<'a> {
    provenance: &'a Provenance,
    problems: Vec<Problem>,
}

impl Checks<'_> {
    fn refuse(&mut self, keys: &[&str], problem: impl Into<String>) {
        self.problems.push(Problem {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            sources: keys.iter().map(|key| self.provenance.source(key).to_owned()).collect(),
            problem: problem.into(),
        });
    }

    fn that(&mut self, holds: bool, keys: &[&str], problem: &str) {
        if !holds {
            self.refuse(keys, problem);
        }
    }

    /// `low` must be less than `high`.
    fn less(&mut self, (low_key, low): (&str, u64), (high_key, high): (&str, u64), why: &str) {
        if low >= high {
            let problem = format!("the first ({low}) must be less than the second ({high}): {why}");
            self.refuse(&[low_key, high_key], problem);
        }
    }

    fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.problems }) }
    }
}

/// An address that has no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    Kafka,
    Registry,
    Postgres,
}

impl Address {
    pub const ALL: [Address; 3] = [Address::Kafka, Address::Registry, Address::Postgres];
}

/// Of these addresses, none may be missing.
pub fn require(config: &Config, provenance: &Provenance, addresses: &[Address]) -> Result<(), ConfigError> {
    let mut checks = Checks { provenance, problems: Vec::new() };
    for address in addresses {
        let (is_there, key, problem) = match address {
            Address::Kafka => (
                !config.kafka.bootstrap_servers.is_empty(),
                "kafka.bootstrap_servers",
                "is missing: give it as host:port, by FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS for instance",
            ),
            Address::Registry => (
                !config.registry.url.is_empty(),
                "registry.url",
                "is missing: give it as http://host:port, by FEED_WORKER_REGISTRY__URL for instance",
            ),
            Address::Postgres => (
                !config.postgres.url.is_empty(),
                "postgres.url",
                "is missing: give it as postgres://user:password@host:port/database, by DATABASE_URL for instance",
            ),
        };
        checks.that(is_there, &[key], problem);
    }
    checks.finish()
}

/// Everything else.
pub fn check(config: &Config, provenance: &Provenance) -> Result<(), ConfigError> {
    let mut checks = Checks { provenance, problems: Vec::new() };
    above_zero(config, &mut checks);
    names(config, &mut checks);
    kafka(config, &mut checks);
    security::check(config, &mut checks);
    servers::check(config, &mut checks);
    addresses(config, &mut checks);
    deadlines(config, &mut checks);
    sizes(config, &mut checks);
    events(config, &mut checks);
    log_level(config, &mut checks);
    checks.finish()
}

fn above_zero(config: &Config, checks: &mut Checks<'_>) {
    let Config {
        kafka,
        registry,
        postgres,
        s3,
        batch,
        roll,
        export,
        rejects,
        day,
        shutdown,
        health,
        metrics,
        ..
    } = config;
    let values = [
        ("kafka.session_timeout_ms", kafka.session_timeout_ms),
        ("kafka.heartbeat_interval_ms", kafka.heartbeat_interval_ms),
        ("kafka.assign_deadline_ms", kafka.assign_deadline_ms),
        ("kafka.revoke_deadline_ms", kafka.revoke_deadline_ms),
        ("kafka.commit_interval_ms", kafka.commit_interval_ms),
        ("kafka.queued_kbytes_max", kafka.queued_kbytes_max),
        ("kafka.metadata_refresh_ms", kafka.metadata_refresh_ms),
        ("kafka.retention_ms", kafka.retention_ms.unwrap_or(1)),
        ("registry.timeout_ms", registry.timeout_ms),
        ("postgres.statement_timeout_ms", postgres.statement_timeout_ms),
        ("postgres.connect_timeout_ms", postgres.connect_timeout_ms),
        ("s3.connect_timeout_ms", s3.connect_timeout_ms),
        ("batch.rows_max", batch.rows_max as u64),
        ("batch.age_ms_max", batch.age_ms_max),
        ("batch.bytes_max", batch.bytes_max as u64),
        ("roll.rows_max", roll.rows_max),
        ("roll.bytes_max", roll.bytes_max),
        ("roll.age_ms_max", roll.age_ms_max),
        ("export.catch_up_rows", export.catch_up_rows),
        ("export.row_group_rows", export.row_group_rows as u64),
        ("rejects.run_max", rejects.run_max),
        ("rejects.window", rejects.window),
        ("day.close_delay_ms", day.close_delay_ms),
        ("day.retention_days", day.retention_days.into()),
        ("day.ahead_days", day.ahead_days.into()),
        ("shutdown.deadline_ms", shutdown.deadline_ms),
        ("health.stall_ms", health.stall_ms),
        ("metrics.lag_interval_ms", metrics.lag_interval_ms),
    ];
    for (key, value) in values {
        checks.that(value > 0, &[key], "must be above 0");
    }
}

fn names(config: &Config, checks: &mut Checks<'_>) {
    let topic = |name: &str| {
        (1..=249).contains(&name.len())
            && name != "."
            && name != ".."
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    let topic_rule = "is no topic name: 1 to 249 letters, digits, `.`, `_` and `-`";
    checks.that(topic(&config.kafka.topic), &["kafka.topic"], topic_rule);
    checks.that(topic(&config.kafka.dlq_topic), &["kafka.dlq_topic"], topic_rule);
    checks.that(
        config.kafka.topic != config.kafka.dlq_topic,
        &["kafka.topic", "kafka.dlq_topic"],
        "must differ, or every rejected record would be read again",
    );
    let canary = &config.kafka.canary_topic;
    checks.that(topic(canary), &["kafka.canary_topic"], topic_rule);
    checks.that(
        *canary != config.kafka.topic && *canary != config.kafka.dlq_topic,
        &["kafka.canary_topic", "kafka.topic", "kafka.dlq_topic"],
        "the first must be another, or records that only measure would be taken for events",
    );
    checks.that(!config.kafka.group_id.is_empty(), &["kafka.group_id"], "must not be empty");
    checks.that(!config.s3.bucket.is_empty(), &["s3.bucket"], "must not be empty");
    let prefix = &config.s3.prefix;
    checks.that(
        !prefix.is_empty() && !prefix.starts_with('/') && !prefix.ends_with('/'),
        &["s3.prefix"],
        "must be a name without a slash at either end: exports, or feed/exports",
    );
    let metric = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    checks.that(
        !config.statsd.prefix.is_empty() && config.statsd.prefix.bytes().all(metric),
        &["statsd.prefix"],
        "must be letters, digits, `_` and `.`",
    );
}

fn kafka(config: &Config, checks: &mut Checks<'_>) {
    let kafka = &config.kafka;
    for (name, _) in &kafka.properties {
        if let Some(problem) = properties::refusal(name) {
            checks.refuse(&[&format!("kafka.properties.{name}")], problem);
        }
    }
    let session = ("kafka.session_timeout_ms", kafka.session_timeout_ms);
    let max_poll = ("kafka.max_poll_interval_ms", kafka.max_poll_interval_ms);
    checks.less(
        ("kafka.revoke_deadline_ms", kafka.revoke_deadline_ms),
        session,
        "else the group gives the partitions away while they are still being finished here",
    );
    checks.less(
        ("kafka.assign_deadline_ms", kafka.assign_deadline_ms),
        max_poll,
        "else the worker is thrown out of the group while it waits for the ledger",
    );
    checks.less(
        ("kafka.assign_deadline_ms", kafka.assign_deadline_ms),
        ("kafka.silence_ms_max", kafka.silence_ms_max),
        "else taking partitions over looks like a stream that has stopped",
    );
    checks.that(
        kafka.heartbeat_interval_ms <= kafka.session_timeout_ms / 3,
        &["kafka.heartbeat_interval_ms", "kafka.session_timeout_ms"],
        "the first must be at most a third of the second: one lost heartbeat must not end a session",
    );
    checks.that(
        kafka.fetch_wait_ms_max < 1_000,
        &["kafka.fetch_wait_ms_max"],
        "must be below 1000: any record may wait for it, and the client takes a longer fetch for one that blocks",
    );
    checks.that(
        session.1 <= max_poll.1,
        &["kafka.session_timeout_ms", "kafka.max_poll_interval_ms"],
        "the first must not be more than the second: librdkafka refuses it",
    );
}

fn addresses(config: &Config, checks: &mut Checks<'_>) {
    let url = config.postgres.url.expose();
    let scheme = url.starts_with("postgres://") || url.starts_with("postgresql://");
    checks.that(
        url.is_empty() || (scheme && PgConnectOptions::from_str(url).is_ok()),
        &["postgres.url"],
        "is no Postgres URL: postgres://user:password@host:port/database, with %-escapes in the password",
    );
    let endpoint = config.s3.endpoint.as_deref().unwrap_or_default();
    let collector = config.traces.endpoint.as_deref().unwrap_or_default();
    let places = [
        ("traces.endpoint", collector, "OTEL_EXPORTER_OTLP_HEADERS"),
        ("registry.url", config.registry.url.as_str(), "registry.username and registry.password"),
        ("s3.endpoint", endpoint, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ];
    for (key, url, credentials) in places {
        let http = url.starts_with("http://") || url.starts_with("https://");
        checks.that(url.is_empty() || http, &[key], "must begin with http:// or https://");
        if url.contains('@') {
            checks.refuse(&[key], format!("must not hold a user or a password: use {credentials}"));
        }
    }
    let port = config.statsd.addr.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    checks.that(
        matches!(port, Some((host, Ok(1..))) if !host.is_empty()),
        &["statsd.addr"],
        "must be host:port",
    );
    checks.that(
        config.registry.username.is_some() || config.registry.password.is_none(),
        &["registry.password", "registry.username"],
        "a password needs a user: set both or neither",
    );
    checks.that(
        config.registry.token.is_none() || config.registry.username.is_none(),
        &["registry.token", "registry.username"],
        "are two ways to say who one is: set one of them",
    );
}

fn deadlines(config: &Config, checks: &mut Checks<'_>) {
    let Config { postgres, s3, shutdown, health, .. } = config;
    let deadline = ("postgres.deadline_ms", postgres.deadline_ms);
    checks.less(
        ("postgres.statement_timeout_ms", postgres.statement_timeout_ms),
        deadline,
        "Postgres must give up before the worker does, or the outcome has to be asked for each time",
    );
    checks.less(
        ("s3.connect_timeout_ms", s3.connect_timeout_ms),
        ("s3.timeout_ms", s3.timeout_ms),
        "connecting is a part of the request",
    );
    checks.less(
        ("shutdown.deadline_ms", shutdown.deadline_ms),
        ("shutdown.grace_ms", shutdown.grace_ms),
        "else the platform kills the worker in the middle of its shutdown",
    );
    checks.less(
        deadline,
        ("health.stall_ms", health.stall_ms),
        "else a worker that waits for Postgres is taken for a dead one",
    );
}

fn sizes(config: &Config, checks: &mut Checks<'_>) {
    let Config { kafka, postgres, batch, roll, export, .. } = config;
    checks.that((1..=16).contains(&postgres.lanes), &["postgres.lanes"], "must be from 1 to 16");

    // One batch is being filled while each lane may write another.
    let lanes = postgres.lanes.saturating_mul(postgres.urls().count().max(1));
    let batches = (batch.bytes_max as u64).saturating_mul(lanes as u64 + 1);
    let queue = kafka.queued_kbytes_max.saturating_mul(1024);
    let needed = queue.saturating_add(batches).saturating_add(roll.bytes_max);
    if export.memory_bytes_max < needed {
        let keys = [
            "export.memory_bytes_max",
            "roll.bytes_max",
            "kafka.queued_kbytes_max",
            "batch.bytes_max",
            "postgres.lanes",
        ];
        let problem = format!(
            "the first ({}) must hold one file, the fetch queue and a batch more than there are lanes ({needed} \
             bytes): raise it or lower one of the others",
            export.memory_bytes_max,
        );
        checks.refuse(&keys, problem);
    }
}

fn events(config: &Config, checks: &mut Checks<'_>) {
    let ratio = config.rejects.ratio_max;
    checks.that(ratio > 0.0 && ratio <= 1.0, &["rejects.ratio_max"], "must be above 0 and at most 1");
    let share = config.traces.ratio;
    checks.that(share > 0.0 && share <= 1.0, &["traces.ratio"], "must be above 0 and at most 1");
    for (key, value) in
        [("rejects.window", config.rejects.window), ("rejects.run_max", config.rejects.run_max)]
    {
        // The ledger counts them in four bytes.
        checks.that(value <= 1_000_000_000, &[key], "must be at most 1000000000");
    }
    if let Err(problem) = InteractionTypes::parse(&config.interactions.weights) {
        checks.refuse(&["interactions.weights"], format!("{problem}; write name:weight,name:weight"));
    }
}

fn log_level(config: &Config, checks: &mut Checks<'_>) {
    if let Err(problem) = crate::telemetry::logging::check_level(&config.log.level) {
        checks.refuse(&["log.level"], problem);
    }
}
