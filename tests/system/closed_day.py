"""A day that the worker itself closed: a stack whose clock crosses midnight. Made once; several tests look at it."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import generate
import harness
from spread import SpreadCase

USERS, VIDEOS, GROUPS = 400, 300, 10
EVENTS = 24_000
EVENTS_SPREAD = 6_000
PER_SECOND = 4000  # so that batches stay small against a file
IDLE_PARTITION = 5
CLOSE_DELAY_MS = 2000
MARKS = {"_manifest.json", "_SUCCESS"}


class Crossing:
    """Cases over one midnight: `busy` with events before and after, `quiet` with none at all before, and `spread`, whose
    partitions are on two databases."""

    def __init__(self, stack, folder):
        self.stack = stack
        now = datetime.fromtimestamp(stack.now_s(), UTC)
        self.day = now.strftime("%Y-%m-%d")
        self.next_day = (now + timedelta(days=1)).strftime("%Y-%m-%d")
        self.midnight_s = (now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)).timestamp()
        self.busy = self.case("busy", folder)
        self.quiet = self.case("quiet", folder)
        self.spread = self.case("spread", folder, SpreadCase)
        self.cases = (self.busy, self.quiet, self.spread)
        self.generator = generate.Generator(
            11, self.busy.schemas(), users=USERS, videos=VIDEOS, groups=GROUPS, bad_share=0.005
        )

    def case(self, name, folder, kind=harness.Case):
        own = Path(folder) / name
        own.mkdir(parents=True, exist_ok=True)
        return kind(self.stack, name, own)

    def events(self, count):
        return (self.generator.event(now_ms=int(self.stack.now_s() * 1000)) for _ in range(count))

    def cross(self):
        env = {"DAY__CLOSE_DELAY_MS": CLOSE_DELAY_MS, "ROLL__ROWS_MAX": 1000, "ROLL__AGE_MS_MAX": 600_000}
        workers = [case.start(f"{case.database}-{n}", **env) for case in self.cases for n in range(2)]
        for case in self.cases:
            for worker in case.workers:
                case.wait_ready(worker, 60)
        for partition in range(IDLE_PARTITION):
            self.busy.produce(self.events(EVENTS // IDLE_PARTITION), partition=partition, per_second=PER_SECOND)
        self.spread.produce(self.events(EVENTS_SPREAD))
        assert self.stack.now_s() < self.midnight_s, "the first day's events came too late: give the stack an earlier clock"
        self.at_midnight = set(self.busy.keys())
        harness.wait_until(lambda: self.stack.now_s() > self.midnight_s + 0.5, "midnight", 180)
        # Partitions 0 to 2 see the new day by a record, the others by being empty.
        for partition in range(3):
            self.busy.produce(self.events(200), partition=partition)
        self.spread.produce(self.events(300))
        for case in (self.busy, self.quiet):
            self.wait_closed(case)
        self.closed_after_s = self.stack.now_s() - self.midnight_s
        self.wait_closed(self.spread)
        self.quiet.produce(self.events(500))
        for case in self.cases:
            case.wait_drained()
        self.codes = [worker.stop() for worker in workers]

    def wait_closed(self, case):
        case.wait(lambda: MARKS <= self.marks(case, self.day), f"{self.day} closed", 60)

    def marks(self, case, day):
        prefix = f"{case.prefix}/{day}/"
        return {key.removeprefix(prefix) for key in case.keys() if key.startswith(prefix)} & MARKS

    def read(self, case, name, day=None):
        return case.objects.read(f"{case.prefix}/{day or self.day}/{name}")

    def download(self, folder):
        """The busy case's folders, as `exports` in the folder given."""
        case = self.busy
        for key in case.keys():
            path = Path(folder) / "exports" / key.removeprefix(case.prefix + "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(case.objects.read(key))
        return Path(folder) / "exports"

    def close(self):
        for case in self.cases:
            case.close()


def make(target):
    """A minute and a quarter are left for the workers' start and for the first day's events."""
    today = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%d")
    clock = ("--clock-at", f"{today} 23:58:20")
    return harness.Stack(target / "stack-day", "--s3", "builtin", "--postgres-fast", *clock, fresh=True)
