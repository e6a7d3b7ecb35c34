"""The command line of `dev/mutate`."""

import argparse
import fcntl
import signal
import sys
import time

from . import catalogue, judge, record, tree

WIDTH = 28


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="dev/mutate",
        description="Takes each protection of tests/mutations/*.toml out, in a copy of the working tree, and runs the test that "
        "must notice. Exit code 0: every one was noticed; 1: one survived, or does not fit the sources; 2: no verdict on one.",
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="only these")
    parser.add_argument("--file", metavar="NAME", help="only those of tests/mutations/NAME.toml")
    parser.add_argument("--row", type=int, help="only those of this row of the fault matrix")
    parser.add_argument("--list", action="store_true", help="print what would be run, check that it fits, run nothing")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests on the unchanged sources first")
    parser.add_argument("--no-record", action="store_true", help=f"leave {record.PATH.relative_to(catalogue.ROOT)} alone")
    return parser.parse_args()


def chosen(mutations, arguments):
    missing = set(arguments.only or ()) - {one.id for one in mutations}
    if missing:
        raise catalogue.Mismatch(f"no mutation {', '.join(sorted(missing))}")
    name = arguments.file and arguments.file.removesuffix(".toml") + ".toml"
    found = [
        one
        for one in mutations
        if (not arguments.only or one.id in arguments.only)
        and (not name or one.source == name)
        and (arguments.row is None or arguments.row in one.rows)
    ]
    if not found:
        raise catalogue.Mismatch("no mutation chosen")
    return found


class Progress:
    """A bar on a terminal, a line for each step elsewhere."""

    def __init__(self, total):
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.bar = sys.stderr.isatty()

    def show(self, what):
        if not self.bar:
            return
        filled = WIDTH * self.done // self.total
        seconds = time.monotonic() - self.began
        left = f", {seconds / self.done * (self.total - self.done):.0f} s left" if self.done else ""
        print(f"\r\033[K[{'#' * filled}{'.' * (WIDTH - filled)}] {self.done}/{self.total}{left}  {what}", end="", file=sys.stderr)

    def told(self, line):
        self.done += 1
        if self.bar:
            print("\r\033[K", end="", file=sys.stderr)
        print(f"{self.done}/{self.total} {line}", flush=True)


def baseline(mutations, progress):
    """Every named test has to pass on the unchanged sources, or its failing would say nothing. Returns those that do not."""
    ill = {}
    for test, features in sorted({(one.test, one.features) for one in mutations}):
        one = next(one for one in mutations if (one.test, one.features) == (test, features))
        progress.show(f"unchanged: {test}")
        began = time.monotonic()
        try:
            verdict = judge.judge("unchanged", one)
        except judge.NoVerdict as error:
            verdict = str(error)
        if verdict != judge.PASSED:
            ill[test, features] = f"fails without a mutation ({verdict})"
        progress.told(f"{verdict:<9} {time.monotonic() - began:6.1f} s  unchanged: {test}")
    return ill


def run_one(one):
    """(word for people, the record's entry or None)."""
    began = time.monotonic()
    tree.apply(one)
    try:
        verdict = judge.judge(one.id, one)
    finally:
        tree.take_back(one)
    killed = verdict == judge.FAILED
    seconds = round(time.monotonic() - began, 1)
    entry = {"id": one.id, "rows": list(one.rows), "test": one.test, "killed": killed, "seconds": seconds}
    return "killed" if killed else "SURVIVED", entry


def run_all(mutations, arguments):
    tests = 0 if arguments.no_baseline else len({(one.test, one.features) for one in mutations})
    progress = Progress(len(mutations) + tests)
    commit = record.commit()
    progress.show("building")
    tree.refresh()
    judge.build("unchanged", with_examples=True)
    ill = {} if arguments.no_baseline else baseline(mutations, progress)
    entries, without, survived = [], [], []
    for one in mutations:
        progress.show(one.id)
        began = time.monotonic()
        try:
            if (one.test, one.features) in ill:
                raise judge.NoVerdict(ill[one.test, one.features])
            word, entry = run_one(one)
        except judge.NoVerdict as error:
            without.append(one.id)
            word, entry = f"no verdict: {error}", None
        if entry:
            entries.append({**entry, "commit": commit})
            survived += [] if entry["killed"] else [one.id]
            if not arguments.no_record:
                # At once: a run of hours that is cut short keeps what it found.
                record.merge(entries, {known.id for known in catalogue.load()})
        progress.told(f"{word:<9} {time.monotonic() - began:6.1f} s  {one.id}  ({one.test})")
    return entries, without, survived


def run(arguments):
    mutations = catalogue.load()
    for text in (wrong := catalogue.mismatches(mutations)):
        print(f"dev/mutate: {text}", file=sys.stderr)
    if wrong:
        return 1
    picked = chosen(mutations, arguments)
    if arguments.list:
        for one in picked:
            print(f"{one.id:<40} rows {','.join(map(str, one.rows)) or '-':<8} {one.test}")
        return 0
    tree.TREE.mkdir(parents=True, exist_ok=True)
    with open(tree.TREE.parent / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("dev/mutate: another one runs in this working tree", file=sys.stderr)
            return 2
        try:
            entries, without, survived = run_all(picked, arguments)
        finally:
            judge.take_stacks_down()
    print(f"{len(entries) - len(survived)} killed, {len(survived)} survived, {len(without)} without a verdict")
    for one in survived:
        print(f"survived: {one}", file=sys.stderr)
    return 1 if survived else 2 if without else 0


def main():
    # So that what it started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return run(parse_arguments())
    except (catalogue.Mismatch, judge.NoVerdict) as error:
        print(f"dev/mutate: {error}", file=sys.stderr)
        return 2 if isinstance(error, judge.NoVerdict) else 1
    except KeyboardInterrupt:
        return 130
