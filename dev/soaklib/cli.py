"""The command line of `dev/soak`."""

import argparse
import datetime
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT, BROKEN, NO_VERDICT = 0, 1, 2


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="dev/soak",
        description="Workers under random faults, on a stack of their own, judged from outside. Exit code 0: every promise was "
        "kept; 1: one was not; 2: no verdict. The record goes to docs/records, the logs stay in target/soak.",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1, 10**6), help="default: a random one, which is printed")
    parser.add_argument("--minutes", type=float, default=15.0, help="how long producing and faults last (default 15)")
    parser.add_argument("--events", type=int, help="how many are produced in that time (default: 35000 a minute)")
    parser.add_argument("--workers", type=int, nargs="+", default=[3, 5, 2], help="in each part of the run (default 3 5 2)")
    parser.add_argument("--debug-binary", action="store_true", help="the debug build (default: release if there is one, else debug)")
    parser.add_argument("--no-record", action="store_true", help="leave docs/records alone")
    parser.add_argument("--keep", action="store_true", help="leave the stack up, to look at what it holds")
    return parser.parse_args()


def binary(debug):
    release = ROOT / "target" / "release" / "feed-worker"
    found = ROOT / "target" / "debug" / "feed-worker" if debug or not release.exists() else release
    return os.environ.get("FEED_TEST_WORKER") or str(found)


class Display:
    """One changing line on a terminal, a line every ten seconds elsewhere."""

    def __init__(self):
        self.live = sys.stderr.isatty()
        self.last = 0.0
        self.phase = ""

    def __call__(self, state):
        now = time.monotonic()
        if not self.live and state["phase"] == self.phase and now - self.last < 10:
            return
        self.last, self.phase = now, state["phase"]
        line = f"{state['phase']} {state['elapsed_s']:.0f}/{state['whole_s']:.0f} s"
        if "faults" in state:
            line += f"  {state['faults']} faults, last {state['last']}"
        print(f"\r\033[K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def end(self):
        if self.live:
            print(file=sys.stderr)


def run(arguments):
    # The harness reads this when it is imported.
    os.environ["FEED_TEST_WORKER"] = binary(arguments.debug_binary)
    if not Path(os.environ["FEED_TEST_WORKER"]).exists():
        print(f"dev/soak: no {os.environ['FEED_TEST_WORKER']}: run cargo build", file=sys.stderr)
        return NO_VERDICT
    import harness

    from . import record
    from .plan import Plan
    from .run import NoVerdict, Run

    events = arguments.events or round(35_000 * arguments.minutes)
    plan = Plan(arguments.seed, arguments.minutes, events, workers=tuple(arguments.workers))
    folder = ROOT / "target" / "soak" / f"run-{plan.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    print(f"seed {plan.seed}: {plan.events} events in {plan.minutes:g} minutes, {plan.partitions} partitions, workers {plan.workers}")
    began = datetime.datetime.now(datetime.UTC)
    display = Display()
    stack = harness.Stack(ROOT / "target" / "soak" / "stack", "--brokers", "3", "--postgres-fast", fresh=True)
    try:
        outcome = Run(plan, stack, folder, display).go()
    except Exception as error:  # whatever it is, it says nothing about the worker
        display.end()
        told = error if isinstance(error, NoVerdict) else traceback.format_exc()
        print(f"no verdict: {told}\nlogs: {folder}, {stack.folder}/log", file=sys.stderr)
        return NO_VERDICT
    finally:
        if not arguments.keep:
            stack.close()
    display.end()
    code = BROKEN if outcome.failures else KEPT
    entry = record.entry(plan, began, os.environ["FEED_TEST_WORKER"], outcome, code)
    path = None if arguments.no_record else record.write(entry, began, plan.seed)
    report(entry, path, folder, stack)
    return code


def report(entry, path, folder, stack):
    figures = entry["figures"]
    print(
        f"{figures['events']} events = {figures['rows']} rows + {figures['dead_letters']} dead letters; {figures['files']} files; "
        f"lost {figures['lost']}, doubled {figures['doubled']}; healed in {figures['heal_s']} s; "
        f"{sum(figures['faults'].values())} faults, {figures['worker_starts']} starts of a worker; "
        f"RSS at most {figures['memory']['max_mib']} MiB"
    )
    for sentence in entry["failures"]:
        print(f"NOT KEPT: {sentence}", file=sys.stderr)
    if entry["failures"]:
        print(f"logs: {folder}, {stack.folder}/log", file=sys.stderr)
    if path:
        print(f"record: {path}")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(parse_arguments())
    except KeyboardInterrupt:
        return 130
