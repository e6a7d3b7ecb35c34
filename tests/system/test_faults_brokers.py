"""Kafka's side of the fault matrix (docs/reliability.md): brokers that go, topics that are not what they were.

On three nodes, so that one can go: rows 7, 8, 9 and 39. On the session's own stack: rows 36, 37 and 38.
"""

import os
import re
import signal
import time

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

import conftest
import generate
import harness

# Longer than every time-out of the client that matters here; the long run has it at ten minutes.
OUTAGE_S = float(os.environ.get("FEED_TEST_OUTAGE_S", "20"))
SESSION_MS = 6000
# What a catch-up from a short outage may add: client buffers, batches. Not an unbounded queue.
OUTAGE_RSS_KIB = 64 << 10
LOG_APPEND = {"message.timestamp.type": "LogAppendTime"}


@pytest.fixture(scope="module")
def brokers():
    """Three nodes; three copies of each topic, two of which must be there."""
    started = harness.Stack(conftest.TARGET / "stack-brokers", "--brokers", "3", "--postgres-fast", fresh=not conftest.KEEP)
    yield started
    if not conftest.KEEP:
        started.close()


@pytest.fixture
def cluster(brokers):
    """The three nodes, all up before and after."""
    brokers.command("up")
    yield brokers
    brokers.command("up")


def admin_of(case):
    return AdminClient({"bootstrap.servers": case.bootstrap, "socket.timeout.ms": 5000})


def coordinator(case):
    """The node that coordinates the group, as the cluster says."""
    admin = admin_of(case)  # a client that nobody holds is gone before it answers
    return admin.describe_consumer_groups([case.group], request_timeout=10)[case.group].result(20).coordinator.id


def generations(case):
    """How often the group was rebalanced so far, by the coordinators' own logs."""
    numbers = [0]
    for path in (case.stack.folder / "log").glob("kafka-*.log"):
        text = path.read_text(errors="replace")
        pattern = rf"Stabilized group {re.escape(case.group)} generation (\d+)"
        numbers += [int(number) for number in re.findall(pattern, text)]
    return max(numbers)


def epochs(case):
    return {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()}


def persisted(case):
    return {partition: persist for partition, (persist, _, _) in case.frontiers().items()}


def wait_progress(case, timeout_s, what):
    """Every partition's frontier moves on from where it is now; how long the last took, in seconds."""
    before, started = persisted(case), time.monotonic()
    case.wait(
        lambda: all(now > before[number] for number, now in persisted(case).items()),
        lambda: f"{what}: {before} → {persisted(case)}",
        timeout_s,
    )
    return time.monotonic() - started


def finish(case, *workers):
    case.wait_drained(90)
    case.wait_exported(90)
    assert [worker.stop() for worker in workers] == [0] * len(workers), case.why()


@pytest.mark.parametrize("which", ["not-the-coordinator", "the-coordinator"])
def test_one_broker_away(cluster, make_case, which):
    """Rows 7 and 8: leaders move, the group stays as it is; with its coordinator gone it may rebalance once."""
    case = make_case(cluster)
    generator = generate.Generator(71)
    env = {"KAFKA__SESSION_TIMEOUT_MS": SESSION_MS}
    workers = [case.start_ready(name, **env) for name in ("left", "right")]
    case.wait(lambda: [len(case.owned(worker)) for worker in workers] == [3, 3], "three partitions each")
    events = (generator.event() for _ in range(1_000_000))
    with case.producing(events, per_second=600), harness.FrontierWatch(case) as watch:
        wait_progress(case, 30, "progress before")
        coordinates = coordinator(case)
        victim = coordinates if which == "the-coordinator" else coordinates % 3 + 1
        before, owners = generations(case), epochs(case)
        assert before > 0, "the brokers' logs tell of the group"
        cluster.command("stop-broker", str(victim), "--kill")
        took_s = wait_progress(case, 30, f"progress without broker {victim}")
        took_s += wait_progress(case, 30, f"progress without broker {victim}")
        if which == "the-coordinator":
            case.wait(lambda: coordinator(case) != victim, "another coordinator", 60)
            frontiers = persisted(case)
            case.wait(lambda: all(case.committed()[n] >= frontiers[n] for n in frontiers), "commits to the new one", 60)
        cluster.command("start-broker", str(victim))
        wait_progress(case, 30, "progress with all brokers")
        rebalances = generations(case) - before
        after = epochs(case)
    print(f"{which}: every partition went on within {took_s:.1f} s, {rebalances} rebalances")
    assert took_s < 30
    assert watch.regressions == []
    if which == "the-coordinator":
        assert rebalances <= 1, case.why()
    else:
        assert (rebalances, after) == (0, owners), case.why()
    finish(case, *workers)
    case.assert_clean()
    assert case.committed() == persisted(case)


