"""A worker that is stopped past its session, and wakes up in a world that has gone on."""

import signal
import time

import pytest

import crash_case
import generate
import harness

SESSION_S = harness.SESSION_TIMEOUT_MS / 1000


def stopped_anywhere(case, worker):
    worker.signal(signal.SIGSTOP)


def stopped_in_transaction(case, worker):
    """Stops it while one of its transactions is open: only this worker is connected to the database."""
    open_transactions = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                           AND backend_type = 'client backend' AND xact_start IS NOT NULL AND backend_xid IS NOT NULL"""
    with case.connect() as connection:

        def seen():
            return connection.execute(open_transactions).fetchone()[0]

        def caught():
            if not seen():
                return False
            worker.signal(signal.SIGSTOP)
            # What was on its way is answered by now; what is open now stays open.
            if all(seen() for _ in range(20)):
                return True
            worker.signal(signal.SIGCONT)
            return False

        harness.wait_until(caught, "an open transaction to stop it in", 30, every_s=0)


@pytest.mark.parametrize("stop", [stopped_anywhere, stopped_in_transaction], ids=["anywhere", "in-transaction"])
def test_stopped_owner(case, stop):
    generator = generate.Generator(5, case.schemas())
    env = {"BATCH__AGE_MS_MAX": 200, "ROLL__ROWS_MAX": 1000}
    zombie = case.start_ready("zombie", **env)
    with case.producing((generator.event() for _ in range(1_000_000)), per_second=3000), harness.FrontierWatch(case) as watch:
        case.wait(lambda: case.rows() > 1000 and len(case.owned(zombie)) == 6, "the owner at work")
        stop(case, zombie)
        stopped_at, before = time.monotonic(), case.frontiers()
        heir = case.start("heir", **env)

        def taken_over():
            now = case.frontiers()
            return all(now[n][2] > before[n][2] and now[n][0] > before[n][0] for n in before)

        case.wait(taken_over, lambda: f"the heir to go on: {before} → {case.frontiers()}", SESSION_S + 15)
        delay_s = time.monotonic() - stopped_at
        case.wait(lambda: len(case.owned(heir)) == 6, "all with the heir")
        kept = case.query("SELECT partition, epoch FROM partition_ledger ORDER BY partition")
        zombie.signal(signal.SIGCONT)
        case.wait_ready(zombie)
        case.wait(lambda: len(case.owned(zombie)) == len(case.owned(heir)) == 3, "shared again")
    print(f"{delay_s:.1f} s from stop to progress of every partition")
    assert delay_s <= SESSION_S + 5
    assert watch.regressions == []
    # Whatever the zombie owns now, it owns under a new epoch.
    now = dict(case.query("SELECT partition, epoch FROM partition_ledger ORDER BY partition"))
    assert all(now[n] > epoch for n, epoch in kept if n in case.owned(zombie))
    case.wait_drained()
    case.wait_exported()
    assert [zombie.stop(), heir.stop()] == [0, 0], case.why()
    case.assert_clean()


def test_stopped_longer_than_everything(case):
    """The heir drains and exports all, and ends; only then the zombie wakes, alone with its old epoch."""
    generator = generate.Generator(6, case.schemas())
    zombie = case.start_ready("zombie", ROLL__ROWS_MAX=1000)
    case.produce(generator.event() for _ in range(2000))
    case.wait(lambda: case.rows() > 100, "the owner at work")
    zombie.signal(signal.SIGSTOP)
    case.produce(generator.event() for _ in range(2000))
    heir = case.start("heir", ROLL__ROWS_MAX=1000)
    case.wait_drained()
    case.wait_exported()
    assert heir.stop() == 0, case.why()
    before = (case.frontiers(), case.rows(), sorted(case.keys()))
    zombie.signal(signal.SIGCONT)
    case.wait(lambda: len(case.owned(zombie)) == 6 and zombie.health()[0] == 200, "the zombie rejoined")
    after = (case.frontiers(), case.rows(), sorted(case.keys()))
    assert after[1:] == before[1:]
    assert {n: found[:2] for n, found in after[0].items()} == {n: found[:2] for n, found in before[0].items()}
    assert zombie.stop() == 0, case.why()
    case.assert_clean()


# Transactions of workers, on the case's database.
OPEN = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'feed-worker'"


def test_owner_that_sleeps_in_the_middle_of_its_rows(stack, make_case):
    """No time-out of Postgres ends a COPY whose client is stopped, and its rows block the heir's: the heir ends it."""
    case = make_case(stack, program=crash_case.program())
    generator = generate.Generator(8)
    # Rows that Postgres still gathers block nobody: it needs more than a thousand to put the first into the table.
    case.produce((generator.valid() for _ in range(6000)), partition=0)
    zombie = case.start("zombie", _FAILPOINTS="persist.in-copy=stop", BATCH__ROWS_MAX=6000, BATCH__AGE_MS_MAX=5000)
    case.wait(lambda: crash_case.state_of(zombie) == "T", "it to stop in the midst of its rows", 60)
    stopped_at = case.query("SELECT clock_timestamp()")[0][0]
    of_zombie = f"{OPEN} AND xact_start < %s AND query LIKE 'COPY%%'"
    assert case.query(of_zombie, (stopped_at,)), "it is in the midst of one"
    heir = case.start("heir")
    case.wait_drained()
    case.wait_exported()
    assert crash_case.state_of(zombie) == "T"
    assert not case.query(of_zombie, (stopped_at,)), "its session held no row that the heir wanted"
    zombie.signal(signal.SIGCONT)
    case.wait(lambda: len(case.owned(zombie)) == len(case.owned(heir)) == 3, "shared again")
    case.produce(generator.valid() for _ in range(300))
    case.wait_drained()
    case.wait_exported()
    assert [zombie.stop(), heir.stop()] == [0, 0], case.why()
    case.assert_clean()


