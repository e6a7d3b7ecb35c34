"""Postgres comes back from a backup: nothing is overwritten, and the bucket gives back what the backup lacks."""

import hashlib
import json
import time
from datetime import date, timedelta

import psycopg
import pytest
from psycopg import sql

import generate
from databases import admin, copy_database, restore

# Small files, and always a tail that is persisted but not exported.
ROLL = {"ROLL__ROWS_MAX": 200, "ROLL__AGE_MS_MAX": 600_000}
# A PUT may take so long; the command waits for it and for the session timeout.
PUT = {"S3__TIMEOUT_MS": 2500, "S3__CONNECT_TIMEOUT_MS": 1000}


def contents(case):
    return {key: hashlib.sha256(case.objects.read(key)).hexdigest() for key in case.keys() if key.endswith(".parquet")}


def state(case):
    """What a refusal must leave as it was."""
    return [
        case.query(f"SELECT * FROM {table} ORDER BY 1, 2, 3")
        for table in ("partition_ledger", "topic_ledger", "export_files", "operator_actions")
    ] + [case.rows()]


def reconcile(case, dry=False, **env):
    how = ["--dry-run"] if dry else ["--reason", "the disk of Postgres died"]
    return case.run("ledger", "reconcile", *how, **{**PUT, **env})


def refused(case, *words):
    before = state(case)
    done = reconcile(case)
    assert done.returncode == 66, done.stdout + done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert state(case) == before


def work_until_killed(case, name, count, past):
    """A worker exports files past these offsets, persists a tail that is too small for a file, and dies."""
    worker = case.start_ready(name, **ROLL, **PUT)
    case.produce(case.generator.event() for _ in range(count))
    case.wait_drained()

    def filed():
        return all(found[1] > past.get(n, 0) for n, found in case.frontiers().items())

    case.wait(filed, f"a file past {past} of each partition")

    def tailed():
        return all(exported < persisted for persisted, exported, _ in case.frontiers().values())

    # Where the tail happens to fill a file there is none, until a few more come.
    for _ in range(10):
        case.produce(case.generator.event() for _ in range(150))
        case.wait_drained()
        time.sleep(0.5)  # a file that is full is on its way
        if tailed():
            break
    worker.kill()
    assert tailed(), case.frontiers()
    return case.frontiers()


def killed_on(case):
    """A worker died; its bucket, and an older backup of its database."""
    case.generator = generate.Generator(61, case.schemas())
    case.at_backup = work_until_killed(case, "first", 4000, {})
    case.backup = f"{case.database}_backup"
    copy_database(case, case.database_url, case.backup)
    case.lost = work_until_killed(case, "second", 6000, {n: found[0] for n, found in case.at_backup.items()})
    case.bucket_before = contents(case)
    return case


@pytest.fixture
def killed(case):
    return killed_on(case)


def started_on_it(case):
    """A worker sees what it was given instead of its database, and stops every partition."""
    worker = case.start("third", **ROLL, **PUT)

    def stopped():
        try:
            found = case.query("SELECT count(*) FROM partition_ledger WHERE stopped = 'restored'")
        except psycopg.errors.UndefinedTable:
            return False
        return found[0][0] == case.partitions

    case.wait(stopped, lambda: f"every partition stopped: {case.frontiers()}")
    assert worker.alive
    return worker


@pytest.fixture
def restored(killed):
    restore(killed, killed.database_url, killed.backup)
    killed.rows_before = killed.rows()
    killed.third = started_on_it(killed)
    return killed


def reconcile_when_quiet(case):
    case.wait(lambda: reconcile(case).returncode == 0, "the last PUT's time to be over", 20, every_s=1)


def go_on_and_check(case):
    """The next worker does the rest; no object was touched, and the checker finds nothing."""
    worker = case.start_ready("last")
    case.produce(case.generator.event() for _ in range(1000))
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    now = contents(case)
    assert {key: now.get(key) for key in case.bucket_before} == case.bucket_before
    case.assert_clean()


def test_restored_ledger_is_stopped_then_reconciled(restored):
    case = restored
    time.sleep(1)
    assert case.third.alive
    assert {n: f[:2] for n, f in case.frontiers().items()} == {n: f[:2] for n, f in case.at_backup.items()}
    assert (case.rows(), contents(case)) == (case.rows_before, case.bucket_before)

    refused(case, "stop every worker")
    assert case.third.stop() == 0, case.why()
    written = "UPDATE partition_ledger SET updated_at = now() + interval '{} minutes' RETURNING 1"
    case.query(written.format(1))  # however long it takes to ask
    refused(case, "try again in")
    case.query(written.format(-1))

    # A row that was persisted anew, by a release that reads it differently.
    last = "SELECT max(kafka_offset) FROM user_interactions WHERE kafka_partition = 2"
    where = f"WHERE kafka_partition = 2 AND kafka_offset = ({last})"
    ingested = f"UPDATE user_interactions SET ingested_at = ingested_at + interval '{{}} second' {where} RETURNING 1"
    case.query(ingested.format(1))
    refused(case, "partition 2", "is not the one in")
    case.query(ingested.format(-1))
    moved = "UPDATE partition_ledger SET export_frontier = export_frontier + {} WHERE partition = 4 RETURNING 1"
    case.query(moved.format(1))
    refused(case, "begins below the export frontier")
    case.query(moved.format(-2))
    refused(case, "do not tile the offsets")


