"""Partitions on two Postgres servers (docs/deploy.md): each on its own, days over both, and no partition on two."""

import json
import signal

import psycopg
import pytest

import generate
import harness
from closed_day import MARKS
from spread import ON, SpreadCase

EVENTS = 60_000
PER_SECOND = 6000
# Whoever is first migrates two databases.
READY_MAX_S = 60
DAY_S = 86_400
# What a test of yesterday takes, and some more.
LONG_DAY_S = 180


@pytest.fixture
def case(stack, folder, request):
    made = SpreadCase(stack, request.node.name.removeprefix("test_"), folder)
    yield made
    for worker in made.workers:
        # One that is stopped would not end.
        if worker.alive:
            worker.signal(signal.SIGCONT)
    made.close()


@pytest.fixture
def second_server(case):
    """Stops and starts the second server; whatever happens, it runs afterwards."""

    class Server:
        def stop(self):
            case.stack.command("stop-postgres", "--server", "1", "--mode", "immediate")

        def start(self):
            case.stack.command("start-postgres", "--server", "1")

    yield Server()
    case.stack.command("start-postgres", "--server", "1")


@pytest.fixture
def long_day(stack):
    """Midnight does not come while a test looks at yesterday: partitions that move on close their days."""
    harness.wait_until(lambda: stack.now_s() % DAY_S < DAY_S - LONG_DAY_S, "midnight to pass", LONG_DAY_S + 30)


def started(case, name, **configuration):
    worker = case.start(name, **configuration)
    case.wait_ready(worker, READY_MAX_S)
    return worker


def days(case, server=0):
    """The topic's closed day, and the last finished one."""
    return case.query_on(server, "SELECT closed_day::text, success_day::text FROM topic_ledger")[0]


def marks(case):
    """The days whose manifest and `_SUCCESS` lie in the bucket."""
    found = {}
    for key in case.keys():
        day, _, name = key.removeprefix(case.prefix + "/").partition("/")
        found.setdefault(day, set()).add(name)
    return {day for day, names in found.items() if names >= MARKS}


def is_finished(case, day):
    """Closed and noted as finished, and its marks are there; later days may be, too."""
    return min(days(case)) >= day and day in marks(case)


def begin_yesterday(case):
    """As if the partitions had been there yesterday already: its manifest names them."""
    for server in ON:
        case.query_on(server, "UPDATE partition_ledger SET first_day = first_day - 1 WHERE stopped IS NULL RETURNING 1")


def reopen_yesterday(case):
    """As if yesterday had not been closed yet; returns it."""
    (day,) = case.query(
        "UPDATE topic_ledger SET closed_day = closed_day - 1, success_day = closed_day - 1 RETURNING (closed_day + 1)::text"
    )[0]
    return day


def finish(case, *workers):
    case.wait_drained(90)
    case.wait_exported(90)
    assert [worker.stop() for worker in workers] == [0] * len(workers), case.why()
    return case.assert_clean()


