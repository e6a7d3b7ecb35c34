//! Every metric as it arrives at a UDP socket, byte for byte. One test in this file: a process has one recorder.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use feed_worker::config::Config;
use feed_worker::telemetry::metrics::{self, Kind, METRICS};
use feed_worker::telemetry::recorder;

/// A call and the lines that it must send.
type Case = (fn(), &'static [&'static str]);

fn calls() -> Vec<Case> {
    vec![
        (|| metrics::records_received(500), &["source.records.received:500|c"]),
        (|| metrics::rebalanced("assign"), &["source.rebalances:1|c|#kind:assign"]),
        (|| metrics::offsets_jumped(2), &["source.offset_jumps:2|c"]),
        (|| metrics::key_mismatched(3), &["source.key_mismatch:3|c"]),
        (metrics::source_error, &["source.errors.seen:1|c"]),
        (|| metrics::rejected("bad_uuid", 4), &["decode.records.rejected:4|c|#reason:bad_uuid"]),
        (|| metrics::build_info("1.2.3", 1), &["build.info:1|g|#version:1.2.3"]),
        (|| metrics::stage("decode", Duration::from_micros(1_500)), &["stage.ms:1.5|d|#stage:decode"]),
        (|| metrics::registry_looked_up("found"), &["registry.lookups:1|c|#outcome:found"]),
        (
            || metrics::batch_committed(20_000, 21.25),
            &["persist.batches.committed:1|c", "persist.rows.committed:20000|c", "end_to_end.ms:21.25|d"],
        ),
        (
            || metrics::partition_committed(7, 3, 60_000.0),
            &["persist.batch.rows:7|d", "freshness.events:10|c"],
        ),
        (
            || metrics::partition_committed(7, 3, 60_000.5),
            &["persist.batch.rows:7|d", "freshness.events:10|c", "freshness.late:10|c"],
        ),
        (|| metrics::transaction_took(0.75), &["persist.transaction.ms:0.75|d"]),
        (|| metrics::persist_conflicts(1), &["persist.conflicts:1|c"]),
        (
            || metrics::file_uploaded("bytes", 1_000, 52_000, Duration::from_micros(80_500)),
            &[
                "export.files.uploaded:1|c|#roll:bytes",
                "export.rows.uploaded:1000|c",
                "export.bytes.uploaded:52000|c",
                "export.upload.ms:80.5|d",
            ],
        ),
        (|| metrics::rows_reread(50_000), &["export.rows.reread:50000|c"]),
        (
            || metrics::export_state(2, 1, 201_326_592, 167_772_160),
            &[
                "export.behind.partitions:2|g",
                "export.halted.partitions:1|g",
                "export.memory.bytes:201326592|g",
                "export.memory_budget.bytes:167772160|g",
            ],
        ),
        (metrics::export_shed, &["export.files.shed:1|c"]),
        (metrics::export_conflict, &["export.conflicts:1|c"]),
        (|| metrics::dead_letters_sent(5), &["dead_letter.records.sent:5|c"]),
        (metrics::dead_letter_send_failed, &["dead_letter.send.failed:1|c"]),
        (|| metrics::partition_stopped("gap"), &["ledger.partitions.stopped:1|c|#reason:gap"]),
        (|| metrics::partitions_stopped(0), &["ledger.stopped.partitions:0|g"]),
        (metrics::commit_differed, &["ledger.commit_difference:1|c"]),
        (metrics::day_closed, &["day.closed:1|c"]),
        (|| metrics::day_late_seconds(5_400.5), &["day.late.seconds:5400.5|g"]),
        (|| metrics::owned_partitions(6), &["group.owned.partitions:6|g"]),
        (|| metrics::unowned_partitions(1), &["group.unowned.partitions:1|g"]),
        (|| metrics::lag_persist_seconds(11, 0.25), &["lag.persist.seconds:0.25|g|#partition:11"]),
        (|| metrics::lag_export_seconds(11, 1_800.0), &["lag.export.seconds:1800|g|#partition:11"]),
        (|| metrics::lag_status(11, 4), &["lag.status:4|g|#partition:11"]),
        (
            || metrics::retention_left_seconds(11, 604_800.0),
            &["lag.retention_left.seconds:604800|g|#partition:11"],
        ),
        (|| metrics::retention_used_percent(11, 12.5), &["lag.retention_used.percent:12.5|g|#partition:11"]),
        (|| metrics::canary_acknowledged(12.75), &["canary.produce.ms:12.75|d"]),
        (metrics::canary_failed, &["canary.failed:1|c"]),
        (|| metrics::lag_persist_records(11, 70), &["lag.persist.records:70|g|#partition:11"]),
        (
            || metrics::lag_export_records(11, 4_000_000_000),
            &["lag.export.records:4000000000|g|#partition:11"],
        ),
        (|| metrics::retried("s3"), &["retries:1|c|#dependency:s3"]),
        (|| metrics::tokens_failing_seconds(12.5), &["tokens.failing.seconds:12.5|g"]),
        (|| metrics::tokens_left_seconds(885.0), &["tokens.left.seconds:885|g"]),
        (|| metrics::statsd_dropped(6), &["statsd.lines.dropped:6|c"]),
        // What happened to nothing is not sent, and a tag cannot break out of its line.
        (|| metrics::rejected("bad_uuid", 0), &[]),
        (|| metrics::retried("a,b:c|d\ne"), &["retries:1|c|#dependency:a_b_c_d_e"]),
    ]
}

