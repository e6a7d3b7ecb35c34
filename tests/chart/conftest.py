"""The chart, rendered; nothing here needs a cluster, a network or a container engine."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import rendering  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def tools():
    """Without them nothing could be said: never skipped."""
    for tool in ("helm", "helm3", "kubeconform", "hadolint"):
        assert (rendering.TOOLS / tool).exists(), f"{tool} is missing: dev/chart-tools"
    for tool in ("cargo-auditable", "cargo-cyclonedx"):
        assert (rendering.TOOLS.parent / "cargo" / "bin" / tool).exists(), f"{tool} is missing: dev/sbom-tools"
