"""Progress, seen from outside: end offsets of the topic, frontiers of the ledger."""
import sys
import time

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition

from . import settings


class Watch:
    """Connections that look on while the others work."""

    def __init__(self, exports):
        self.database = psycopg.connect(exports["DATABASE_URL"], autocommit=True, connect_timeout=10)
        self.consumer = Consumer(
            {
                "bootstrap.servers": exports["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"],
                "group.id": "demo-watch",
                "enable.auto.commit": False,
            }
        )
        found = self.consumer.list_topics(settings.TOPIC, timeout=15).topics[settings.TOPIC]
        self.partitions = sorted(found.partitions)

    def close(self):
        self.database.close()
        self.consumer.close()

    def produced(self):
        total = 0
        for partition in self.partitions:
            try:
                low, high = self.consumer.get_watermark_offsets(TopicPartition(settings.TOPIC, partition), timeout=5)
            except KafkaException:
                continue
            total += max(high - low, 0)
        return total

    def frontiers(self):
        """Records that the table (or the DLQ) has, and records that the files have."""
        (persisted, exported) = self.database.execute(
            "SELECT coalesce(sum(persist_frontier), 0)::bigint, coalesce(sum(export_frontier), 0)::bigint"
            " FROM partition_ledger WHERE topic = %s",
            [settings.TOPIC],
        ).fetchone()
        return persisted, exported

    def unexported(self):
        """Rows that no file has yet."""
        (rows,) = self.database.execute(
            "SELECT count(*) FROM user_interactions i JOIN partition_ledger l"
            " ON l.topic = %s AND l.partition = i.kafka_partition AND i.kafka_offset >= l.export_frontier"
            " WHERE i.recorded_at >= now() - interval '2 days'",
            [settings.TOPIC],
        ).fetchone()
        return rows

    def success_day(self):
        """The newest day whose _SUCCESS lies in the bucket, as the ledger knows it."""
        row = self.database.execute(
            "SELECT success_day::text FROM topic_ledger WHERE topic = %s", [settings.TOPIC]
        ).fetchone()
        return row[0] if row else None

    def stopped(self):
        """Partitions that wait for an operator."""
        return self.database.execute(
            "SELECT partition, stopped, stopped_detail FROM partition_ledger WHERE topic = %s AND stopped IS NOT NULL",
            [settings.TOPIC],
        ).fetchall()

    def clock(self):
        """Seconds since 1970 by the stack's clock."""
        (now,) = self.database.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        return now


class Progress:
    """A bar that is redrawn on a terminal, a plain line now and then elsewhere."""

    BAR = 24
    LINE_EVERY_S = 3.0

    def __init__(self, total):
        self.total = total
        self.on_terminal = sys.stdout.isatty()
        self.started = time.monotonic()
        self.last_line = 0.0

    def show(self, clock, produced, persisted, exported):
        text = f"{clock}  produced {produced:>9,}  in the table or DLQ {persisted:>9,}  in files {exported:>9,}"
        if self.on_terminal:
            done = min(exported / self.total, 1.0)
            filled = int(done * self.BAR)
            ahead = int(min(persisted / self.total, 1.0) * self.BAR) - filled
            bar = "█" * filled + "▒" * ahead + "·" * (self.BAR - filled - ahead)
            print(f"\r\x1b[2K  {bar} {text}", end="", flush=True)
        elif time.monotonic() - self.last_line >= self.LINE_EVERY_S:
            self.last_line = time.monotonic()
            print(f"  {text}", flush=True)

    def say(self, text):
        """Something happened: a line of its own."""
        if self.on_terminal:
            print("\r\x1b[2K", end="")
        print(f"· {text}", flush=True)

    def end(self):
        if self.on_terminal:
            print("\r\x1b[2K", end="", flush=True)