/// Reads lines until there are `count`, or time is up.
fn receive(agent: &UdpSocket, count: usize, limit: Duration) -> Vec<String> {
    agent.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let began = Instant::now();
    let mut lines = Vec::new();
    let mut packet = [0; 65_536];
    while lines.len() < count && began.elapsed() < limit {
        if let Ok(length) = agent.recv(&mut packet) {
            assert!(length <= 1432, "a packet of {length} bytes would be fragmented");
            let text = std::str::from_utf8(&packet[..length]).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
    }
    lines
}

#[test]
fn every_metric_arrives_as_written_down_here() {
    let agent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = Config::default();
    config.statsd.addr = agent.local_addr().unwrap().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.block_on(async { recorder::install(&config) }).unwrap();

    let mut expected = Vec::new();
    for (call, lines) in calls() {
        call();
        expected.extend(lines.iter().map(|line| whole(line)));
    }
    // Long before a buffer would be full: the thread sends by itself.
    let received = receive(&agent, expected.len(), Duration::from_secs(2));
    assert_eq!(received, expected);
    every_metric_was_among(&expected);

    // A burst of four times what the exporter's own queue would have held, and not more than a socket takes at
    // once, so that what is lost was lost here.
    let burst = 1_000;
    let reader = std::thread::spawn(move || {
        let lines = receive(&agent, burst, Duration::from_secs(10));
        (agent, lines)
    });
    for _ in 0..burst {
        metrics::source_error();
    }
    let (agent, lines) = reader.join().unwrap();
    let lost: u64 = lines
        .iter()
        .filter_map(|line| {
            line.strip_prefix("feed_worker.statsd.lines.dropped:")?.split('|').next()?.parse::<u64>().ok()
        })
        .sum();
    assert_eq!(lost, 0);
    assert_eq!(lines.len(), burst);

    // The end of the process sends what still waits.
    metrics::day_closed();
    let page = guard.page.clone().expect("the page is on by default");
    drop(guard);
    assert_eq!(receive(&agent, 1, Duration::from_millis(200)), [whole("day.closed:1|c")]);
    the_page_has_the_same(&page());
}

/// A line with what every one has.
fn whole(line: &str) -> String {
    let (value, tags) = line.split_once("|#").unwrap_or((line, ""));
    let separator = if tags.is_empty() { "" } else { "," };
    format!("feed_worker.{value}|#topic:feed.interactions.v1,consumer_group:feed-worker{separator}{tags}")
}

/// The page for Prometheus, from the same calls.
fn the_page_has_the_same(page: &str) {
    let who = r#"topic="feed.interactions.v1",consumer_group="feed-worker""#;
    for line in [
        format!("feed_worker_source_records_received_total{{{who}}} 500"),
        format!("feed_worker_source_rebalances_total{{{who},kind=\"assign\"}} 1"),
        // Never counted, and yet there.
        format!("feed_worker_source_rebalances_total{{{who},kind=\"lost\"}} 0"),
        format!("feed_worker_lag_persist_seconds{{{who},partition=\"11\"}} 0.25"),
        // The objective is a bucket's bound, and lies in the bucket.
        format!("feed_worker_end_to_end_ms_bucket{{{who},le=\"10\"}} 0"),
        format!("feed_worker_end_to_end_ms_bucket{{{who},le=\"25\"}} 1"),
        format!("feed_worker_end_to_end_ms_bucket{{{who},le=\"60000\"}} 1"),
        format!("feed_worker_end_to_end_ms_sum{{{who}}} 21.25"),
        format!("feed_worker_persist_batch_rows_count{{{who}}} 2"),
        "# HELP feed_worker_lag_status How the lag is to be read, by Burrow's rules: 1 well, 2 it never falls, \
         4 stopped (also by the ledger, for an operator), 5 commits of the same offset, 6 the frontier went back. \
         4 and more: nothing moves, and records wait."
            .to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    for metric in METRICS {
        let name = format!("feed_worker_{}", metric.name.replace('.', "_"));
        let kind = match metric.kind {
            Kind::Counter => format!("# TYPE {name}_total counter"),
            Kind::Gauge => format!("# TYPE {name} gauge"),
            Kind::Distribution => format!("# TYPE {name} histogram"),
        };
        assert!(page.lines().any(|line| line == kind), "{kind}\n{page}");
    }
}

/// Holds the list above to the list in the code: names, kinds and tags.
fn every_metric_was_among(lines: &[String]) {
    let mut kinds: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for line in lines {
        let (name, rest) = line.strip_prefix("feed_worker.").unwrap().split_once(':').unwrap();
        let mut parts = rest.split('|').skip(1);
        let kind = parts.next().unwrap();
        let tags = parts.next().map_or("", |tags| &tags[1..]);
        let tags = tags.split(',').skip(2).map(|tag| tag.split(':').next().unwrap()).collect();
        let before = kinds.insert(name, (kind, tags));
        assert!(before.is_none_or(|before| before.0 == kind), "{name} has two kinds");
    }
    let declared: BTreeMap<&str, (&str, Vec<&str>)> = METRICS
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                Kind::Counter => "c",
                Kind::Gauge => "g",
                Kind::Distribution => "d",
            };
            (metric.name, (kind, metric.tags.to_vec()))
        })
        .collect();
    assert_eq!(kinds, declared);
    assert_eq!(METRICS.len(), declared.len(), "a name is declared twice");
}

