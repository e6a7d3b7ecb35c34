//! The audit: what the topic had must be in the table or the DLQ, what the table has in exactly one file, and what
//! the ledger and the manifests say must be so.
//!
//! 1. It reads Postgres, the bucket, the topic and the DLQ (and, to read Avro, the registry), and writes nothing.
//! 2. It shares no code with the pipeline: its own statements, its own decoding of events, rows, keys and Parquet
//!    files. What it does share is the configuration, the brokers' addresses (`kafka::client_config`), and the
//!    `ObjectStore` client, which moves bytes: a fault there could make the audit fail, or find what is not so, but
//!    to hide a fault it would have to bring forth bytes with the right hash. A test holds the `use` lines to this.
//! 3. The frontiers are taken first, and nothing above them is judged: workers may run meanwhile.
//! 4. Memory does not grow with a day or a partition: records, rows and files pass through in the order of their
//!    offsets. In memory are one file, a few thousand rows, the keys in the bucket and some 300 bytes a dead letter.
//! 5. What a retention has taken is told as not checked, never as well.

pub mod avro;
pub mod bucket;
mod days;
mod dead_letters;
pub mod event;
mod file;
mod files;
pub mod json;
mod partition;
mod produced;
pub mod report;
pub mod row;
mod servers;
pub mod table;
pub mod topic;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use self::bucket::{Bucket, Key};
use self::days::Marks;
use self::dead_letters::DeadLetters;
use self::event::Schemas;
use self::files::FileWalk;
use self::partition::{Bounds, PartitionCheck};
pub use self::produced::Produced;
use self::report::{Kind, Report};
use self::row::{Row, day_text};
use self::table::{Ledger, Snapshot, Table};
use self::topic::{Record, Topics};

/// Why there is no verdict.
#[derive(Debug)]
pub enum Trouble {
    /// A server is away: try again.
    Away(String),
    /// There is nothing here to audit.
    Refused(String),
    /// An error of this program, or of what was asked for.
    Broken(String),
}

/// Looks a schema up: its text, empty if it is not Avro; none if the registry says that there is no such id.
pub type LookUp =
    Box<dyn Fn(u32) -> futures::future::BoxFuture<'static, Result<Option<String>, String>> + Send + Sync>;

pub struct Settings {
    pub topic: String,
    pub dlq_topic: String,
    pub group_id: String,
    pub weights: HashMap<String, f32>,
    /// The weights or types were changed: rows are not held to the present ones.
    pub other_weights: bool,
    pub allow_create_time: bool,
    pub retention_days: i32,
}

/// One audit.
pub struct Audit {
    pub settings: Settings,
    pub table: Table,
    pub bucket: Bucket,
    pub topics: Topics,
    pub look_up: LookUp,
    pub produced: Option<Produced>,
    pub snapshot: Snapshot,
    pub schemas: Mutex<Schemas>,
    pub dropped: Mutex<BTreeMap<i32, bool>>,
    /// Records and rows that were looked at.
    pub done: Arc<AtomicU64>,
    /// How many there are, once it is known.
    pub total: Arc<AtomicU64>,
}

impl Audit {
    /// Everything that can be compared.
    pub async fn run(&mut self, report: &mut Report) -> Result<(), Trouble> {
        // Listed before the frontiers are taken: what lies there by now, the ledger must know of by then.
        let listed = self.bucket.list(&self.folder()).await?;
        let bounds = self.topics.bounds(&self.settings.topic).await?;
        let numbers: Vec<i32> = bounds.iter().map(|(number, _, _)| *number).collect();
        let committed =
            self.topics.committed(&self.settings.topic, &self.settings.group_id, &numbers).await?;
        self.snapshot = self.table.snapshot().await?;
        self.refuse_if_empty(listed.iter().map(|object| object.key.as_str()))?;
        // What a retention took before the frontiers were taken, they must have passed.
        let gone: BTreeMap<i32, i64> = bounds.iter().map(|(number, low, _)| (*number, *low)).collect();
        // Asked for again: the ledger may have passed the first answer by now.
        let bounds = self.topics.bounds(&self.settings.topic).await?;
        let records: i64 = bounds.iter().map(|(_, low, high)| high - low).sum();
        self.total.store((records + self.snapshot.rows_filed).unsigned_abs(), Ordering::Relaxed);
        let dead =
            DeadLetters::read(&self.topics, &self.settings.dlq_topic, &self.settings.topic, report).await?;

        let keys = listed.iter().map(|object| object.key.as_str());
        let marks = self.sort_objects(keys, None, report).await?;
        self.check_strays(&numbers, &dead, report);
        for (partition, low, high) in bounds {
            report.count("partitions", 1);
            let Some(ledger) = self.snapshot.partitions.get(&partition) else { continue };
            let committed =
                committed.iter().find(|(number, _)| *number == partition).map(|(_, offset)| *offset);
            let gone = gone.get(&partition).copied().unwrap_or(0);
            let at = Bounds { partition, gone, low, high, committed };
            let start = self.start(partition, ledger).await?;
            PartitionCheck::new(self, &dead, at, start).run(ledger, report).await?;
            FileWalk::new(self, partition, ledger.epoch).run(ledger, report).await?;
        }
        days::check(self, &marks, report).await
    }

