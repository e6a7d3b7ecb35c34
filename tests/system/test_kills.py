"""Whatever dies and whenever: nothing lost, nothing doubled, no frontier goes back."""

import os
import random
import threading
import time

import generate
import harness

EVENTS = int(os.environ.get("FEED_TEST_EVENTS", "150000"))
SEED = int(os.environ.get("FEED_TEST_SEED", "20260115"))
KILLS = 20
RUN_S = 75  # how long producing lasts; the kills and outages fit in


class Killer:
    """Kills workers that hold partitions and have unfinished work, and starts them again."""

    def __init__(self, case, rng, **env):
        self.case = case
        self.rng = rng
        self.env = env
        self.workers = [self.started(), self.started()]
        self.kills = 0

    def started(self):
        return self.case.start(**self.env)

    def victim(self):
        """A worker with partitions that are not drained to the end."""
        ends, frontiers = self.case.end_offsets(), self.case.frontiers()
        owned = self.case.owned
        busy = [
            slot
            for slot, worker in enumerate(self.workers)
            if any(frontiers[number][0] < ends[number] or frontiers[number][1] < frontiers[number][0] for number in owned(worker))
        ]
        return self.rng.choice(busy) if busy else None

    def kill_one(self):
        time.sleep(self.rng.uniform(0.05, 1.2))
        slot = self.case.wait(self.victim_or_wait, "a worker that holds partitions and has unfinished work")[0]
        self.workers[slot].kill()
        self.kills += 1
        self.workers[slot] = self.started()

    def victim_or_wait(self):
        slot = self.victim()
        return None if slot is None else (slot,)


def churn(case, stop, env):
    """A third worker that joins and leaves for as long as it is let."""
    rounds = 0
    while not stop.wait(1.0):
        worker = case.start(f"guest-{rounds}", **env)
        stop.wait(3.0)
        assert worker.stop() == 0, worker.log_tail()
        rounds += 1
    return rounds


def persist_rate(case, seconds):
    """Rows and dead letters that the frontiers passed, per second."""
    before, started = sum(found[0] for found in case.frontiers().values()), time.monotonic()
    time.sleep(seconds)  # this is the measuring, not a wait for something
    return (sum(found[0] for found in case.frontiers().values()) - before) / (time.monotonic() - started)


def test_kills_joins_restarts_and_outages(case):
    rng = random.Random(SEED)
    schemas = case.schemas()
    generator = generate.Generator(SEED, schemas)
    rows_max = max(500, EVENTS // case.partitions // 12)
    env = {"ROLL__ROWS_MAX": rows_max, "ROLL__AGE_MS_MAX": 3000, "KAFKA__SESSION_TIMEOUT_MS": 1500}
    killer = Killer(case, rng, **env)
    for worker in killer.workers:
        case.wait_ready(worker)
    stop, guest = threading.Event(), []
    visitor = threading.Thread(target=lambda: guest.append(churn(case, stop, env)))
    events = (generator.event() for _ in range(EVENTS))
    with harness.FrontierWatch(case) as watch, case.producing(events, per_second=EVENTS / RUN_S, finish=True) as producer:
        case.wait(lambda: case.rows() > 0, "first rows")
        normal = persist_rate(case, 3)
        with case.stack.without_s3():
            away = persist_rate(case, 4)
        for _ in range(KILLS // 2):
            killer.kill_one()
        case.stack.command("restart-postgres", "--mode", rng.choice(("fast", "immediate")))
        visitor.start()
        with case.stack.without_s3():
            killer.kill_one()
            killer.kill_one()
        while killer.kills < KILLS or producer.is_alive():
            killer.kill_one()
            if killer.kills >= 3 * KILLS:
                break
        stop.set()
        visitor.join()
    print(f"{killer.kills} kills, {guest} guests, {normal:.0f} rows/s, {away:.0f} rows/s while S3 was away ({away / normal:.0%})")
    assert killer.kills >= KILLS and guest and guest[0] > 0
    case.wait_drained(120)
    case.wait_exported(120)
    assert [worker.stop() for worker in killer.workers] == [0, 0], case.why()
    assert watch.regressions == []
    assert watch.reads > 100
    assert away > 0.5 * normal, f"{away:.0f} rows/s while S3 was away, {normal:.0f} before"
    summary = case.assert_clean()
    assert summary["produced"] == EVENTS
    assert summary["exported"] == summary["persisted"] == summary["rows_compared"]
