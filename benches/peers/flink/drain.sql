CREATE TEMPORARY TABLE events (
    userId STRING, videoId STRING, interactionType STRING, watchTime DOUBLE, `timestamp` TIMESTAMP(3), eventId STRING,
    feedSessionId STRING, algorithm STRING, experimentVariantId STRING, recommendationScore DOUBLE, `position` INT,
    metadata MAP<STRING, STRING>,
    kafka_partition INT METADATA FROM 'partition' VIRTUAL,
    kafka_offset BIGINT METADATA FROM 'offset' VIRTUAL,
    recorded_at TIMESTAMP(3) METADATA FROM 'timestamp' VIRTUAL
) WITH (
    'connector' = 'kafka', 'topic' = 'feed.interactions.v1', 'properties.group.id' = '${PEER_GROUP}',
    'properties.bootstrap.servers' = '${FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS}',
    'scan.startup.mode' = 'earliest-offset', ${PEER_BOUNDED}
    'format' = 'framed-avro', 'framed-avro.registry' = '${FEED_WORKER_REGISTRY__URL}', 'framed-avro.schema' = '${schema}'
);
CREATE TEMPORARY VIEW interactions AS SELECT
    kafka_partition, kafka_offset, recorded_at, `timestamp` AS occurred_at,
    CAST(CURRENT_TIMESTAMP AS TIMESTAMP(3)) AS ingested_at, userId AS user_id, videoId AS video_id,
    LOWER(interactionType) AS interaction_type,
    CAST(CASE LOWER(interactionType) WHEN 'complete' THEN 5 WHEN 'share' THEN 4 WHEN 'comment' THEN 4 WHEN 'like' THEN 3
        WHEN 'follow' THEN 3 WHEN 'skip' THEN -1 ELSE 1 END AS FLOAT) AS interaction_weight,
    watchTime AS watch_time_seconds, recommendationScore AS recommendation_score, `position`, algorithm,
    experimentVariantId AS experiment_variant_id, feedSessionId AS feed_session_id, eventId AS event_id,
    CASE WHEN metadata IS NULL THEN CAST(NULL AS STRING) ELSE JSON_STRING(metadata) END AS metadata
FROM events;
CREATE TEMPORARY TABLE user_interactions (
    kafka_partition INT, kafka_offset BIGINT, recorded_at TIMESTAMP(3), occurred_at TIMESTAMP(3), ingested_at TIMESTAMP(3),
    user_id STRING, video_id STRING, interaction_type STRING, interaction_weight FLOAT, watch_time_seconds DOUBLE,
    recommendation_score DOUBLE, `position` INT, algorithm STRING, experiment_variant_id STRING, feed_session_id STRING,
    event_id STRING, metadata STRING,
    PRIMARY KEY (kafka_partition, kafka_offset, recorded_at) NOT ENFORCED
) WITH (
    'connector' = 'jdbc', 'table-name' = 'user_interactions',
    'url' = '${PEER_JDBC_URL}', 'sink.buffer-flush.max-rows' = '5000', 'sink.buffer-flush.interval' = '200 ms'
);
CREATE TEMPORARY TABLE exports (
    kafka_partition INT, kafka_offset BIGINT, recorded_at TIMESTAMP(3), occurred_at TIMESTAMP(3), ingested_at TIMESTAMP(3),
    user_id STRING, video_id STRING, interaction_type STRING, interaction_weight FLOAT, watch_time_seconds DOUBLE,
    recommendation_score DOUBLE, `position` INT, algorithm STRING, experiment_variant_id STRING, feed_session_id STRING,
    event_id STRING, metadata STRING, dt STRING
) PARTITIONED BY (dt) WITH (
    'connector' = 'filesystem', 'path' = 's3://${FEED_WORKER_S3__BUCKET}/${PEER_PREFIX}', 'format' = 'parquet',
    'parquet.compression' = 'ZSTD'
);
EXECUTE STATEMENT SET BEGIN
INSERT INTO user_interactions SELECT * FROM interactions;
INSERT INTO exports SELECT *, DATE_FORMAT(recorded_at, 'yyyy-MM-dd') FROM interactions;
END;
