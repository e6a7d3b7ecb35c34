//! One day: what the ledger says of it, and what of that lies in the bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::ledgers::Ledgers;
use crate::command::Failure;
use crate::command::reconcile::insist;
use crate::export::file::{FileIdentity, SealedFile};
use crate::export::manifest::{FileEntry, Manifest, day_folder, manifest_key, parse_file_key, success_key};
use crate::export::object::ObjectStore;
use crate::export::read::RowReader;
use crate::row::{RowHasher, day_text, parse_day};

pub(super) struct Outside {
    pub store: Arc<dyn ObjectStore>,
    pub topic: String,
    pub prefix: String,
    pub row_group_rows: usize,
}

impl Outside {
    pub async fn days_with_folder(&self) -> Result<Vec<i32>, Failure> {
        let folder = if self.prefix.is_empty() { String::new() } else { format!("{}/", self.prefix) };
        let listed = insist(|| self.store.list(&folder, None)).await?;
        let day = |key: &str| key.strip_prefix(&folder)?.split_once('/').and_then(|(day, _)| parse_day(day));
        Ok(listed.iter().filter_map(|object| day(&object.key)).collect())
    }
}

/// What was found of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Right,
    Missing,
    Wrong(String),
    /// It must not be there.
    TooMuch,
}

/// A file of the ledger, and its object.
pub(super) struct Filed {
    pub entry: FileEntry,
    /// Under which it was written; it stands in the file.
    pub epoch: i64,
    pub state: State,
}

pub(super) struct Day {
    pub day: i32,
    pub files: Vec<Filed>,
    pub manifest: Manifest,
    pub manifest_state: State,
    pub success_state: State,
    pub extra: Vec<String>,
    keys: (String, String),
    is_closed: bool,
}

impl Day {
    /// Ledger and bucket are not read at one moment. What an open day has too much may be a day that was closed in
    /// between: so it is looked at again before it is told.
    pub async fn look(
        outside: &Outside,
        ledgers: &mut Ledgers,
        day: i32,
        quick: bool,
    ) -> Result<Self, Failure> {
        let found = Self::look_once(outside, ledgers, day, quick).await?;
        if found.is_closed || found.faults().is_empty() {
            return Ok(found);
        }
        Self::look_once(outside, ledgers, day, quick).await
    }

    async fn look_once(
        outside: &Outside,
        ledgers: &mut Ledgers,
        day: i32,
        quick: bool,
    ) -> Result<Self, Failure> {
        let topic = &outside.topic;
        let Some((closed_day, success_day)) = ledgers.topic_days().await? else {
            return Err(Failure::Ledger(format!("the ledger has no topic {topic}")));
        };
        // Listed first: an open day gets files meanwhile, which the ledger then knows.
        let listed = outside.list(day).await?;
        let frontiers = ledgers.export_frontiers().await?;
        let (entries, epochs) = ledgers.files(day).await?;
        let gaps = ledgers.gaps(day).await?;
        let partitions = ledgers.partitions(day).await?;
        let manifest = Manifest::new(topic, day, &partitions, entries.clone(), gaps);
        let mut files = Vec::new();
        for entry in entries {
            let epoch = epochs.get(&entry.key).copied().unwrap_or(0);
            let state = outside.state_of(&entry, epoch, day, quick).await?;
            files.push(Filed { entry, epoch, state });
        }
        let keys = (manifest_key(&outside.prefix, day), success_key(&outside.prefix, day));
        let (closed, marked) = (day <= closed_day, day <= success_day);
        let manifest_state = outside.manifest_state(&keys.0, &manifest, closed, marked).await?;
        let success_state = outside.success_state(&keys.1, closed, marked).await?;
        let known: BTreeSet<&String> = files.iter().map(|file| &file.entry.key).collect();
        let is_next = |key: &str| {
            parse_file_key(key).is_some_and(|(_, of, partition, first)| {
                // Written, but not entered yet: the partition's next file.
                of == *topic && frontiers.get(&partition) == Some(&first)
            })
        };
        let extra = listed
            .into_iter()
            .filter(|key| {
                !known.contains(key) && *key != keys.0 && *key != keys.1 && (closed || !is_next(key))
            })
            .collect();
        Ok(Day { day, files, manifest, manifest_state, success_state, extra, keys, is_closed: closed })
    }

    /// Every object of the day with its state, in the order in which they must be written.
    pub fn states(&self) -> impl Iterator<Item = (&str, &State)> {
        let files = self.files.iter().map(|file| (file.entry.key.as_str(), &file.state));
        files.chain([
            (self.keys.0.as_str(), &self.manifest_state),
            (self.keys.1.as_str(), &self.success_state),
        ])
    }