    /// One closed day: folder, manifest, files, and the table's rows of the day.
    pub async fn run_day(&mut self, day: i32, report: &mut Report) -> Result<(), Trouble> {
        let listed = self.bucket.list(&self.bucket.key_of(&day_text(day), "")).await?;
        self.snapshot = self.table.snapshot().await?;
        let (closed, success) = self.snapshot.topic.ok_or_else(|| self.no_topic())?;
        if let Some(first) = self.snapshot.first_day.filter(|first| day < *first) {
            let text =
                format!("{} lies before the ledger, which begins on {}", day_text(day), day_text(first));
            return Err(Trouble::Refused(text));
        }
        if day > closed {
            let text = format!(
                "{} is not closed yet; closed is {} and what lies before",
                day_text(day),
                day_text(closed)
            );
            return Err(Trouble::Refused(text));
        }
        let keys = listed.iter().map(|object| object.key.as_str());
        let marks = self.sort_objects(keys, Some(day), report).await?;
        let files = self.table.files_of_day(day).await?;
        let rows: i64 = files.iter().map(|file| file.rows).sum();
        self.total.store(rows.unsigned_abs(), Ordering::Relaxed);
        let dropped = self.is_dropped(day).await?;
        self.tell_misplaced(report);
        for (partition, ledger) in &self.snapshot.partitions {
            report.count("partitions", 1);
            let mut walk = FileWalk::new(self, *partition, ledger.epoch);
            for file in files.iter().filter(|file| file.partition == *partition) {
                walk.take(file, report).await?;
            }
            if let (count @ 1.., first) = self.table.unclaimed(*partition, day).await? {
                let place = format!("{}/{partition}@{}", self.settings.topic, first.unwrap_or(0));
                let text = format!("{place} and on: {count} rows of {} in no file of the day", day_text(day));
                report.find_many(Kind::LostWrite, count.unsigned_abs(), text);
            }
        }
        if dropped {
            report.not_checked(format!("rows of {}: the table no longer has the day", day_text(day)));
        }
        let present = marks.get(&day).cloned().unwrap_or_default();
        days::check_day(self, day, &present, (closed, success), report).await
    }

    fn no_topic(&self) -> Trouble {
        let topic = &self.settings.topic;
        Trouble::Refused(format!("the ledger has no topic {topic}: is DATABASE_URL that of its workers?"))
    }

