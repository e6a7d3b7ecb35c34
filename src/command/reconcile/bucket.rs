//! What lies in the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::refused;
use crate::command::Failure;
use crate::config::Config;
use crate::export::file::Claim;
use crate::export::manifest::{Manifest, manifest_key, parse_file_key, success_key};
use crate::export::object::{ObjectStore, S3, StoreErrorKind, StoreFuture};
use crate::retry::Backoff;
use crate::row::{day_text, parse_day};

/// How often a request is tried. More hides an outage from whoever waits; fewer begins a long run anew.
const ATTEMPTS_MAX: u32 = 6;

pub(super) struct Bucket {
    store: S3,
    prefix: String,
    topic: String,
}

/// A Parquet object, as its key tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub key: String,
    pub day: i32,
    pub partition: i32,
    pub first_offset: i64,
}

/// All that the bucket has of the days that are not finished in the ledger.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// By partition, in the order of first offsets.
    pub objects: BTreeMap<i32, Vec<Object>>,
    pub manifests: BTreeSet<i32>,
    pub successes: BTreeSet<i32>,
    /// The newest day of an object.
    pub last_day: i32,
}

impl Survey {
    pub fn of(&self, partition: i32) -> &[Object] {
        self.objects.get(&partition).map_or(&[], Vec::as_slice)
    }
}

impl Bucket {
    pub async fn connect(config: &Config) -> Result<Self, Failure> {
        let store = S3::connect(&crate::command::run::s3_settings(config))
            .await
            .map_err(|e| anyhow::anyhow!("object store client: {e}"))?;
        Ok(Bucket { store, prefix: config.s3.prefix.clone(), topic: config.kafka.topic.clone() })
    }

    /// Lists everything from a day on.
    pub async fn survey(&self, first_day: i32) -> Result<Survey, Failure> {
        let folder = format!("{}/", self.prefix);
        let after = format!("{folder}{}", day_text(first_day));
        let listed = insist(|| self.store.list(&folder, Some(&after))).await?;
        let mut survey = Survey { last_day: first_day, ..Survey::default() };
        for key in listed.into_iter().map(|object| object.key) {
            if let Some((day, topic, partition, first_offset)) = parse_file_key(&key) {
                if topic == self.topic {
                    survey.last_day = survey.last_day.max(day);
                    let objects = survey.objects.entry(partition).or_default();
                    objects.push(Object { key, day, partition, first_offset });
                }
                continue;
            }
            let Some(day) = key.rsplit('/').nth(1).and_then(parse_day) else { continue };
            if key == manifest_key(&self.prefix, day) {
                survey.manifests.insert(day);
            } else if key == success_key(&self.prefix, day) {
                survey.successes.insert(day);
            }
        }
        for objects in survey.objects.values_mut() {
            objects.sort_by_key(|object| object.first_offset);
        }
        Ok(survey)
    }

    /// Reads what an object says of itself, and holds it against its key; with its size.
    pub async fn claim(&self, object: &Object) -> Result<(Claim, u64), Failure> {
        let key = &object.key;
        let info = insist(|| self.store.head(key)).await?;
        let info = info.ok_or_else(|| refused(format!("{key} was listed, but is not there")))?;
        let claim = Claim::read(&info.metadata);
        let claim = claim.ok_or_else(|| {
            refused(format!("{key} was not written by this program: its metadata is {:?}", info.metadata))
        })?;
        let of_key = [
            ("topic", self.topic.clone()),
            ("partition", object.partition.to_string()),
            ("first-offset", object.first_offset.to_string()),
        ];
        for (name, wanted) in of_key {
            let said = info.metadata.get(name);
            if said != Some(&wanted) {
                return Err(refused(format!("{key} says {said:?} as its {name}, which its key does not")));
            }
        }
        if claim.next_offset <= object.first_offset || claim.rows == 0 {
            return Err(refused(format!("{key} says that it is empty: {claim:?}")));
        }
        Ok((claim, info.bytes))
    }

    pub async fn get(&self, key: &str) -> Result<Bytes, Failure> {
        let body = insist(|| self.store.get(key)).await?;
        body.ok_or_else(|| refused(format!("{key} was listed, but is not there")))
    }

    /// A day's manifest, with its key.
    pub async fn manifest(&self, day: i32) -> Result<(String, Manifest), Failure> {
        let key = manifest_key(&self.prefix, day);
        let body = self.get(&key).await?;
        let manifest = Manifest::from_bytes(&body).map_err(|error| refused(format!("{key}: {error}")))?;
        Ok((key, manifest))
    }
}

/// Tries a few times: a run may be long, and one lost answer must not undo it.
pub(in crate::command) async fn insist<'a, T>(
    request: impl Fn() -> StoreFuture<'a, T>,
) -> Result<T, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut attempts = 1;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) if error.kind != StoreErrorKind::Transient || attempts >= ATTEMPTS_MAX => {
                return Err(anyhow::Error::from(error).context("reading the bucket").into());
            }
            Err(error) => {
                tracing::warn!(%error, "the bucket did not answer: trying again");
                attempts += 1;
                backoff.wait().await;
            }
        }
    }
}
