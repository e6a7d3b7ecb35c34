"""Row 48 of the fault matrix: a release takes over from the one before, and both may run at once."""

import os

import pytest

import generate
import harness
import releases

# The program of the release before, where there is one; else the present one stands for it.
PREVIOUS = os.environ.get("FEED_TEST_PREVIOUS_WORKER")
RELEASES = sorted(path.name for path in releases.FOLDER.iterdir() if path.is_dir())


def columns(case):
    """(table, column) → (type, whether an INSERT may leave it out)."""
    found = case.query(
        """SELECT table_name, column_name, data_type, is_nullable = 'YES' OR column_default IS NOT NULL OR is_identity = 'YES'
           FROM information_schema.columns WHERE table_schema = 'public' AND table_name !~ '_[0-9]{4}_[0-9]{2}_[0-9]{2}$'"""
    )
    return {(table, column): (kind, free) for table, column, kind, free in found}


def keys(case):
    """What must be unique."""
    found = case.query(
        """SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint
           WHERE contype IN ('p', 'u') AND connamespace = 'public'::regnamespace AND conparentid = 0"""
    )
    return set(found)


@pytest.mark.parametrize("name", RELEASES)
def test_takes_over_from_an_earlier_release(make_case, stack, name):
    """Its tables are migrated, its ledger believed, its files adopted, its rows exported, its topic gone on with."""
    case = make_case(stack, partitions=releases.PARTITIONS)
    stored = releases.install(case, name)
    before, frontiers, rows = columns(case), case.frontiers(), case.rows()
    assert rows == len(stored) == 210 and all(export < persist for persist, export, _ in frontiers.values())
    files = dict(case.query("SELECT object_key, row_hash FROM export_files"))
    worker = case.start_ready()
    after = columns(case)
    # Expand, then contract: while workers of both releases run, each finds what it reads and may leave out the rest.
    assert {at: after.get(at) for at in before} == before
    assert all(free for at, (_, free) in after.items() if at not in before), "a column that the old release cannot fill"
    generator = generate.Generator(111, bad_share=0)
    for partition in range(case.partitions):
        case.produce((generator.event() for _ in range(100)), partition=partition)
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    now = dict(case.query("SELECT object_key, row_hash FROM export_files"))
    assert {key: now.get(key) for key in files} == files, "the earlier release's files stand as they were"
    for partition, (_, export, _) in frontiers.items():
        assert any(f"+{partition}+{export:020}.parquet" in key for key in now), "the next file is named by its frontier"
    summary = case.assert_clean(produced=False)
    assert summary["persisted"] == summary["exported"] == 210 + 300


def test_rolling_upgrade_and_rollback(case, monkeypatch):
    """One worker at a time: old → new → old, with events all the while."""
    generator = generate.Generator(112, case.schemas())
    present = harness.WORKER
    previous = PREVIOUS or present

    def start(program, name):
        monkeypatch.setattr(harness, "WORKER", program)
        return case.start_ready(name, ROLL__ROWS_MAX=1000)

    workers = [start(previous, "old-0"), start(previous, "old-1")]
    with case.producing((generator.event() for _ in range(1_000_000)), per_second=1500), harness.FrontierWatch(case) as watch:
        for round_name, program in (("new", present), ("back", previous)):
            for slot in range(2):
                assert workers[slot].stop() == 0, case.why()
                workers[slot] = start(program, f"{round_name}-{slot}")
                case.wait(lambda: [len(case.owned(worker)) for worker in workers] == [3, 3], "both releases at work")
                before = {n: found[:2] for n, found in case.frontiers().items()}
                case.wait(
                    lambda before=before: all(
                        now[0] > before[n][0] and now[1] > before[n][1] for n, now in case.frontiers().items()
                    ),
                    "rows and files of every partition",
                    60,
                )
    assert watch.regressions == []
    case.wait_drained()
    case.wait_exported()
    assert [worker.stop() for worker in workers] == [0, 0], case.why()
    case.assert_clean()
