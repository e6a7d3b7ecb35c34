"""One of two Postgres servers comes back from a backup, or both: each is put level with the bucket, and no partition is on two."""

from datetime import date, timedelta

import psycopg
import pytest
from psycopg.types.json import Jsonb

import generate
from databases import copy_database, name_of, restore
from spread import ON, SpreadCase
from test_reconcile import PUT, compared, contents, reconcile, reconcile_when_quiet, roll_back

# Files for every partition, and soon.
ROLL = {"ROLL__ROWS_MAX": 100, "ROLL__AGE_MS_MAX": 600_000}
TABLES = ("partition_ledger", "topic_ledger", "export_files", "operator_actions", "user_interactions")


def backup_of(case, server):
    return f"{name_of(case.urls[server])}_backup"


def back_to_the_backup(case, server):
    restore(case, case.urls[server], backup_of(case, server))


def change_at(url, *statements):
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def change(case, server, *statements):
    change_at(case.urls[server], *statements)


def state(case, server):
    """All that a server has, but for when its topic's row was last looked at."""
    row = "CASE WHEN tableoid = 'topic_ledger'::regclass THEN to_jsonb(t) - 'updated_at' ELSE to_jsonb(t) END::text"
    return [sorted(case.query_on(server, f"SELECT {row} FROM {table} t")) for table in TABLES]


def work_until_killed(case, name, count):
    """A worker exports files of every partition, and dies with rows that are in none."""
    before = case.frontiers()
    worker = case.start_ready(name, **ROLL, **PUT)
    case.produce(case.generator.event() for _ in range(count))
    case.wait_drained()

    def filed():
        found = case.frontiers()
        return all(found[n][1] > before.get(n, (0, 0))[0] for n in range(case.partitions))

    case.wait(filed, lambda: f"a file of each partition past {before}: {case.frontiers()}")
    worker.kill()


def go_on_and_check(case, name):
    """The next worker does the rest; no object was touched, and the checker finds nothing."""
    before = contents(case)
    worker = case.start_ready(name)
    case.produce(case.generator.event() for _ in range(600))
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    now = contents(case)
    assert {key: now.get(key) for key in before} == before
    case.assert_clean()
    case.assert_each_on_its_server()


@pytest.fixture
def killed(stack, folder, request):
    """A worker died; its bucket, and older backups of both its databases."""
    case = SpreadCase(stack, request.node.name.removeprefix("test_"), folder)
    try:
        assert case.run("migrate").returncode == 0
        case.generator = generate.Generator(81, case.schemas(), bad_share=0.01)
        work_until_killed(case, "first", 1500)
        for server in ON:
            copy_database(case, case.urls[server], backup_of(case, server))
        work_until_killed(case, "second", 2500)
        case.lost = case.frontiers()
        yield case
    finally:
        case.close()


def lose_at(url, partition):
    """As if the backup were older than the partition."""
    change_at(
        url,
        f"DELETE FROM partition_ledger WHERE partition = {partition}",
        f"DELETE FROM export_files WHERE partition = {partition}",
        f"DELETE FROM user_interactions WHERE kafka_partition = {partition}",
    )


def lose(case, server, partition):
    lose_at(case.urls[server], partition)


def assert_level(case, partitions):
    """What the ledger had of these partitions when it was lost, or a file that was not entered yet."""
    found = case.frontiers()
    for partition in partitions:
        persisted, exported, epoch = found[partition]
        assert persisted == exported >= case.lost[partition][1], partition
        assert epoch > case.lost[partition][2]


def refused(case, *words, **env):
    before = [state(case, server) for server in ON]
    done = reconcile(case, **env)
    assert done.returncode == 66, done.stdout + done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert [state(case, server) for server in ON] == before, "one that is refused leaves every server as it was"


def refuses_what_contradicts(case):
    """Each of these is seen on one server, and neither is touched."""
    name = f"Postgres server 1 ({case.location(1)})"
    written = "UPDATE partition_ledger SET updated_at = updated_at + interval '{} hours' WHERE partition = 3"
    change(case, 1, written.format(99))
    refused(case, name, "try again in")
    change(case, 1, written.format(-99))
    with psycopg.connect(case.urls[1], application_name="feed-worker"):
        refused(case, name, "stop every worker")
    rename = "UPDATE export_files SET object_key = {} WHERE partition = 0"
    change(case, 0, rename.format("object_key || 'x'"))
    refused(case, "of partition 0 and is not in the ledger")
    change(case, 0, rename.format("rtrim(object_key, 'x')"))
    place = "UPDATE partition_ledger SET stopped_detail = '1 {}' WHERE partition = 5"
    change(case, 0, place.format("another:5432/more"))
    refused(case, "partition 5 is on server 1 another:5432/more", "has no row of it", "old address")
    change(case, 0, place.format(case.location(1)))
    refused(case, "partition 3 is configured for server 0", POSTGRES__PLACEMENT="4-5: 1")
    refused(case, f"1 {case.location(1)}", "not configured", POSTGRES__MORE_URLS="", POSTGRES__PLACEMENT="")
    # Somebody who knew of home only began a partition there.
    row = case.query_on(1, "SELECT to_jsonb(l) FROM partition_ledger l WHERE partition = 3")[0][0]
    entry = case.query_on(0, "DELETE FROM partition_ledger l WHERE partition = 3 RETURNING to_jsonb(l)")[0][0]
    insert = "INSERT INTO partition_ledger SELECT * FROM jsonb_populate_record(NULL::partition_ledger, %s) RETURNING 1"
    case.query_on(0, insert, (Jsonb(row),))
    refused(case, "partition 3 has a ledger row on server 0", case.location(1))
    change(case, 0, "DELETE FROM partition_ledger WHERE partition = 3")
    case.query_on(0, insert, (Jsonb(entry),))


