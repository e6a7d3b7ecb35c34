//! Writer schemas: what the registry is asked, and for how long its "there is no such id" is believed.
//!
//! 1. One question at a time for an id, however many partitions wait for its answer.
//! 2. An id is missing only after the registry has said so for `registry.missing_after_ms`; then its events are
//!    rejected for a minute, and the next one asks again.
//! 3. To an id that is asked about again and again one "no" is enough, but not for long: a registry's replica that is
//!    behind says it too, of a schema that was registered meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{Done, Ended, Pipeline};
use crate::partition::Wait;
use crate::registry::Answer;

/// How long "there is no such schema" is believed. Longer keeps rejecting events of a schema that was
/// registered late; shorter asks the registry about every bad id again and again.
const MISSING_FOR: Duration = Duration::from_secs(60);
/// For how long after one "no" another one is enough. Longer takes a stale answer about an id that nobody used
/// meanwhile for the truth; shorter than `MISSING_FOR` would hold up a partition each time.
const SAID_FOR: Duration = Duration::from_secs(5 * 60);
/// How long after all patience was spent on an id that is enough. Longer takes stale answers for the truth for
/// longer; shorter holds up the partitions of an id that is noise more often.
const PROVEN_FOR: Duration = Duration::from_secs(60 * 60);
/// How many ids are remembered that the registry did not have. More is memory for ids that are noise; an id
/// beyond them holds up its partition each time as if it were new.
const REMEMBERED_MAX: usize = 10_000;

/// What is known of the registry's answers, beside the schemas themselves.
#[derive(Default)]
pub(super) struct Schemas {
    looking_up: BTreeSet<u32>,
    /// Ids whose events are rejected, and since when.
    missing: BTreeMap<u32, Instant>,
    were_missing: BTreeMap<u32, WasMissing>,
}

/// An id that the registry did not have.
struct WasMissing {
    /// When all patience had been spent on it.
    proven: Instant,
    /// When the registry said so last.
    said: Instant,
}

impl WasMissing {
    fn is_fresh(&self) -> bool {
        self.said.elapsed() < SAID_FOR && self.proven.elapsed() < PROVEN_FOR
    }
}

impl Schemas {
    /// Whether one more "no" of the registry is enough.
    fn one_answer_decides(&mut self, id: u32) -> bool {
        let fresh = self.were_missing.get(&id).is_some_and(WasMissing::is_fresh);
        if !fresh {
            self.were_missing.remove(&id);
        }
        fresh
    }

    /// Remembers that an id is missing; true: this is news.
    fn is_missing(&mut self, id: u32) -> bool {
        let now = Instant::now();
        self.missing.insert(id, now);
        if let Some(was) = self.were_missing.get_mut(&id) {
            was.said = now;
            return false;
        }
        if self.were_missing.len() >= REMEMBERED_MAX {
            self.were_missing.retain(|_, was| was.is_fresh());
        }
        if self.were_missing.len() < REMEMBERED_MAX {
            self.were_missing.insert(id, WasMissing { proven: now, said: now });
        }
        true
    }
}

impl Pipeline {
    pub(super) fn look_up(&mut self, id: u32) {
        if !self.schemas.looking_up.insert(id) {
            return;
        }
        let again = self.schemas.one_answer_decides(id);
        let registry = self.outside.schemas.clone();
        self.tasks.start(async move {
            let answer = if again { registry.look_again(id).await } else { registry.look_up(id).await };
            Done::Schema { id, answer }
        });
    }

    pub(super) fn on_schema(&mut self, id: u32, answer: Answer) -> Result<(), Ended> {
        self.schemas.looking_up.remove(&id);
        match answer {
            Answer::Schema(text) => {
                self.schemas.were_missing.remove(&id);
                match self.decoder.add_schema(id, &text) {
                    Ok(()) => tracing::info!(schema_id = id, "a writer schema is known"),
                    Err(error) => tracing::error!(
                        schema_id = id,
                        %error,
                        "a writer schema cannot be honoured: its events are dead-lettered"
                    ),
                }
            }
            Answer::Missing => {
                self.decoder.add_missing(id);
                if self.schemas.is_missing(id) {
                    tracing::error!(
                        schema_id = id,
                        "the registry has no such schema: its events are dead-lettered"
                    );
                }
            }
        }
        let waiting: Vec<i32> = self
            .partitions
            .values_mut()
            .filter(|p| p.wait == Some(Wait::Schema(id)))
            .map(|p| {
                p.wait = None;
                p.id
            })
            .collect();
        waiting.into_iter().try_for_each(|id| self.unpark(id))
    }

    /// Forgets what was believed for long enough: the next event with such an id asks again.
    pub(super) fn look_after_schemas(&mut self) {
        let decoder = &mut self.decoder;
        self.schemas.missing.retain(|id, since| {
            let believed = since.elapsed() < MISSING_FOR;
            if !believed {
                decoder.forget(*id);
            }
            believed
        });
    }
}
