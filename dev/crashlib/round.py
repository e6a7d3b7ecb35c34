"""One round: a world whose workers die, fail, wait and are stopped again and again; then it heals, and is judged."""

import random
import signal
import time
from collections import Counter

import crash_case
import generate
import harness

DAY_MS = crash_case.DAY_MS
PARTITIONS = 4
SLOTS = 2
# A day of the world for so many kills, so that days are closed all the time.
KILLS_PER_DAY = 3
FIRST_DAY_AGO = 12
# How long a worker may take to come to its point before it is ended in another way.
PATIENCE_S = 6.0
ACTIONS = ["abort"] * 13 + ["stop", "stop", "error", "error", "delay"]
# Each process comes to these only when it begins, or ends; the others again and again.
ONCE = ("topic.", "assign.", "put.probe.", "list.", "shutdown.", "revoke.")
SELDOM = ("reread.", "head.", "get.", "day.", "put.manifest.", "put.success.", "persist.in-settling")
# A gap needs an operator: the matrix has it.
LEFT_OUT = ("stop.", "restart.")


class Slot:
    """A worker with its armed point, and what is to be done with it when it does not come there."""

    def __init__(self, worker, point, action, patience_s):
        self.worker, self.point, self.action = worker, point, action
        self.ends_at = time.monotonic() + patience_s
        self.wake_at = None
        self.is_ending = False


