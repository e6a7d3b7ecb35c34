"""Drills: objects of a closed day, or all of them, are gone. `exports verify` finds it, `exports rebuild` brings the
very bytes back from the table, and nothing is ever overwritten."""

import base64
import hashlib
from datetime import date, timedelta

import psycopg
import pytest
from psycopg import sql

from databases import admin, copy_database


def keys(case):
    """The exports; what lies beside the days' folders is the worker's own."""
    return [key for key in case.keys() if not key.removeprefix(case.prefix + "/").startswith("_")]


def contents(case):
    return {key: hashlib.sha256(case.objects.read(key)).hexdigest() for key in keys(case)}


def verify(case, *options, **env):
    done = case.run("exports", "verify", *options, **env)
    return done.returncode, [line for line in done.stdout.splitlines() if line.split(":")[0] in ("missing", "wrong", "too much")]


def rebuild(case, day, *options, **env):
    done = case.run("exports", "rebuild", "--day", day, *options, **env)
    return done.returncode, done.stdout + done.stderr


def audit(case, *options):
    done = case.run("audit", "--json", *options)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def closed(crossing):
    """The closed day of a real run; whatever a test took away is back when it ends."""
    case = crossing.busy
    case.whole = contents(case)
    yield case
    for day in (crossing.day, crossing.next_day):
        assert rebuild(case, day)[0] == 0
    assert contents(case) == case.whole


def checksums_of(case, key):
    """Where the local S3 server keeps them: an object that somebody had put would have its own."""
    names = [base64.urlsafe_b64encode(name.encode()).decode().rstrip("=") for name in (case.bucket, key)]
    (path,) = case.objects.root.parent.glob(f".bucket-{names[0]}.object-{names[1]}.internal.json")
    return path


def of_day(case, day):
    return sorted(key for key in case.keys() if key.startswith(f"{case.prefix}/{day}/") and key.endswith(".parquet"))


def test_both_checkers_find_a_real_run_clean(crossing):
    for case in (crossing.busy, crossing.quiet):
        case.assert_clean()
        for options in ([], ["--produced", case.produced_file()], ["--day", crossing.day]):
            code, text = audit(case, *options)
            assert code == 0, text
            assert '"complete": true' in text
        assert verify(case) == (0, [])
        assert verify(case, "--quick") == (0, [])


def test_day_before_the_ledger_is_not_called_well(crossing):
    before = (date.fromisoformat(crossing.day) - timedelta(days=1)).isoformat()
    for case in (crossing.busy, crossing.quiet):
        for words in (["exports", "verify"], ["exports", "rebuild"], ["audit"]):
            done = case.run(*words, "--day", before)
            assert done.returncode == 66 and f"begins on {crossing.day}" in done.stderr, done.stdout + done.stderr


def test_mark_of_a_day_without_rows_is_missed(crossing):
    """The ledger begins with the partitions' first day, not with the first file."""
    case, day = crossing.quiet, crossing.day
    case.objects.delete(f"{case.prefix}/{day}/_SUCCESS")
    case.objects.delete(f"{case.prefix}/{day}/_manifest.json")
    try:
        code, text = audit(case)
        assert code == 2 and "lost-write" in text and f"{day}/_SUCCESS" in text, text
    finally:
        assert rebuild(case, day)[0] == 0


def test_half_a_day_deleted(crossing, closed):
    case, day = closed, crossing.day
    gone = [*of_day(case, day)[::2], f"{case.prefix}/{day}/_SUCCESS"]
    for key in gone:
        case.objects.delete(key)
    code, faults = verify(case, "--day", day)
    assert (code, sorted(faults)) == (2, sorted(f"missing: {key}" for key in gone))
    assert verify(case, "--day", crossing.next_day) == (0, [])
    code, text = audit(case, "--day", day)
    assert code == 2 and "lost-write" in text, text

    left = contents(case)
    code, text = rebuild(case, day, "--dry-run")
    assert code == 0 and all(f"would write {key}" in text for key in gone), text
    assert contents(case) == left

    code, text = rebuild(case, day)
    assert code == 0, text
    assert contents(case) == case.whole  # the very bytes
    assert verify(case) == (0, [])
    assert audit(case)[0] == 0
    case.assert_clean()
    code, text = rebuild(case, day)
    assert code == 0 and "lacks nothing" in text


def test_whole_bucket_lost(crossing, closed):
    case = closed
    for key in keys(case):
        case.objects.delete(key)
    code, faults = verify(case)
    assert (code, len(faults)) == (2, len(case.whole))
    assert audit(case)[0] == 2
    for day in (crossing.day, crossing.next_day):
        code, text = rebuild(case, day)
        assert code == 0, text
    assert contents(case) == case.whole
    assert audit(case)[0] == 0
    case.assert_clean()


def test_empty_day_comes_back(crossing):
    case, day = crossing.quiet, crossing.day
    whole = contents(case)
    for name in ("_manifest.json", "_SUCCESS"):
        case.objects.delete(f"{case.prefix}/{day}/{name}")
    assert verify(case)[0] == 2
    assert rebuild(case, day)[0] == 0
    assert contents(case) == whole


def test_wrong_object_is_never_overwritten(crossing, closed):
    """Something else lies under the key: nothing is written, and it is said what to do."""
    case, day = closed, crossing.day
    wrong, missing = of_day(case, day)[:2]
    path = case.objects.root / wrong
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # the size is right
    checksums_of(case, wrong).unlink()
    case.objects.delete(missing)
    left = contents(case)
    code, faults = verify(case, "--day", day)
    assert code == 2 and [fault.split(":")[0] for fault in sorted(faults)] == ["missing", "wrong"], faults
    assert verify(case, "--day", day, "--quick")[1] == [f"missing: {missing}"]
    code, text = rebuild(case, day)
    assert code == 66 and "is in the way" in text and "Move it" in text, text
    assert contents(case) == left
    case.objects.delete(wrong)
    assert rebuild(case, day)[0] == 0

    stray = case.objects.root / case.prefix / day / "part-0.parquet"
    stray.write_bytes(b"PAR1")
    try:
        code, faults = verify(case)
        assert code == 2 and faults == [f"too much: {case.prefix}/{day}/part-0.parquet: not in the ledger"]
    finally:
        stray.unlink()


def test_day_that_the_table_no_longer_has(crossing, closed):
    case, day = closed, crossing.day
    copy = f"{case.database}_dropped"
    url = copy_database(case, case.database_url, copy)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DELETE FROM user_interactions WHERE recorded_at < %s", (crossing.next_day,))
    gone = of_day(case, day)[1]
    case.objects.delete(gone)
    left = contents(case)
    code, text = rebuild(case, day, _DATABASE_URL=url)
    assert code == 66 and "no longer has" in text, text
    assert contents(case) == left
    admin(case, case.database_url, sql.SQL("DROP DATABASE {}").format(sql.Identifier(copy)))


def test_other_settings_make_other_bytes(crossing, closed):
    """The manifest says how large each object is: one of another size would contradict it for good."""
    case, day = closed, crossing.day
    case.objects.delete(of_day(case, day)[0])
    left = contents(case)
    code, text = rebuild(case, day, EXPORT__ROW_GROUP_ROWS=100)
    assert code == 66 and "row_group_rows" in text, text
    assert contents(case) == left
