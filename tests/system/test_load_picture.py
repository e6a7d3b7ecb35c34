"""The picture of latency and CPU over load is what `benches/load/draw` makes of the newest record, and every figure moves it."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from harness import ROOT

PICTURE = ROOT / "docs" / "performance-load.svg"
RECORD = max((ROOT / "docs" / "records").glob("load-*.json"))
DRAWN = [("visible_ms", name) for name in ("p50", "p95", "p99")]
DRAWN += [("cpu_percent_of_a_core", name) for name in ("worker", "postgres", "brokers")]


def drawn(record):
    return subprocess.run(
        [sys.executable, ROOT / "benches/load/draw", record, "--out", "-"], capture_output=True, text=True, check=True
    ).stdout


def test_the_picture_is_of_the_newest_record():
    assert drawn(RECORD) == PICTURE.read_text(), "draw it again: benches/load/draw"
    assert "(performance-load.svg)" in (ROOT / "docs" / "performance.md").read_text()


def test_every_step_is_in_the_picture():
    steps = json.loads(RECORD.read_text())["steps"]
    assert len(steps) >= 5 and any(step["kept_up"] for step in steps)
    lines = ElementTree.fromstring(PICTURE.read_text()).findall("{http://www.w3.org/2000/svg}polyline")
    points = [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in lines]
    assert [len(line) for line in points] == [len(steps)] * len(DRAWN)
    for line in points:
        across = [x for x, _ in line]
        assert across == sorted(set(across)), "every load further right than the one before"


@pytest.mark.parametrize("what, name", DRAWN)
def test_every_figure_moves_its_line(what, name, tmp_path):
    record = json.loads(RECORD.read_text())
    changed = record["steps"][1][what]
    # By a little, so that the axis stays as it is.
    changed[name] *= 1.1
    other = tmp_path / "load.json"
    other.write_text(json.dumps(record))
    assert drawn(other) != PICTURE.read_text()
