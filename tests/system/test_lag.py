"""`feed-worker lag` beside Kafka's own tool: the same numbers, also when nobody is alive."""

import json
import subprocess

import generate


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
