use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};
use sqlx::postgres::PgConnectOptions;

/// What stands in the place of a secret wherever it is shown.
pub const REDACTED: &str = "[redacted]";

/// A value that no log line, dump or error message repeats.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a Postgres URL leads, without who goes there: `postgres://[redacted]@host:5432/database`.
    pub fn postgres_location(&self) -> String {
        // Only a URL that parses is shown in part: of any other, no part is known to be harmless.
        match PgConnectOptions::from_str(&self.0) {
            Ok(options) if !self.0.is_empty() => format!(
                "postgres://{REDACTED}@{}:{}/{}",
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default(),
            ),
            _ => REDACTED.to_owned(),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { REDACTED })
    }
}