def test_two_servers_one_job(case):
    """A worker is killed and a server crashes in the middle."""
    generator = generate.Generator(71, case.schemas(), bad_share=0.01)
    left, right = case.start("left"), case.start("right")
    for worker in (left, right):
        case.wait_ready(worker, READY_MAX_S)
    with case.producing((generator.event() for _ in range(EVENTS)), per_second=PER_SECOND, finish=True):
        case.wait(lambda: case.rows() > EVENTS // 6, "a part of the rows", 90)
        right.kill()
        again = case.start("again")
        case.wait(lambda: case.rows() > EVENTS // 3, "more rows", 120)
        case.stack.command("restart-postgres", "--server", "1", "--mode", "immediate")
    case.wait_drained(120)
    # Before they stop: a commit may be refused while the group changes.
    case.wait(lambda: case.committed() == case.end_offsets(), "kafka's offsets at the end", 60)
    summary = finish(case, left, again)
    assert summary["produced"] == EVENTS
    assert summary["dead_lettered"] > EVENTS // 200
    assert summary["exported"] == summary["persisted"]
    case.assert_each_on_its_server()
    assert {partition: persist for partition, (persist, _, _) in case.frontiers().items()} == case.end_offsets()


def test_a_server_that_is_away_holds_up_its_own(case, second_server, long_day):
    generator = generate.Generator(72, case.schemas(), bad_share=0)
    events = lambda count: (generator.event() for _ in range(count))  # noqa: E731
    first = started(case, "first", ROLL__AGE_MS_MAX="600000")
    case.produce(events(3000))
    case.wait_drained()
    begin_yesterday(case)
    second_server.stop()
    day = reopen_yesterday(case)
    case.produce(events(3000))
    ends = case.end_offsets()

    def frontier(partition):
        statement = "SELECT persist_frontier FROM partition_ledger WHERE partition = %s"
        return case.query(statement, (partition,))[0][0]

    case.wait(lambda: all(frontier(partition) == ends[partition] for partition in ON[0]), "the first server's go on", 90)
    case.wait(lambda: "days are not finished yet" in first.log(), "the day was tried", 90)
    assert_commands_tell_the_rest(case)
    filed = "SELECT coalesce(max(next_offset), 0) FROM export_files WHERE partition = %s"
    first.signal(signal.SIGTERM)
    # Who waits for the second server's rows keeps nobody else's files back.
    case.wait(lambda: all(case.query(filed, (p,))[0][0] == ends[p] for p in ON[0]), "the first server's files", 15)
    assert first.alive, "there are rows that it has taken and not written"
    first.kill()
    # One that starts now takes what it can. To migrate it would need every server.
    second = case.start_without_migration()
    case.wait_ready(second, READY_MAX_S)
    case.wait(lambda: second.log().count("its Postgres server is away") >= len(ON[1]), "the others wait", 60)
    for partition in ON[0]:
        case.produce(events(200), partition=partition)
    ends = case.end_offsets()
    case.wait(lambda: all(frontier(partition) == ends[partition] for partition in ON[0]), "and after a takeover", 90)
    assert days(case)[0] < day and day not in marks(case), "the day stays open"
    case.wait(lambda: second.health()[0] == 200, "healthy all the same", 60)
    second_server.start()
    case.wait(lambda: is_finished(case, day), f"{day} closed", 90)
    finish(case, second)
    case.assert_each_on_its_server()


def assert_commands_tell_the_rest(case):
    """While the second server is away."""
    told = case.run("lag", "--json", "--records-max", "0")
    assert told.returncode == 75, told.stderr
    look = json.loads(told.stdout)
    assert [line["partition"] for line in look["partitions"]] == list(ON[0])
    assert [(away["server"], away["partitions"]) for away in look["away"]] == [(case.location(1), list(ON[1]))]
    told = case.run("lag")
    assert told.returncode == 75
    assert told.stdout.splitlines()[-1] == f"not known: partitions 3, 4, 5, whose Postgres server is away ({case.location(1)})"
    assert "the lag of partitions 3, 4, 5 is not known" in told.stderr
    told = case.run("ledger", "show", "--json")
    assert told.returncode == 75, told.stderr
    assert [json.loads(line)["partition"] for line in told.stdout.splitlines()] == list(ON[0])
    assert case.location(1) in told.stderr


def test_a_day_waits_for_every_servers_partitions(case, long_day):
    generator = generate.Generator(73, case.schemas(), bad_share=0)
    worker = started(case, "first")
    case.produce(generator.event() for _ in range(1200))
    case.wait_drained()
    begin_yesterday(case)
    case.query_on(1, "UPDATE partition_ledger SET closed_day = closed_day - 1 WHERE partition = 5 RETURNING 1")
    day = reopen_yesterday(case)
    # The worker looks every five seconds.
    with pytest.raises(AssertionError, match="closed too early"):
        case.wait(lambda: days(case)[0] >= day, "closed too early", 12)
    assert worker.alive, case.why()
    assert days(case)[0] < day and day not in marks(case)
    worker.kill()
    # Who takes the partition over closes its day, and then the topic's.
    worker = started(case, "second")
    case.wait(lambda: is_finished(case, day), f"{day} closed", 90)
    assert days(case, 1)[0] >= day
    finish(case, worker)


def refused(case, **env):
    done = case.run("run", **env)
    assert done.returncode == 66, (done.returncode, done.stderr)
    return done.stderr


def test_a_placement_that_moves_a_partition_is_refused(case):
    generator = generate.Generator(74, case.schemas(), bad_share=0.01)
    worker = started(case, "first")
    case.produce(generator.event() for _ in range(3000))
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0
    before = case.frontiers()
    places = [f"({case.location(server)})" for server in ON]
    told = refused(case, POSTGRES__PLACEMENT="4-5: 1")
    assert "partition 3 is configured for server 0" in told and f"server 1 {case.location(1)}" in told and places[0] in told
    told = refused(case, POSTGRES__PLACEMENT="2-5: 1")
    assert "partition 2 is configured for server 1" in told and f"server 0 {places[0]}" in told and places[1] in told
    told = refused(case, POSTGRES__MORE_URLS="", POSTGRES__PLACEMENT="")
    assert "partition 3 is configured for server 0" in told and case.location(1) in told
    assert case.frontiers() == before, "nothing was taken over"
    commands_know_every_server(case)
    finish(case, started(case, "again"))


def commands_know_every_server(case):
    lag = json.loads(case.run("lag", "--json").stdout)
    found = {line["partition"]: (line["persist_frontier"], line["export_frontier"]) for line in lag["partitions"]}
    assert found == {partition: (persist, export) for partition, (persist, export, _) in case.frontiers().items()}
    assert all(line["status"] == "OK" and line["persist_records"] == 0 for line in lag["partitions"])
    shown = [json.loads(line) for line in case.run("ledger", "show", "--json").stdout.splitlines()]
    assert [(line["partition"], line["stopped"]) for line in shown] == [(partition, "") for partition in range(6)]
    accepted = case.run("rejects", "accept", "--reason", "a test")
    assert accepted.returncode == 0
    assert {count for (count,) in case.query_all("SELECT count(*) FROM operator_actions")} == {1}
    # Stopped nowhere: there is nothing to accept, on whichever server it is.
    for partition in (0, 5):
        gap = case.run("ledger", "accept-gap", "--partition", str(partition), "--to", "9", "--reason", "a test")
        assert gap.returncode == 66 and "is not stopped" in gap.stderr
    assert case.run("maintain").returncode == 0
    audit = case.run("audit", "--json")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    counts = json.loads(audit.stdout)["figures"]
    assert (counts["partitions"], counts["rows_filed"]) == (6, case.rows())
    verified = case.run("exports", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    files = sum(count for (count,) in case.query_all("SELECT count(*) FROM export_files"))
    assert f"{files} objects" in verified.stdout
    done = case.run("ledger", "reconcile", "--dry-run")
    assert done.returncode == 66 and f"Postgres server 0 ({case.location(0)}): a worker updated" in done.stderr, done.stderr
    # Whoever knows of the first server only is refused, and calls nothing lost or well.
    for command in (["ledger", "reconcile", "--dry-run"], ["exports", "verify"], ["audit"]):
        done = case.run(*command, POSTGRES__MORE_URLS="", POSTGRES__PLACEMENT="")
        assert done.returncode == 66 and f"1 {case.location(1)}" in done.stderr, (command, done.stderr)


def test_audit_and_checker_find_a_partition_on_two_servers(case):
    generator = generate.Generator(75, case.schemas(), bad_share=0)
    worker = started(case, "worker")
    case.produce(generator.event() for _ in range(1200))
    finish(case, worker)
    columns = case.query("SELECT string_agg(column_name, ', ' ORDER BY ordinal_position) FROM information_schema.columns"
                         " WHERE table_name = 'user_interactions'")[0][0]
    where = "WHERE kafka_partition = 4 AND kafka_offset < 3"
    with psycopg.connect(case.urls[1]) as there, psycopg.connect(case.urls[0]) as here:
        rows = there.cursor().copy(f"COPY (SELECT {columns} FROM user_interactions {where}) TO STDOUT")
        with rows as source, here.cursor().copy(f"COPY user_interactions ({columns}) FROM STDIN") as target:
            for block in source:
                target.write(block)
    code, found, text = case.check()
    assert code == 1 and f"{case.topic}/4: rows, files or gaps on server 0, the ledger row on 1" in text
    assert len([line for line in found["violations"]["doubled"]["examples"] if "two rows in the table" in line]) == 3, text
    audit = case.run("audit")
    assert audit.returncode == 2
    assert f"{case.topic}/4: rows or files on server 0, its ledger row on 1" in audit.stdout


def test_a_day_closes_over_both_servers(crossing):
    case = crossing.spread
    summary = case.assert_clean()
    assert summary["days"][crossing.day]["closed"] and not summary["days"][crossing.next_day]["closed"]
    case.assert_each_on_its_server()
    manifest = json.loads(crossing.read(case, "_manifest.json"))
    assert [entry["partition"] for entry in manifest["partitions"]] == list(range(6))
    statement = "SELECT kafka_partition, count(*) FROM user_interactions WHERE recorded_at < %s GROUP BY 1"
    rows = dict(case.query_all(statement, (crossing.next_day,)))
    listed = {}
    for file in manifest["files"]:
        listed[file["partition"]] = listed.get(file["partition"], 0) + file["rows"]
    assert listed == rows and set(rows) & set(ON[0]) and set(rows) & set(ON[1])
    assert days(case) == (crossing.day, crossing.day)
    assert days(case, 1)[0] == crossing.day
    audit = case.run("audit", "--day", crossing.day)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    verified = case.run("exports", "verify", "--day", crossing.day)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    # A file of each server comes back from its own table.
    for partition in (ON[0][0], ON[1][0]):
        key = next(file["key"] for file in manifest["files"] if file["partition"] == partition)
        body = case.objects.read(key)
        case.objects.delete(key)
        rebuilt = case.run("exports", "rebuild", "--day", crossing.day)
        assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
        assert case.objects.read(key) == body
