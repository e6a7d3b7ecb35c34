"""What a run is to be: how long, how much, how many workers when, and the limits that it is held to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    seed: int
    minutes: float
    events: int
    partitions: int = 12
    # Workers in the first, second and last third of the run.
    workers: tuple = (3, 5, 2)
    brokers: int = 3
    # The distance between two faults.
    gap_s: tuple = (1.0, 3.0)
    # After the last fault, until every record is in table or DLQ and every row in a file.
    heal_s_max: float = 60.0

    @property
    def seconds(self):
        return self.minutes * 60

    @property
    def rate(self):
        """Events per second, so that producing lasts as long as the faults."""
        return self.events / self.seconds

    def workers_at(self, elapsed_s):
        third = min(int(elapsed_s / self.seconds * len(self.workers)), len(self.workers) - 1)
        return self.workers[third]


SESSION_S = 3.0
# What the budget counts is an eighth of what a worker of the defaults may have, so that the run meets its limit.
MEMORY_BUDGET_MIB = 48
# Configuration of the workers: time-outs so short that a fault of some seconds is longer than they are.
WORKER_ENV = {
    "KAFKA__SESSION_TIMEOUT_MS": int(SESSION_S * 1000),
    "KAFKA__QUEUED_KBYTES_MAX": 8192,
    "POSTGRES__STATEMENT_TIMEOUT_MS": 3000,
    "POSTGRES__DEADLINE_MS": 5000,
    "POSTGRES__CONNECT_TIMEOUT_MS": 2000,
    "S3__TIMEOUT_MS": 3000,
    "S3__CONNECT_TIMEOUT_MS": 1000,
    "EXPORT__MEMORY_BYTES_MAX": MEMORY_BUDGET_MIB << 20,
    "EXPORT__SETTLE_MS": 500,
    "BATCH__ROWS_MAX": 5000,
    "BATCH__BYTES_MAX": 4 << 20,
    "ROLL__ROWS_MAX": 20_000,
    "ROLL__BYTES_MAX": 8 << 20,
    "ROLL__AGE_MS_MAX": 8000,
    # Default 1 s under test; a worker that is killed begins to count anew.
    "REGISTRY__MISSING_AFTER_MS": 1000,
}
# A worker is what the budget counts and what it does not: code, threads, clients, allocator.
RSS_MIB_MAX = MEMORY_BUDGET_MIB + 80
# What a worker may grow by over its life once it is warm: two samples of one state differ by some MiB.
RSS_GROWTH_MIB_MAX = 24
# Before that a worker is not warm: pools and caches fill.
WARM_UP_S = 60.0
# A worker that lived so long is held to the growth above.
LONG_LIFE_S = 180.0
