//! What the pipeline is told, what it holds, and how it ends.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::anchors::Anchor;
use super::figures::Measured;
use crate::export::upload::Uploaded;
use crate::kafka::probe::Found;
use crate::kafka::rebalance::Candidate;
use crate::kafka::source::Start;
use crate::postgres::lane::{Job, JobResult, PartitionBatch};
use crate::postgres::ledger::{Assigned, LedgerError};
use crate::postgres::reread::Reread;
use crate::record::Chunk;
use crate::registry::Answer;

/// When a batch that is on its way counts as stuck. Longer lets one blocked partition hold up the
/// others for longer; shorter pauses fetching over every slow transaction.
const STUCK_AFTER: Duration = Duration::from_secs(2);

/// Something that was started is done.
pub enum Done {
    Assigned {
        assignment: u64,
        candidates: Vec<Candidate>,
        reply: Reply,
        result: Result<Assigned, LedgerError>,
    },
    /// Partitions that were taken over while the bucket was away, under these epochs: Postgres was restored.
    Restored(Vec<(i32, i64, String)>),
    Persisted {
        lane: usize,
        result: JobResult,
    },
    DeadLettered {
        partition: i32,
        epoch: i64,
        offset: i64,
    },
    Schema {
        id: u32,
        answer: Answer,
    },
    /// A row that Postgres refused was dead-lettered and taken out; none: its record is gone.
    Repaired {
        partition: i32,
        epoch: i64,
        batch: Option<PartitionBatch>,
    },
    Read {
        partition: i32,
        epoch: i64,
        result: Result<Reread, String>,
    },
    Uploaded {
        partition: i32,
        epoch: i64,
        ended: Uploaded,
    },
    StoreIsAway(bool),
    /// What another client got where partitions give nothing.
    Listened {
        silent: Vec<(i32, i64)>,
        found: BTreeMap<i32, Found>,
    },
    /// What stands where the anchors were.
    Anchored {
        asked: BTreeMap<i32, Anchor>,
        found: BTreeMap<i32, Option<i64>>,
    },
    /// Which partitions were seen empty at their frontier, and Postgres's clock when it was asked.
    Probed {
        now_ms: i64,
        at: Instant,
        empty: Vec<(i32, i64, i64)>,
    },
    Advanced {
        partition: i32,
        epoch: i64,
        day: Option<i32>,
    },
    ClosedDays {
        partition: i32,
        epoch: i64,
        day: Option<i32>,
    },
    DaysFinished {
        /// The last day whose `_SUCCESS` is known.
        success_day: Option<i32>,
    },
    /// What was found out for the lag report.
    Measured(Measured),
    Released(Vec<i32>),
    /// A stop is written down; false: another owner has the partition.
    StopWritten {
        partition: i32,
        ours: bool,
    },
    Clock(i64, Instant),
    /// The ledger was read, for whoever has no partition that would show it.
    LedgerReached,
    /// Something cannot go on.
    Failed(String),
}

/// What came from the poll thread and waits for its turn.
pub(super) enum Incoming {
    Chunk(Chunk),
    OutOfRange { partition: i32, next: i64, low: i64, high: i64 },
    Unreadable,
}

/// A partition that waits for an operator.
pub(super) struct Stopped {
    pub(super) why: String,
    /// Whether the ledger says so too: only then its silence means that an operator decided.
    pub(super) written: bool,
    /// It only waits for its server, which was away when the group gave it to this worker.
    pub(super) away: bool,
    /// The group's offset when the partition was given; a partition without a ledger row begins there.
    pub(super) committed: Option<i64>,
}

impl Stopped {
    pub(super) fn new(why: String, written: bool) -> Self {
        Stopped { why, written, away: false, committed: None }
    }
}

/// Who waits for an assignment.
pub enum Reply {
    /// The rebalance callback.
    Callback(Sender<Vec<(i32, Start)>>),
    /// Nobody: an operator released the partition, and the poll thread is told to begin it again.
    Restart,
}

/// Why the worker ended, other than because it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("{0}")]
    Flood(String),
    #[error("{0}")]
    Ledger(String),
    #[error("{0}")]
    Fatal(String),
}

/// Starts what takes time; what becomes of it comes back as a [`Done`].
#[derive(Clone)]
pub(super) struct Tasks(pub(super) UnboundedSender<Done>);

impl Tasks {
    pub(super) fn start<D: Into<Option<Done>> + Send + 'static>(
        &self,
        task: impl Future<Output = D> + Send + 'static,
    ) -> AbortHandle {
        let done = self.0.clone();
        let run = async move {
            if let Some(what) = task.await.into() {
                let _ = done.send(what);
            }
        };
        tokio::spawn(run).abort_handle()
    }
}

pub(super) struct LaneHandle {
    pub(super) jobs: UnboundedSender<Job>,
    /// Since when a job is on its way.
    pub(super) busy: Option<Instant>,
}

impl LaneHandle {
    /// Whether its job takes so long that its partitions must not hold up the others'.
    pub(super) fn is_stuck(&self) -> bool {
        self.busy.is_some_and(|since| since.elapsed() > STUCK_AFTER)
    }
}

/// Partitions that are being given up, and who waits for it.
pub(super) struct Leaving {
    pub(super) partitions: Vec<i32>,
    pub(super) reply: Sender<Vec<(i32, i64)>>,
    pub(super) until: Instant,
}

pub(super) struct Shutdown {
    pub(super) until: Instant,
    pub(super) sealing: bool,
}