def test_reconciled_ledger_goes_on(restored):
    case = restored
    assert case.third.stop() == 0, case.why()
    before = case.frontiers()
    reconcile_when_quiet(case)
    after = case.frontiers()
    for number in range(case.partitions):
        # The bucket's end: the export frontier when the database was lost, or a file that was not entered yet.
        assert after[number][0] == after[number][1] >= case.lost[number][1]
        assert after[number][2] > max(before[number][2], case.lost[number][2])
    assert case.query("SELECT count(*) FROM partition_ledger WHERE stopped IS NOT NULL OR last_record_hash IS NOT NULL")[0][0] == 0
    filed = case.query("SELECT sum(rows) FROM export_files")[0][0]
    assert case.rows() == filed
    actions = case.query("SELECT command, reason, detail FROM operator_actions")
    assert [action[:2] for action in actions] == [("ledger reconcile", "the disk of Postgres died")]
    assert sum(p["rows_added"] for p in actions[0][2]["partitions"]) == filed - case.rows_before

    again = reconcile(case)
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    assert case.frontiers() == after

    go_on_and_check(case)


def test_empty_database_beside_a_full_bucket(killed):
    """No backup at all: everything that the bucket has of days that Kafka still knows comes back."""
    case = killed
    admin(case, case.database_url, sql.SQL("DROP DATABASE {}").format(sql.Identifier(case.database)))
    admin(case, case.database_url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(case.database)))
    worker = started_on_it(case)
    assert case.rows() == 0
    assert worker.stop() == 0, case.why()
    reconcile_when_quiet(case)
    assert {n: found[0] for n, found in case.frontiers().items()} == {n: found[1] for n, found in case.frontiers().items()}
    assert case.rows() == case.query("SELECT sum(rows) FROM export_files")[0][0] > 5000
    go_on_and_check(case)


def compared(url):
    """All that a database holds, but for what says when and by whom it was written."""
    statements = [
        "SELECT * FROM user_interactions ORDER BY kafka_partition, kafka_offset",
        """SELECT topic, partition, first_offset, next_offset, day, object_key, rows, bytes, row_hash, recorded_at_min,
                  recorded_at_max, epoch FROM export_files ORDER BY object_key""",
        "SELECT topic, partition, persist_frontier, export_frontier, persist_day, closed_day, first_day FROM partition_ledger"
        " ORDER BY 2",
        "SELECT topic, closed_day, success_day FROM topic_ledger",
    ]
    with psycopg.connect(url) as connection:
        return [connection.execute(statement).fetchall() for statement in statements]


def roll_back(url, day):
    """A ledger as it was in the middle of the day: some rows, some files, nothing closed."""
    before = date.fromisoformat(day) - timedelta(days=1)
    statements = [
        "DELETE FROM export_files f WHERE (SELECT count(*) FROM export_files o WHERE o.partition = f.partition"
        " AND o.first_offset <= f.first_offset) > f.partition",
        "UPDATE partition_ledger l SET export_frontier = f.next, persist_frontier = greatest(f.next, l.persist_frontier / 3)"
        " FROM (SELECT p.partition, coalesce(max(e.next_offset), 0) AS next FROM partition_ledger p"
        " LEFT JOIN export_files e USING (topic, partition) GROUP BY 1) f WHERE f.partition = l.partition",
        "DELETE FROM user_interactions u USING partition_ledger l WHERE l.partition = u.kafka_partition"
        " AND u.kafka_offset >= l.persist_frontier",
        "UPDATE partition_ledger SET persist_day = %(day)s, closed_day = %(before)s, updated_at = updated_at - interval '1 day'",
        "UPDATE topic_ledger SET closed_day = %(before)s, success_day = %(before)s",
        # One partition came after the backup.
        "DELETE FROM partition_ledger WHERE partition = 3",
        "DELETE FROM export_files WHERE partition = 3",
        "DELETE FROM user_interactions WHERE kafka_partition = 3",
    ]
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement, {"day": day, "before": before} if "%(" in statement else None)