    /// Where nothing was ever done there is nothing to call well. What lies about without a ledger is a finding.
    fn refuse_if_empty<'k>(&self, mut keys: impl Iterator<Item = &'k str>) -> Result<(), Trouble> {
        let found = &self.snapshot;
        let knows = found.topic.is_some() || !found.partitions.is_empty() || !found.strays.is_empty();
        let is_ours =
            |key| matches!(self.bucket.parse(key), Key::File { topic, .. } if topic == self.settings.topic);
        if knows || keys.any(is_ours) { Ok(()) } else { Err(self.no_topic()) }
    }

    fn folder(&self) -> String {
        if self.bucket.prefix.is_empty() { String::new() } else { format!("{}/", self.bucket.prefix) }
    }

    /// Finds the marks, and what nothing accounts for.
    async fn sort_objects<'k>(
        &self,
        keys: impl Iterator<Item = &'k str>,
        day: Option<i32>,
        report: &mut Report,
    ) -> Result<Marks, Trouble> {
        let (mut marks, mut unknown) = (Marks::new(), Vec::new());
        for key in keys {
            match self.bucket.parse(key) {
                Key::Mark { day, name } => drop(marks.entry(day).or_default().insert(name)),
                Key::Private => {}
                Key::File { topic, .. } if topic == self.settings.topic => unknown.push(key.to_owned()),
                _ => report.find(Kind::Orphan, format!("{key}: not an object of {}", self.settings.topic)),
            }
        }
        report.count("objects", unknown.len() as u64);
        for keys in unknown.chunks(1000) {
            let known = self.table.known_keys(keys).await?;
            for key in keys.iter().filter(|key| !known.contains(key)) {
                let Key::File { partition, first_offset, .. } = self.bucket.parse(key) else { continue };
                let ledger = self.snapshot.partitions.get(&partition);
                // Written, but not entered yet: the partition's next file.
                if day.is_none() && ledger.is_some_and(|ledger| ledger.export_frontier == first_offset) {
                    report.count("objects_not_entered_yet", 1);
                } else {
                    report.find(Kind::Orphan, format!("{key}: not in the ledger"));
                }
            }
        }
        Ok(marks)
    }

    /// Partitions that one place has and another has not.
    fn check_strays(&self, numbers: &[i32], dead: &DeadLetters, report: &mut Report) {
        let topic = &self.settings.topic;
        self.tell_misplaced(report);
        for number in self.snapshot.partitions.keys().filter(|number| !numbers.contains(number)) {
            report.find(
                Kind::Orphan,
                format!("{topic}/{number}: in the ledger, but the topic has no such partition"),
            );
        }
        for number in dead.of.keys().filter(|number| !numbers.contains(number)) {
            report.find(
                Kind::Orphan,
                format!("{topic}/{number}: dead letters, but the topic has no such partition"),
            );
        }
        for number in &self.snapshot.strays {
            if numbers.contains(number) {
                report.find(
                    Kind::LostWrite,
                    format!("{topic}/{number}: rows or files, but no row in the ledger"),
                );
                report.find(
                    Kind::FrontierBack,
                    format!("{topic}/{number}: rows or files above a frontier that is not there"),
                );
            } else {
                report.find(
                    Kind::Orphan,
                    format!("{topic}/{number}: rows or files, but the topic has no such partition"),
                );
            }
        }
    }

    /// Partitions that are on two servers.
    fn tell_misplaced(&self, report: &mut Report) {
        for text in &self.snapshot.misplaced {
            report.find(Kind::Duplicate, text.clone());
        }
    }

    /// Where the ledger of a partition begins: its first file says it.
    async fn start(&self, partition: i32, ledger: &Ledger) -> Result<i64, Trouble> {
        let files = self.table.files(partition, 0, i64::MAX).await?;
        Ok(files.first().map_or(ledger.export_frontier, |file| file.first_offset))
    }

    async fn is_dropped(&self, day: i32) -> Result<bool, Trouble> {
        if let Some(known) = self.dropped.lock().await.get(&day) {
            return Ok(*known);
        }
        let oldest_kept = self.snapshot.today - self.settings.retention_days;
        let dropped = self.table.is_dropped(day, oldest_kept).await?;
        self.dropped.lock().await.insert(day, dropped);
        Ok(dropped)
    }

    fn gapped(&self, partition: i32, offset: i64) -> bool {
        let holds = |gap: &table::Gap| {
            gap.partition == partition && (gap.from_offset..gap.to_offset).contains(&offset)
        };
        self.snapshot.gaps.iter().any(holds)
    }

    fn produced(&self, partition: i32, offset: i64) -> Option<Option<&str>> {
        self.produced.as_ref()?.of(partition, offset)
    }

    fn produced_in(&self, partition: i32, from: i64, upto: i64) -> impl Iterator<Item = (i64, bool)> + '_ {
        self.produced.iter().flat_map(move |produced| produced.range(partition, from, upto))
    }

    async fn look_up_schemas(&self, batch: &[Record]) -> Result<(), Trouble> {
        let mut schemas = self.schemas.lock().await;
        for record in batch {
            if let Some(id) = event::missing_schema(record.value.as_deref(), &schemas) {
                let text = (self.look_up)(id).await.map_err(Trouble::Away)?;
                schemas.insert(id, event::schema(text.as_deref()));
            }
        }
        Ok(())
    }

    async fn decode(&self, record: &Record) -> Result<Row, &'static str> {
        let schemas = self.schemas.lock().await;
        event::decode(record.value.as_deref(), record.timestamp_ms, &schemas, &self.settings.weights)
    }

    fn progress(&self, by: u64) {
        self.done.fetch_add(by, Ordering::Relaxed);
    }
}
