//! How every client of this program says who it is, and checks who the broker is.
//!
//! The configuration's own keys become librdkafka's properties here, and nowhere else. What goes wrong is
//! told in terms of those keys. A client's configuration holds passwords: it is never printed.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use crate::config::{Config, KafkaAuth, Secret};

/// Sets what `kafka.auth`, `kafka.tls` and the keys beside them say. Without them nothing is set, and
/// `kafka.properties` are all that counts.
pub fn apply(config: &Config, client: &mut ClientConfig) {
    let kafka = &config.kafka;
    let protocol = match (kafka.auth, kafka.tls) {
        (KafkaAuth::None, false) => return,
        (KafkaAuth::None, true) => "ssl",
        (_, true) => "sasl_ssl",
        (_, false) => "sasl_plaintext",
    };
    client.set("security.protocol", protocol);
    if kafka.tls {
        // The name in the certificate is checked, whatever the properties say.
        client.set("ssl.endpoint.identification.algorithm", "https");
        client.set("enable.ssl.certificate.verification", "true");
        let files = [
            ("ssl.ca.location", &kafka.ca_file),
            ("ssl.certificate.location", &kafka.certificate_file),
            ("ssl.key.location", &kafka.private_key_file),
        ];
        for (property, file) in files {
            if let Some(file) = file {
                client.set(property, file);
            }
        }
        set_secret(client, "ssl.key.password", kafka.private_key_password.as_ref());
    }
    match kafka.auth {
        KafkaAuth::None => {}
        KafkaAuth::Scram => {
            client.set("sasl.mechanism", "SCRAM-SHA-512");
            client.set("sasl.username", kafka.username.as_deref().unwrap_or_default());
            set_secret(client, "sasl.password", kafka.password.as_ref());
        }
        KafkaAuth::MskIam | KafkaAuth::TokenFile => {
            client.set("sasl.mechanism", "OAUTHBEARER");
        }
    }
}

fn set_secret(client: &mut ClientConfig, property: &str, secret: Option<&Secret>) {
    if let Some(secret) = secret {
        client.set(property, secret.expose());
    }
}

/// Whether clients of this configuration ask for tokens.
pub fn wants_tokens(client: &ClientConfig) -> bool {
    client.get("sasl.mechanism") == Some("OAUTHBEARER")
}

/// Says that a client met an error, and what to do about it if it is about security.
pub fn tell(error: &KafkaError, reason: &str) {
    if !tell_refusal(error, reason) {
        tracing::warn!(%error, reason, "kafka is not all there");
    }
}

/// Says of an error that is about security what to do: waiting will not put it right. False: it is about something else.
pub fn tell_refusal(error: &KafkaError, reason: &str) -> bool {
    let Some(advice) = advice(reason) else { return false };
    tracing::warn!(%error, reason, "a connection to kafka was refused: {advice}");
    true
}

/// What to do about an error of a client, if it is about security.
fn advice(reason: &str) -> Option<&'static str> {
    // In this order: the first text that is in the reason says most.
    const KNOWN: [(&str, &str); 8] = [
        (
            // The client says the same of a certificate that is for another name.
            "certificate verify failed",
            "the broker's certificate is of a CA that is not known here (name its file in kafka.ca_file), or it is for \
             another name (write that name in kafka.bootstrap_servers, and let the broker advertise it)",
        ),
        (
            "certificate required",
            "the broker wants a certificate of this client: set kafka.certificate_file and kafka.private_key_file",
        ),
        (
            "bad certificate",
            "the broker does not take this client's certificate: set kafka.certificate_file and \
             kafka.private_key_file to one of a CA that the broker trusts",
        ),
        (
            "unknown ca",
            "the broker does not know the CA of this client's certificate: set kafka.certificate_file to one of a CA \
             that the broker trusts",
        ),
        (
            "unsupported SASL mechanism",
            "the broker's listener does not offer this mechanism: check kafka.auth and the port",
        ),
        (
            "authentication error",
            "the broker does not take these credentials: check kafka.username and kafka.password (scram), the role's \
             policy and kafka.region (msk_iam) or the token (token_file)",
        ),
        ("no token available", "there is no token yet: the log says why"),
        (
            "SSL handshake failed",
            "TLS could not be agreed on: check kafka.tls, and that the port is one with TLS",
        ),
    ];
    KNOWN.iter().find(|(part, _)| reason.contains(part)).map(|(_, advice)| *advice)
}

/// What to do about a client that cannot even be made, if it is for a file of these keys.
pub fn advice_on_creation(text: &str) -> Option<&'static str> {
    const FILES: [(&str, &str); 3] = [
        (
            "ssl.key.location failed",
            "the private key cannot be used: check kafka.private_key_file and kafka.private_key_password",
        ),
        ("ssl.certificate.location failed", "the certificate cannot be used: check kafka.certificate_file"),
        ("ssl.ca.location failed", "the CAs cannot be used: check kafka.ca_file"),
    ];
    FILES.iter().find(|(part, _)| text.contains(part)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(set: impl FnOnce(&mut Config)) -> ClientConfig {
        let mut config = Config::default();
        set(&mut config);
        let mut client = ClientConfig::new();
        apply(&config, &mut client);
        client
    }

    #[test]
    fn without_keys_of_its_own_nothing_is_set() {
        assert!(client(|_| {}).config_map().is_empty());
    }

    #[test]
    fn every_way_to_say_who_one_is() {
        let scram = client(|config| {
            config.kafka.auth = KafkaAuth::Scram;
            config.kafka.tls = true;
            config.kafka.ca_file = Some("/ca.pem".to_owned());
            config.kafka.username = Some("worker".to_owned());
            config.kafka.password = Some(Secret::new("hunter2"));
        });
        for (property, value) in [
            ("security.protocol", "sasl_ssl"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "worker"),
            ("sasl.password", "hunter2"),
            ("ssl.ca.location", "/ca.pem"),
            ("ssl.endpoint.identification.algorithm", "https"),
        ] {
            assert_eq!(scram.get(property), Some(value), "{property}");
        }
        assert!(!wants_tokens(&scram));
        let mutual = client(|config| {
            config.kafka.tls = true;
            config.kafka.certificate_file = Some("/me.pem".to_owned());
            config.kafka.private_key_file = Some("/me.key".to_owned());
            config.kafka.private_key_password = Some(Secret::new("hunter2"));
        });
        assert_eq!(mutual.get("security.protocol"), Some("ssl"));
        assert_eq!(mutual.get("ssl.certificate.location"), Some("/me.pem"));
        assert_eq!(mutual.get("ssl.key.location"), Some("/me.key"));
        assert_eq!(mutual.get("ssl.key.password"), Some("hunter2"));
        for auth in [KafkaAuth::MskIam, KafkaAuth::TokenFile] {
            let tokens = client(|config| {
                config.kafka.auth = auth;
                config.kafka.tls = true;
            });
            assert!(wants_tokens(&tokens));
            assert_eq!(tokens.get("security.protocol"), Some("sasl_ssl"));
        }
    }

    #[test]
    fn every_advice_names_a_key_or_the_log() {
        let refused = "sasl_ssl://b:9093/1: SASL authentication error: Authentication failed";
        assert!(advice(refused).unwrap().contains("kafka.password"));
        let unknown =
            "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: hostname mismatch";
        assert!(advice(unknown).unwrap().contains("kafka.bootstrap_servers"));
        assert_eq!(advice("Connection refused"), None);
    }
}
