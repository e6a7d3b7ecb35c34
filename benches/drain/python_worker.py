"""A plain Python worker, as a competent data engineer would write it: confluent-kafka, fastavro, psycopg COPY, pyarrow.

consume(5000) -> decode -> one COPY a batch -> rows gathered for one Parquet file of 250,000 -> PUT -> commit. At least
once: a kill between COPY and commit reads records again, which doubles their rows, or fails where a key forbids that; with
BENCH_ON_CONFLICT=1 rows go through a temporary table and ON CONFLICT DO NOTHING. Ends when BENCH_EVENTS were read, or nothing
came for BENCH_IDLE_S seconds after something had.
"""

import io
import json
import os
import time
import uuid

import boto3
import fastavro
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer

EVENTS = int(os.environ["BENCH_EVENTS"])
IDLE_S = float(os.environ.get("BENCH_IDLE_S", "inf"))
ON_CONFLICT = os.environ.get("BENCH_ON_CONFLICT") == "1"
WEIGHTS = {"complete": 5.0, "share": 4.0, "comment": 4.0, "like": 3.0, "follow": 3.0, "view": 1.0, "skip": -1.0}
COLUMNS = (
    "kafka_partition", "kafka_offset", "recorded_at", "occurred_at", "ingested_at", "user_id", "video_id",
    "interaction_type", "interaction_weight", "watch_time_seconds", "recommendation_score", "position", "algorithm",
    "experiment_variant_id", "feed_session_id", "event_id", "metadata",
)
TYPES = (
    "int4", "int8", "timestamptz", "timestamptz", "timestamptz", "uuid", "uuid", "text", "float4", "float8", "float8",
    "int4", "text", "text", "text", "uuid", "jsonb",
)
SCHEMA = pa.schema([
    ("kafka_partition", pa.int32()), ("kafka_offset", pa.int64()), ("recorded_at", pa.timestamp("ms", "UTC")),
    ("occurred_at", pa.timestamp("ms", "UTC")), ("ingested_at", pa.timestamp("ms", "UTC")), ("user_id", pa.string()),
    ("video_id", pa.string()), ("interaction_type", pa.string()), ("interaction_weight", pa.float32()),
    ("watch_time_seconds", pa.float64()), ("recommendation_score", pa.float64()), ("position", pa.int32()),
    ("algorithm", pa.string()), ("experiment_variant_id", pa.string()), ("feed_session_id", pa.string()),
    ("event_id", pa.string()), ("metadata", pa.string()),
])


def main():
    from datetime import datetime, timezone

    import urllib.request

    registry = os.environ["FEED_WORKER_REGISTRY__URL"]
    schemas = {}

    def schema(number):
        if number not in schemas:
            with urllib.request.urlopen(f"{registry}/schemas/ids/{number}") as answer:
                schemas[number] = fastavro.parse_schema(json.loads(json.load(answer)["schema"]))
        return schemas[number]

    consumer = Consumer({
        "bootstrap.servers": os.environ["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"], "group.id": os.environ["BENCH_GROUP"],
        "enable.auto.commit": False, "auto.offset.reset": "earliest", "fetch.queue.backoff.ms": 10,
        "session.timeout.ms": int(os.environ.get("BENCH_SESSION_TIMEOUT_MS", "45000")),
    })
    consumer.subscribe(["feed.interactions.v1"])
    s3 = boto3.client("s3", endpoint_url=os.environ["FEED_WORKER_S3__ENDPOINT"], region_name="us-east-1")
    connection = psycopg.connect(os.environ["DATABASE_URL"])
    utc = timezone.utc
    if ON_CONFLICT:
        connection.execute("CREATE TEMP TABLE arrived (LIKE user_interactions) ON COMMIT DELETE ROWS")
        connection.commit()
    table = "arrived" if ON_CONFLICT else "user_interactions"
    pending, done, files, last = [], 0, 0, None
    ended = False
    while not ended:
        messages = consumer.consume(5000, 0.2)
        if messages:
            last = time.monotonic()
        ended = done + len(messages) >= EVENTS or (last is not None and time.monotonic() - last > IDLE_S)
        now = datetime.now(utc)
        rows = []
        for message in messages:
            value = message.value()
            event = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema(int.from_bytes(value[1:5], "big")))
            kind = event["interactionType"].lower()
            metadata = event.get("metadata")
            occurred = event["timestamp"]
            if not isinstance(occurred, datetime):
                occurred = datetime.fromtimestamp(occurred / 1000, utc)
            rows.append((
                message.partition(), message.offset(), datetime.fromtimestamp(message.timestamp()[1] / 1000, utc), occurred,
                now, uuid.UUID(str(event["userId"])), uuid.UUID(str(event["videoId"])), kind, WEIGHTS[kind],
                event.get("watchTime"), event.get("recommendationScore"), event.get("position"), event.get("algorithm"),
                event.get("experimentVariantId"), event.get("feedSessionId"),
                uuid.UUID(str(event["eventId"])) if event.get("eventId") else None,
                json.dumps(metadata, sort_keys=True, separators=(",", ":")) if metadata is not None else None,
            ))
        if rows:
            with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)") as copy:
                copy.set_types(TYPES)
                for row in rows:
                    copy.write_row(row[:-1] + (None if row[-1] is None else psycopg.types.json.Jsonb(json.loads(row[-1])),))
            if ON_CONFLICT:
                columns = ", ".join(COLUMNS)
                connection.execute(f"INSERT INTO user_interactions ({columns}) SELECT {columns} FROM arrived ON CONFLICT DO NOTHING")
            connection.commit()
            pending.extend(rows)
            done += len(rows)
        if len(pending) >= 250_000 or (ended and pending):
            columns = list(zip(*pending))
            for index in (5, 6, 15):
                columns[index] = [None if value is None else str(value) for value in columns[index]]
            parquet = pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, SCHEMA)], schema=SCHEMA)
            out = io.BytesIO()
            pq.write_table(parquet, out, compression="zstd")
            s3.put_object(Bucket=os.environ["FEED_WORKER_S3__BUCKET"], Key=f"{os.environ['BENCH_PREFIX']}/{files:06}-{time.time_ns()}.parquet", Body=out.getvalue())
            files += 1
            pending.clear()
            consumer.commit(asynchronous=False)
    consumer.close()


main()
