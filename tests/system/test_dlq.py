"""The DLQ: every copy true, a flood stops the worker, and what is too large goes in part with its hash."""

import hashlib
import json

import pytest
from checker import topic as topics
from checker.__main__ import parse_arguments
from checker.environment import settings

import generate
from harness import wait_until

RUN_MAX = 50
FLOOD = 80


def dead_letters(case):
    """Every record of the DLQ as (partition, message)."""
    told = settings(parse_arguments(["--env", str(case.stack.folder / "env"), "--topic", case.topic]))
    numbers = topics.partitions(told, case.dlq_topic)
    kept = topics.watermarks(told, case.dlq_topic, numbers)
    return [message for number in numbers for message in topics.records(told, case.dlq_topic, number, *kept[number])]


@pytest.fixture
def flooded(case):
    """A worker that was stopped by a flood in partition 0."""
    generator = generate.Generator(21)
    case.produce((generator.valid() for _ in range(600)))
    worker = case.start_ready(REJECTS__RUN_MAX=RUN_MAX)
    case.wait_drained()
    case.produce((generator.bad("bad_uuid") for _ in range(FLOOD)), partition=0)
    case.produce((generator.valid() for _ in range(100)), partition=0)
    assert worker.wait(30) == 65, case.why()
    assert "rejects accept" in worker.log()
    return case


def test_flood_stops_until_it_is_accepted(flooded):
    case = flooded
    for _ in range(2):
        again = case.start(REJECTS__RUN_MAX=RUN_MAX)
        assert again.wait(30) == 65, case.why()
    assert len(dead_letters(case)) <= FLOOD
    done = case.run("rejects", "accept", "--reason", "the bad client was rolled back")
    assert done.returncode == 0, done.stderr
    action = case.query("SELECT command, reason FROM operator_actions")
    assert [reason for _, reason in action] == ["the bad client was rolled back"]
    worker = case.start_ready(REJECTS__RUN_MAX=RUN_MAX)
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    summary = case.assert_clean()
    assert summary["dead_lettered_by_reason"] == {"bad_uuid": FLOOD}


def test_raised_limit_lets_it_pass(flooded):
    case = flooded
    worker = case.start_ready(REJECTS__RUN_MAX=10 * FLOOD)
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_share_of_rejects_stops_too(case):
    """Never many in a row, but one in two."""
    generator = generate.Generator(22)
    mixed = (generator.bad("missing_field") if n % 2 else generator.valid() for n in range(4000))
    worker = case.start_ready(REJECTS__WINDOW=500)
    case.produce(mixed, partition=1)
    assert worker.wait(30) == 65, case.why()
    case.assert_clean("--allow-pending")


def test_oversize_is_truncated_with_length_and_hash(case):
    """Larger than the DLQ's broker takes; one that the rules refuse but the broker takes goes whole."""
    generator = generate.Generator(23)
    large = generator.bad("value_too_large")
    events = [generator.valid(), large, generator.bad("bad_string"), generator.valid()]
    worker = case.start_ready()
    case.produce(events)
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    (copy,) = [message for message in dead_letters(case) if topics.header(message.headers(), topics.TRUNCATED["value"])]
    headers = copy.headers()
    assert topics.header(headers, topics.REASON) == "value_too_large"
    assert topics.header(headers, topics.LENGTH["value"]) == str(len(large.value))
    assert topics.header(headers, topics.SHA256["value"]) == hashlib.sha256(large.value).hexdigest()
    assert large.value.startswith(copy.value()) and len(copy.value()) > 100_000
    summary = case.assert_clean()
    assert summary["truncated"] == 1 and summary["dead_lettered"] == 2


def test_copy_says_where_it_comes_from(case):
    generator = generate.Generator(24)
    event = generator.bad("missing_field")
    event.value = json.dumps({"userId": event.key.decode(), "secret": "do not repeat me"}).encode()
    worker = case.start_ready()
    case.produce([generator.valid() for _ in range(7)], partition=4)
    case.produce([event], partition=4)
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    (copy,) = dead_letters(case)
    headers = dict(copy.headers())
    assert headers["__connect.errors.topic"].decode() == case.topic
    assert (headers["__connect.errors.partition"], headers["__connect.errors.offset"]) == (b"4", b"7")
    assert headers["__connect.errors.exception.class.name"] == b"feed_worker.Reject"
    assert headers["feed_worker.reject.field"] == b"videoId"
    assert b"do not repeat" not in headers["__connect.errors.exception.message"]
    assert "do not repeat" not in worker.log()
    assert copy.partition() == 4 % 3
    case.assert_clean()


def test_dlq_away_holds_only_the_partition_that_needs_it(case):
    """Its topic does not exist (yet): nothing is skipped, and the others go on."""
    generator = generate.Generator(25)
    late = f"{case.dlq_topic}.late"
    worker = case.start_ready(KAFKA__DLQ_TOPIC=late)
    case.produce([generator.bad("bad_uuid")], partition=0)
    for partition in range(case.partitions):
        case.produce((generator.valid() for _ in range(200)), partition=partition)
    ends = case.end_offsets()
    case.wait(lambda: all(case.frontiers()[n][0] == ends[n] for n in range(1, 6)), "the other partitions drained")
    assert case.frontiers()[0][0] == 0
    case.dlq_topic = late
    case.create_topic(late, 3, {"message.timestamp.type": "CreateTime"})
    case.wait_drained(60)
    wait_until(lambda: len(dead_letters(case)) >= 1, "the dead letter")
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()
