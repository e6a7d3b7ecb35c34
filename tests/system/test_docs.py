"""The ML team's page: its code runs as it stands, and its tables are true."""

import re

import pytest
from checker.files import REQUIRED, TYPES
from generate import WEIGHTS
from harness import ROOT

PAGE = (ROOT / "docs" / "exports.md").read_text()


@pytest.fixture(scope="module")
def names(crossing, exports):
    """What is defined after the page's code has run, beside the exports of a closed day."""
    import os

    found = {}
    before = os.getcwd()
    os.chdir(exports.parent)
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(block.replace("2026-01-15", crossing.day), found)
        found["top"] = found["top"].fetchall()
        found["days"] = found["days"].count_rows()
    finally:
        os.chdir(before)
    return found


def test_code_runs(names, crossing):
    rows = crossing.busy.query("SELECT count(*) FROM user_interactions WHERE recorded_at < %s", (crossing.next_day,))[0][0]
    assert names["table"].num_rows == len(names["frame"]) == names["days"] == rows
    assert names["counts"]["len"].sum() == rows
    assert len(names["top"]) == 10
    weights = names["sample_weight"].data
    assert weights.max() == 1.0 and weights.min() > 0
    assert (names["sample_weight"].row == names["interactions"].row).all()


def test_columns_are_as_described():
    table = re.findall(r"^\| `(\w+)` \| ([A-Z0-9]+(?:\(ms, UTC\))?) \| (no|yes) \|", PAGE, re.M)
    types = {
        "INT32": "int32",
        "INT64": "int64",
        "FLOAT": "float",
        "DOUBLE": "double",
        "STRING": "string",
        "TIMESTAMP(ms, UTC)": "timestamp[ms, tz=UTC]",
    }
    described = [(name, types[kind], null == "no") for name, kind, null in table]
    assert described == [(name, str(kind), name in REQUIRED) for name, kind in TYPES.items()]


def test_weights_are_as_described():
    text = PAGE.partition("## Weights")[2]
    described = dict(re.findall(r"`(\w+)` (−?\d)", text.partition("The weight goes")[0]))
    assert {name: float(value.replace("−", "-")) for name, value in described.items()} == WEIGHTS