    pub fn faults(&self) -> Vec<String> {
        let fault = |(key, state): (&str, &State)| match state {
            State::Right => None,
            State::Missing => Some(format!("missing: {key}")),
            State::Wrong(why) => Some(format!("wrong: {key}: {why}")),
            State::TooMuch => Some(format!("too much: {key}: {} is not closed", day_text(self.day))),
        };
        let mut faults: Vec<String> = self.states().filter_map(fault).collect();
        faults.extend(self.extra.iter().map(|key| format!("too much: {key}: not in the ledger")));
        faults
    }
}

impl Outside {
    async fn list(&self, day: i32) -> Result<Vec<String>, Failure> {
        let folder = format!("{}/", day_folder(&self.prefix, day));
        let listed = insist(|| self.store.list(&folder, None)).await?;
        Ok(listed.into_iter().map(|object| object.key).collect())
    }

    async fn state_of(&self, entry: &FileEntry, epoch: i64, day: i32, quick: bool) -> Result<State, Failure> {
        let Some(told) = insist(|| self.store.head(&entry.key)).await? else { return Ok(State::Missing) };
        if told.bytes != entry.bytes {
            return Ok(State::Wrong(format!("{} bytes, {} in the ledger", told.bytes, entry.bytes)));
        }
        for (name, wanted) in expected_metadata(&self.topic, entry, epoch, day) {
            // An earlier release may have written it.
            let found = told.metadata.get(&name);
            if name != "schema-version" && found != Some(&wanted) {
                return Ok(State::Wrong(format!("it says {found:?} as its {name}, the ledger {wanted}")));
            }
        }
        if quick {
            return Ok(State::Right);
        }
        match insist(|| self.store.get(&entry.key)).await? {
            None => Ok(State::Missing),
            Some(body) => Ok(rows_state(body, entry)),
        }
    }

    async fn manifest_state(
        &self,
        key: &str,
        manifest: &Manifest,
        closed: bool,
        marked: bool,
    ) -> Result<State, Failure> {
        let there = insist(|| self.store.get(key)).await?;
        Ok(match there {
            None if marked => State::Missing,
            // A worker is about to write it, or nobody may.
            None => State::Right,
            Some(_) if !closed => State::TooMuch,
            Some(body) => match Manifest::from_bytes(&body) {
                Ok(found) => {
                    let found = Manifest { schema_version: manifest.schema_version, ..found };
                    if found == *manifest {
                        State::Right
                    } else {
                        State::Wrong("it is not what the ledger says".to_owned())
                    }
                }
                Err(error) => State::Wrong(error.to_string()),
            },
        })
    }

    async fn success_state(&self, key: &str, closed: bool, marked: bool) -> Result<State, Failure> {
        Ok(match insist(|| self.store.head(key)).await? {
            None if marked => State::Missing,
            None => State::Right,
            Some(_) if !closed => State::TooMuch,
            Some(told) if told.bytes > 0 => {
                State::Wrong(format!("{} bytes, and should have none", told.bytes))
            }
            Some(_) => State::Right,
        })
    }
}

fn rows_state(body: Bytes, entry: &FileEntry) -> State {
    let read = || {
        let mut reader = RowReader::open(body)?;
        let (mut hasher, mut tuples) = (RowHasher::new(), Vec::new());
        while reader.next_rows(&mut tuples)? {
            hasher.update(&tuples);
        }
        Ok((reader.rows(), hasher.hex()))
    };
    let found: Result<(u64, String), crate::export::read::ReadError> = read();
    match found {
        Ok((rows, hash)) if rows == entry.rows && hash == entry.row_hash => State::Right,
        Ok((rows, hash)) => State::Wrong(format!(
            "it holds {rows} rows with hash {hash}, the ledger says {} with {}",
            entry.rows, entry.row_hash
        )),
        Err(error) => State::Wrong(error.to_string()),
    }
}

/// As the uploader sends it.
fn expected_metadata(topic: &str, entry: &FileEntry, epoch: i64, day: i32) -> BTreeMap<String, String> {
    let file = SealedFile {
        identity: identity(topic, entry, epoch, day),
        body: Bytes::new(),
        rows: entry.rows,
        next_offset: entry.last_offset + 1,
        row_hash: entry.row_hash.clone(),
        recorded_at_min_ms: 0,
        recorded_at_max_ms: 0,
    };
    file.object_metadata().into_iter().collect()
}

pub(super) fn identity(topic: &str, entry: &FileEntry, epoch: i64, day: i32) -> FileIdentity {
    FileIdentity {
        topic: topic.to_owned(),
        partition: entry.partition,
        first_offset: entry.first_offset,
        day,
        epoch,
    }
}
