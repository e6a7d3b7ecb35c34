//! A file of events, line by line, into the topic.
//!
//! What this module guarantees:
//!
//! 1. Every line is judged by the worker's own rules before it is sent; what the worker would reject is not sent,
//!    and its number and reason are kept.
//! 2. A run that was killed at any moment and started again sends what is missing, and nothing twice. Two things
//!    carry that: every record has the run's name and the line's number in its headers, so the topic itself says
//!    what is there; and a journal says from where on to look. One request at a time is under way to each broker,
//!    so little of a killed run can arrive late; what comes within the settling time is still found. Should a
//!    broker hold a request back for longer, the double is noticed at the end and reported.
//! 3. Within a partition, records lie in the order of the lines.

pub mod bad_lines;
pub mod doubles;
pub mod journal;
pub mod lines;
pub mod present;
pub mod tracker;

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;

use super::avro;
use super::generator::Encoding;
use super::report::{Deliveries, Sent};
use super::sender::{self, wait_until};
use crate::event::{Decoder, InteractionTypes, Reject, RejectReason, Verdict};
use crate::kafka::{probe, security};
use crate::outside::now_ms;
use bad_lines::{BadLine, BadLines};
use doubles::{Met, Unchecked};
use journal::{Begin, Journal};
use lines::{Line, Lines, Position};
use present::{Present, Scan};
use tracker::{Mark, Tracker};

/// Names the run in each record.
pub const RUN_HEADER: &str = "feed_worker.produce.run";
/// The line's number in the input, from 1.
pub const LINE_HEADER: &str = "feed_worker.produce.line";

/// Larger: more lines to look for in the topic after a kill. Smaller: the disk is synced more often.
const MARK_DISTANCE: Duration = Duration::from_millis(250);
/// Lines that may be under way. Larger: more memory, and more to look for after a kill.
const OPEN_LINES_MAX: usize = 100_000;
/// What a killed run had under way does not come later than this; so much is read again for doubles.
const LATE_MAX: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(15);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(330);

pub enum Format {
    /// The line as it is.
    Json,
    /// The Confluent wire format.
    Avro { encoder: avro::Encoder, schema_id: u32 },
}

impl Format {
    fn encoding(&self) -> Encoding {
        match self {
            Self::Json => Encoding::Json,
            Self::Avro { .. } => Encoding::Avro,
        }
    }
}

pub struct Job {
    pub input: Box<dyn BufRead + Send>,
    pub topic: String,
    /// What the topic takes in one batch; None: not known.
    pub batch_bytes_max: Option<u64>,
    pub format: Format,
    pub types: InteractionTypes,
    /// Without it a killed run cannot go on.
    pub journal: Option<PathBuf>,
    pub bad_lines: Option<PathBuf>,
    pub events_per_second: Option<f64>,
    /// How long nothing of a killed run may have come before it is taken to be over.
    pub settle: Duration,
}

/// What was asked for would spoil something: nothing was touched.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The topic takes a line at no time, or not until its limit is another.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.told())]
pub struct TooLarge {
    line: u64,
    bytes_max: Option<u64>,
}

impl TooLarge {
    /// A line that was taken out would move the numbers of those behind it, which are in the topic already.
    fn told(&self) -> String {
        let line = self.line;
        match self.bytes_max {
            Some(bytes) => format!(
                "line {line} is larger than the topic takes (its max.message.bytes is {bytes}): raise that, or make the line an \
                 empty one, then the same command goes on"
            ),
            None => format!(
                "the topic does not take the batch of line {line}, and does not tell its limit (max.message.bytes): set \
                 kafka.properties.batch.size below it, then the same command goes on"
            ),
        }
    }
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub lines: u64,
    /// By all runs of this journal.
    pub delivered: u64,
    pub bad: u64,
    /// The line after which this run went on.
    pub resumed_after: Option<u64>,
    /// Lines after that one that an earlier run had brought into the topic.
    pub found: u64,
    pub doubles: u64,
    pub first_bad: Vec<BadLine>,
    pub is_complete: bool,
}

