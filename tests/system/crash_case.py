"""One case of the crash matrix: a small world in which a worker dies, fails, waits or is stopped at one point.

The world goes through everything that a worker does, stage after stage, until the point has acted; then it recovers,
and the checker judges what table, DLQ and bucket hold.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

import generate
import harness

DAY_MS = 86_400_000
SESSION_MS = 2000
# Longer than every time-out of these workers that a point lies under, and than the session.
DELAY_MS = 2600
ACTIONS = {"abort": "abort", "error": "error", "delay": f"delay({DELAY_MS})", "stop": "stop"}
# Only the worker's own patience: a loaded machine takes its time.
STAGE_S = 45
SETTINGS = {
    "KAFKA__ALLOW_CREATE_TIME": "true",
    "KAFKA__SESSION_TIMEOUT_MS": SESSION_MS,
    "KAFKA__ASSIGN_DEADLINE_MS": 2000,
    "KAFKA__COMMIT_INTERVAL_MS": 100,
    "POSTGRES__STATEMENT_TIMEOUT_MS": 1000,
    "POSTGRES__DEADLINE_MS": 2000,
    "S3__TIMEOUT_MS": 2000,
    "S3__CONNECT_TIMEOUT_MS": 1000,
    "DAY__CLOSE_DELAY_MS": 1000,
    "ROLL__ROWS_MAX": 15,
    "ROLL__AGE_MS_MAX": 700,
    "EXPORT__SETTLE_MS": 50,
    "REJECTS__RUN_MAX": 100_000,
    "REJECTS__RATIO_MAX": 1.0,
}


class World(harness.Case):
    """A case that is asked often: one connection, and no client for what is known here."""

    connection = None

    def create_topic(self, name, partitions, config):
        """Events of days past, and dead letters with their times, are not to be taken by the broker's retention."""
        super().create_topic(name, partitions, config | {"retention.ms": "-1"})

    def query(self, statement, parameters=()):
        if self.connection is None:
            self.connection = self.connect()
        return self.connection.execute(statement, parameters).fetchall()

    def end_offsets(self):
        """Every record of the topic was produced here."""
        ends = dict.fromkeys(range(self.partitions), 0)
        for partition, offset, *_ in self.produced:
            ends[partition] = max(ends[partition], offset + 1)
        return ends

    def close(self):
        super().close()
        if self.connection is not None:
            self.connection.close()