def test_days_closed_after_the_backup(crossing):
    """The whole of a closed day and of the open one after it comes back from the bucket, row for row."""
    case = crossing.busy
    copy = f"{case.database}_copy"
    url = copy_database(case, case.database_url, copy)
    wanted = compared(url)
    roll_back(url, crossing.day)
    assert compared(url) != wanted
    manifest = json.loads(crossing.read(case, "_manifest.json"))

    done = reconcile(case, _DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    found = compared(url)
    for table, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one == other, table
    assert found[3] == [(case.topic, date.fromisoformat(crossing.day), date.fromisoformat(crossing.day))]
    assert crossing.day == manifest["day"]
    again = reconcile(case, _DATABASE_URL=url)
    assert again.returncode == 0 and "nothing to do" in again.stdout
    verified = case.run("exports", "verify", _DATABASE_URL=url)
    assert verified.returncode == 0 and " 2 days, " in verified.stdout, verified.stdout + verified.stderr


def test_dry_run_changes_nothing(restored):
    case = restored
    assert case.third.stop() == 0, case.why()
    case.wait(lambda: reconcile(case, dry=True).returncode == 0, "the last PUT's time to be over", 20, every_s=1)
    before = state(case)
    told = reconcile(case, dry=True)
    assert told.returncode == 0 and "nothing was changed" in told.stdout, told.stdout + told.stderr
    assert state(case) == before
    done = reconcile(case)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told.stdout.splitlines()[:-1]
    assert state(case) != before


def test_bucket_away_at_the_takeover_is_asked_later(own_case, s3):
    """The restore is noticed as soon as the bucket answers, by where the ledger stood before the assignment."""
    case = killed_on(own_case)
    restore(case, case.database_url, case.backup)
    # Files that never roll: no upload is to meet the objects that the ledger does not know.
    quiet = {"ROLL__ROWS_MAX": 1_000_000, "ROLL__AGE_MS_MAX": 600_000}
    s3.set("mode=503&op=list")
    worker = case.start_ready("third", **PUT, **quiet)
    case.wait_drained()
    assert s3.state()["fired"] > 0
    stopped = "SELECT count(*) FROM partition_ledger WHERE stopped = 'restored'"
    assert case.query(stopped)[0][0] == 0, "the partitions were not taken over"
    s3.off()
    case.wait(lambda: case.query(stopped)[0][0] == case.partitions, "every partition to stop", 60)
    assert worker.alive
    assert contents(case) == case.bucket_before


def test_bucket_away_at_the_takeover_and_nothing_restored(own_case, s3):
    """What the present owner and the one before it wrote is no proof of anything."""
    case = killed_on(own_case)
    s3.set("mode=503&op=list")
    worker = case.start_ready("third", **PUT, **ROLL)
    case.produce(case.generator.event() for _ in range(6000))
    case.wait_drained()
    case.wait(lambda: all(now[1] > case.lost[n][1] for n, now in case.frontiers().items()), "its own files")
    listed = s3.state()["requests"]["list"]
    s3.off()
    case.wait(lambda: s3.state()["requests"]["list"] > listed, "the bucket to be asked")
    case.produce(case.generator.event() for _ in range(1000))
    case.wait_drained()
    assert case.query("SELECT count(*) FROM partition_ledger WHERE stopped IS NOT NULL")[0][0] == 0
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_gap_of_a_closed_day_is_entered_again(crossing):
    """A gap that was accepted after the backup stands in the day's manifest; the ledger gets it back from there."""
    case, day = crossing.busy, crossing.day
    copy = f"{case.database}_gap"
    url = copy_database(case, case.database_url, copy)
    gap = (case.topic, 0, 3, 5, day, "lost by the old cluster")
    key = f"{case.prefix}/{day}/_manifest.json"
    manifest = case.objects.read(key)
    gaps = "SELECT topic, partition, from_offset, to_offset, day::text, reason FROM ingest_gaps"
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO ingest_gaps (topic, partition, from_offset, to_offset, day, reason) VALUES (%s,%s,%s,%s,%s,%s)", gap
            )
            case.objects.delete(key)
            assert case.run("exports", "rebuild", "--day", day, _DATABASE_URL=url).returncode == 0
            assert json.loads(case.objects.read(key))["gaps"][0]["reason"] == gap[-1]
            connection.execute("DELETE FROM ingest_gaps")
        roll_back(url, day)
        done = reconcile(case, _DATABASE_URL=url)
        assert done.returncode == 0, done.stdout + done.stderr
        with psycopg.connect(url) as connection:
            assert connection.execute(gaps).fetchall() == [gap]
    finally:
        case.objects.delete(key)
        assert case.run("exports", "rebuild", "--day", day).returncode == 0
        assert case.objects.read(key) == manifest
