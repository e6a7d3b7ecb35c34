-- One row per accepted event. Its identity is (kafka_partition, kafka_offset); recorded_at stands in
-- the key only because Postgres wants the partition column there.
CREATE TABLE user_interactions (
    kafka_partition       integer          NOT NULL,
    kafka_offset          bigint           NOT NULL,
    recorded_at           timestamptz      NOT NULL,  -- Kafka's timestamp, never before the day reached
    occurred_at           timestamptz      NOT NULL,  -- the client's clock
    ingested_at           timestamptz      NOT NULL,  -- the worker's clock
    user_id               uuid             NOT NULL,
    video_id              uuid             NOT NULL,
    interaction_type      text             NOT NULL,
    interaction_weight    real             NOT NULL,
    watch_time_seconds    double precision,
    recommendation_score  double precision,           -- null = not recommended
    position              integer,
    algorithm             text,
    experiment_variant_id text,
    feed_session_id       text,
    event_id              uuid,
    metadata              jsonb,
    PRIMARY KEY (kafka_partition, kafka_offset, recorded_at)
) PARTITION BY RANGE (recorded_at);

-- Without it the table cannot be asked about a user; it costs Postgres about as much as the rows do.
CREATE INDEX user_interactions_user ON user_interactions (user_id, occurred_at);

-- Catches what no day partition exists for; `feed-worker maintain` moves strays out of it.
CREATE TABLE user_interactions_default PARTITION OF user_interactions DEFAULT;

-- One row per topic: who may write here, and which days are finished.
CREATE TABLE topic_ledger (
    topic       text        PRIMARY KEY,
    cluster_id  text        NOT NULL,
    group_id    text        NOT NULL,
    closed_day  date        NOT NULL,  -- decided: no partition can add a row to this day or an earlier one
    success_day date        NOT NULL,  -- its _SUCCESS is known to lie in the bucket
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (success_day <= closed_day)
);

-- The ledger: progress of each partition. Every change is a compare-and-set on epoch and frontier.
CREATE TABLE partition_ledger (
    topic            text        NOT NULL REFERENCES topic_ledger (topic),
    partition        integer     NOT NULL,
    epoch            bigint      NOT NULL,
    owner            text        NOT NULL,
    persist_frontier bigint      NOT NULL,
    persist_day      date        NOT NULL,
    export_frontier  bigint      NOT NULL,
    closed_day       date        NOT NULL,
    first_day        date        NOT NULL DEFAULT '1970-01-01',  -- manifests name the partition from here on
    last_record_hash bigint,               -- of the record at persist_frontier - 1; null = none seen yet
    rejects_total    bigint      NOT NULL DEFAULT 0,
    reject_run       bigint      NOT NULL DEFAULT 0,  -- rejects in a row, up to persist_frontier
    window_records   integer     NOT NULL DEFAULT 0,  -- the running half of the ratio window
    window_rejects   integer     NOT NULL DEFAULT 0,
    previous_rejects integer     NOT NULL DEFAULT 0,  -- the full half before it
    stopped          text,                 -- why this partition waits for an operator; null = it runs
    stopped_detail   text,
    cluster_id       text        NOT NULL,
    group_id         text        NOT NULL,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition),
    CHECK (export_frontier <= persist_frontier),
    CHECK (closed_day < persist_day)
) WITH (fillfactor = 50);  -- updated with every batch: room for HOT updates in the page

-- One row per Parquet object. [first_offset, next_offset) tile the offsets of a partition.
CREATE TABLE export_files (
    topic           text        NOT NULL,
    partition       integer     NOT NULL,
    first_offset    bigint      NOT NULL,
    next_offset     bigint      NOT NULL,
    day             date        NOT NULL,
    object_key      text        NOT NULL UNIQUE,
    rows            bigint      NOT NULL,
    bytes           bigint      NOT NULL,
    row_hash        text        NOT NULL,
    recorded_at_min timestamptz NOT NULL,
    recorded_at_max timestamptz NOT NULL,
    epoch           bigint      NOT NULL,
    entered_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, first_offset),
    CHECK (first_offset < next_offset),
    CHECK (rows > 0)
);
CREATE INDEX export_files_day ON export_files (topic, day);

-- Offsets that were never read, each accepted by an operator.
CREATE TABLE ingest_gaps (
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    from_offset  bigint      NOT NULL,
    to_offset    bigint      NOT NULL,  -- exclusive
    day          date        NOT NULL,  -- persist_day when it was accepted
    reason       text        NOT NULL,
    accepted_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, from_offset)
);

-- What operators decided, for whoever asks later.
CREATE TABLE operator_actions (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    command   text        NOT NULL,
    reason    text        NOT NULL,
    detail    jsonb       NOT NULL
);
