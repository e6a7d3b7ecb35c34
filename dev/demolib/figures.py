"""Every final figure, read from topic, DLQ, table and bucket. Runs under the stack's clock: S3 checks the time of a
request. Also leaves the files and the dead letters where a person can look at them."""
import base64
import json
import sys
import time
from collections import Counter
from pathlib import Path

import boto3
import psycopg
import pyarrow.parquet as pq
from botocore.config import Config
from botocore.handlers import set_list_objects_encoding_type_url
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from . import settings

ORIGIN = "__connect.errors."
REASON = "feed_worker.reject.reason"
BATCH = 5000
SLICE_S, STALL_S = 0.2, 15.0


def main():
    exports = settings.stack_exports()
    kill_clock = float(sys.argv[1])
    figures = {
        "profile": settings.PROFILE,
        "topic": read_topic(exports),
        "dead_letters": read_dead_letters(exports),
        "table": read_table(exports, kill_clock),
        "bucket": read_bucket(exports),
    }
    settings.FIGURES.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def new_consumer(exports):
    return Consumer(
        {
            "bootstrap.servers": exports["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"],
            "group.id": "demo-figures",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
        }
    )


def ranges(consumer, topic):
    """partition → (first offset, end offset)"""
    found = consumer.list_topics(topic, timeout=15).topics[topic]
    return {
        partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=15)
        for partition in sorted(found.partitions)
    }


def read_topic(exports):
    consumer = new_consumer(exports)
    try:
        found = ranges(consumer, settings.TOPIC)
    finally:
        consumer.close()
    by_partition = {partition: end - first for partition, (first, end) in found.items()}
    return {"records": sum(by_partition.values()), "by_partition": by_partition}


def read_dead_letters(exports):
    """Each refused record once, however many copies there are. Writes all of them as NDJSON."""
    consumer = new_consumer(exports)
    seen, reasons, copies = set(), Counter(), 0
    try:
        with open(settings.DLQ, "w", encoding="utf-8") as out:
            for message in records(consumer, settings.DLQ_TOPIC):
                headers = dict(message.headers() or [])
                origin = (text(headers[ORIGIN + "partition"]), text(headers[ORIGIN + "offset"]))
                copies += 1
                out.write(json.dumps(as_json(message, headers), ensure_ascii=False) + "\n")
                if origin not in seen:
                    seen.add(origin)
                    reasons[text(headers[REASON])] += 1
    finally:
        consumer.close()
    return {"records": len(seen), "copies": copies, "by_reason": dict(sorted(reasons.items()))}


def records(consumer, topic):
    """All of a topic, from its first record to the end that it has now."""
    found = ranges(consumer, topic)
    left = {partition for partition, (first, end) in found.items() if first < end}
    consumer.assign([TopicPartition(topic, partition, found[partition][0]) for partition in left])
    last = time.monotonic()
    while left:
        # It waits for a full batch, or for so long.
        batch = consumer.consume(BATCH, timeout=SLICE_S)
        if batch:
            last = time.monotonic()
        elif time.monotonic() - last > STALL_S:
            raise SystemExit(f"{topic}: partitions {sorted(left)} gave nothing for {STALL_S:.0f} s")
        for message in batch:
            error = message.error()
            if error and error.code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            elif error:
                raise KafkaException(error)
            else:
                yield message


def as_json(message, headers):
    """Text where it is text, else base64."""
    body = {"partition": message.partition(), "offset": message.offset(), "timestamp_ms": message.timestamp()[1]}
    body["headers"] = {name: text(value) for name, value in headers.items()}
    for name, value in (("key", message.key()), ("value", message.value())):
        try:
            body[name] = None if value is None else value.decode("utf-8")
        except UnicodeDecodeError:
            body[name + "_base64"] = base64.b64encode(value).decode("ascii")
    return body


def text(value):
    return None if value is None else value.decode("utf-8", errors="replace")


# The load's first seconds are left out of what counts as undisturbed: an unknown schema id makes each partition wait
# until the registry has denied it for long enough.
SETTLED_S = 3