def test_one_server_restored_and_then_the_other(killed):
    case = killed
    back_to_the_backup(case, 1)
    lose(case, 1, 5)
    case.wait(lambda: reconcile(case, dry=True).returncode == 0, "the last PUT's time to be over", 20, every_s=1)
    refuses_what_contradicts(case)
    before = [state(case, server) for server in ON]
    told = reconcile(case, dry=True)
    assert told.returncode == 0 and "nothing was changed" in told.stdout, told.stdout + told.stderr
    assert [state(case, server) for server in ON] == before
    done = reconcile(case)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told.stdout.splitlines()[:-1]
    assert [f"partition {n} (server 1):" in done.stdout for n in range(6)] == [n in ON[1] for n in range(6)], done.stdout
    assert_level(case, ON[1])
    (action,) = case.query_on(1, "SELECT detail FROM operator_actions")[0]
    assert action["server"] == 1 and [p["partition"] for p in action["partitions"]] == list(ON[1])
    assert case.query_on(0, "SELECT detail->'partitions' FROM operator_actions")[0][0] == action["partitions"]
    again = reconcile(case)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    go_on_and_check(case, "third")

    back_to_the_backup(case, 0)
    change(case, 0, "DELETE FROM partition_ledger WHERE partition >= 4")
    here = state(case, 1)
    reconcile_when_quiet(case)
    assert state(case, 1) == here
    assert_level(case, ON[0])
    go_on_and_check(case, "fourth")


def test_died_between_two_servers_commits(killed):
    """Both were restored: the other server is level, home is not, and the next run does the rest."""
    case = killed
    for server in ON:
        back_to_the_backup(case, server)
    # Home does not know where it is, and its server not that it has it.
    change(case, 0, "DELETE FROM partition_ledger WHERE partition = 5")
    lose(case, 1, 5)
    case.wait(lambda: reconcile(case, dry=True).returncode == 0, "the last PUT's time to be over", 20, every_s=1)
    change(
        case,
        0,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'home is gone'; END$$",
        "CREATE CONSTRAINT TRIGGER fail AFTER INSERT ON operator_actions DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION fail()",
    )
    home = case.query_on(0, "SELECT * FROM partition_ledger WHERE partition < 3 ORDER BY partition")
    died = reconcile(case)
    assert died.returncode not in (0, 66) and "run this again" in died.stderr, died.stdout + died.stderr
    assert_level(case, ON[1])
    assert case.query_on(0, "SELECT * FROM partition_ledger WHERE partition < 3 ORDER BY partition") == home
    case.assert_each_on_its_server()
    change(case, 0, "DROP TRIGGER fail ON operator_actions")
    other = state(case, 1)
    done = reconcile(case)
    assert done.returncode == 0 and "(server 0)" in done.stdout and "(server 1)" not in done.stdout, done.stdout + done.stderr
    assert state(case, 1) == other
    assert_level(case, range(6))
    assert "nothing to do" in reconcile(case).stdout
    go_on_and_check(case, "third")


@pytest.mark.parametrize("restored", ["other", "both", "partition"])
def test_days_closed_after_the_backup(crossing, restored):
    """A closed day and the open one after it come back row for row, whether home still knows that it was closed or not."""
    case, day = crossing.spread, date.fromisoformat(crossing.day)
    urls = [copy_database(case, case.urls[server], f"{name_of(case.urls[server])}_{restored}") for server in ON]
    wanted = [compared(url) for url in urls]
    if restored == "partition":
        # Everything else is there, so that no other partition says how far back this one's objects go.
        lose_at(urls[1], 3)
        # Another one was to begin there, or did, and nothing is left of it.
        change_at(
            urls[0],
            "INSERT INTO partition_ledger SELECT (jsonb_populate_record(l, '{\"partition\": 6}')).* FROM partition_ledger l"
            " WHERE partition = 5",
        )
        wanted[1][2].append((case.topic, 6, 0, 0, day + timedelta(days=1), day, day + timedelta(days=1)))
        wanted[0][2].append((case.topic, 6, *wanted[0][2][5][2:]))
    else:
        for url in urls if restored == "both" else urls[1:]:
            roll_back(url, crossing.day)
    change_at(
        urls[0],
        "UPDATE partition_ledger SET updated_at = updated_at - interval '1 day'",
        f"UPDATE partition_ledger SET stopped_detail = '1 {urls[1].rpartition('@')[2]}' WHERE stopped = 'elsewhere'",
    )
    change_at(urls[1], "UPDATE partition_ledger SET updated_at = updated_at - interval '1 day'")
    assert [compared(url) for url in urls] != wanted

    env = {"_DATABASE_URL": urls[0], "POSTGRES__MORE_URLS": urls[1], "POSTGRES__PLACEMENT": "3-6: 1"}
    group = "UPDATE topic_ledger SET group_id = {}"
    change_at(urls[1], group.format("group_id || 'x'"))
    done = reconcile(case, **env)
    assert done.returncode == 66 and "belongs to another cluster or group" in done.stderr, done.stderr
    change_at(urls[1], group.format("rtrim(group_id, 'x')"))
    done = reconcile(case, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("partition 6: server 1" in done.stdout and "begins at offset 0" in done.stdout) == (restored == "partition")
    for found, want in zip([compared(url) for url in urls], wanted, strict=True):
        for table, (one, other) in enumerate(zip(found[:3], want[:3], strict=True)):
            assert one == other, table
        assert found[3][0][1] == day
    assert compared(urls[0])[3] == [(case.topic, day, day)]
    again = reconcile(case, **env)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    verified = case.run("exports", "verify", **env)
    assert verified.returncode == 0, verified.stdout + verified.stderr
