"""A small world that is consistent, made without any worker: so that a fault can be planted in it, one at a time."""

import copy
import io
import json
import struct
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from checker import row as rows
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

import generate
from harness import ROOT

PARTITIONS = 2
RECORDS = 160  # per partition
DAY_MS = 86_400_000
EPOCH = 1_700_000_000_001
STAMP = pa.timestamp("ms", tz="UTC")
SCHEMA = pa.schema(
    [
        pa.field("kafka_partition", pa.int32(), nullable=False),
        pa.field("kafka_offset", pa.int64(), nullable=False),
        pa.field("recorded_at", STAMP, nullable=False),
        pa.field("occurred_at", STAMP, nullable=False),
        pa.field("ingested_at", STAMP, nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("interaction_type", pa.string(), nullable=False),
        pa.field("interaction_weight", pa.float32(), nullable=False),
        pa.field("watch_time_seconds", pa.float64()),
        pa.field("recommendation_score", pa.float64()),
        pa.field("position", pa.int32()),
        pa.field("algorithm", pa.string()),
        pa.field("experiment_variant_id", pa.string()),
        pa.field("feed_session_id", pa.string()),
        pa.field("event_id", pa.string()),
        pa.field("metadata", pa.string()),
    ]
)


@dataclass
class Object:
    """A Parquet object, and what the ledger says of it."""

    partition: int
    first: int
    next: int
    day: str
    key: str
    rows: list  # as they lie in the object
    entry: dict = field(default_factory=dict)
    said: dict = field(default_factory=dict)
    stored: bool = True
    entered: bool = True
    content: bytes | None = None

    def settle(self, topic):
        """Everything that follows from the rows."""
        times = [row["recorded_ms"] for row in self.rows]
        self.said = {
            "topic": topic,
            "partition": str(self.partition),
            "first_offset": str(self.first),
            "next_offset": str(self.next),
            "last_offset": str(self.next - 1),
            "rows": str(len(self.rows)),
            "row_hash": rows.row_hash(map(tuple_of, self.rows)),
            "epoch": str(EPOCH),
            "schema_version": "2",
        }
        self.entry = {
            "rows": len(self.rows),
            "row_hash": self.said["row_hash"],
            "recorded_at_min": min(times),
            "recorded_at_max": max(times),
            "epoch": EPOCH,
        }
        self.render()

    def render(self):
        """The bytes, from the rows and from what the file is to say of itself."""
        pairs = self.said | {
            "recorded_at_min_ms": str(self.entry["recorded_at_min"]),
            "recorded_at_max_ms": str(self.entry["recorded_at_max"]),
        }
        table = pa.Table.from_pylist([parquet_row(row) for row in self.rows], schema=SCHEMA)
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, SCHEMA, compression="zstd", store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({f"feed_worker.{name}": value for name, value in pairs.items()})
        self.content = sink.getvalue()
        self.entry["bytes"] = len(self.content)


def parquet_row(row):
    names = {"recorded_at": "recorded_ms", "occurred_at": "occurred_ms", "ingested_at": "ingested_ms"}
    out = {name: row[names.get(name, name)] for name in SCHEMA.names}
    if out["metadata"] is not None:
        out["metadata"] = rows.canonical_json(out["metadata"]).decode()
    return out


def tuple_of(row):
    def encoded(name):
        return None if row[name] is None else row[name].encode()

    def uuid_of(name):
        return None if row[name] is None else uuid.UUID(row[name]).bytes

    return rows.encode(
        row["kafka_partition"],
        row["kafka_offset"],
        row["recorded_ms"],
        row["occurred_ms"],
        row["ingested_ms"],
        uuid_of("user_id"),
        uuid_of("video_id"),
        encoded("interaction_type"),
        struct.unpack(">f", struct.pack(">f", row["interaction_weight"]))[0],
        row["watch_time_seconds"],
        row["recommendation_score"],
        row["position"],
        encoded("algorithm"),
        encoded("experiment_variant_id"),
        encoded("feed_session_id"),
        uuid_of("event_id"),
        None if row["metadata"] is None else rows.canonical_json(row["metadata"]),
    )


def moment(ms):
    return datetime.fromtimestamp(ms / 1000, UTC)


def spelled(ms):
    """As manifests have it."""
    return moment(ms).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03}Z"


