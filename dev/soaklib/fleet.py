"""The workers and their supervisor, which starts again whatever ended: what Kubernetes would do.

Slot 0 is the veteran: it reaches everything through the fault proxy, and is never killed, so that its memory can be
watched for the whole run. Everything else happens to it as to the others.
"""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from . import plan

PAGE = os.sysconf("SC_PAGE_SIZE")
VETERAN = 0


class Slot:
    """A place for a worker."""

    def __init__(self, number):
        self.number = number
        self.wanted = False
        self.worker = None
        self.starts = 0
        self.start_at = 0.0
        # Held by whoever does something to the slot's worker.
        self.lock = threading.Lock()


class Fleet:
    def __init__(self, case, size_max, veteran_env):
        self.case = case
        self.slots = [Slot(number) for number in range(size_max)]
        self.veteran_env = veteran_env
        # Exit codes of workers that nobody killed: of those told to end, and of those that ended by themselves.
        self.told, self.untold = Counter(), Counter()
        self.notes = []
        self.memory = {}  # (slot, pid) → [(seconds, MiB resident, MiB of it that is no file)]
        self.began = time.monotonic()
        self._leaving = []
        self._guard = threading.Lock()

    # ---- supervising ----------------------------------------------------------------------------------------

    def scale(self, count):
        """So many workers from now on; those that are too many are asked to end."""
        for slot in self.slots:
            wanted = slot.number < count
            if slot.wanted and not wanted:
                slot.wanted = False
                thread = threading.Thread(target=self._retire, args=[slot], name=f"retire-{slot.number}")
                thread.start()
                self._leaving.append(thread)
            slot.wanted = wanted

    def _retire(self, slot):
        with slot.lock:
            self._end(slot)

    def tick(self):
        """Starts what ended and is due. Called again and again by one thread."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.worker is not None and not slot.worker.alive and slot.lock.acquire(blocking=False):
                try:
                    self._note_end(slot, now)
                finally:
                    slot.lock.release()
            if slot.wanted and slot.worker is None and now >= slot.start_at:
                self._start(slot)

    def _start(self, slot):
        env = dict(plan.WORKER_ENV)
        if slot.number == VETERAN:
            env |= self.veteran_env
        slot.starts += 1
        slot.worker = self.case.start(f"worker-{slot.number}", **env)

    def _note_end(self, slot, now):
        worker, slot.worker = slot.worker, None
        if worker is None:
            return
        # Not at once: a supervisor takes its time.
        slot.start_at = now + 0.3
        if not worker.end_is_wanted:
            self._count(self.untold, worker, slot)
            slot.start_at = now + 1.0

    def _count(self, counter, worker, slot):
        code = worker.process.returncode
        with self._guard:
            counter[code] += 1
            if counter is self.untold or code != 0:
                last = worker.log_tail(3).splitlines()
                self.notes.append({"slot": slot.number, "pid": worker.pid, "exit": code, "log": [line[-400:] for line in last]})

    # ---- what can be done to a worker: the caller holds the slot's lock ------------------------------------------

    def kill(self, slot):
        worker = slot.worker
        if worker is None or not worker.alive:
            return False
        worker.kill()
        return True

    def freeze(self, slot):
        """SIGSTOP; the worker, or None."""
        worker = slot.worker
        if worker is None or not worker.alive:
            return None
        worker.signal(signal.SIGSTOP)
        return worker

    def restart(self, slot):
        """As a deployment does it: SIGTERM, and a new one when the old one has ended."""
        return self._end(slot)

    def _end(self, slot):
        worker = slot.worker
        if worker is None or not worker.alive:
            return False
        # Before it listens to signals, SIGTERM is the end of any process, and no shutdown.
        deadline = time.monotonic() + 30
        while worker.health()[0] is None and worker.alive and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            worker.stop(timeout_s=60)
        except AssertionError as error:
            with self._guard:
                self.notes.append({"slot": slot.number, "pid": worker.pid, "exit": None, "log": [str(error)[:2000]]})
        self._count(self.told, worker, slot)
        return True

    # ---- looking --------------------------------------------------------------------------------------------

    def running(self):
        return [slot for slot in self.slots if slot.wanted and slot.worker is not None and slot.worker.alive]

    def not_ready(self):
        """Slots whose worker is wanted and does not say that it is ready."""
        found = []
        for slot in self.slots:
            worker = slot.worker
            if slot.wanted and (worker is None or worker.health()[0] != 200):
                found.append(slot.number)
        return found

    def sample_memory(self):
        now = time.monotonic() - self.began
        for slot in self.running():
            with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
                resident, of_files = map(int, Path(f"/proc/{slot.worker.pid}/statm").read_text().split()[1:3])
                if resident:
                    samples = self.memory.setdefault((slot.number, slot.worker.pid), [])
                    samples.append((round(now, 1), *(round(pages * PAGE / 2**20, 1) for pages in (resident, resident - of_files))))

    def panics(self):
        """Lines of the logs that speak of a panic."""
        found = []
        for path in sorted({worker.log_path for worker in self.case.workers}):
            with open(path, encoding="utf-8", errors="replace") as lines:
                found += [f"{path.name}: {line.strip()[:400]}" for line in lines if "panicked at" in line]
        return found

    # ---- the end --------------------------------------------------------------------------------------------

    def shut_down(self):
        """Every worker gracefully, all at once; their exit codes."""
        for thread in self._leaving:
            thread.join()
        workers = [slot.worker for slot in self.running()]
        for slot in self.slots:
            slot.wanted = False
        for worker in workers:
            worker.end_is_wanted = True
            worker.signal(signal.SIGTERM)
        return [worker.wait(60) for worker in workers]


def memory_of(samples):
    """Largest, and what a straight line through everything after the warm-up grows by, in MiB.

    What grows is what the worker allocates: pages of the program itself come in as they are needed, and do not count.
    """
    life = samples[-1][0] - samples[0][0]
    warm = [(at, mib) for at, _, mib in samples if at - samples[0][0] >= min(plan.WARM_UP_S, life / 2)]
    slope = _slope(warm)
    return {
        "life_s": round(life),
        "max_mib": max(mib for _, mib, _ in samples),
        "max_allocated_mib": max(mib for _, _, mib in samples),
        "first_warm_allocated_mib": warm[0][1],
        "last_allocated_mib": warm[-1][1],
        "slope_mib_per_minute": round(slope * 60, 2),
        "growth_mib": round(slope * (warm[-1][0] - warm[0][0]), 1),
    }


def _slope(points):
    """Least squares."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