/// Sends until the input ends or `stop` is set. `read_bytes` tells how far it is. Blocks.
pub fn run(
    job: Job,
    config: &ClientConfig,
    deliveries: &Arc<Deliveries>,
    read_bytes: &AtomicU64,
    stop: &AtomicBool,
) -> anyhow::Result<Outcome> {
    // Before there is a journal, which says that something was begun.
    job.bad_lines.as_deref().map(bad_lines::refuse_other_contents).transpose()?;
    let mut lines = Lines::new(job.input);
    let begun = begin(&job.topic, &job.format, job.journal.as_deref(), job.settle, config, &mut lines)?;
    let tracker = Arc::new(Tracker::new(begun.mark.clone(), begun.present.lines.clone()));
    let context = Reports { tracker: Arc::clone(&tracker), deliveries: Arc::clone(deliveries) };
    let producer: ThreadedProducer<Reports> = producer_config(config, job.batch_bytes_max)
        .create_with_context(context)
        .context("starting the Kafka producer")?;
    let bad_lines = BadLines::open(job.bad_lines.as_deref(), begun.mark.position.lines)?;
    let resumed_after = begun.is_resumed.then_some(begun.mark.position.lines);
    let mut sending = Sending {
        topic: &job.topic,
        format: &job.format,
        events_per_second: job.events_per_second,
        config,
        begun,
        tracker,
        producer,
        types: &job.types,
        decoder: Decoder::new(job.types.clone()),
        bad_lines,
        value: Vec::new(),
        verify_to: None,
        started: Instant::now(),
        last_mark: Instant::now(),
        stop,
    };
    let is_at_end = sending.send_all(&mut lines, read_bytes)?;
    let flushed = sending.producer.flush(FLUSH_TIMEOUT);
    sending.mark()?;
    if let Some((line, error)) = sending.tracker.failure() {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            return Err(TooLarge { line, bytes_max: job.batch_bytes_max }.into());
        }
        let told = format!("line {line} was not delivered; the same command again goes on from here");
        return Err(anyhow::Error::from(error).context(told));
    }
    flushed.with_context(|| format!("{} records were not acknowledged", sending.tracker.open()))?;
    sending.check_doubles(lines.position().lines)?;
    let mark = sending.tracker.mark();
    Ok(Outcome {
        lines: mark.position.lines,
        delivered: mark.delivered,
        bad: mark.left_out,
        resumed_after,
        found: sending.begun.present.lines.len() as u64,
        doubles: mark.doubles,
        first_bad: sending.bad_lines.first().to_vec(),
        is_complete: is_at_end,
    })
}

/// Where a run begins: at the first line, or where an earlier one was killed.
struct Begun {
    run: String,
    journal: Option<Journal>,
    mark: Mark,
    present: Present,
    is_resumed: bool,
}

