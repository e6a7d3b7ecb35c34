"""Builds the copy and runs one test in it: passed, failed, or neither."""

import os
import re
import signal
import subprocess
import xml.etree.ElementTree

from .catalogue import ROOT
from .tree import TREE

LOGS = ROOT / "target" / "mutate" / "log"
PASSED, FAILED = "passed", "failed"
# Longer than the longest test needs on a loaded machine. A test that hangs has not failed.
TIMEOUT_S = 1200


class NoVerdict(Exception):
    """It could not be built, did not end, or its surroundings failed; says where the log is."""


def _run(name, command):
    """(exit code, log file); whatever it started in its own process group ends with it."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log_file = LOGS / f"{name}.log"
    env = {key: value for key, value in os.environ.items() if key != "CARGO_TARGET_DIR"}
    # Stacks stay up from one test to the next, and are taken down at the end.
    env |= {"FEED_TEST_KEEP": "1", "FEED_TEST_WORKER": str(TREE / "target" / "debug" / "feed-worker")}
    with open(log_file, "wb") as log:
        child = subprocess.Popen(
            command, cwd=TREE, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            return child.wait(TIMEOUT_S), log_file
        except subprocess.TimeoutExpired:
            raise NoVerdict(f"did not end within {TIMEOUT_S} s: {log_file}") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def build(name, features=(), with_examples=False):
    """The worker's binary. The S3 server of the stack is never mutated, so it is built once."""
    command = ["cargo", "build", "--locked", "--bins"]
    command += ["--example", "s3"] if with_examples else []
    # What a feature is for may be an example (the worker with failpoints).
    command += ["--features", ",".join(features), "--examples"] if features else []
    code, log = _run(f"{name}.build", command)
    if code != 0:
        raise NoVerdict(f"does not compile: {log}")


def judge(name, mutation):
    return _cargo(name, mutation) if mutation.is_cargo else _pytest(name, mutation)


def _pytest(name, mutation):
    build(name, mutation.features)
    report = LOGS / f"{name}.xml"
    report.unlink(missing_ok=True)
    python = TREE / "target" / "venv" / "bin" / "python"
    code, log = _run(name, [python, "-m", "pytest", *mutation.pytest_words, "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}"])
    if code not in (0, 1) or not report.exists():
        raise NoVerdict(f"pytest ended with {code}: {log}")
    suite = xml.etree.ElementTree.parse(report).getroot().find("testsuite")
    tests, failures, errors, skipped = (int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped"))
    # A test fails by its own assertions. What fails before or after it (a stack that does not start) says nothing.
    if errors and not failures:
        raise NoVerdict(f"its surroundings failed: {log}")
    if skipped or not tests:
        raise NoVerdict(f"nothing ran: {log}")
    return FAILED if failures else PASSED


def _cargo(name, mutation):
    target, options = mutation.cargo_words
    words = ["cargo", "test", "--locked", *(["--features", ",".join(mutation.features)] if mutation.features else []), *target]
    code, log = _run(f"{name}.build", [*words, "--no-run"])
    if code != 0:
        raise NoVerdict(f"does not compile: {log}")
    code, log = _run(name, [*words, "--", *options])
    said = log.read_text(errors="replace")
    # Also when the test's process died of a signal, as of a stack that is full.
    if code != 0 and "error: test failed" in said:
        return FAILED
    if code == 0 and any(int(passed) for passed in re.findall(r"test result: ok\. (\d+) passed", said)):
        return PASSED
    raise NoVerdict(f"nothing ran, or it ended with {code}: {log}")


def take_stacks_down():
    for folder in sorted((TREE / "target").glob("stack*")):
        if (folder / "state.json").exists():
            subprocess.run([TREE / "dev" / "stack", "down", "--dir", folder], check=False)
