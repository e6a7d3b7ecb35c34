"""Topics, read from the first to the last offset that the broker has when asked."""

import time
import uuid

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from .environment import CannotCheck

ERRORS = "__connect.errors."
TRUNCATED, LENGTH, SHA256 = (
    {part: f"feed_worker.{part}.{what}" for part in ("value", "key")} for what in ("truncated", "length", "sha256")
)
HEADERS_DROPPED = "feed_worker.headers.dropped"
REASON = "feed_worker.reject.reason"
PLANTED = "x-planted-reason"
BATCH = 5000
TIMEOUT_S = 20.0
SLICE_S = 0.5


def consumer(settings, group=None):
    return Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": group or f"checker-{uuid.uuid4()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "queued.max.messages.kbytes": 32768,
            "fetch.queue.backoff.ms": 5,
            "logger": _silent(),
        }
    )


def _silent():
    import logging

    logger = logging.getLogger("checker.kafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def partitions(settings, topic):
    client = consumer(settings)
    try:
        metadata = client.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
        if metadata.error is not None:
            raise CannotCheck(f"topic {topic}: {metadata.error}")
        return sorted(metadata.partitions)
    except KafkaException as error:
        raise CannotCheck(f"Kafka: {error}") from error
    finally:
        client.close()


def watermarks(settings, topic, numbers):
    """partition → (first offset kept, end offset)."""
    client = consumer(settings)
    try:
        return {
            number: client.get_watermark_offsets(TopicPartition(topic, number), timeout=TIMEOUT_S) for number in numbers
        }
    except KafkaException as error:
        raise CannotCheck(f"Kafka: {error}") from error
    finally:
        client.close()


def committed(settings, topic, numbers):
    """partition → the group's committed offset, None where there is none."""
    client = consumer(settings, settings.group_id)
    try:
        found = client.committed([TopicPartition(topic, number) for number in numbers], timeout=TIMEOUT_S)
    except KafkaException as error:
        raise CannotCheck(f"Kafka: committed offsets: {error}") from error
    finally:
        client.close()
    return {entry.partition: entry.offset if entry.offset >= 0 else None for entry in found}


def records(settings, topic, number, first, end):
    """Every record in [first, end), in order."""
    if first >= end:
        return
    client = consumer(settings)
    try:
        client.assign([TopicPartition(topic, number, first)])
        position, deadline = first, time.monotonic() + TIMEOUT_S
        while position < end:
            # Asked for more than there is, `consume` waits its time-out out.
            batch = client.consume(min(BATCH, end - position), SLICE_S)
            if not batch and time.monotonic() > deadline:
                raise CannotCheck(f"{topic}/{number}: nothing at {position} within {TIMEOUT_S:g} s")
            for message in batch:
                if message.error() is not None:
                    if message.error().code() == KafkaError._PARTITION_EOF:
                        return
                    raise CannotCheck(f"{topic}/{number}: {message.error()}")
                if message.offset() >= end:
                    return
                position, deadline = message.offset() + 1, time.monotonic() + TIMEOUT_S
                yield message
    finally:
        client.close()


def header(headers, name):
    """The last header of that name as text, None if there is none."""
    for key, value in reversed(headers or ()):
        if key == name:
            return value.decode("utf-8", "replace") if value is not None else ""
    return None
