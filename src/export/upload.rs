//! One file's way into the bucket and the ledger.
//!
//! 1. An object is written once, under a condition; nothing is ever overwritten.
//! 2. The export frontier moves with the file's entry, in one transaction, under the owner's epoch.
//! 3. An object that is there already is adopted if its rows are the table's; else the export of its
//!    partition stops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::exporter::Roll;
use super::file::{Claim, SealedFile};
use super::object::{ObjectStore, PutOutcome};
use crate::outside::Database;
use crate::pipeline::Done;
use crate::postgres::{ledger, reread};
use crate::retry::Backoff;
use crate::telemetry::metrics;

/// How many rows of the table are held at once to be compared with an object. More is memory beside the budget; fewer
/// is more statements.
const COMPARED_ROWS: u64 = 10_000;
/// The same in bytes, for rows with much metadata. Larger is memory too; smaller is a new connection more often.
const COMPARED_BYTES: usize = 16 << 20;

/// What an upload needs.
#[derive(Clone)]
pub struct Uploader {
    pub store: Arc<dyn ObjectStore>,
    pub database: Arc<dyn Database>,
    pub prefix: String,
    pub done: UnboundedSender<Done>,
}

/// How an upload ended.
#[derive(Debug)]
pub enum Uploaded {
    /// The ledger's export frontier is here now.
    Entered { next_offset: i64 },
    /// Another owner has the partition.
    Fenced,
    /// What lies in the bucket is not what the table says.
    Conflict(String),
    /// The bucket is ahead of the ledger: Postgres was restored.
    Restored(String),
}

/// A step that did not succeed.
enum Trouble {
    End(Uploaded),
    /// The store, or Postgres, could not be used; in words.
    World(&'static str, String),
}

impl Uploader {
    /// Uploads and enters a file, however long it takes.
    pub async fn upload(&self, file: SealedFile, roll: Roll) -> Uploaded {
        let key = file.key(&self.prefix);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let started = Instant::now();
        loop {
            match self.try_upload(&key, &file).await {
                Ok(ended) => {
                    let _ = self.done.send(Done::StoreIsAway(false));
                    metrics::file_uploaded(
                        roll.as_str(),
                        file.rows,
                        file.body.len() as u64,
                        started.elapsed(),
                    );
                    return ended;
                }
                Err(Trouble::End(ended)) => {
                    // The store answered, whatever it was.
                    let _ = self.done.send(Done::StoreIsAway(false));
                    return ended;
                }
                Err(Trouble::World(what, why)) => {
                    metrics::retried(what);
                    let _ = self.done.send(Done::StoreIsAway(what == "s3"));
                    tracing::warn!(key, what, why, "a file is not uploaded yet: trying again");
                    backoff.wait().await;
                }
            }
        }
    }

    async fn try_upload(&self, key: &str, file: &SealedFile) -> Result<Uploaded, Trouble> {
        let metadata = file.object_metadata();
        let put = self.store.put_if_absent(key, file.body.clone(), SealedFile::CONTENT_TYPE, &metadata);
        match put.await {
            Ok(PutOutcome::Created) => self.enter(&own_entry(key, file)).await,
            Ok(PutOutcome::Exists) => self.adopt(key, file).await,
            Err(error) => Err(Trouble::World("s3", error.to_string())),
        }
    }

    async fn enter(&self, entry: &ledger::NewFile) -> Result<Uploaded, Trouble> {
        match self.database.enter_file(entry).await {
            Ok(ledger::Entered::Yes) => Ok(Uploaded::Entered { next_offset: entry.next_offset }),
            Ok(ledger::Entered::Fenced) => Err(Trouble::End(Uploaded::Fenced)),
            Err(error) => Err(Trouble::World("postgres", error.to_string())),
        }
    }

    /// An object of the same first offset is there: mine from an earlier try, or a former owner's.
    async fn adopt(&self, key: &str, file: &SealedFile) -> Result<Uploaded, Trouble> {
        let head = self.store.head(key).await.map_err(|e| Trouble::World("s3", e.to_string()))?;
        let Some(info) = head else {
            return Err(Trouble::World("s3", "the object is there and is not".to_owned()));
        };
        let Some(Claim { next_offset, rows, row_hash, epoch }) = Claim::read(&info.metadata) else {
            let why = format!("{key} was not written by this program: it says no range");
            return Err(Trouble::End(Uploaded::Conflict(why)));
        };
        self.check_not_restored(key, file, next_offset, epoch).await?;
        let table = self.table_rows(file, next_offset).await?;
        if table.hash != row_hash || table.rows != rows {
            let why = format!(
                "{key} holds {rows} rows up to offset {next_offset} with hash {row_hash}, \
                 the table {} rows with hash {}",
                table.rows, table.hash
            );
            return Err(Trouble::End(Uploaded::Conflict(why)));
        }
        tracing::info!(key, rows, next_offset, "an object that was there already is adopted");
        self.enter(&ledger::NewFile {
            next_offset,
            rows: rows.cast_signed(),
            bytes: info.bytes.cast_signed(),
            row_hash,
            recorded_at_min_ms: table.recorded_at_min_ms,
            recorded_at_max_ms: table.recorded_at_max_ms,
            written_by: epoch,
            ..own_entry(key, file)
        })
        .await
    }

    async fn check_not_restored(
        &self,
        key: &str,
        file: &SealedFile,
        next_offset: i64,
        epoch: i64,
    ) -> Result<(), Trouble> {
        let ledger = self
            .database
            .peek(&[file.identity.partition])
            .await
            .map_err(|e| Trouble::World("postgres", e.to_string()))?;
        let Some(row) = ledger.get(&file.identity.partition) else {
            return Err(Trouble::End(Uploaded::Fenced));
        };
        if row.epoch != file.identity.epoch {
            return Err(Trouble::End(Uploaded::Fenced));
        }
        if epoch > row.epoch || next_offset > row.persist_frontier {
            let why = format!(
                "{key} reaches to offset {next_offset} under epoch {epoch}, \
                 the ledger only to {} under epoch {}",
                row.persist_frontier, row.epoch
            );
            return Err(Trouble::End(Uploaded::Restored(why)));
        }
        Ok(())
    }

    async fn table_rows(&self, file: &SealedFile, next_offset: i64) -> Result<reread::Summary, Trouble> {
        let range = reread::Range {
            partition: file.identity.partition,
            epoch: file.identity.epoch,
            from: file.identity.first_offset,
            upto: next_offset,
            first_day: file.identity.day,
            rows_max: COMPARED_ROWS,
            bytes_max: COMPARED_BYTES,
        };
        match reread::summarize(self.database.as_ref(), &range).await {
            Ok(Some(summary)) => Ok(summary),
            Ok(None) => Err(Trouble::End(Uploaded::Fenced)),
            Err(error) => Err(Trouble::World("postgres", error.to_string())),
        }
    }
}

fn own_entry(key: &str, file: &SealedFile) -> ledger::NewFile {
    ledger::NewFile {
        partition: file.identity.partition,
        epoch: file.identity.epoch,
        first_offset: file.identity.first_offset,
        next_offset: file.next_offset,
        day: file.identity.day,
        object_key: key.to_owned(),
        rows: file.rows.cast_signed(),
        bytes: file.body.len() as i64,
        row_hash: file.row_hash.clone(),
        recorded_at_min_ms: file.recorded_at_min_ms,
        recorded_at_max_ms: file.recorded_at_max_ms,
        written_by: file.identity.epoch,
    }
}
