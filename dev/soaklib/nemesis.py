"""Draws faults from a seed, and lets them happen, several at once.

The seed fixes what is drawn; what of it is free to happen depends on time, so a second run of one seed is alike, not the same.
"""

import json
import random
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from . import faults

# Faults that last at one time.
AT_ONCE_MAX = 5
DRAWS_MAX = 20


class Nemesis:
    def __init__(self, plan, fleet, world, log_path):
        self.seed = plan.seed
        self.gap_s = plan.gap_s
        self.rng = random.Random(plan.seed)
        self.fleet = fleet
        self.world = world
        self.kinds = faults.kinds(plan.brokers)
        self.counts = Counter()
        self.s3_requests_met = Counter()
        # Faults of this program, which are not the worker's.
        self.errors = []
        self.last = "-"
        self.ended_at = None
        self._busy = set()
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE_MAX, thread_name_prefix="fault")
        self._log = open(log_path, "w", encoding="utf-8")
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="nemesis")

    def start(self):
        self._began = time.monotonic()
        self._thread.start()

    def stop(self):
        """No new fault; those that last are ended, and everything is put right."""
        self._stop.set()
        self._thread.join()
        self._pool.shutdown(wait=True)
        self.ended_at = time.monotonic()
        self._log.close()
        self.retried(self.world.restore_all)

    def count_of(self, name):
        with self._guard:
            return self.counts[name]

    def retried(self, action, times=5):
        """What puts something right may itself meet another fault."""
        for left in reversed(range(times)):
            try:
                return action()
            except Exception:
                if not left:
                    raise
                time.sleep(2)

    def _run(self):
        while not self._stop.wait(self.rng.uniform(*self.gap_s)):
            found = self._draw()
            if found:
                self._pool.submit(self._happen, *found)

    def _draw(self):
        """A kind whose resource is free, the slot that it is for, and how long; None if all is taken."""
        for _ in range(DRAWS_MAX):
            kind = self.rng.choices(self.kinds, [kind.weight for kind in self.kinds])[0]
            slot = self.rng.choice(self.fleet.slots) if kind.on_worker else None
            seconds = self.rng.uniform(*kind.seconds)
            resource = f"slot-{slot.number}" if slot else kind.resource
            with self._guard:
                if resource in self._busy or len(self._busy) >= AT_ONCE_MAX:
                    continue
                self._busy.add(resource)
            return kind, slot, seconds, resource
        return None

    def _happen(self, kind, slot, seconds, resource):
        try:
            if slot is None:
                self._let(kind, slot, seconds)
            else:
                with slot.lock:
                    self._let(kind, slot, seconds)
        except Exception:
            self.errors.append(f"{kind.name}: {traceback.format_exc()}")
        finally:
            with self._guard:
                self._busy.discard(resource)

    def _let(self, kind, slot, seconds):
        began = time.monotonic()
        act = kind.act(self, slot)
        what = next(act, None)
        if what is None:
            return
        with self._guard:
            self.counts[kind.name] += 1
        self.last = f"{kind.name} ({what})"
        try:
            self._stop.wait(seconds)
        finally:
            act.close()
        ended = time.monotonic()
        line = {"at_s": round(began - self._began, 2), "seconds": round(ended - began, 2), "fault": kind.name, "what": what}
        with self._guard:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