/// Run with `UPDATE_DOCS=1` to write the table anew.
#[test]
fn the_documentation_has_every_metric() {
    const MARK: &str = "<!-- From here on written by `UPDATE_DOCS=1 cargo test --test statsd`. -->\n";
    let mut table = "\n| metric | kind | tags | meaning |\n|---|---|---|---|\n".to_owned();
    for metric in METRICS {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let tags: Vec<String> = metric.tags.iter().map(|tag| format!("`{tag}`")).collect();
        writeln!(table, "| `{}` | {kind} | {} | {} |", metric.name, tags.join(", "), metric.about.trim())
            .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (introduction, found) = page.split_once(MARK).expect("the page has the mark");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{introduction}{MARK}{table}")).unwrap();
    } else {
        assert!(found == table, "docs/metrics.md is out of date: UPDATE_DOCS=1 cargo test --test statsd");
    }
}

/// Names belong into one file; a macro of the `metrics` crate anywhere else would go past it.
#[test]
fn metrics_are_counted_nowhere_else() {
    fn visit(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("telemetry/metrics.rs")
            {
                let text = std::fs::read_to_string(&path).unwrap();
                let uses = ["counter!(", "gauge!(", "histogram!("].iter().any(|name| text.contains(name));
                found.extend(uses.then(|| path.display().to_string()));
            }
        }
    }
    let mut found = Vec::new();
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert_eq!(found, Vec::<String>::new());
}