LATENCIES = """
SELECT count(*), percentile_disc(ARRAY[0.5, 0.95, 0.99, 0.999, 1]) WITHIN GROUP (ORDER BY ms)
FROM (
    SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin) - recorded_at)::float8 * 1000 AS ms
    FROM user_interactions WHERE recorded_at >= to_timestamp(%s) AND recorded_at < to_timestamp(%s)
) AS latencies
"""
PACE = """
SELECT max(count), min(second), max(second) FROM (
    SELECT count(*), extract(epoch FROM date_trunc('second', pg_xact_commit_timestamp(xmin)))::bigint AS second
    FROM user_interactions GROUP BY 2
) AS seconds
"""


def read_table(exports, kill_clock):
    with psycopg.connect(exports["DATABASE_URL"], connect_timeout=10) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        (rows,) = connection.execute("SELECT count(*) FROM user_interactions").fetchone()
        by_day = connection.execute(
            "SELECT recorded_at::date::text, count(*) FROM user_interactions GROUP BY 1 ORDER BY 1"
        ).fetchall()
        by_type = connection.execute(
            "SELECT interaction_type, count(*) FROM user_interactions GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
        (users, videos) = connection.execute(
            "SELECT count(DISTINCT user_id), count(DISTINCT video_id) FROM user_interactions"
        ).fetchone()
        busiest, first, last = connection.execute(PACE).fetchone()
        (begin,) = connection.execute(
            "SELECT extract(epoch FROM min(recorded_at))::float8 FROM user_interactions"
        ).fetchone()
        latency = {
            "undisturbed": latencies(connection, begin + SETTLED_S, kill_clock - 0.5),
            "whole_run": latencies(connection, begin, kill_clock + 1e6),
        }
    return {
        "rows": rows,
        "by_day": dict(by_day),
        "by_type": dict(by_type),
        "users": users,
        "videos": videos,
        "rows_in_busiest_second": busiest,
        "seconds_with_commits": (last - first + 1) if rows else 0,
        "kafka_to_commit_ms": latency,
    }


def latencies(connection, begin, end):
    count, values = connection.execute(LATENCIES, [begin, end]).fetchone()
    names = ("p50", "p95", "p99", "p99_9", "max")
    return {"rows": count, **dict(zip(names, [round(value, 1) for value in values or []]))}


def read_bucket(exports):
    """Downloads the exports, and reads rows from the files themselves."""
    bucket = exports["FEED_WORKER_S3__BUCKET"]
    client = boto3.client(
        "s3",
        endpoint_url=exports["FEED_WORKER_S3__ENDPOINT"],
        region_name=exports["FEED_WORKER_S3__REGION"],
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
    )
    # The keys are plain ASCII: without this, boto3 asks for them URL-encoded, and a server that says yes but does not
    # do it turns every + into a space.
    client.meta.events.unregister("before-parameter-build.s3.ListObjectsV2", set_list_objects_encoding_type_url)
    files, days = [], {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=settings.PREFIX + "/"):
        for entry in page.get("Contents", []):
            key = entry["Key"]
            if key.count("/") < 2:
                continue  # not in a day's folder: what the workers prove the store's conditions with
            path = settings.FILES / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
            day = Path(key).parent.name
            state = days.setdefault(day, {"files": 0, "rows": 0, "bytes": 0, "closed": False, "manifest_rows": None})
            add_object(path, key, state, files)
    return {
        "rows": sum(file["rows"] for file in files),
        "bytes": sum(file["bytes"] for file in files),
        "files": files,
        "days": dict(sorted(days.items())),
    }


def add_object(path, key, state, files):
    if path.name == "_SUCCESS":
        state["closed"] = True
    elif path.name == "_manifest.json":
        manifest = json.loads(path.read_text(encoding="utf-8"))
        state["manifest_rows"] = manifest["rows"]
    elif path.suffix == ".parquet":
        rows, size = pq.read_metadata(path).num_rows, path.stat().st_size
        files.append({"key": key, "rows": rows, "bytes": size})
        state["files"] += 1
        state["rows"] += rows
        state["bytes"] += size


if __name__ == "__main__":
    main()
