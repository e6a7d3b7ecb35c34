//! The bucket as the audit reads it, and how keys are read: once more from docs/exports.md.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Trouble;
use super::row::parse_day;
use crate::export::object::{ListedObject, ObjectInfo, ObjectStore, StoreErrorKind, StoreFuture};

/// How often a request is tried.
const ATTEMPTS_MAX: u32 = 5;

#[derive(Clone)]
pub struct Bucket {
    pub store: Arc<dyn ObjectStore>,
    pub prefix: String,
}

/// What a key says.
#[derive(Debug, PartialEq)]
pub enum Key {
    File {
        day: i32,
        topic: String,
        partition: i32,
        first_offset: i64,
    },
    Mark {
        day: i32,
        name: &'static str,
    },
    /// The folders' own business: names that begin with `_` outside of a day.
    Private,
    Unknown,
}

pub const MANIFEST: &str = "_manifest.json";
pub const SUCCESS: &str = "_SUCCESS";

impl Bucket {
    pub fn key_of(&self, day: &str, name: &str) -> String {
        if self.prefix.is_empty() { format!("{day}/{name}") } else { format!("{}/{day}/{name}", self.prefix) }
    }

    pub fn parse(&self, key: &str) -> Key {
        let inner = match key.strip_prefix(&self.prefix) {
            Some(inner) if self.prefix.is_empty() => inner,
            Some(inner) => match inner.strip_prefix('/') {
                Some(inner) => inner,
                None => return Key::Unknown,
            },
            None => return Key::Unknown,
        };
        if inner.starts_with('_') {
            return Key::Private;
        }
        let Some((day, name)) = inner.split_once('/') else { return Key::Unknown };
        let Some(day) = parse_day(day) else { return Key::Unknown };
        match name {
            MANIFEST => return Key::Mark { day, name: MANIFEST },
            SUCCESS => return Key::Mark { day, name: SUCCESS },
            _ => {}
        }
        let parts: Option<Vec<&str>> = name.strip_suffix(".parquet").map(|name| name.split('+').collect());
        if let Some([topic, partition, first]) = parts.as_deref()
            && first.len() == 20
            && let (Ok(partition), Ok(first_offset)) = (partition.parse::<i32>(), first.parse::<i64>())
        {
            return Key::File { day, topic: (*topic).to_owned(), partition, first_offset };
        }
        Key::Unknown
    }

    pub async fn list(&self, folder: &str) -> Result<Vec<ListedObject>, Trouble> {
        insist(|| self.store.list(folder, None)).await
    }

    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Trouble> {
        insist(|| self.store.head(key)).await
    }

    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, Trouble> {
        insist(|| self.store.get(key)).await
    }
}

async fn insist<'a, T>(request: impl Fn() -> StoreFuture<'a, T>) -> Result<T, Trouble> {
    let mut attempts = 1;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(error) if matches!(error.kind, StoreErrorKind::Refused) => {
                return Err(Trouble::Broken(format!("the bucket: {error}")));
            }
            Err(error) if attempts >= ATTEMPTS_MAX || error.kind == StoreErrorKind::Denied => {
                return Err(Trouble::Away(format!("the bucket: {error}")));
            }
            Err(_) => {
                attempts += 1;
                tokio::time::sleep(Duration::from_millis(300) * attempts).await;
            }
        }
    }
}
