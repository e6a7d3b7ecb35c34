"""Offsets that are gone are never skipped in silence: the partition stops until an operator decides."""

import json

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

import generate


def stopped(case, partition):
    found = case.query("SELECT stopped FROM partition_ledger WHERE partition = %s", (partition,))
    return found and found[0][0]


def test_retention_overtook_a_partition(case):
    generator = generate.Generator(31, case.schemas())
    for partition in range(case.partitions):
        case.produce((generator.event() for _ in range(300)), partition=partition)
    first = case.start_ready()
    case.wait_drained()
    case.wait_exported()
    assert first.stop() == 0, case.why()
    for partition in range(case.partitions):
        case.produce((generator.event() for _ in range(300)), partition=partition)
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    for future in admin.delete_records([TopicPartition(case.topic, 0, 450)]).values():
        future.result(20)

    worker = case.start()
    case.wait(lambda: stopped(case, 0), "partition 0 stopped")
    ends = case.end_offsets()
    case.wait(lambda: all(case.frontiers()[n][0] == ends[n] for n in range(1, 6)), "the other partitions drained")
    assert case.frontiers()[0][0] == 300, "it must not go on by itself"
    assert worker.alive
    shown = case.run("ledger", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    states = {entry["partition"]: entry for entry in map(json.loads, shown.stdout.splitlines())}
    assert states[0]["stopped"] and not states[1]["stopped"]

    # A second worker comes to the same end: still nobody skips it.
    other = case.start_ready("other")
    case.wait(lambda: len(case.owned(other)) > 0, "the second worker to take part")
    assert case.frontiers()[0][0] == 300

    # Nobody has read them, and nobody can: that is not well until an operator has said so.
    audit = case.run("audit")
    assert audit.returncode == 2 and "/0@[300, 450): the topic no longer has them" in audit.stdout, audit.stdout + audit.stderr

    # What is left is not skipped, and nobody is sent beyond the end, from where there is no way back.
    for wrong, told in (("451", "use `--to 450`"), ("601", "ends at offset 600")):
        done = case.run("ledger", "accept-gap", "--partition", "0", "--to", wrong, "--reason", "a slip of the finger")
        assert done.returncode == 66 and told in done.stderr, done.stderr
    assert case.frontiers()[0][0] == 300
    done = case.run("ledger", "accept-gap", "--partition", "0", "--to", "450", "--reason", "retention was too short")
    assert done.returncode == 0, done.stderr
    case.wait_drained()
    case.wait_exported()
    assert [worker.stop(), other.stop()] == [0, 0], case.why()
    gaps = case.query("SELECT partition, from_offset, to_offset, reason FROM ingest_gaps")
    assert gaps == [(0, 300, 450, "retention was too short")]
    assert case.query("SELECT command FROM operator_actions")
    # 150 records of partition 0 are in no sink, by decision.
    summary = case.assert_clean(produced=False)
    assert summary["produced"] == 5 * 600 + 150
    audit = case.run("audit")
    assert audit.returncode == 0 and "accepted gap: partition 0 [300, 450)" in audit.stdout, audit.stdout + audit.stderr


def test_topic_was_created_anew(case):
    """Offsets start over, other records: the ledger's frontier means nothing any more."""
    generator = generate.Generator(32)
    case.produce(generator.event() for _ in range(3000))
    first = case.start_ready()
    case.wait_drained()
    case.wait_exported()
    assert first.stop() == 0, case.why()
    before = case.frontiers()
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    admin.delete_topics([case.topic])[case.topic].result(20)
    case.wait(lambda: case.topic not in admin.list_topics(timeout=10).topics, "the topic to go")
    case.create_topic(case.topic, case.partitions, {"message.timestamp.type": "LogAppendTime"})
    case.produce(generator.event() for _ in range(6000))
    rows = case.rows()
    worker = case.start()
    case.wait(lambda: all(stopped(case, n) for n in range(case.partitions)), "every partition stopped")
    assert {n: found[:2] for n, found in case.frontiers().items()} == {n: found[:2] for n, found in before.items()}
    assert case.rows() == rows
    assert worker.alive
    assert worker.stop() == 0, case.why()


def test_accept_gap_refuses_what_makes_no_sense(case):
    generator = generate.Generator(33)
    case.produce(generator.event() for _ in range(600))
    worker = case.start_ready()
    case.wait_drained()
    frontier = case.frontiers()[0][0]
    for arguments in (("0", str(frontier - 1)), ("0", str(frontier + 5)), ("99", "5")):
        done = case.run("ledger", "accept-gap", "--partition", arguments[0], "--to", arguments[1], "--reason", "no")
        assert done.returncode not in (0, 101), (arguments, done.stdout)
    assert case.frontiers()[0][0] == frontier
    case.wait_exported()
    assert worker.stop() == 0
    case.assert_clean()
