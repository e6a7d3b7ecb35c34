"""The ML team's page: its code runs as it stands, and its tables are true."""

import contextlib
import json
import os
import re
import shutil

import pyarrow.fs
import pytest
from checker.files import REQUIRED, TYPES
from generate import WEIGHTS
from harness import ROOT

PAGE = (ROOT / "docs" / "exports.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
HERE = 'pyarrow.fs.LocalFileSystem(), "exports"'


def run(blocks, day, where=None):
    """What is defined after these blocks have run: beside a copy, or on another `store, root`."""
    found = {}
    for block in blocks:
        if where is not None:
            block = block.replace(HERE, "*elsewhere,")
            found["elsewhere"] = where
        # Nobody waits for two hours here.
        exec(block.replace("2026-01-15", day).replace("2 * 3600", "0"), found)
    return found


@pytest.fixture(scope="module")
def names(crossing, exports):
    """What is defined after the page's code has run, beside the exports of a closed day."""
    with contextlib.chdir(exports.parent):
        found = run(BLOCKS, crossing.day)
        found["top"] = found["top"].fetchall()
        found["days"] = found["days"].count_rows()
    return found


def bucket(case):
    env = case.stack.env
    store = pyarrow.fs.S3FileSystem(
        access_key=env["AWS_ACCESS_KEY_ID"],
        secret_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["FEED_WORKER_S3__REGION"],
        scheme="http",
        endpoint_override=env["FEED_WORKER_S3__ENDPOINT"].removeprefix("http://"),
    )
    return store, f"{case.bucket}/{case.prefix}"


def test_the_same_code_reads_the_bucket(names, crossing):
    assert HERE in BLOCKS[0]
    reading = [block for block in BLOCKS if "pl." not in block and "duckdb" not in block]
    found = run(reading, crossing.day, bucket(crossing.busy))
    assert found["frame"].equals(names["frame"]) and found["table"].num_rows == found["rows"] == len(names["frame"])


def test_a_day_without_rows_is_told_and_not_read(crossing):
    with pytest.raises(SystemExit, match="has no rows"):
        run(BLOCKS[:1], crossing.day, bucket(crossing.quiet))


@pytest.fixture
def copy(crossing, exports, tmp_path):
    shutil.copytree(exports / crossing.day, tmp_path / "exports" / crossing.day)
    with contextlib.chdir(tmp_path):
        yield tmp_path / "exports" / crossing.day


def test_a_day_that_is_not_closed_is_waited_for(crossing, copy):
    (copy / "_SUCCESS").unlink()
    with pytest.raises(TimeoutError, match="not closed"):
        run(BLOCKS, crossing.day)
    shutil.rmtree(copy)
    with pytest.raises(TimeoutError, match="not closed"):
        run(BLOCKS, crossing.day)


def test_a_part_of_a_day_is_not_taken_for_it(crossing, copy):
    """Whether a file is not there yet, or is not the manifest's."""
    (one, *_, other) = sorted(copy.glob("*.parquet"))
    kept = one.read_bytes()
    one.unlink()
    with pytest.raises(FileNotFoundError):
        run(BLOCKS, crossing.day)
    one.write_bytes(kept)
    manifest = json.loads((copy / "_manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if not file["key"].endswith(other.name)]
    (copy / "_manifest.json").write_text(json.dumps(manifest))
    readers = [block for block in BLOCKS[1:] if "rows" in block]
    assert len(readers) == 5
    for block in readers:
        with pytest.raises(AssertionError):
            run([BLOCKS[0], block], crossing.day)


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