fn begin<R: BufRead>(
    topic: &str,
    format: &Format,
    path: Option<&std::path::Path>,
    settle: Duration,
    config: &ClientConfig,
    lines: &mut Lines<R>,
) -> anyhow::Result<Begun> {
    let cluster = probe::cluster_id(config, TIMEOUT).context("asking the broker which cluster it is of")?;
    let fresh = Begin {
        version: journal::VERSION,
        run: uuid::Uuid::new_v4().to_string(),
        cluster: cluster.unwrap_or_default(),
        topic: topic.to_owned(),
        encoding: format.encoding().as_str().to_owned(),
        offsets: Scan { config, topic, run: "" }.ends()?,
    };
    ensure!(
        !fresh.offsets.is_empty(),
        "there is no topic {topic}: create it with `feed-worker topics apply`"
    );
    let (mut journal, found) = match path.map(Journal::open).transpose()? {
        Some((journal, found)) => (Some(journal), found),
        None => (None, None),
    };
    let Some((earlier, mut mark)) = found else {
        if let Some(journal) = &mut journal {
            journal.begin(&fresh)?;
        }
        let mark = Mark { offsets: fresh.offsets, ..Mark::default() };
        return Ok(Begun { run: fresh.run, journal, mark, present: Present::default(), is_resumed: false });
    };
    for (what, was, is) in [
        ("cluster", &earlier.cluster, &fresh.cluster),
        ("topic", &earlier.topic, &fresh.topic),
        ("encoding", &earlier.encoding, &fresh.encoding),
    ] {
        ensure!(
            was == is,
            "the journal is of a run with the {what} {was}, not {is}: remove it to begin anew"
        );
    }
    let is_same = lines.skip_to(&mark.position).context("reading the input")?;
    ensure!(
        is_same,
        "the journal is of another input: the first {} lines are not those that were sent; remove it to begin anew",
        mark.position.lines
    );
    let scan = Scan { config, topic, run: &earlier.run };
    let mut present = scan.settled(&mark.offsets, settle)?;
    present.lines.retain(|line, _| *line > mark.position.lines);
    // Of several kills the first one counts: whoever was killed before the end has not looked.
    mark.unchecked
        .get_or_insert_with(|| Unchecked { lines: mark.position.lines, offsets: mark.offsets.clone() });
    Ok(Begun { run: earlier.run, journal, mark, present, is_resumed: true })
}

/// Order and one copy matter here, not latency.
fn producer_config(client: &ClientConfig, batch_bytes_max: Option<u64>) -> ClientConfig {
    let mut config = sender::producer_config(client, 50);
    sender::fit_batches(&mut config, batch_bytes_max);
    config
        // More of them would wait at the broker behind the first, out of sight, after the client was killed.
        .set("max.in.flight.requests.per.connection", "1")
        // Longer than a broker takes to come back.
        .set("message.timeout.ms", "300000")
        .set("queue.buffering.max.kbytes", "65536");
    config
}

struct Reports {
    tracker: Arc<Tracker>,
    deliveries: Arc<Deliveries>,
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn error(&self, error: KafkaError, reason: &str) {
        security::tell(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        crate::kafka::tokens::current()
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<(u64, Sent)>;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: Box<(u64, Sent)>) {
        let (line, sent) = *opaque;
        match result {
            Ok(message) => {
                self.tracker.delivered(line, message.partition(), message.offset());
                let bytes = message.payload_len();
                self.deliveries.record_delivered(&sent, message.partition(), message.offset(), bytes);
            }
            Err((error, _)) => {
                self.tracker.failed(line, error);
                self.deliveries.record_failed(&sent, error.to_string());
            }
        }
    }
}

struct Sending<'r> {
    topic: &'r str,
    format: &'r Format,
    events_per_second: Option<f64>,
    config: &'r ClientConfig,
    begun: Begun,
    tracker: Arc<Tracker>,
    producer: ThreadedProducer<Reports>,
    types: &'r InteractionTypes,
    decoder: Decoder,
    bad_lines: BadLines,
    /// The value that is sent next.
    value: Vec<u8>,
    /// Up to where records are looked through for doubles.
    verify_to: Option<tracker::Offsets>,
    started: Instant,
    last_mark: Instant,
    stop: &'r AtomicBool,
}