class Crash:
    """A topic of two partitions with events of yesterday and of today, and a worker with an armed point."""

    def __init__(self, stack, program, folder, point, action, also=(), seed=1):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        name = f"{point}-{action}".replace(".", "-")
        # CreateTime: a case sees a day end without a shifted clock.
        config = {"message.timestamp.type": "CreateTime"}
        self.case = World(stack, name, folder, partitions=2, dlq_partitions=1, topic_config=config, program=program)
        self.point, self.action, self.also = point, action, also
        self.trace = folder / "trace"
        self.generator = generate.Generator(seed, bad_share=0.1, users=20, videos=20)
        self.armed = None  # the worker that has the point
        self.others = []
        self.gap = False

    # ---- the case ------------------------------------------------------------------------------------------

    def run(self):
        """Fails by an assertion; else the seconds that it took."""
        started = time.monotonic()
        case = self.case
        try:
            with harness.FrontierWatch(case, every_s=0.3) as watch:
                self.reach()
                self.recover()
                self.finish()
            assert watch.regressions == [], watch.regressions
            case.assert_clean(produced=not self.gap)
        finally:
            case.close()
        return time.monotonic() - started

    def reach(self):
        """Stage after stage, until the point has acted."""
        stages = [self.begin, self.take_over, self.finish_day, self.give_away, self.end, self.lose_records]
        for prefix, first in (("revoke.", 3), ("shutdown.", 4), ("stop.", 5), ("restart.", 5)):
            if self.point.startswith(prefix):  # a short cut, nothing else: every stage can come first
                self.produce(20, 20)
                stages = stages[first:]
        for stage in stages:
            stage()
            if self.acted():
                return
        raise AssertionError(f"nothing in this case leads to {self.point}{self.case.why()}")

    def acted(self):
        """Whether the point did what it was armed for."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        return any(line.startswith(f"{self.point} {self.action.capitalize()}") for line in lines)

    def until(self, condition, what):
        """Waits for a stage's end, or for the point."""
        self.case.wait(lambda: self.acted() or condition(), f"{what}, or {self.point}", STAGE_S)

    # ---- stages --------------------------------------------------------------------------------------------

    def arm(self, *also):
        """A worker with the point, and with what else has to happen so that the next stage finds its world."""
        also = [part for part in (*self.also, *also) if not part.startswith(self.point)]
        points = [f"{self.point}={ACTIONS[self.action]}", *also]
        self.armed = self.start(_FAILPOINTS=";".join(points), _FAILPOINTS_TRACE=self.trace)
        self.armed.end_is_wanted = True
        return self.armed

    def start(self, **env):
        return self.case.start(**SETTINGS, **env)

    def begin(self):
        """A fresh ledger, rows, dead letters, files; it dies between a PUT and the file's entry."""
        self.produce(40, 40, days_ago=1)
        self.produce(30, 0)
        worker = self.arm("put.file.after=abort@3")
        self.until(lambda: not worker.alive, "a worker died after a PUT")
        self.case.wait(lambda: self.acted() or not worker.alive, "its end")

    def take_over(self):
        """Adopts, catches up, loses an answer to a COMMIT, closes the day; it dies after the manifest."""
        self.produce(25, 0)
        worker = self.arm("put.manifest.after=abort", "persist.commit-sent=error")
        self.until(lambda: not worker.alive, "a worker died after a manifest")

    def finish_day(self):
        """Meets the manifest, finishes the day."""
        self.produce(20, 0)
        self.arm()
        self.until(lambda: days_are_closed(self.case) and self.is_drained(), "the day finished")

    def give_away(self):
        """Another worker takes its share."""
        self.running()
        other = self.start()
        self.others.append(other)
        self.produce(10, 10)
        self.until(lambda: len(self.case.owned(other)) == 1, "a partition with the other worker")
        self.until(self.is_drained, "drained")

    def end(self):
        """SIGTERM with an open file."""
        worker = self.running()
        self.produce(7, 7)
        self.until(self.is_drained, "drained")
        worker.signal(signal.SIGTERM)
        self.until(lambda: not worker.alive, "the end")

    def lose_records(self):
        """Records are gone before they were read: the partition stops until an operator decides."""
        if self.armed is None:
            self.arm()
            self.until(self.is_drained, "drained")
        for worker in [self.armed, *self.others]:
            if worker.alive and not self.acted():
                assert worker.stop() == 0, self.case.why()
        self.others.clear()
        if self.acted():
            return
        self.gap = True
        self.produce(30, 10)
        upto = self.case.end_offsets()[0] - 5
        admin = AdminClient({"bootstrap.servers": self.case.bootstrap})
        for future in admin.delete_records([TopicPartition(self.case.topic, 0, upto)]).values():
            future.result(20)
        self.arm()
        self.until(self.is_stopped, "the partition stopped")
        if not self.acted():
            self.accept_gap()
            self.until(self.is_drained, "drained")

    def running(self):
        if self.armed is None or not self.armed.alive:
            self.arm()
            self.until(lambda: self.case.frontiers() and len(self.case.owned(self.armed)) == 2, "the worker to own all")
            self.until(self.is_drained, "drained")
        return self.armed

    # ---- afterwards ----------------------------------------------------------------------------------------

    def recover(self):
        """A dead worker is replaced, a stopped one is outlived and then woken; the others go on by themselves."""
        worker = self.armed
        self.produce(10, 10)
        if self.action == "abort":
            assert worker.process.wait(20) == -signal.SIGKILL, worker.log_tail()
        if self.action == "stop":
            harness.wait_until(lambda: state_of(worker) == "T", "the worker stopped")
            # Two members at most, or one of them would rightly be left without a partition.
            if not any(other.alive for other in self.case.workers if other is not worker):
                self.start()
            self.settle()
            assert state_of(worker) == "T", worker.log_tail()
            worker.signal(signal.SIGCONT)
            self.case.wait(lambda: self.is_back(worker), "the woken worker to take part again, or to end", 60)

    def is_back(self, worker):
        return not worker.alive or (len(self.case.owned(worker)) > 0 and worker.health()[0] == 200)

    def settle(self):
        """Everything persisted, exported, and yesterday closed."""
        if self.gap:
            self.wait(lambda: self.is_stopped() or self.gap_is_accepted(), "the partition stopped")
            if not self.gap_is_accepted():
                self.accept_gap()
        self.wait(self.is_drained, "drained")
        self.wait(self.is_exported, "every row exported")
        self.wait(lambda: days_are_closed(self.case), "yesterday finished")

    def wait(self, condition, what):
        """As a supervisor would: when the last worker has ended, there is a new one."""

        def tended():
            if not any(worker.alive for worker in self.case.workers):
                self.start()
            return condition()

        self.case.wait(tended, lambda: f"{what}; ledger {self.case.frontiers()}", 60)

    def finish(self):
        self.settle()
        self.produce(5, 5)
        self.settle()
        for worker in self.case.workers:
            # Killed by a point, or asked to end: nothing else ends a worker.
            code = worker.stop() if worker.alive else worker.process.poll()
            assert code == 0 or (code == -signal.SIGKILL and worker.end_is_wanted), f"{worker.name}: {code}{self.case.why()}"

    # ---- what the world says -------------------------------------------------------------------------------

    def is_drained(self):
        frontiers, ends = self.case.frontiers(), self.case.end_offsets()
        return all(end == 0 or frontiers.get(number, (0,))[0] >= end for number, end in ends.items())

    def is_exported(self):
        found = "SELECT (SELECT count(*) FROM user_interactions), (SELECT coalesce(sum(rows), 0) FROM export_files)"
        rows, exported = self.case.query(found)[0]
        return rows == exported

    def is_stopped(self):
        return bool(self.case.query("SELECT FROM partition_ledger WHERE stopped IS NOT NULL"))

    def gap_is_accepted(self):
        return bool(self.case.query("SELECT FROM ingest_gaps"))

    def accept_gap(self):
        low = self.case.watermarks()[0][0]
        done = self.case.run("ledger", "accept-gap", "--partition", "0", "--to", str(low), "--reason", "a crash case")
        assert done.returncode == 0, done.stderr

    def produce(self, *counts, days_ago=0):
        """Events of a day, so many for each partition; waits for the acknowledgements."""
        producer = self.case.producer()
        now_ms = int(time.time() * 1000) - days_ago * DAY_MS
        for partition, count in enumerate(counts):
            for _ in range(count):
                event = self.generator.event(now_ms=now_ms)
                self.case.send(producer, event, partition=partition, timestamp=now_ms)
        assert producer.flush(30) == 0, "the broker did not take every event"


