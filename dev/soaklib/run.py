"""One run, from an empty stack to a verdict."""

import contextlib
import json
import subprocess
import threading
import time
from dataclasses import dataclass, field

import harness
import psycopg
import proxy

from . import plan as plans
from .case import SoakCase
from .fleet import Fleet, memory_of
from .nemesis import Nemesis
from .world import World

TICK_S = 0.1
# After the limit it is still waited for so long, to tell late from never.
NEVER_S = 240.0
# In a run of so many minutes every kind of fault must have had its turn.
LONG_MINUTES = 10


class NoVerdict(Exception):
    """The run itself failed, and says nothing about the worker."""


@dataclass
class Outcome:
    """What was found; `failures` are promises that were not kept, a sentence each."""

    failures: list = field(default_factory=list)
    figures: dict = field(default_factory=dict)

    def require(self, held, sentence):
        if not held:
            self.failures.append(sentence)


class Producer:
    """`feed-worker produce` beside the faults."""

    def __init__(self, case, plan):
        self.case, self.plan = case, plan
        self.list, self.report = case.folder / "produce.ndjson", case.folder / "produce.json"
        with open(case.folder / "produce.log", "wb") as log:
            words = ["produce", "--count", plan.events, "--rate", plan.rate, "--seed", plan.seed, "--bad-share", 0.01]
            words += ["--users", 5000, "--videos", 2000, "--record", self.list, "--report", self.report, "--progress", "lines"]
            self.process = subprocess.Popen(
                [harness.WORKER, *map(str, words)], env=case.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.ended_at = None
        self._thread = threading.Thread(target=self._wait, name="producer", daemon=True)
        self._thread.start()

    def _wait(self):
        self.process.wait()
        self.ended_at = time.monotonic()

    @property
    def alive(self):
        return self.process.poll() is None

    def end(self):
        """Only if something went wrong."""
        if self.alive:
            self.process.kill()
        self.process.wait()

    def finish(self):
        """Waits for the last acknowledgement; what is in doubt spoils the count, so nothing may be."""
        self._thread.join(180)
        code = self.process.poll()
        if code != 0:
            tail = (self.case.folder / "produce.log").read_text(errors="replace")[-1500:]
            raise NoVerdict(f"producing ended with {code}: {tail}")
        report = json.loads(self.report.read_text())
        del report["timeline_ms"]  # nine thousand numbers that say what the faults were
        return report


class Run:
    def __init__(self, plan, stack, folder, tell=lambda state: None):
        self.plan, self.stack, self.folder, self.tell = plan, stack, folder, tell
        self.outcome = Outcome()
        self.told_at = 0.0

    def go(self):
        """The outcome. Raises NoVerdict."""
        plan = self.plan
        case = SoakCase(self.stack, f"soak-{plan.seed}", self.folder, partitions=plan.partitions)
        with contextlib.ExitStack() as ends:
            ends.callback(case.close)
            proxies = ends.enter_context(proxy.Proxies(self.folder))
            world = World(case, proxies)
            fleet = Fleet(case, max(plan.workers), world.veteran_env)
            nemesis = Nemesis(plan, fleet, world, self.folder / "faults.ndjson")
            self._warm_up(fleet)
            producer = Producer(case, plan)
            ends.callback(producer.end)
            watch = ends.enter_context(harness.FrontierWatch(case, every_s=0.25))
            self._under_faults(fleet, nemesis, producer, case)
            healing = self._heal(fleet, nemesis, producer, case)
            case.load_produced(producer.list)
            self._judge(case, fleet, nemesis, watch, healing)
        return self.outcome

    # ---- the phases -------------------------------------------------------------------------------------------

    def _warm_up(self, fleet):
        """The first workers, ready; the tables are made on the way."""
        fleet.scale(self.plan.workers_at(0))
        deadline = time.monotonic() + 120
        fleet.tick()
        while fleet.not_ready():
            if time.monotonic() > deadline or fleet.untold:
                raise NoVerdict(f"workers {fleet.not_ready()} did not get ready{fleet.case.why()}")
            fleet.tick()
            time.sleep(TICK_S)

    def _under_faults(self, fleet, nemesis, producer, case):
        began = time.monotonic()
        fleet.began = began
        nemesis.start()
        sampled = 0.0
        try:
            while (elapsed := time.monotonic() - began) < self.plan.seconds:
                fleet.scale(self.plan.workers_at(elapsed))
                fleet.tick()
                if elapsed >= sampled:
                    sampled += 1.0
                    fleet.sample_memory()
                    self._progress("faults", elapsed, self.plan.seconds, case, nemesis)
                if nemesis.errors:
                    break
                time.sleep(TICK_S)
        finally:
            with _ticking(fleet):  # ending takes time, and workers go on being started
                nemesis.stop()
        if nemesis.errors:
            raise NoVerdict("a fault could not be made:\n" + "\n".join(nemesis.errors))
        self.outcome.figures["faults_s"] = round(time.monotonic() - began, 1)
        self.outcome.figures["faults"] = dict(sorted(nemesis.counts.items()))
        idle = sorted({kind.name for kind in nemesis.kinds} - nemesis.counts.keys())
        if self.plan.minutes >= LONG_MINUTES:
            self.outcome.require(not idle, f"these faults never had their turn: {idle}")
        self.outcome.figures["s3_requests_met_by_a_fault"] = dict(sorted(nemesis.s3_requests_met.items()))

    def _heal(self, fleet, nemesis, producer, case):
        """Seconds from the end of the last fault and of producing until all is seen; None for never."""
        with _ticking(fleet):
            self.outcome.figures["produce"] = producer.finish()
            began = max(nemesis.ended_at, producer.ended_at)
            ends = case.end_offsets()
            missing = None
            while (elapsed := time.monotonic() - began) < self.plan.heal_s_max + NEVER_S:
                missing = self._unseen(case, fleet, ends)
                if not missing:
                    return round(elapsed, 1)
                self._progress("healing", elapsed, self.plan.heal_s_max, case)
                time.sleep(0.25)
        self.outcome.failures.append(f"never healed: {missing}{case.why()}")
        return None

    @staticmethod
    def _unseen(case, fleet, ends):
        """What is still missing, in words; empty when there is nothing."""
        try:
            frontiers = case.frontiers()
            late = {n: (frontiers.get(n, (0,))[0], end) for n, end in ends.items() if frontiers.get(n, (0,))[0] < end}
            if late:
                return f"partitions (frontier, end) {late}"
            rows = case.rows()
            filed = case.query("SELECT coalesce(sum(rows), 0)::bigint FROM export_files")[0][0]
        except psycopg.Error as error:
            return f"postgres: {error}"
        if rows != filed:
            return f"{rows} rows, {filed} in files; ledger {frontiers}"
        not_ready = fleet.not_ready()
        return f"workers not ready: {not_ready}" if not_ready else ""

    def _judge(self, case, fleet, nemesis, watch, healing):
        figures, require = self.outcome.figures, self.outcome.require
        fleet.sample_memory()
        codes = fleet.shut_down()
        require(codes and all(code == 0 for code in codes), f"exit codes of the last shutdown: {codes}")
        figures["heal_s"] = healing
        require(healing is None or healing <= self.plan.heal_s_max, f"healed after {healing} s, not {self.plan.heal_s_max:.0f}")
        figures["frontier_reads"] = watch.reads
        require(not watch.regressions, f"frontiers went back: {watch.regressions[:5]}")
        figures["worker_starts"] = sum(slot.starts for slot in fleet.slots)
        figures["exits"] = {"told": _codes(fleet.told), "by_themselves": _codes(fleet.untold), "notes": fleet.notes[:50]}
        require(not fleet.untold, f"workers ended by themselves: {dict(fleet.untold)}")
        require(not set(fleet.told) - {0}, f"exit codes of workers told to end: {dict(fleet.told)}")
        panics = fleet.panics()
        require(not panics, f"panics: {panics[:3]}")
        self._judge_memory(fleet)
        self._check(case)

    def _judge_memory(self, fleet):
        lives = {key: samples for key, samples in fleet.memory.items() if len(samples) > 1}
        of_each = [{"slot": slot, "pid": pid, **memory_of(samples)} for (slot, pid), samples in lives.items()]
        longest = sorted(of_each, key=lambda one: -one["life_s"])
        largest = max((one["max_mib"] for one in of_each), default=0.0)
        self.outcome.figures["memory"] = {
            "max_mib": largest,
            "limit_mib": plans.RSS_MIB_MAX,
            "growth_limit_mib": plans.RSS_GROWTH_MIB_MAX,
            "workers": len(of_each),
            "longest_lives": longest[:5],
        }
        self.outcome.require(largest <= plans.RSS_MIB_MAX, f"a worker had {largest} MiB of RSS, not {plans.RSS_MIB_MAX}")
        for one in longest:
            if one["life_s"] >= plans.LONG_LIFE_S and one["growth_mib"] > plans.RSS_GROWTH_MIB_MAX:
                self.outcome.failures.append(f"memory is not flat: {one}")
        with open(self.folder / "memory.json", "w", encoding="utf-8") as out:
            json.dump({f"{slot}/{pid}": samples for (slot, pid), samples in lives.items()}, out)

    def _check(self, case):
        self._progress("checking", 0, 0, case)
        code, found, text = case.check()
        (self.folder / "check.txt").write_text(text)
        if code == 2:
            raise NoVerdict(f"the checker could not check: {text[-2000:]}")
        violations = {kind: entry["count"] for kind, entry in found["violations"].items()}
        summary = found["summary"]
        self.outcome.figures |= {
            "events": len(case.produced),
            "rows": summary["persisted"],
            "dead_letters": summary["dead_lettered"],
            "dead_letter_copies": summary["dead_letter_copies"],
            "files": summary["files"],
            "rows_in_files": summary["exported"],
            "lost": violations.get("lost", 0),
            "doubled": violations.get("doubled", 0),
            "violations": violations,
            "check_s": summary["seconds"],
        }
        self.outcome.require(code == 0, f"the checker found violations: {text[-3000:]}")
        self.outcome.require(
            summary["produced"] == len(case.produced), f"{summary['produced']} records in the topic, {len(case.produced)} produced"
        )

    # ---- telling ------------------------------------------------------------------------------------------------

    def _progress(self, phase, elapsed, whole, case, nemesis=None):
        now = time.monotonic()
        if phase != "checking" and now - self.told_at < 1.0:
            return
        self.told_at = now
        text = {"phase": phase, "elapsed_s": elapsed, "whole_s": whole}
        if nemesis:
            text |= {"faults": sum(nemesis.counts.values()), "last": nemesis.last}
        self.tell(text)


def _codes(counter):
    return {str(code): count for code, count in sorted(counter.items())}


@contextlib.contextmanager
def _ticking(fleet):
    """The supervisor goes on while the caller is busy with something else."""
    done = threading.Event()

    def body():
        sampled = 0.0
        while not done.wait(TICK_S):
            fleet.tick()
            if time.monotonic() - sampled >= 1.0:
                sampled = time.monotonic()
                fleet.sample_memory()

    thread = threading.Thread(target=body, name="supervisor")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
