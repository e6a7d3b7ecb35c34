"""One stack for the session; a case for each test."""

import os
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "dev")]

import closed_day  # noqa: E402
import faulty  # noqa: E402
import harness  # noqa: E402
import proxy  # noqa: E402

TARGET = harness.ROOT / "target"
# Two runners (`pytest -n 2`) have a stack each.
RUNNER = os.environ.get("PYTEST_XDIST_WORKER", "")
# Leaves the stacks up for looking, and for the next run.
KEEP = bool(os.environ.get("FEED_TEST_KEEP"))


def pytest_xdist_make_scheduler(config, log):
    """A file stays on one runner; what looks at the one closed day does so together, for it takes a minute to make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByStack(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            source = (config.rootpath / file).read_text()
            return "closed day" if re.search(r"def \w+\([^)]*\b(crossing|exports)\b", source) else file

    return ByStack(config, log)


@pytest.fixture(scope="session")
def stack():
    """Real Kafka, real Postgres, and an S3 server that is not ours."""
    # Without fsync: a crash of Postgres is tested, one of the machine is not, and recovery would sync every database.
    options = ("--s3", "versitygw", "--postgres", "2", "--postgres-fast")
    started = harness.Stack(TARGET / f"stack-test{RUNNER}", *options, fresh=not KEEP)
    yield started
    if not KEEP:
        started.close()


@pytest.fixture
def folder(request):
    """Logs and lists of a case, kept for looking at a failure."""
    found = TARGET / "system-tests" / re.sub(r"[^\w-]", "_", f"{request.path.stem.removeprefix('test_')}-{request.node.name}")
    found.mkdir(parents=True, exist_ok=True)
    for old in found.iterdir():
        if old.is_file():
            old.unlink()
    return found


@pytest.fixture
def make_case(request, folder):
    """Makes cases on any stack; ends their workers."""
    made = []

    def make(stack, **options):
        name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
        made.append(harness.Case(stack, name, folder, **options))
        return made[-1]

    yield make
    for case in made:
        case.close()


@pytest.fixture
def case(stack, make_case):
    return make_case(stack)


@pytest.fixture(scope="module")
def own_stack(stack):
    """The session's Kafka and Postgres; the bucket on our own server, whose answers can be chosen."""
    made = faulty.WithOwnS3(stack, stack.folder.parent / f"{stack.folder.name}-own-s3")
    yield made
    made.close()


@pytest.fixture
def s3(own_stack):
    yield own_stack.s3
    own_stack.s3.off()


@pytest.fixture
def own_case(own_stack, make_case):
    return make_case(own_stack)


@pytest.fixture
def proxies(folder):
    """A fault proxy's server of the test's own."""
    with proxy.Proxies(folder) as found:
        yield found


@pytest.fixture(scope="session")
def crossing(tmp_path_factory):
    """A day that two workers closed; see closed_day.py."""
    stack = closed_day.make(TARGET)
    crossed = None
    try:
        crossed = closed_day.Crossing(stack, TARGET / "system-tests" / "crossing")
        crossed.cross()
        yield crossed
    finally:
        if crossed is not None:
            crossed.close()
        if not KEEP:
            stack.close()


@pytest.fixture(scope="session")
def exports(crossing, tmp_path_factory):
    """The closed day and the day after it, as a local folder."""
    return crossing.download(tmp_path_factory.mktemp("closed"))
