//! The CAs by which the clients of registry and object store know a server: the system's bundle, unless `SSL_CERT_FILE` or
//! `SSL_CERT_DIR` name others. Whoever is refused for want of one is told where to put it. (Brokers have `kafka.ca_file`
//! besides, Postgres has `sslrootcert`.)

use std::fmt::Write;

const NONE_AT_ALL: &str = "No CA certificates";

/// What to do about a server that a client does not trust, by what the client says of it.
pub fn advice(text: &str) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 2] = [
        (
            "UnknownIssuer",
            "its certificate is of a CA that is not known here: add the CA to the bundle that SSL_CERT_FILE names, or to a \
             folder that SSL_CERT_DIR names",
        ),
        (
            NONE_AT_ALL,
            "without any no server can be known: let SSL_CERT_FILE name a bundle of CAs (Debian has one in ca-certificates)",
        ),
    ];
    KNOWN.iter().find(|(part, _)| text.contains(part)).map(|(_, advice)| *advice)
}

/// The text, with what to do about it if that is known.
pub fn with_advice(mut text: String) -> String {
    if let Some(advice) = advice(&text) {
        text.push_str(": ");
        text.push_str(advice);
    }
    text
}

/// Errors: there is not one CA, and why. To be asked before the AWS SDK makes a client: without assertions that client would
/// refuse every server, and with them it panics.
pub fn some_ca() -> Result<(), String> {
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        return Ok(());
    }
    let mut text = format!("{NONE_AT_ALL} were found");
    for error in found.errors {
        // Writing into a String does not fail.
        let _ = write!(text, ": {error}");
    }
    Err(text)
}
