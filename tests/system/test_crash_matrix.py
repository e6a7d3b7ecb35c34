"""A crash at every step: every failpoint × {abort, error, delay, stop past the session time-out}, each at its first hit.

The cases are small worlds of their own in one stack, several at a time. The hits after the first are `make crash-matrix`.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

import crash_case
import harness

AT_A_TIME = int(os.environ.get("FEED_TEST_CRASHES", "6"))
CASES = crash_case.points()
LATE = crash_case.ACTIONS["delay"]
PAIRS = {
    "a-late-letter-and-a-death-after-commit": ("persist.after-commit", "abort", f"dlq.before-send={LATE}"),
    "both-answers-of-an-upload-lost": ("enter.after-commit", "error", "put.file.after=error"),
}


@pytest.fixture(scope="session")
def program():
    return crash_case.program()


@pytest.fixture(scope="session")
def outcomes(request, stack, program):
    """The cases that were chosen, under way: (point, action) → its future."""
    chosen = [item.callspec.params["case"] for item in request.session.items if "outcomes" in item.fixturenames]
    folder = harness.ROOT / "target" / "system-tests" / "crash-matrix"

    def run(point, action, *also):
        return crash_case.Crash(stack, program, folder / "-".join((point, action, *also)), point, action, also).run()

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield {case: pool.submit(run, *case) for case in chosen}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_point(case, outcomes):
    print(f"{outcomes[case].result():.1f} s")


@pytest.mark.parametrize("case", PAIRS.values(), ids=PAIRS.keys())
def test_two_at_once(case, outcomes):
    print(f"{outcomes[case].result():.1f} s")


def test_list_is_that_of_the_code(program):
    told = subprocess.run([program, "failpoints"], capture_output=True, text=True, check=True).stdout
    found = [(line.split()[0], action) for line in told.splitlines() for action in line.split()[1:]]
    assert sorted(found) == sorted(CASES)
    assert len({point for point, _ in CASES}) > 50


def test_without_the_feature_there_is_nothing(program):
    """Some names stand for all: the binaries are large."""
    names = ["FAILPOINTS_TRACE", *sorted({point for point, _ in CASES})[::10]]
    for path, there in ((harness.WORKER, False), (program, True)):
        content = path.read_bytes()
        assert [name for name in names if (name.encode() in content) != there] == [], path
