//! Every key of the configuration, with its default.
//!
//! A number says what breaks if it is larger or smaller; its unit is the last part of its name.

use std::net::{Ipv4Addr, SocketAddr};

use super::properties::Properties;
use super::secret::Secret;
use super::section::{Key, Section, sections};
use crate::event::InteractionTypes;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `human` on a terminal, else `json`.
    #[default]
    Auto,
    Json,
    Human,
}

/// How a Kafka client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KafkaAuth {
    /// Not by SASL: not at all, by a certificate, or as `kafka.properties` say.
    #[default]
    None,
    /// SASL/SCRAM-SHA-512.
    Scram,
    /// Amazon MSK's IAM, by SASL/OAUTHBEARER.
    MskIam,
    /// SASL/OAUTHBEARER with a JWT that another program keeps in a file.
    TokenFile,
}

sections! {
    /// The brokers, the two topics, and the consumer group.
    kafka: Kafka {
        /// Brokers to begin with, `host:port,host:port`. Required.
        bootstrap_servers: String = String::new();
        /// Topic that is read. It is part of every object's name: letters, digits, `.`, `_` and `-`.
        topic: String = "feed.interactions.v1".to_owned();
        /// Topic that rejected records go to, bytes untouched.
        dlq_topic: String = "feed.interactions.v1.dlq".to_owned();
        /// Topic that `produce --canary` writes to. Nobody reads it.
        canary_topic: String = "feed.interactions.v1.canary".to_owned();
        /// Consumer group. The ledger belongs to one group: a worker of another one is refused.
        group_id: String = "feed-worker".to_owned();
        /// Name of this client in the brokers' logs and quotas.
        client_id: String = "feed-worker".to_owned();
        /// A worker that is silent for so long loses its partitions. Larger: a dead or stopped worker delays
        /// its partitions for longer. Smaller: a short pause of a healthy one costs a rebalance.
        session_timeout_ms: u64 = 45_000;
        /// Distance of the heartbeats, at most a third of the session timeout. Larger: rebalances are noticed
        /// later. Smaller: more requests, nothing gained. Unless set: a fifteenth of the session timeout.
        heartbeat_interval_ms: u64 = 3_000;
        /// A worker whose poll thread hangs for so long leaves the group. Larger: a hung worker is noticed
        /// later. Smaller: must stay above the session timeout and the assign deadline.
        max_poll_interval_ms: u64 = 300_000;
        /// How long taking partitions may wait for the ledger before the worker leaves the group and rejoins.
        /// Larger: a slow Postgres holds up the group's rebalance. Smaller: it causes needless rejoining.
        assign_deadline_ms: u64 = 10_000;
        /// How long giving partitions back may take; what is not finished then is left to the next owner.
        /// Larger: must stay below the session timeout. Smaller: more is read a second time. Unless set: a third
        /// of the session timeout, at most 5000.
        revoke_deadline_ms: u64 = 5_000;
        /// Distance of the commits to Kafka. They only inform lag tools, the ledger is what counts. Larger:
        /// the lag that they show is older. Smaller: more requests.
        commit_interval_ms: u64 = 1_000;
        /// KiB of memory that records fetched ahead may take; part of the memory budget, and each broker may add one
        /// answer to it (a sixteenth, at least 1 MiB, compressed). Larger: more memory, more fetched in vain when
        /// partitions move. Smaller: catching up gets slower.
        queued_kbytes_max: u64 = 16_384;
        /// How long a broker may gather records before it answers a fetch that finds little. 0: it answers with the
        /// first record, up to once for each. Larger: rows are visible later, by as much; with 5, at 500 events/s on
        /// 64 partitions, brokers take a quarter of the CPU. Smaller, but not 0: every worker asks every broker 1000/N
        /// times a second, also when there is nothing. Keep 0 with tiered storage on brokers before Kafka 3.8: they give
        /// up a read from the tier after this time.
        fetch_wait_ms_max: u64 = 0;
        /// A partition may give nothing for so long while another client reads records of it; found so twice,
        /// the worker ends and is started anew. Larger: a client that hangs is noticed later. Smaller: must
        /// stay above the assign deadline.
        silence_ms_max: u64 = 120_000;
        /// How often the topic's partitions are asked for, and a record of each is read again: another one stands there if
        /// the topic was created anew. Larger: added partitions, and another topic, are noticed later. Smaller: more
        /// requests; below a second nothing is gained.
        metadata_refresh_ms: u64 = 60_000;
        /// Work on a topic with `message.timestamp.type=CreateTime` too. Then producers' clocks decide what
        /// day a record belongs to, and days close late or never.
        allow_create_time: bool = false;
        /// How this client says who it is: `none` (or by certificate), `scram` (SASL/SCRAM-SHA-512), `msk_iam`
        /// (Amazon MSK; credentials from the usual AWS places), `token_file` (SASL/OAUTHBEARER). All but `none`
        /// need `kafka.tls`.
        auth: KafkaAuth = KafkaAuth::None;
        /// TLS to the brokers, with their certificates and names checked.
        tls: bool = false;
        /// PEM file of the CAs that brokers' certificates may be of. Unless set: the system's.
        ca_file: Option<String> = None;
        /// PEM file of this client's certificate, for brokers that want one (mTLS).
        certificate_file: Option<String> = None;
        /// PEM file of the certificate's private key.
        private_key_file: Option<String> = None;
        /// Password of the private key, if it has one.
        private_key_password: Option<Secret> = None;
        /// User, for `kafka.auth: scram`.
        username: Option<String> = None;
        /// Password, for `kafka.auth: scram`.
        password: Option<Secret> = None;
        /// File of the JWT, for `kafka.auth: token_file`; read again every minute at the least.
        token_file: Option<String> = None;
        /// AWS region of the brokers, for `kafka.auth: msk_iam`. Unless set: `s3.region`.
        region: Option<String> = None;
        /// How long the topic keeps its records, where brokers cannot be asked for it: with tokens (`kafka.auth`:
        /// `msk_iam`, `token_file`). Unless set: they are asked.
        retention_ms: Option<u64> = None;
        /// Further librdkafka properties. Keys that the worker
        /// sets itself are refused. By environment: `FEED_WORKER_KAFKA__PROPERTIES__SASL_MECHANISM`.
        properties: Properties = Properties::default();
    }

    /// The schema registry that Avro records' schema ids are looked up in.
    registry: Registry {
        /// Address of a Confluent-compatible registry, without user or password. Required.
        url: String = String::new();
        /// User for HTTP basic authentication.
        username: Option<String> = None;
        /// Password for HTTP basic authentication.
        password: Option<Secret> = None;
        /// Token for HTTP bearer authentication.
        token: Option<Secret> = None;
        /// Deadline of one look-up. Larger: a hanging registry is noticed later. Smaller: a slow one counts as
        /// an outage, and partitions wait.
        timeout_ms: u64 = 3_000;
        /// A schema id is taken for missing, and its records rejected, only after the registry has said so for
        /// this long. Larger: one bad record holds up its partition for longer. Smaller: a registry that lags
        /// behind its own replica costs good records.
        missing_after_ms: u64 = 60_000;
    }

    /// Table and ledger.
    postgres: Postgres {
        /// `postgres://user:password@host:port/database`. Required. `DATABASE_URL` is another name for it.
        url: Secret = Secret::default();
        /// More servers, as URLs with white space or commas between them: the first of them is server 1. Append only: the
        /// ledger knows servers by their numbers. `postgres.url` is server 0, which also knows the topic's days.
        more_urls: Secret = Secret::default();
        /// Which partitions are on another server than 0: `12-23: 1, 30: 2`. A partition stays where it was first
        /// consumed: a worker that is configured otherwise refuses to run.
        placement: String = String::new();
        /// Connections that write to each server, 1 to 16; a partition always uses the same one. Larger: more load on
        /// Postgres, smaller batches. Smaller: one slow transaction holds up more partitions.
        lanes: usize = 2;
        /// Limit that Postgres itself sets on a statement and on an idle transaction. Larger: a stopped owner
        /// holds its ledger rows for longer. Smaller: a large batch on a busy server never gets through.
        statement_timeout_ms: u64 = 5_000;
        /// Limit of one answer of Postgres, seen from here; then the connection is thrown away. Larger: a
        /// connection into a black hole is noticed later. Smaller: must stay above the statement timeout.
        deadline_ms: u64 = 10_000;
        /// Limit for opening a connection. Larger: a dead address is noticed later. Smaller: a busy server is
        /// taken for a dead one.
        connect_timeout_ms: u64 = 5_000;
    }

    /// The bucket for the Parquet files. Credentials come from the usual AWS places, never from here.
    s3: S3 {
        /// Name of the bucket.
        bucket: String = "video-window-interactions".to_owned();
        /// What every object's key begins with, without a slash at either end.
        prefix: String = "exports".to_owned();
        /// Region. Unless set: what the AWS configuration of the environment says.
        region: Option<String> = None;
        /// Address of an S3-compatible store. Unless set: AWS.
        endpoint: Option<String> = None;
        /// `http://host/bucket/key` in place of `http://bucket.host/key`; most stores other than AWS want it.
        force_path_style: bool = false;
        /// Limit of one attempt at a request. Larger: a hanging upload is noticed later, and a restore has to
        /// wait for longer. Smaller: a large file on a slow line never gets through.
        timeout_ms: u64 = 30_000;
        /// Limit for opening a connection.
        connect_timeout_ms: u64 = 3_000;
    }

    /// When records that were read go to Postgres: at the first limit that is reached.
    batch: Batch {
        /// Rows. Larger: fewer, longer transactions, more memory. Smaller: each costs more per row.
        rows_max: usize = 20_000;
        /// Age of the oldest row. Larger: rows are seen later. Smaller: more transactions at low rates.
        age_ms_max: u64 = 20;
        /// Bytes of values; part of the memory budget. Larger: more memory. Smaller: large events make
        /// small batches.
        bytes_max: usize = 8_388_608;
    }

    /// When a Parquet file is closed and uploaded: at the first limit that is reached, and at the day's end.
    roll: Roll {
        /// Rows. Larger: fewer, larger objects. Smaller: more requests to S3 and slower reading.
        rows_max: u64 = 1_000_000;
        /// Bytes as they will be uploaded. Larger: needs more of the memory budget, and more is read back
        /// after a takeover. Smaller: more objects.
        bytes_max: u64 = 67_108_864;
        /// Age of the file's first row. Larger: rows reach S3 later. Smaller: small files at low rates.
        age_ms_max: u64 = 3_600_000;
    }

    /// Memory, and catching up from the table.
    export: Export {
        /// The whole budget in bytes: fetch queue, batches and open files. At the limit the largest file rolls.
        /// Larger: must fit the container. Smaller: smaller files when one worker has many partitions.
        memory_bytes_max: u64 = 150_994_944;
        /// Rows read back from the table at a time; fewer, if so many would take more than an eighth of the memory
        /// budget. Larger: longer statements, more memory, and other partitions wait while they are encoded. Smaller:
        /// catching up gets slower.
        catch_up_rows: u64 = 10_000;
        /// How long an assignment must have stood before catching up begins. Larger: files come later after a
        /// takeover. Smaller: reads in vain while partitions still move.
        settle_ms: u64 = 2_000;
        /// At shutdown an open file with so many rows or more is uploaded; a smaller one is dropped and read
        /// back by the next owner. Larger: more is read again. Smaller: each deployment leaves small files.
        shutdown_rows_min: u64 = 10_000;
        /// Rows per Parquet row group. Larger: more memory per open file. Smaller: worse compression, and less
        /// that a reader can skip at once.
        row_group_rows: usize = 262_144;
    }

    /// Limits that stop the worker when a flood of bad records would drain the topic into the DLQ.
    rejects: Rejects {
        /// Rejects in a row in one partition. Larger: more is dead-lettered before somebody looks. Smaller: one
        /// bad client stops the worker.
        run_max: u64 = 1_000;
        /// Share of rejects in the window, above 0 up to 1 (1 = never stops).
        ratio_max: f64 = 0.2;
        /// Records that the share is taken over. Larger: slower to notice. Smaller: chance alone trips it.
        window: u64 = 10_000;
    }

    /// Closing days, and how long the table keeps them.
    day: Day {
        /// How long after midnight, by Postgres's clock, an empty partition is taken to be past its day.
        /// Larger: the manifest comes later. Smaller: must be more than the clocks of brokers differ by.
        close_delay_ms: u64 = 300_000;
        /// Days that the table keeps; a day is dropped only when it is closed. S3 keeps them all.
        retention_days: u32 = 90;
        /// Day partitions that `feed-worker maintain` makes ahead. Smaller: fewer days of missed runs before
        /// rows land in the default partition.
        ahead_days: u32 = 7;
    }

    /// The types that are accepted.
    interactions: Interactions {
        /// Each type with its weight, `name:weight,…`. Any other type is rejected. `INTERACTION_WEIGHTS` is
        /// another name for it.
        weights: String = InteractionTypes::default_text().to_owned();
    }

    /// What SIGTERM starts.
    shutdown: Shutdown {
        /// Limit for draining and uploading; then the worker leaves as it is, and the next owner does the rest.
        /// Larger: must stay below the grace. Smaller: more is read a second time.
        deadline_ms: u64 = 25_000;
        /// What the platform grants before SIGKILL (`terminationGracePeriodSeconds`).
        grace_ms: u64 = 60_000;
    }

    /// The HTTP port for probes.
    health: Health {
        /// Address and port that are listened on.
        addr: SocketAddr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
        /// A pipeline that has not moved for so long is reported dead. Larger: a hung worker lives on.
        /// Smaller: an outage of Postgres gets a healthy worker killed; must stay above `postgres.deadline_ms`.
        stall_ms: u64 = 60_000;
    }

    /// Where metrics go.
    statsd: Statsd {
        /// `host:port` of a DogStatsD agent. Nothing waits for it, and it need not be there.
        addr: String = "127.0.0.1:8125".to_owned();
        /// What every metric's name begins with.
        prefix: String = "feed_worker".to_owned();
        /// Send metrics at all.
        enabled: bool = true;
    }

    /// What is measured, and the page that Prometheus reads.
    metrics: Metrics {
        /// Answer `GET /metrics` on the health port, in Prometheus's text format. Statsd lines are sent or not
        /// regardless of it.
        prometheus: bool = true;
        /// How often the brokers are asked for the partitions' ends. Larger: lag is older, and stalls are noticed
        /// later (after ten of it); an agent forgets a gauge that is silent for longer than its flush interval of
        /// 10 s. Smaller: a client's requests more often.
        lag_interval_ms: u64 = 10_000;
    }

    /// Where traces go: one span a batch, by OpenTelemetry's protocol (OTLP).
    traces: Traces {
        /// Where a collector takes spans as protobuf over HTTP: `http://host:4318/v1/traces`. Unless set: there are none.
        /// Headers come from `OTEL_EXPORTER_OTLP_HEADERS`.
        endpoint: Option<String> = None;
        /// Share of the batches that are traced, above 0 up to 1. Larger: more for the collector to keep. Smaller: the
        /// slow batch that is looked for may be none of them.
        ratio: f64 = 1.0;
    }

    /// Log lines, to stderr.
    log: Log {
        /// `auto` (human on a terminal, else JSON), `json` or `human`.
        format: LogFormat = LogFormat::Auto;
        /// `error`, `warn`, `info`, `debug`, `trace`, or directives like `info,feed_worker::kafka=debug`.
        /// `RUST_LOG`, if set, goes before it.
        level: String = "info".to_owned();
    }
}