class Round:
    def __init__(self, stack, program, folder, seed, kills):
        self.stack, self.program, self.folder = stack, program, folder
        self.rng = random.Random(seed)
        self.kills_wanted = kills
        self.outside = self.graceful = self.started = self.regressions = 0
        self.acted, self.violations, self.summary, self.checked = Counter(), Counter(), {}, False
        self.lines_read = 0
        self.points = [pair for pair in crash_case.points() if not pair[0].startswith(LEFT_OUT)]

    @property
    def kills(self):
        return self.count("Abort") + self.outside

    def count(self, action):
        return sum(times for (_, acted, _), times in self.acted.items() if acted == action)

    def told(self):
        return f"{self.kills} kills ({self.outside} from outside), {self.count('Stop')} stops, {dict(self.violations) or 'clean'}"

    def run(self, is_over):
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            old.unlink()
        self.trace = self.folder / "trace"
        config = {"message.timestamp.type": "CreateTime"}
        self.case = crash_case.World(
            self.stack, "crash", self.folder, PARTITIONS, 2, topic_config=config, program=self.program
        )
        self.generator = generate.Generator(self.rng.randrange(1 << 30), bad_share=0.1, users=50, videos=50)
        self.producer = self.case.producer()
        self.base_ms = int(time.time() * 1000) // DAY_MS * DAY_MS - FIRST_DAY_AGO * DAY_MS
        try:
            with harness.FrontierWatch(self.case, every_s=0.3) as watch:
                self.crash(is_over)
                self.heal()
            self.regressions = len(watch.regressions)
            self.judge()
        finally:
            self.case.close()

    # ---- breaking ------------------------------------------------------------------------------------------

    def crash(self, is_over):
        until = time.monotonic() + 180
        slots = [None] * SLOTS
        while self.kills < self.kills_wanted and not is_over() and time.monotonic() < until:
            for number, slot in enumerate(slots):
                if slot is None or not slot.worker.alive:
                    slots[number] = self.armed()
                else:
                    self.tend(slot)
            self.produce()
            self.read_trace()
            time.sleep(0.1)
        for slot in slots:
            if slot is not None and slot.worker.alive:
                slot.worker.signal(signal.SIGCONT)
                slot.worker.kill()
                self.outside += 1
        self.read_trace()

    def armed(self):
        """A worker with a point at one of its hits, seeded."""
        if self.started < SLOTS:
            point, action = self.rng.choice(self.points)
        else:
            action = self.rng.choice(ACTIONS)
            point = self.rng.choice([point for point, can in self.points if can == action and not point.startswith("topic.")])
        if point.startswith(ONCE):
            hit = self.rng.choice((1, 1, 2))
        elif point.startswith(SELDOM):
            hit = self.rng.choice((1, 2, 3))
        else:
            hit = self.rng.choice((1, 2, 2, 3, 3, 10, self.rng.randrange(4, 20)))
        plan = [f"{point}={crash_case.ACTIONS[action]}@{hit}"]
        if point == "persist.in-settling":
            plan += [f"persist.commit-sent=error@{at}" for at in range(1, 9, 2)]
        settings = crash_case.SETTINGS | {"DAY__CLOSE_DELAY_MS": int(time.time() * 1000) - self.day_ms}
        worker = self.case.start(**settings, _FAILPOINTS=";".join(plan), _FAILPOINTS_TRACE=self.trace)
        worker.end_is_wanted = True
        self.started += 1
        patience_s = 2.5 if point.startswith("shutdown.") else PATIENCE_S * self.rng.uniform(0.7, 1.3)
        return Slot(worker, point, action, patience_s)

    def tend(self, slot):
        """What does not come to its point is ended from outside; what was stopped is woken, some time after its session."""
        now = time.monotonic()
        if crash_case.state_of(slot.worker) == "T":
            if slot.wake_at is None:
                slot.wake_at = now + crash_case.SESSION_MS / 1000 + self.rng.uniform(0.5, 2.0)
            elif now > slot.wake_at:
                slot.worker.signal(signal.SIGCONT)
                slot.wake_at, slot.ends_at = None, now + 2.0
        elif now > slot.ends_at:
            if not slot.is_ending and (slot.point.startswith("shutdown.") or self.rng.random() < 0.3):
                slot.worker.signal(signal.SIGTERM)
                slot.is_ending, slot.ends_at = True, now + 10.0
                self.graceful += 1
            else:
                slot.worker.kill()
                self.outside += 1

    @property
    def day_ms(self):
        """The start of the day that the world has: it moves on with the kills."""
        return self.base_ms + min(self.kills // KILLS_PER_DAY, FIRST_DAY_AGO) * DAY_MS

    def produce(self):
        """Some events for some partitions; the others are seen empty."""
        stamp = min(self.day_ms + int(time.time() * 1000) % DAY_MS, int(time.time() * 1000))
        for partition in self.rng.sample(range(PARTITIONS), 2):
            for _ in range(self.rng.randrange(6)):
                event = self.generator.event(now_ms=stamp)
                self.case.send(self.producer, event, partition=partition, timestamp=stamp)
        self.producer.poll(0)

    def read_trace(self):
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        for line in lines[self.lines_read :]:
            point, action, hit, _ = line.split()
            self.acted[point, action.partition("(")[0], int(hit)] += 1
        self.lines_read = len(lines)

    # ---- healing -------------------------------------------------------------------------------------------

    def heal(self):
        assert self.producer.flush(30) == 0
        for _ in range(SLOTS):
            self.case.start(**crash_case.SETTINGS)
        self.case.wait_drained(90)
        self.case.wait_exported(90)
        self.case.wait(lambda: crash_case.days_are_closed(self.case), "every day before today finished", 90)
        for worker in self.case.workers:
            if worker.alive:
                code = worker.stop()
                assert code == 0, f"{worker.name} ended with {code}\n{worker.log_tail()}"
        for worker in self.case.workers:
            # Not a panic, not a refusal: killed, or ended as it was asked to.
            assert worker.process.poll() in (0, -signal.SIGKILL), f"{worker.name}: {worker.process.poll()}\n{worker.log_tail()}"

    def judge(self):
        code, found, text = self.case.check()
        self.violations.update({kind: entry["count"] for kind, entry in found.get("violations", {}).items()})
        self.summary, self.checked = found.get("summary", {}), code in (0, 1)
        assert code == 0, text
        assert self.regressions == 0, "a frontier went back"
