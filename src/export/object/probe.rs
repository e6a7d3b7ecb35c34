//! The proof, at start, that the store honours the condition on which the export rests.

use std::time::Duration;

use bytes::Bytes;

use super::{ObjectStore, PutOutcome, StoreError, StoreErrorKind};

/// Begins with `_`, so that no reader of the folder takes it for data.
const PROBE_NAME: &str = "_conditional-write-probe";
/// Other workers that start in this moment write the same key.
const CONFLICTS_MAX: u32 = 10;
const CONFLICT_WAIT: Duration = Duration::from_millis(100);

/// Why the condition is not proven.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The store was asked and does not honour it: an export would overwrite.
    #[error("the object store does not honour `If-None-Match: *`: {0}")]
    Unsafe(String),
    /// The store could not be asked; that says nothing about the condition.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes one key twice. The second write must find the first one, or that of an earlier start.
pub async fn prove_conditional_writes(store: &dyn ObjectStore, prefix: &str) -> Result<(), ProbeError> {
    let key = match prefix.trim_matches('/') {
        "" => PROBE_NAME.to_owned(),
        prefix => format!("{prefix}/{PROBE_NAME}"),
    };
    put(store, &key).await?;
    match put(store, &key).await? {
        PutOutcome::Exists => Ok(()),
        PutOutcome::Created => Err(ProbeError::Unsafe(format!("two writes of `{key}` were both taken"))),
    }
}

async fn put(store: &dyn ObjectStore, key: &str) -> Result<PutOutcome, ProbeError> {
    let body = Bytes::from_static(b"Workers write this key at every start and expect a 412.\n");
    let mut conflicts = 0;
    loop {
        let error = match store.put_if_absent(key, body.clone(), "text/plain", &[]).await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        match error.kind {
            StoreErrorKind::Conflict if conflicts < CONFLICTS_MAX => {
                conflicts += 1;
                tokio::time::sleep(CONFLICT_WAIT).await;
            }
            // A store that says so itself.
            StoreErrorKind::Refused if error.message.contains("NotImplemented") => {
                return Err(ProbeError::Unsafe(error.message));
            }
            _ => return Err(error.into()),
        }
    }
}