def program():
    """The worker with failpoints, built beside the other one; FEED_TEST_FAILPOINTS names one that is there already."""
    if found := os.environ.get("FEED_TEST_FAILPOINTS"):
        return Path(found)
    build = ["cargo", "build", "--locked", "--features", "failpoints", "--example", "failpoints"]
    subprocess.run(build, cwd=harness.ROOT, check=True, capture_output=True)
    return harness.ROOT / "target" / "debug" / "examples" / "failpoints"


def days_are_closed(case):
    """Every day before today that has rows is finished, by the ledger; that its marks lie there is for the checker."""
    open_days = """SELECT FROM topic_ledger t WHERE EXISTS (SELECT FROM user_interactions u
                   WHERE u.recorded_at < current_date AND u.recorded_at >= t.success_day + 1)"""
    return not case.query(open_days)


def state_of(worker):
    """The process's state as the kernel tells it: T is stopped."""
    with open(f"/proc/{worker.pid}/stat", encoding="utf-8") as stat:
        return re.search(r"\) (\w)", stat.read())[1]


def points(source=harness.ROOT / "src" / "failpoint.rs"):
    """[(point, action)] of the list in the code."""
    listed = re.search(r"pub const POINTS[^=]*= &\[(.*?)\];", source.read_text(), re.DOTALL)[1]
    found = re.findall(r'\("([a-z.-]+)", (true|false)\)', listed)
    return [
        (point, action) for point, can_fail in found for action in ACTIONS if action != "error" or can_fail == "true"
    ]
