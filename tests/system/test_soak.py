"""A minute of the soak: `dev/soak` with a fixed seed, fewer events and shorter distances."""

import pytest
from soaklib.plan import Plan
from soaklib.run import Run

import conftest
import harness

PLAN = Plan(seed=20261121, minutes=0.75, events=12_000, partitions=6, workers=(2, 3, 2), gap_s=(0.4, 1.2))


@pytest.fixture
def three_nodes():
    stack = harness.Stack(conftest.TARGET / f"stack-soak{conftest.RUNNER}", "--brokers", "3", "--postgres-fast", fresh=True)
    yield stack
    stack.close()


def test_minute_of_faults(three_nodes, folder):
    outcome = Run(PLAN, three_nodes, folder).go()
    figures = outcome.figures
    print({name: figures[name] for name in ("faults", "heal_s", "rows", "files", "worker_starts", "exits")})
    assert outcome.failures == []
    assert figures["lost"] == figures["doubled"] == 0
    assert figures["events"] >= PLAN.events
    assert figures["events"] == figures["rows"] + figures["dead_letters"]
    assert figures["rows"] == figures["rows_in_files"]
    assert figures["dead_letters"] > 0
    # That it was a soak at all: which faults had their turn depends on the time, not only on the seed.
    assert sum(figures["faults"].values()) >= 15
    assert len(figures["faults"]) >= 8
    assert figures["frontier_reads"] > 50