impl Sending<'_> {
    /// True: the input has ended.
    fn send_all<R: BufRead>(&mut self, lines: &mut Lines<R>, read_bytes: &AtomicU64) -> anyhow::Result<bool> {
        let mut sent: u64 = 0;
        while !self.is_over() {
            let Some((position, line)) = lines.read().context("reading the input")? else {
                return Ok(true);
            };
            read_bytes.store(position.bytes, Ordering::Relaxed);
            if let Some((partition, offset)) = self.begun.present.lines.get(&position.lines) {
                self.tracker.present(position, *partition, *offset);
            } else if let Some(key) = self.judge(&position, &line)? {
                let intended = match self.events_per_second {
                    Some(rate) => self.started + Duration::from_secs_f64(sent as f64 / rate),
                    None => Instant::now(),
                };
                wait_until(intended, self.stop);
                self.send(position, &key, intended)?;
                sent += 1;
            }
            if self.last_mark.elapsed() >= MARK_DISTANCE {
                self.mark()?;
            }
        }
        Ok(false)
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.tracker.failure().is_some()
    }

    /// The record's key, with its value in `self.value`; or nothing, and the line is among the bad ones.
    fn judge(&mut self, position: &Position, line: &Line<'_>) -> anyhow::Result<Option<String>> {
        let verdict = match *line {
            Line::TooLong { bytes } => {
                Err(Reject::new(RejectReason::ValueTooLarge).detail(format!("{bytes} bytes")))
            }
            // No text: the decoder would take it for Avro and ask for its schema.
            Line::Whole([0, ..]) => Err(Reject::new(RejectReason::BadFraming).detail("not JSON")),
            Line::Whole(text) => match self.decoder.decode(Some(text), now_ms()) {
                Verdict::Accept(event) => Ok((event, text)),
                Verdict::Reject(reject) => Err(reject),
                Verdict::NeedSchema(_) => Err(Reject::new(RejectReason::BadFraming)),
            },
        };
        match verdict {
            Ok((event, text)) => {
                self.value.clear();
                match self.format {
                    Format::Json => self.value.extend_from_slice(text),
                    Format::Avro { encoder, schema_id } => {
                        avro::write_framing(*schema_id, &mut self.value);
                        encoder.encode_interaction(&event, self.types, &mut self.value)?;
                    }
                }
                Ok(Some(event.user_id.to_string()))
            }
            Err(reject) => {
                self.bad_lines.add(BadLine::new(position.lines, &reject))?;
                self.tracker.left_out(position.clone());
                Ok(None)
            }
        }
    }

    fn send(&mut self, position: Position, key: &str, intended: Instant) -> anyhow::Result<()> {
        while self.tracker.open() >= OPEN_LINES_MAX {
            if self.is_over() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let line = position.lines;
        let number = line.to_string();
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: RUN_HEADER, value: Some(self.begun.run.as_str()) })
            .insert(Header { key: LINE_HEADER, value: Some(number.as_str()) });
        let sent = Sent { intended, is_warm_up: false, encoding: self.format.encoding(), planted: None };
        let mut message = BaseRecord::with_opaque_to(self.topic, Box::new((line, sent)))
            .key(key)
            .payload(self.value.as_slice())
            .headers(headers);
        self.tracker.sent(position);
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    if self.is_over() {
                        self.tracker.not_sent();
                        return Ok(());
                    }
                    message = returned;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    self.tracker.not_sent();
                    return Err(error).with_context(|| format!("sending line {line} to {}", self.topic));
                }
            }
        }
    }

    /// Bad lines first: a mark counts them.
    fn mark(&mut self) -> anyhow::Result<()> {
        self.last_mark = Instant::now();
        let mark = self.tracker.mark();
        self.bad_lines.sync()?;
        if let Some(journal) = &mut self.begun.journal {
            journal.mark(&mark)?;
        }
        if mark.unchecked.is_some() && self.verify_to.is_none() && self.started.elapsed() > LATE_MAX {
            self.verify_to = Some(self.scan().ends()?);
        }
        Ok(())
    }

    /// Looks for what came of a killed run after it was taken to be over, and keeps what it has found.
    fn check_doubles(&mut self, lines: u64) -> anyhow::Result<()> {
        let Some(unchecked) = self.tracker.mark().unchecked else { return Ok(()) };
        let ends = match self.verify_to.take() {
            Some(ends) => ends,
            None => self.scan().ends()?,
        };
        let mut met = Met::new(unchecked.lines, lines);
        let mut offsets = unchecked.offsets;
        self.scan().read_to(ends, &mut offsets, |line, _| met.take(line))?;
        self.tracker.checked(met.doubles);
        self.mark()
    }

    fn scan(&self) -> Scan<'_> {
        Scan { config: self.config, topic: self.topic, run: &self.begun.run }
    }
}
