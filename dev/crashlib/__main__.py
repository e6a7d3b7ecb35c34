"""`dev/crash`: exit code 0 = nothing lost, nothing doubled, as many kills as asked for; 1 = not so."""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import crash_case
import harness

from .round import Round

def parse_arguments():
    parser = argparse.ArgumentParser(prog="dev/crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="process kills to reach (default 1000)")
    parser.add_argument("--seconds", type=float, default=2400, help="give up after so long (default 2400)")
    parser.add_argument("--seed", type=int, default=20261121, help="what is armed when follows from it; timing does not")
    parser.add_argument("--worlds", type=int, default=5, help="worlds at a time (default 5)")
    parser.add_argument("--kills-per-round", type=int, default=25, help="kills between two checks of a world")
    parser.add_argument("--record", type=Path, help="JSON file for the record")
    return parser.parse_args()


class Run:
    """Worlds beside each other, round after round, until there were enough kills."""

    def __init__(self, arguments, stack, program, folder):
        self.arguments, self.stack, self.program, self.folder = arguments, stack, program, folder
        self.until = time.monotonic() + arguments.seconds
        self.rounds = []
        self.failures = []
        self.numbers = iter(range(1_000_000))
        self.lock = threading.Lock()

    def kills(self):
        return sum(done.kills for done in self.rounds)

    def is_over(self):
        return self.failures or self.kills() >= self.arguments.kills or time.monotonic() > self.until

    def line(self):
        while not self.is_over():
            with self.lock:
                number = next(self.numbers)
            seed = self.arguments.seed * 1000 + number
            one = Round(self.stack, self.program, self.folder / f"round-{number}", seed, self.arguments.kills_per_round)
            with self.lock:
                self.rounds.append(one)
            try:
                one.run(self.is_over)
            except BaseException as error:  # told at the end, and in the record
                self.failures.append((number, error))
            print(f"round {number}, seed {seed}: {one.told()}; {self.kills()} kills in all", flush=True)

    def run(self):
        lines = [threading.Thread(target=self.line) for _ in range(self.arguments.worlds)]
        for line in lines:
            line.start()
        for line in lines:
            line.join()


def text_of(*words):
    return subprocess.run(words, cwd=harness.ROOT, capture_output=True, text=True, check=False).stdout.strip()


def record(run, started, seconds):
    done = run.rounds
    hits = {}
    for one in done:
        for (point, action, hit), count in one.acted.items():
            entry = hits.setdefault(point, {}).setdefault(action.lower(), {"times": 0, "hit_max": 0})
            entry["times"] += count
            entry["hit_max"] = max(entry["hit_max"], hit)
    violations = Counter()
    for one in done:
        violations.update(one.violations)
    return {
        "seed": run.arguments.seed,
        "commit": text_of("git", "rev-parse", "HEAD"),
        "changed_files": len(text_of("git", "status", "--porcelain").splitlines()),
        "started": started,
        "seconds": round(seconds),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "arguments": {name: str(value) for name, value in vars(run.arguments).items()},
        "rounds": len(done),
        "rounds_checked": sum(one.checked for one in done),
        "kills": run.kills(),
        "kills_at_points": sum(one.count("Abort") for one in done),
        "kills_from_outside": sum(one.outside for one in done),
        "stops": sum(one.count("Stop") for one in done),
        "errors": sum(one.count("Error") for one in done),
        "delays": sum(one.count("Delay") for one in done),
        "graceful_ends": sum(one.graceful for one in done),
        "workers_started": sum(one.started for one in done),
        "produced": sum(one.summary.get("produced", 0) for one in done),
        "persisted": sum(one.summary.get("persisted", 0) for one in done),
        "dead_lettered": sum(one.summary.get("dead_lettered", 0) for one in done),
        "exported": sum(one.summary.get("exported", 0) for one in done),
        "files": sum(one.summary.get("files", 0) for one in done),
        "days_closed": sum(day["closed"] for one in done for day in one.summary.get("days", {}).values()),
        "lost": violations["lost"],
        "doubled": violations["doubled"],
        "violations": dict(violations),
        "frontiers_gone_back": sum(one.regressions for one in done),
        "failures": [f"round {number}: {str(error)[:2000]}" for number, error in run.failures],
        "points": dict(sorted(hits.items())),
    }


def main():
    arguments = parse_arguments()
    program = crash_case.program()
    target = harness.ROOT / "target"
    stack = harness.Stack(target / "stack-crash", "--s3", "versitygw", "--postgres-fast", fresh=True)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    began = time.monotonic()
    run = Run(arguments, stack, program, target / "crash-matrix")
    try:
        run.run()
    finally:
        stack.close()
    found = record(run, started, time.monotonic() - began)
    text = json.dumps(found, indent=2) + "\n"
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text(text)
    print(text)
    good = not run.failures and not found["violations"] and not found["frontiers_gone_back"]
    return 0 if good and found["kills"] >= arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
