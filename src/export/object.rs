//! The object store, as far as the worker needs one: objects that are written once, if absent, and
//! never changed.

mod probe;
mod s3;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

pub use probe::{ProbeError, prove_conditional_writes};
pub use s3::{S3, S3Settings};

/// What every operation returns.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// An object store. No method tries again by itself: what a failure means is for the caller to say.
pub trait ObjectStore: Send + Sync {
    /// Writes an object, unless there is one under that key. One request, all or nothing.
    fn put_if_absent<'a>(
        &'a self,
        key: &'a str,
        body: Bytes,
        content_type: &'a str,
        metadata: &'a [(String, String)],
    ) -> StoreFuture<'a, PutOutcome>;

    /// An object's metadata, or `None` if there is no object.
    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<ObjectInfo>>;

    /// An object's bytes, or `None` if there is no object.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<Bytes>>;

    /// Every object whose key begins with `prefix` and lies behind `start_after`, in key order.
    fn list<'a>(
        &'a self,
        prefix: &'a str,
        start_after: Option<&'a str>,
    ) -> StoreFuture<'a, Vec<ListedObject>>;
}

/// How a conditional write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    Created,
    /// There is an object under that key; it may be an earlier attempt of one's own.
    Exists,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// User metadata, without the `x-amz-meta-` in front.
    pub metadata: BTreeMap<String, String>,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    pub key: String,
    pub bytes: u64,
}

/// An operation that failed, with what it was about. Holds nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    pub operation: &'static str,
    pub key: String,
    pub kind: StoreErrorKind,
    pub message: String,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// Away, slow, overloaded or cut off: try again later. The write may have happened.
    Transient,
    /// 409: somebody writes the same key at this moment. Try again; nothing is known of the object.
    Conflict,
    /// The credentials are missing, expired or not sufficient. Trying again helps after somebody
    /// has acted (or the credentials were renewed).
    Denied,
    /// The store will never do this: no such bucket, an unknown feature, a malformed request.
    Refused,
}

impl StoreErrorKind {
    /// A name for logs and metric tags.
    pub fn as_str(self) -> &'static str {
        match self {
            StoreErrorKind::Transient => "transient",
            StoreErrorKind::Conflict => "conflict",
            StoreErrorKind::Denied => "denied",
            StoreErrorKind::Refused => "refused",
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoreError { operation, key, kind, message } = self;
        write!(f, "{operation} of `{key}` failed ({}): {message}", kind.as_str())
    }
}

impl std::error::Error for StoreError {}
