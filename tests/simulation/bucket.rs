//! The bucket, the dead-letter topic and the registry.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use feed_worker::export::manifest::{parse_file_key, success_key};
use feed_worker::export::object::{
    ListedObject, ObjectInfo, ObjectStore, PutOutcome, StoreError, StoreErrorKind, StoreFuture,
};
use feed_worker::kafka::dead_letters::DeadLetter;
use feed_worker::outside::{DeadLetters, Schemas};
use feed_worker::registry::Answer;
use feed_worker::retry::Backoff;
use futures::future::BoxFuture;
use rand::Rng;
use tokio::time::Instant;

use crate::plan::Protection;
use crate::world::{Me, Service, Shared, World, of};

pub const PREFIX: &str = "exports";

#[derive(Clone)]
pub struct Object {
    pub body: Bytes,
    pub metadata: BTreeMap<String, String>,
}

pub struct Bucket(pub Me);

impl Bucket {
    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        apply: impl FnOnce(&mut World) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let run = async move |world: Shared| apply(&mut of(&world));
        self.0.call(Service::Store, operation, run).await.map_err(|message| StoreError {
            operation,
            key: key.to_owned(),
            kind: StoreErrorKind::Transient,
            message,
        })
    }
}

fn put(world: &mut World, key: &str, object: Object) -> PutOutcome {
    if let Some((day, ..)) = parse_file_key(key)
        && world.bucket.contains_key(&success_key(PREFIX, day))
        && !world.bucket.contains_key(key)
    {
        world.ledger.violations.push(format!("{key} was written after its day's _SUCCESS"));
    }
    if world.bucket.contains_key(key) && !world.ledger.lacks(Protection::IfNoneMatch) {
        world.count("object was there");
        return PutOutcome::Exists;
    }
    world.told(|| format!("put {key}"));
    if let Some(there) = world.bucket.insert(key.to_owned(), object) {
        world.ledger.violations.push(format!("{key} was overwritten ({} bytes)", there.body.len()));
    }
    PutOutcome::Created
}

impl ObjectStore for Bucket {
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        body: Bytes,
        _: &'a str,
        metadata: &'a [(String, String)],
    ) -> StoreFuture<'a, PutOutcome> {
        let object = Object { body, metadata: metadata.iter().cloned().collect() };
        let name = key.to_owned();
        Box::pin(async move {
            let put = self.call("put", key, move |world| {
                let conflict = world.rng.random_range(0..1000) < world.rates.lost_request;
                (!conflict).then(|| put(world, &name, object))
            });
            put.await?.ok_or_else(|| StoreError {
                operation: "put",
                key: key.to_owned(),
                kind: StoreErrorKind::Conflict,
                message: "409".to_owned(),
            })
        })
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<ObjectInfo>> {
        let name = key.to_owned();
        Box::pin(self.call("head", key, move |world| {
            world.bucket.get(&name).map(|object| ObjectInfo {
                metadata: object.metadata.clone(),
                bytes: object.body.len() as u64,
            })
        }))
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>> {
        let name = key.to_owned();
        Box::pin(self.call("get", key, move |world| world.bucket.get(&name).map(|o| o.body.clone())))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
    ) -> StoreFuture<'a, Vec<ListedObject>> {
        let (from, after) = (prefix.to_owned(), start_after.unwrap_or_default().to_owned());
        Box::pin(self.call("list", prefix, move |world| {
            let listed = world.bucket.iter().filter(|(key, _)| key.starts_with(&from) && **key > after);
            listed
                .map(|(key, object)| ListedObject { key: key.clone(), bytes: object.body.len() as u64 })
                .collect()
        }))
    }
}

pub struct Letters(pub Me);

impl DeadLetters for Letters {
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, anyhow::Result<()>> {
        let at = (letter.partition, letter.offset);
        Box::pin(async move {
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
            loop {
                of(&self.0.world).letters_tried.push(at);
                let run = async move |world: Shared| of(&world).letters.push(at);
                if self.0.call(Service::DeadLetters, "dead letter", run).await.is_ok() {
                    return Ok(());
                }
                backoff.wait().await;
            }
        })
    }
}

/// The one writer schema that there is, and its id.
pub const SCHEMA_ID: u32 = 7;
pub const SCHEMA: &str = r#"{"type":"record","name":"Interaction","namespace":"video_window.feed","fields":[
    {"name":"userId","type":"string"},{"name":"videoId","type":"string"},
    {"name":"interactionType","type":"string"},{"name":"timestamp","type":"long"}]}"#;

pub struct Registry(pub Me);

/// How long the registry has to say that there is no such id.
const MISSING_AFTER: Duration = Duration::from_millis(300);

impl Registry {
    async fn look_up_until_known(&self, id: u32, missing_after: Duration) -> Answer {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut missing_since = None;
        loop {
            let run = async move |world: Shared| {
                let mut world = of(&world);
                let behind = world.stale_answers > 0;
                world.stale_answers = world.stale_answers.saturating_sub(1);
                !behind && world.schemas.contains(&id)
            };
            match self.0.call(Service::Registry, "schema?", run).await {
                Ok(true) => return Answer::Schema(SCHEMA.to_owned()),
                Ok(false) => {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= missing_after {
                        return Answer::Missing;
                    }
                }
                Err(_) => missing_since = None,
            }
            backoff.wait().await;
        }
    }
}

impl Schemas for Registry {
    fn look_up(&self, id: u32) -> BoxFuture<'_, Answer> {
        Box::pin(self.look_up_until_known(id, MISSING_AFTER))
    }

    fn look_again(&self, id: u32) -> BoxFuture<'_, Answer> {
        Box::pin(self.look_up_until_known(id, Duration::ZERO))
    }
}