def rss_kib(worker, name="VmRSS"):
    with open(f"/proc/{worker.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))


def test_all_brokers_away(cluster, make_case):
    """Row 9: for longer than the session; the process stays, says so, keeps its memory, and comes back by itself."""
    case = make_case(cluster)
    generator = generate.Generator(72, bad_share=0.02)
    worker = case.start_ready(KAFKA__SESSION_TIMEOUT_MS=SESSION_MS)
    case.produce(generator.event() for _ in range(6000))
    case.wait_drained()
    memory = rss_kib(worker)
    for node in (1, 2, 3):
        cluster.command("stop-broker", str(node), "--kill")
    gone = time.monotonic()
    case.wait(lambda: worker.health()[0] == 503, "not ready, with no partition", SESSION_MS / 1000 + 30)
    peak = memory
    while time.monotonic() < gone + OUTAGE_S:
        assert worker.alive and worker.health("/health/live")[0] == 200, case.why()
        assert worker.health()[0] == 503, "nothing is taken while no broker is there"
        peak = max(peak, rss_kib(worker))
        time.sleep(0.5)
    cluster.command("up")
    case.wait_ready(worker, 60)
    case.produce(generator.event() for _ in range(6000))
    case.wait_drained()
    print(f"{time.monotonic() - gone:.0f} s without brokers, RSS {memory >> 10} MiB before, at most {peak >> 10} MiB meanwhile")
    assert peak < memory + OUTAGE_RSS_KIB
    finish(case, worker)
    summary = case.assert_clean()
    assert summary["produced"] == 12_000


def stops(case):
    """partition → why it waits for an operator."""
    return dict(case.query("SELECT partition, stopped FROM partition_ledger WHERE stopped IS NOT NULL"))


def test_retention_overtakes_a_running_worker(case):
    """Row 36: the records that come next go while the worker sleeps; test_gap.py has the worker that starts late."""
    generator = generate.Generator(73)
    worker = case.start_ready(KAFKA__SESSION_TIMEOUT_MS=45_000)
    case.produce(generator.event() for _ in range(3000))
    case.wait_drained()
    before = persisted(case)
    worker.signal(signal.SIGSTOP)
    for _ in range(3):  # what is already on its way to the client may still be taken
        for partition in range(case.partitions):
            case.produce((generator.event() for _ in range(100)), partition=partition)
    end = case.end_offsets()[0]
    admin = admin_of(case)
    admin.delete_records([TopicPartition(case.topic, 0, end - 10)])[TopicPartition(case.topic, 0)].result(20)
    worker.signal(signal.SIGCONT)
    case.wait(lambda: stops(case) == {0: "gap"}, lambda: f"partition 0 to stop: {stops(case)}")
    ends = case.end_offsets()
    case.wait(lambda: all(persisted(case)[n] == ends[n] for n in range(1, 6)), "the other partitions to go on")
    frontier = persisted(case)[0]
    assert before[0] <= frontier < end - 10
    assert worker.alive and worker.health("/health/live")[0] == 200
    done = case.run("ledger", "accept-gap", "--partition", "0", "--to", str(end - 10), "--reason", "overtaken")
    assert done.returncode == 0, done.stderr
    finish(case, worker)
    assert case.query("SELECT partition, from_offset, to_offset FROM ingest_gaps") == [(0, frontier, end - 10)]
    summary = case.assert_clean(produced=False)
    assert summary["produced"] == len(case.produced) - (end - 10), "what the broker still has"


def recreate(case):
    admin = admin_of(case)
    admin.delete_topics([case.topic])[case.topic].result(20)
    case.wait(lambda: case.topic not in admin.list_topics(timeout=10).topics, "the topic to go")
    case.create_topic(case.topic, case.partitions, LOG_APPEND)


def persist_500(case, generator):
    for partition in range(case.partitions):
        case.produce((generator.event() for _ in range(500)), partition=partition)
    case.wait_drained()
    case.wait_exported()


def recreate_asleep(case, generator, worker, records):
    """The topic is made anew, with so many records in each partition, while the worker sleeps."""
    worker.signal(signal.SIGSTOP)
    recreate(case)
    for partition, count in enumerate(records):
        case.produce((generator.event() for _ in range(count)), partition=partition)
    worker.signal(signal.SIGCONT)


def test_topic_created_anew_under_a_running_worker(case):
    """Row 37: with fewer records than the ledger has; test_gap.py has the worker that was not there."""
    generator = generate.Generator(74, bad_share=0)
    worker = case.start_ready(KAFKA__SESSION_TIMEOUT_MS=45_000)
    persist_500(case, generator)
    recreate_asleep(case, generator, worker, [100] * 6)
    case.wait(lambda: len(stops(case)) == case.partitions, lambda: f"every partition to stop: {stops(case)}", 60)
    assert set(stops(case).values()) <= {"ahead", "recreated"}, stops(case)
    assert set(persisted(case).values()) == {500} and case.rows() == 3000, "nothing of the new topic was taken"
    assert worker.alive and worker.health("/health/live")[0] == 200
    assert worker.stop() == 0, case.why()


@pytest.mark.parametrize(("records", "refresh_ms"), [([900] * 6, 1000), ([900] + [100] * 5, 60_000)], ids=["all", "one"])
def test_topic_created_anew_has_more_than_was_read(case, records, refresh_ms):
    """Row 37: the client goes on in the new topic without a word, and may be quicker than whoever looks. What was read before
    tells: looked at in intervals, and at once where the brokers lack an offset of another partition."""
    generator = generate.Generator(74, bad_share=0)
    worker = case.start_ready(KAFKA__SESSION_TIMEOUT_MS=45_000, KAFKA__METADATA_REFRESH_MS=refresh_ms)
    persist_500(case, generator)
    recreate_asleep(case, generator, worker, records)

    def as_wanted():
        found = stops(case)
        return all(found.get(n) in ({"recreated"} if count > 500 else {"ahead", "recreated"}) for n, count in enumerate(records))

    case.wait(as_wanted, lambda: f"every partition to stop: {stops(case)}", 45)
    assert worker.alive and worker.health("/health/live")[0] == 200
    assert worker.stop() == 0, case.why()


def test_topic_that_stays_is_never_taken_for_another(case):
    """What is read again in intervals is there, or gone by retention, or large, or rejected: no partition stops."""
    generator = generate.Generator(76, bad_share=0.05)
    worker = case.start_ready(KAFKA__METADATA_REFRESH_MS=500)
    admin = admin_of(case)
    until = time.monotonic() + 12
    while time.monotonic() < until:
        case.produce(generator.event() for _ in range(300))
        # More than a look fetches at once, and a dead letter.
        case.produce([generator.bad("value_too_large")], partition=2)
        case.wait_drained()
        end = case.end_offsets()[1]
        admin.delete_records([TopicPartition(case.topic, 1, end)])[TopicPartition(case.topic, 1)].result(20)
    assert stops(case) == {}
    finish(case, worker)


def test_partitions_are_added(case):
    """Row 38: 6 → 12. What was produced before the worker knows of a partition is not skipped."""
    refresh_ms = 3000
    generator = generate.Generator(75)
    worker = case.start_ready(KAFKA__METADATA_REFRESH_MS=refresh_ms)
    case.produce(generator.event() for _ in range(1200))
    case.wait_drained()
    admin = admin_of(case)
    admin.create_partitions([NewPartitions(case.topic, 12)])[case.topic].result(20)
    case.partitions = 12
    case.wait(lambda: len(admin.list_topics(case.topic, timeout=10).topics[case.topic].partitions) == 12, "twelve")
    added = time.monotonic()
    for partition in range(12):
        case.produce((generator.event() for _ in range(50)), partition=partition)
    case.wait(lambda: len(case.frontiers()) == 12, "a ledger row of each partition", refresh_ms / 1000 + 20)
    took_s = time.monotonic() - added
    finish(case, worker)
    assert took_s < refresh_ms / 1000 + 10, "within the refresh interval, and a rebalance"
    summary = case.assert_clean()
    assert summary["produced"] == 1200 + 12 * 50
    shown = case.run("config")
    assert re.search(r"metadata_refresh_ms\W+60000", shown.stdout), shown.stdout


def topic_on(case, nodes, config):
    """One partition, with copies on these nodes, in place of the case's topic."""
    admin = admin_of(case)
    case.topic, case.partitions = f"{case.topic}.lossy", 1
    topic = NewTopic(case.topic, num_partitions=1, replica_assignment=[nodes], config=config)
    admin.create_topics([topic])[case.topic].result(20)


def leader(case):
    admin = admin_of(case)
    return admin.list_topics(case.topic, timeout=10).topics[case.topic].partitions[0].leader


@pytest.mark.parametrize("again", [0, 400], ids=["shorter", "grown-again"])
def test_log_is_truncated(cluster, make_case, again):
    """Row 39: an unclean election loses what the worker has persisted; and other records take those offsets."""
    case = make_case(cluster)
    config = {**LOG_APPEND, "min.insync.replicas": "1", "unclean.leader.election.enable": "true"}
    keeps, lags = 1, 2
    topic_on(case, [keeps, lags], config)
    generator = generate.Generator(76, bad_share=0)
    worker = case.start_ready(KAFKA__SESSION_TIMEOUT_MS=60_000, KAFKA__MAX_POLL_INTERVAL_MS=120_000)
    case.produce(generator.event() for _ in range(100))
    case.wait_drained()
    cluster.command("stop-broker", str(lags), "--kill")
    case.wait(lambda: leader(case) == keeps, f"broker {keeps} to lead", 60)
    case.produce(generator.event() for _ in range(200))
    case.wait(lambda: persisted(case) == {0: 300}, lambda: f"the records of one broker: {persisted(case)}", 60)
    case.wait_exported()
    rows = case.rows()
    worker.signal(signal.SIGSTOP)
    cluster.command("stop-broker", str(keeps), "--kill")
    cluster.command("start-broker", str(lags))
    case.wait(lambda: leader(case) == lags, f"broker {lags} to lead, without those records", 60)
    case.produce(generator.event() for _ in range(again))
    worker.signal(signal.SIGCONT)
    case.wait(lambda: len(stops(case)) == 1, lambda: f"the partition to stop: {persisted(case)}", 60)
    print(stops(case), case.end_offsets())
    assert stops(case)[0] in ("ahead", "recreated")
    assert persisted(case) == {0: 300} and case.rows() == rows
    assert worker.alive and worker.health("/health/live")[0] == 200
    assert worker.stop() == 0, case.why()
