//! Whether what is said about Kafka's security goes together.

use super::Checks;
use crate::config::{Config, KafkaAuth};

/// Properties that the keys for security stand for.
const REPLACED: [&str; 4] = ["security.protocol", "enable.ssl.certificate.verification", "sasl.", "ssl."];

pub fn check(config: &Config, checks: &mut Checks<'_>) {
    let kafka = &config.kafka;
    let has_auth = kafka.auth != KafkaAuth::None;
    checks.that(
        !has_auth || kafka.tls,
        &["kafka.auth", "kafka.tls"],
        "without TLS anybody on the way can read or replace what proves who this is: set kafka.tls=true and use the \
         brokers' TLS port",
    );
    for (key, is_set) in [
        ("kafka.ca_file", kafka.ca_file.is_some()),
        ("kafka.certificate_file", kafka.certificate_file.is_some()),
    ] {
        checks.that(
            !is_set || kafka.tls,
            &[key, "kafka.tls"],
            "is of no use without TLS: set kafka.tls=true",
        );
    }
    checks.that(
        kafka.certificate_file.is_some() == kafka.private_key_file.is_some(),
        &["kafka.certificate_file", "kafka.private_key_file"],
        "belong together: set both or neither",
    );
    checks.that(
        kafka.private_key_password.is_none() || kafka.private_key_file.is_some(),
        &["kafka.private_key_password", "kafka.private_key_file"],
        "a password needs a key: set kafka.private_key_file",
    );
    scram(config, checks);
    tokens(config, checks);
    if has_auth || kafka.tls {
        for (name, _) in &kafka.properties {
            if REPLACED.iter().any(|part| name.starts_with(part)) {
                let keys = [&*format!("kafka.properties.{name}"), "kafka.auth", "kafka.tls"];
                checks.refuse(&keys, "the first is set by the others: remove it, or leave both others out");
            }
        }
    }
}

fn scram(config: &Config, checks: &mut Checks<'_>) {
    let kafka = &config.kafka;
    let is_scram = kafka.auth == KafkaAuth::Scram;
    let given = [
        ("kafka.username", kafka.username.as_deref().is_some_and(|user| !user.is_empty())),
        ("kafka.password", kafka.password.as_ref().is_some_and(|password| !password.is_empty())),
    ];
    for (key, is_given) in given {
        checks.that(
            !is_scram || is_given,
            &[key, "kafka.auth"],
            "scram needs a user and a password: set kafka.username, and FEED_WORKER_KAFKA__PASSWORD or \
             FEED_WORKER_KAFKA__PASSWORD_FILE",
        );
        checks.that(is_scram || !is_given, &[key, "kafka.auth"], "is for scram: set kafka.auth=scram");
    }
}

fn tokens(config: &Config, checks: &mut Checks<'_>) {
    let kafka = &config.kafka;
    let is_iam = kafka.auth == KafkaAuth::MskIam;
    let region = kafka.region.as_deref().or(config.s3.region.as_deref()).unwrap_or_default();
    checks.that(
        !is_iam || !region.is_empty(),
        &["kafka.region", "kafka.auth"],
        "msk_iam signs for a region: set kafka.region (or s3.region) to the one of the brokers",
    );
    let is_name =
        region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    checks.that(!is_iam || is_name, &["kafka.region"], "is no name of a region: eu-central-1, for instance");
    checks.that(is_iam || kafka.region.is_none(), &["kafka.region", "kafka.auth"], "is for msk_iam");
    checks.that(
        (kafka.auth == KafkaAuth::TokenFile) == kafka.token_file.is_some(),
        &["kafka.token_file", "kafka.auth"],
        "belong together: kafka.auth=token_file and the file's name",
    );
}