class World:
    """The topic is made once; everything else is copied, spoiled, and installed under names of its own."""

    def __init__(self, stack, age_days=0):
        self.stack = stack
        self.token = uuid.uuid4().hex[:8]
        self.topic = f"world.{self.token}"
        self.bootstrap = stack.env["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"]
        self.today_ms = (int(time.time() * 1000) // DAY_MS - age_days) * DAY_MS
        self.days = [rows.day_of(self.today_ms - DAY_MS), rows.day_of(self.today_ms)]
        self.rows = []
        self.dead = []
        self.objects = []
        self.gaps = []
        self.statements = []  # for what the tables' constraints would not let in
        self.committed = {}
        self._produce()
        self._ledgers()
        self._objects()
        self.closed_day = self.days[0]
        self.success_day = self.days[0]
        self.marks = {self.days[0]: {"_manifest.json": self.manifest(self.days[0]), "_SUCCESS": b""}}

    def _topic(self, name, partitions):
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        created = admin.create_topics([NewTopic(name, partitions, 1, config={"message.timestamp.type": "CreateTime"})])
        created[name].result(20)

    def _produce(self):
        """CreateTime, so that one topic can hold two days."""
        self._topic(self.topic, PARTITIONS)
        generator = generate.Generator(7, bad_share=0.08, users=50, videos=30)
        producer = Producer({"bootstrap.servers": self.bootstrap})
        for partition in range(PARTITIONS):
            for offset in range(RECORDS):
                yesterday = offset < RECORDS // 2
                stamp = self.today_ms + (offset - RECORDS // 2) * 1000 - (1 if yesterday else 0)
                event = generator.event(now_ms=stamp)
                producer.produce(
                    self.topic, key=event.key, value=event.value, headers=event.headers, partition=partition, timestamp=stamp
                )
                self._settle(event, partition, offset, stamp)
        assert producer.flush(20) == 0

    def _settle(self, event, partition, offset, stamp):
        if event.reason is None:
            own = {"kafka_partition": partition, "kafka_offset": offset, "recorded_ms": stamp, "ingested_ms": stamp + 40}
            self.rows.append(event.columns | own)
            return
        headers = [
            *event.headers,
            ("__connect.errors.topic", self.topic.encode()),
            ("__connect.errors.partition", str(partition).encode()),
            ("__connect.errors.offset", str(offset).encode()),
            ("__connect.errors.exception.class.name", b"feed_worker.Reject"),
            ("__connect.errors.exception.message", event.reason.encode()),
            ("feed_worker.reject.reason", event.reason.encode()),
        ]
        self.dead.append(
            {
                "source": (partition, offset),
                "key": event.key,
                "value": event.value,
                "headers": headers,
                "timestamp": stamp,
                "partition": partition % PARTITIONS,
            }
        )

    def _ledgers(self):
        self.ledgers = [
            {
                "partition": partition,
                "epoch": EPOCH,
                "persist_frontier": RECORDS,
                "persist_day": self.days[1],
                "export_frontier": max(row["kafka_offset"] for row in self.of(partition)) + 1,
                "closed_day": self.days[0],
            }
            for partition in range(PARTITIONS)
        ]

    def of(self, partition, day=None):
        return [
            row
            for row in self.rows
            if row["kafka_partition"] == partition and (day is None or rows.day_of(row["recorded_ms"]) == day)
        ]

    def _objects(self):
        """Two files for each partition and day."""
        for partition in range(PARTITIONS):
            first = 0
            for day in self.days:
                mine = self.of(partition, day)
                for part in (mine[: len(mine) // 2], mine[len(mine) // 2 :]):
                    following = part[-1]["kafka_offset"] + 1
                    self.objects.append(Object(partition, first, following, day, self.key(day, partition, first), part))
                    self.objects[-1].settle(self.topic)
                    first = following

    def key(self, day, partition, first):
        return f"PREFIX/{day}/{self.topic}+{partition}+{first:020}.parquet"

    def manifest(self, day):
        entries = [entry for entry in self.objects if entry.day == day and entry.entered]
        ends = {partition: None for partition in range(PARTITIONS)} | {entry.partition: entry.next for entry in entries}
        return {
            "version": 1,
            "topic": self.topic,
            "day": day,
            "schema_version": 2,
            "rows": sum(entry.entry["rows"] for entry in entries),
            "partitions": [{"partition": partition, "next_offset": end} for partition, end in ends.items()],
            "files": [
                {
                    "key": entry.key,
                    "partition": entry.partition,
                    "first_offset": entry.first,
                    "last_offset": entry.next - 1,
                    "rows": entry.entry["rows"],
                    "bytes": entry.entry["bytes"],
                    "row_hash": entry.entry["row_hash"],
                    "recorded_at_min": spelled(entry.entry["recorded_at_min"]),
                    "recorded_at_max": spelled(entry.entry["recorded_at_max"]),
                }
                for entry in sorted(entries, key=lambda entry: (entry.partition, entry.first))
            ],
            "gaps": [],
        }

    def remake_manifest(self):
        self.marks[self.days[0]]["_manifest.json"] = self.manifest(self.days[0])

    def copy(self):
        other = copy.copy(self)
        for name in ("rows", "dead", "objects", "ledgers", "gaps", "marks", "statements", "committed"):
            setattr(other, name, copy.deepcopy(getattr(self, name)))
        return other

    # ---- into the real parts -------------------------------------------------------------------------------

    def install(self, s3, bucket):
        """Database, DLQ and objects under fresh names; returns what the checker is to be told."""
        token = uuid.uuid4().hex[:8]
        told = {
            "database": f"world_{token}",
            "dlq_topic": f"{self.topic}.{token}.dlq",
            "prefix": f"world-{token}",
            "group": f"world-{token}",
        }
        self._install_objects(s3, bucket, told["prefix"])
        self._install_dead_letters(told["dlq_topic"])
        told["database_url"] = self._install_database(told)
        self._install_offsets(told["group"])
        return told

    def _install_objects(self, s3, bucket, prefix):
        for entry in self.objects:
            if entry.stored:
                said = {name.replace("_", "-"): value for name, value in entry.said.items()}
                s3.put_object(Bucket=bucket, Key=entry.key.replace("PREFIX", prefix), Body=entry.content, Metadata=said)
        for day, marks in self.marks.items():
            for name, body in marks.items():
                if isinstance(body, dict):
                    body = rows.canonical_json(json.loads(json.dumps(body).replace("PREFIX", prefix)))
                s3.put_object(Bucket=bucket, Key=f"{prefix}/{day}/{name}", Body=body)

    def _install_dead_letters(self, topic):
        self._topic(topic, PARTITIONS)
        producer = Producer({"bootstrap.servers": self.bootstrap})
        for letter in self.dead:
            fields = {name: letter[name] for name in ("key", "value", "headers", "timestamp", "partition")}
            producer.produce(topic, **fields)
        assert producer.flush(20) == 0

    def _install_offsets(self, group):
        if self.committed:
            client = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group})
            wanted = [TopicPartition(self.topic, number, offset) for number, offset in self.committed.items()]
            client.commit(offsets=wanted, asynchronous=False)
            client.close()

    def _install_database(self, told):
        base = self.stack.env["DATABASE_URL"]
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {told['database']}")
        url = base.rpartition("/")[0] + "/" + told["database"]
        with psycopg.connect(url) as connection:
            for path in sorted((ROOT / "src" / "postgres" / "migrations").glob("*.sql")):
                connection.execute(path.read_text())
            for statement in self.statements:
                connection.execute(statement)
            self._insert_rows(connection)
            self._insert_ledgers(connection, told)
        return url

    def remove_database(self, url):
        """There are many worlds; each would be a database more for Postgres to look after."""
        with psycopg.connect(self.stack.env["DATABASE_URL"], autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def _insert_rows(self, connection):
        columns = ", ".join(rows.COLUMNS)
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO user_interactions ({columns}) VALUES ({', '.join(['%s'] * len(rows.COLUMNS))})",
                [
                    [
                        row["kafka_partition"],
                        row["kafka_offset"],
                        moment(row["recorded_ms"]),
                        moment(row["occurred_ms"]),
                        moment(row["ingested_ms"]),
                        *(row[name] for name in rows.COLUMNS[5:16]),
                        None if row["metadata"] is None else json.dumps(row["metadata"]),
                    ]
                    for row in self.rows
                ],
            )

    def _insert_ledgers(self, connection, told):
        topic = (self.topic, "cluster", told["group"])
        connection.execute(
            "INSERT INTO topic_ledger (topic, cluster_id, group_id, closed_day, success_day) VALUES (%s, %s, %s, %s, %s)",
            (*topic, self.closed_day, self.success_day),
        )
        for ledger in self.ledgers:
            names = list(ledger)
            connection.execute(
                f"INSERT INTO partition_ledger (topic, cluster_id, group_id, owner, {', '.join(names)})"
                f" VALUES (%s, %s, %s, 'nobody', {', '.join(['%s'] * len(names))})",
                (*topic, *ledger.values()),
            )
        for entry in self.objects:
            if entry.entered:
                connection.execute(
                    """INSERT INTO export_files (topic, partition, first_offset, next_offset, day, object_key, rows, bytes,
                       row_hash, recorded_at_min, recorded_at_max, epoch)
                       VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",
                    (
                        self.topic,
                        entry.partition,
                        entry.first,
                        entry.next,
                        entry.day,
                        entry.key.replace("PREFIX", told["prefix"]),
                        entry.entry["rows"],
                        entry.entry["bytes"],
                        entry.entry["row_hash"],
                        moment(entry.entry["recorded_at_min"]),
                        moment(entry.entry["recorded_at_max"]),
                        entry.entry["epoch"],
                    ),
                )
        for gap in self.gaps:
            connection.execute(
                """INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, day, reason)
                   VALUES (%s, %s, %s, %s, %s, %s)""",
                (self.topic, *gap),
            )
