"""`feed-worker lag` beside Kafka's own tool: the same numbers, also when nobody is alive."""

import json
import signal
import subprocess
import threading
import time

import psycopg
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

import generate
from test_metrics import values


def lag(case, *arguments):
    """The command's verdict and its partitions."""
    done = case.run("lag", "--json", *arguments)
    return done, json.loads(done.stdout)["partitions"]


def kafkas_own(case):
    """(committed, end) of each partition, by Kafka's own tool."""
    done = subprocess.run(
        [
            "java", "-cp", f"{case.stack.env['STACK_KAFKA_LIBS']}/*", "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
            "--bootstrap-server", case.stack.env["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"], "--describe",
            "--group", case.env["FEED_WORKER_KAFKA__GROUP_ID"], "--offsets",
        ],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    table = [line.split() for line in done.stdout.splitlines() if line.strip()]
    head = next(row for row in table if "LOG-END-OFFSET" in row)
    at = {name: head.index(name) for name in ("TOPIC", "PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET")}
    rows = [row for row in table if row[at["TOPIC"]] == case.topic]
    assert rows, done.stdout
    # "-": nothing was committed yet.
    offsets = [[int(row[at[name]].replace("-", "0")) for name in ("PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET")] for row in rows]
    return {partition: (committed, end) for partition, committed, end in offsets}


def agree(ours, theirs):
    assert {p["partition"]: (p["persist_frontier"], p["end"]) for p in ours} == theirs


def test_agrees_with_kafkas_own_tool(case):
    generator = generate.Generator(21, case.schemas())
    worker = case.start_ready("worker", ROLL__AGE_MS_MAX=3_600_000)
    case.produce(generator.event() for _ in range(600))
    case.wait_drained()
    case.wait(lambda: case.committed() == case.end_offsets(), "kafka's offsets at the end")
    done, quiet = lag(case, "--records-max", "0", "--seconds-max", "0")
    assert done.returncode == 0
    agree(quiet, kafkas_own(case))
    assert {p["status"] for p in quiet} == {"OK"} and all(p["owner"] for p in quiet)
    # Rows that are in no file yet are lag of the exports, and have an age.
    assert sum(p["export_records"] for p in quiet) == 600 and max(p["export_seconds"] for p in quiet) > 0

    worker.kill()
    case.produce(generator.event() for _ in range(90))
    done, dead = lag(case, "--records-max", "10")
    assert done.returncode == 2 and "past the threshold" in done.stderr
    agree(dead, kafkas_own(case))
    assert sum(p["persist_records"] for p in dead) == 90
    assert all(p["persist_seconds"] > 0 for p in dead if p["persist_records"])
    assert case.run("lag").stdout.splitlines()[-1] == "6 partitions: 90 records to persist, 690 to export"


def test_is_between_two_looks_while_events_come(case):
    generator = generate.Generator(22, case.schemas())
    case.start_ready("worker")
    with case.producing((generator.event() for _ in range(1_000_000)), per_second=500):
        case.wait(lambda: case.rows() > 200, "the worker at work")
        before = kafkas_own(case)
        _, ours = lag(case)
        after = kafkas_own(case)
    for p in ours:
        lower, upper = before[p["partition"]], after[p["partition"]]
        # Kafka hears of a frontier after the ledger has it.
        assert lower[0] <= p["persist_frontier"] <= p["end"]
        assert lower[1] <= p["end"] <= upper[1]


def test_nobody_has_ever_run(case):
    case.run("migrate")
    case.produce((generate.Generator(23, case.schemas()).event() for _ in range(30)))
    done, partitions = lag(case, "--seconds-max", "86400")
    assert done.returncode == 0
    assert sum(p["persist_records"] for p in partitions) == 30 and {p["owner"] for p in partitions} == {None}


def statuses(partitions):
    return {p["partition"]: p["status"] for p in partitions}


def test_frontier_outside_of_the_topic_is_no_small_lag(case):
    """Retention overtakes a frontier; then the topic is created anew: neither is a lag of so and so many records."""
    generator = generate.Generator(24)
    worker = case.start_ready("worker")
    for partition in (0, 1):
        case.produce((generator.event() for _ in range(50)), partition=partition)
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    done, partitions = lag(case, "--records-max", "0")
    assert done.returncode == 0 and set(statuses(partitions).values()) == {"OK"}, done.stdout

    case.produce((generator.event() for _ in range(50)), partition=0)
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    for future in admin.delete_records([TopicPartition(case.topic, 0, 100)]).values():
        future.result(20)
    case.wait(lambda: case.watermarks()[0] == (100, 100), "the records to be gone")
    done, partitions = lag(case, "--records-max", "1000000")
    assert done.returncode == 2 and "partitions 0" in done.stderr, done.stdout + done.stderr
    assert statuses(partitions) == {0: "GAP"} | dict.fromkeys(range(1, 6), "OK")
    assert "gone unread: [50, 100)" in case.run("lag").stdout

    admin.delete_topics([case.topic])[case.topic].result(20)
    case.wait(lambda: case.topic not in admin.list_topics(timeout=10).topics, "the topic to go")
    case.create_topic(case.topic, case.partitions, {"message.timestamp.type": "LogAppendTime"})
    case.produce((generator.event() for _ in range(10)), partition=0)
    done, partitions = lag(case, "--seconds-max", "86400")
    assert done.returncode == 2 and "partitions 0, 1" in done.stderr, done.stdout + done.stderr
    assert statuses(partitions) == {0: "AHEAD", 1: "AHEAD"} | dict.fromkeys(range(2, 6), "OK")
    assert case.run("lag").returncode == 0, "without a threshold it only tells"


def test_first_record_after_a_quiet_time_is_no_stop(stack, make_case):
    """Nobody touches a partition to which nothing comes; what counts is how long a record has waited."""
    case = make_case(stack, topic_config={"message.timestamp.type": "CreateTime"})
    worker = case.start_ready("worker", KAFKA__ALLOW_CREATE_TIME="true")
    producer = case.producer()
    event = generate.Generator(25).event()
    for partition in (0, 1):
        case.send(producer, event, partition=partition)
    assert producer.flush(30) == 0
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    case.query("UPDATE partition_ledger SET updated_at = updated_at - interval '1 hour' RETURNING 1")
    assert set(statuses(lag(case)[1]).values()) == {"OK"}
    case.send(producer, event, partition=0)
    case.send(producer, event, partition=1, timestamp=int((time.time() - 3600) * 1000))
    assert producer.flush(30) == 0
    assert statuses(lag(case)[1]) == {1: "STOP"} | dict.fromkeys((0, 2, 3, 4, 5), "OK")


def test_watching_goes_on_after_a_hiccup(case):
    assert case.run("migrate").returncode == 0
    looks, told = [], []
    watching = subprocess.Popen(
        [case.program, "lag", "--json", "--watch", "1"], env=case.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    readers = [
        threading.Thread(target=lambda: looks.extend(iter(watching.stdout.readline, "")), daemon=True),
        threading.Thread(target=lambda: told.extend(iter(watching.stderr.readline, "")), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        case.wait(lambda: looks, "the first look")
        with psycopg.connect(case.database_url, autocommit=True) as connection:
            connection.execute("ALTER TABLE partition_ledger RENAME TO away")
            case.wait(lambda: any("trying again" in line for line in told), lambda: f"to be told of it: {told}")
            assert watching.poll() is None
            connection.execute("ALTER TABLE away RENAME TO partition_ledger")
        before = len(looks)
        case.wait(lambda: len(looks) > before + 1, "more looks")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0, told
    finally:
        watching.kill()
        watching.wait()


def test_what_ends_a_partition_may_be_no_record(case):
    """A transaction's marker has an offset, and nobody will ever persist it: nothing waits, however long it stands there."""
    generator = generate.Generator(26, case.schemas())
    producer = Producer({"bootstrap.servers": case.bootstrap, "transactional.id": f"{case.topic}-producer"})
    producer.init_transactions(30)
    for is_kept in (True, False):
        producer.begin_transaction()
        for partition in range(case.partitions):
            for _ in range(10):
                event = generator.valid()
                producer.produce(case.topic, key=event.key, value=event.value, partition=partition)
        producer.flush(30)
        # What is taken back is no record either.
        producer.commit_transaction(30) if is_kept else producer.abort_transaction(30)
    worker = case.start_ready("worker", METRICS__LAG_INTERVAL_MS=300)
    case.wait(lambda: case.rows() == 10 * case.partitions, "every record")
    case.wait_exported()
    assert set(case.end_offsets().values()) == {22}
    case.wait(lambda: values(worker, "lag_persist_records") == [0.0] * case.partitions, "no record that waits")
    case.wait(lambda: values(worker, "lag_export_records") == [0.0] * case.partitions, "none to export")
    assert values(worker, "lag_persist_seconds") == [0.0] * case.partitions
    assert values(worker, "lag_status") == [1.0] * case.partitions
    worker.kill()
    # Long after the last change: a partition that stands still before records would be stopped.
    case.query("UPDATE partition_ledger SET updated_at = now() - interval '1 hour' RETURNING 1")
    done, partitions = lag(case, "--records-max", "0", "--seconds-max", "0", "--export-seconds-max", "0")
    assert done.returncode == 0, done.stderr
    assert {p["status"] for p in partitions} == {"OK"} and {p["persist_records"] for p in partitions} == {0}
    assert {p["end"] - p["persist_frontier"] > 0 for p in partitions} == {True}