def test_owner_that_wakes_in_the_middle_of_persisting(stack, make_case):
    """Its frontier is still the ledger's, for its heir has written nothing yet: only its epoch is old, and that is enough."""
    case = make_case(stack, program=crash_case.program())
    generator = generate.Generator(7)
    # Its transaction is to outlive the heir's takeover.
    long = {"POSTGRES__STATEMENT_TIMEOUT_MS": 60_000, "POSTGRES__DEADLINE_MS": 70_000, "HEALTH__STALL_MS": 90_000}
    zombie = case.start_ready("zombie", _FAILPOINTS="persist.before-copy=stop", BATCH__AGE_MS_MAX=500, **long)
    case.wait(lambda: len(case.owned(zombie)) == 6, "the owner")
    case.produce(generator.valid() for _ in range(300))
    case.wait(lambda: crash_case.state_of(zombie) == "T", "it to stop before its rows")
    stopped_at = case.query("SELECT clock_timestamp()")[0][0]
    assert case.query(f"{OPEN} AND xact_start < %s", (stopped_at,)), "it is in the midst of one"
    before = case.frontiers()
    heir = case.start("heir", BATCH__AGE_MS_MAX=600_000)
    case.wait(lambda: len(case.owned(heir)) == 6 and case.frontiers() != before, "all with the heir")
    assert case.rows() == 0 and all(found[0] == 0 for found in case.frontiers().values())
    zombie.signal(signal.SIGCONT)
    # In the log only if the ledger says so before the group does.
    case.wait(lambda: not case.query(f"{OPEN} AND xact_start < %s", (stopped_at,)), "the end of its transaction")
    # What is of records that were read before it stopped is its own.
    assert case.query("SELECT count(*) FROM user_interactions WHERE ingested_at <= %s", (stopped_at,)) == [(0,)]
    assert heir.stop() == 0, case.why()
    case.wait_drained()
    case.wait_exported()
    assert zombie.stop() == 0, case.why()
    case.assert_clean()
