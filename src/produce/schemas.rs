//! The schemas that events are written with, and their registration.

use anyhow::{Context, bail};
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::schema_registry_common::{SchemaType, SuppliedSchema};

use super::avro::Encoder;
use super::generator::AvroSchemas;
use crate::registry::{RegistryAuth, settings_for};

/// The current schema, which is also the worker's reader schema.
pub const CURRENT: &str = include_str!("../../schemas/feed.interactions.v1/interaction.avsc");
/// What older clients still write.
pub const VERSION_1: &str = include_str!("../../schemas/feed.interactions.v1/interaction.v1.avsc");
/// Somebody else's record: nothing of it can be read as an interaction.
pub const INCOMPATIBLE: &str = r#"{"type":"record","name":"PlantedTelemetry","namespace":"feed_worker.planted","fields":[{"name":"temperature","type":"int"}]}"#;

/// Connects to nothing yet. Errors: an address that is none.
pub fn registry(url: &str, auth: Option<&RegistryAuth>) -> anyhow::Result<SrSettings> {
    if url.is_empty() {
        bail!("no schema registry is configured: set FEED_WORKER_REGISTRY__URL");
    }
    let settings = settings_for(url, auth, std::time::Duration::from_secs(10));
    settings.with_context(|| format!("the registry's address {url} cannot be used"))
}

/// The subject that a topic's values are registered under.
pub fn value_subject(topic: &str) -> String {
    format!("{topic}-value")
}

/// Registers a schema, or finds it registered: the answer is its id in both cases.
pub async fn register(registry: &SrSettings, subject: &str, schema_json: &str) -> anyhow::Result<u32> {
    let schema = SuppliedSchema::new(None, SchemaType::Avro, schema_json.to_owned());
    let registered = post_schema(registry, subject.to_owned(), schema)
        .await
        .with_context(|| format!("registering a schema under the subject {subject}"))?;
    Ok(registered.id)
}

/// What the generator needs: both versions of the topic's schema and, if bad events are wanted, the
/// schema that cannot be read. Registered as a producer's serializer would do it.
pub async fn for_generator(
    registry: &SrSettings,
    topic: &str,
    plants_bad: bool,
) -> anyhow::Result<AvroSchemas> {
    let subject = value_subject(topic);
    let v1_id = register(registry, &subject, VERSION_1).await?;
    let current_id = register(registry, &subject, CURRENT).await?;
    let incompatible_id = if plants_bad {
        register(registry, &format!("{topic}.planted-value"), INCOMPATIBLE).await?
    } else {
        0
    };
    encoders(current_id, v1_id, incompatible_id)
}

/// As [`for_generator`], with ids from elsewhere.
pub fn encoders(current_id: u32, v1_id: u32, incompatible_id: u32) -> anyhow::Result<AvroSchemas> {
    Ok(AvroSchemas {
        current: Encoder::new(CURRENT).context("interaction.avsc")?,
        current_id,
        v1: Encoder::new(VERSION_1).context("interaction.v1.avsc")?,
        v1_id,
        incompatible_id,
    })
}
