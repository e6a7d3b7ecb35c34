//! The schema registry: what an id means, or that it means nothing, or that nobody can say now.
//!
//! The library's own cache is not used: it keeps errors (500, 504, 429, 401) for good. Here only two
//! answers are final: a schema, and a 404 that stood for a while.

use std::time::Duration;

use futures::future::BoxFuture;
use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, SrSettingsBuilder, get_schema_by_id,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType};

use crate::config::{Config, Secret};
use crate::outside::Schemas;
use crate::retry::Backoff;
use crate::telemetry::metrics;
use crate::trust;

/// Who a client of the registry is, for every command alike.
#[derive(Debug, Clone)]
pub enum RegistryAuth {
    Basic { username: String, password: Option<Secret> },
    Bearer(Secret),
}

impl RegistryAuth {
    /// None: nobody in particular.
    pub fn of(config: &Config) -> Option<Self> {
        let registry = &config.registry;
        if let Some(token) = &registry.token {
            return Some(RegistryAuth::Bearer(token.clone()));
        }
        let username = registry.username.clone()?;
        Some(RegistryAuth::Basic { username, password: registry.password.clone() })
    }

    fn set(&self, builder: &mut SrSettingsBuilder) {
        match self {
            RegistryAuth::Basic { username, password } => {
                builder.set_basic_authorization(username, password.as_ref().map(Secret::expose));
            }
            RegistryAuth::Bearer(token) => {
                builder.set_token_authorization(token.expose());
            }
        }
    }
}

/// How the configured registry is asked. Errors: an HTTP client that cannot be built.
pub fn settings(config: &Config) -> Result<SrSettings, SRCError> {
    let registry = &config.registry;
    settings_for(&registry.url, RegistryAuth::of(config).as_ref(), Duration::from_millis(registry.timeout_ms))
}

/// As [`settings`], for whoever has its parts.
pub fn settings_for(
    url: &str,
    auth: Option<&RegistryAuth>,
    timeout: Duration,
) -> Result<SrSettings, SRCError> {
    let mut builder = SrSettings::new_builder(url.trim_end_matches('/').to_owned());
    builder.set_timeout(timeout);
    if let Some(auth) = auth {
        auth.set(&mut builder);
    }
    builder.build()
}

/// Looks schemas up.
pub struct Registry {
    settings: SrSettings,
    missing_after: Duration,
}

/// A final answer.
#[derive(Debug)]
pub enum Answer {
    /// The schema's text; empty when it is not Avro, which no reader can honour.
    Schema(String),
    /// The registry has said for long enough that there is no such id.
    Missing,
}

impl Registry {
    /// Errors: an HTTP client that cannot be built.
    pub fn new(config: &Config) -> Result<Self, SRCError> {
        Ok(Registry {
            settings: settings(config)?,
            missing_after: Duration::from_millis(config.registry.missing_after_ms),
        })
    }

    /// A registry that is away is waited for.
    async fn look_up_until_known(&self, id: u32, missing_after: Duration) -> Answer {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut missing_since = None;
        loop {
            match get_schema_by_id(id, &self.settings).await {
                Ok(schema) => {
                    metrics::registry_looked_up("found");
                    let avro = schema.schema_type == SchemaType::Avro;
                    return Answer::Schema(if avro { schema.schema } else { String::new() });
                }
                Err(error) if is_missing(&error) => {
                    metrics::registry_looked_up("missing");
                    let since = *missing_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() >= missing_after {
                        return Answer::Missing;
                    }
                }
                Err(error) => {
                    metrics::registry_looked_up("failed");
                    metrics::retried("registry");
                    // An outage in between says nothing about the id: the time starts over.
                    missing_since = None;
                    // With what is behind it: that a certificate was refused, say.
                    let error = trust::with_advice(format!("{:#}", anyhow::Error::new(error)));
                    tracing::warn!(
                        schema_id = id,
                        error,
                        "the registry gave no answer: partitions that need this schema wait"
                    );
                }
            }
            backoff.wait().await;
        }
    }
}

impl Schemas for Registry {
    fn look_up(&self, id: u32) -> BoxFuture<'_, Answer> {
        Box::pin(self.look_up_until_known(id, self.missing_after))
    }

    fn look_again(&self, id: u32) -> BoxFuture<'_, Answer> {
        Box::pin(self.look_up_until_known(id, Duration::ZERO))
    }
}

/// "Not found" as the registry itself says it. A 404 without the registry's error body comes from
/// something in front of it, and says nothing about the schema.
fn is_missing(error: &SRCError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<RawError>())
        .is_some_and(|raw| matches!(raw.error_code, 404 | 40403))
}
