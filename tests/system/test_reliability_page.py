"""The fault matrix names tests and protections that exist, and leaves out no fault."""

import re
import tomllib

from harness import ROOT
from planted import PLANTED

HERE = ROOT / "tests" / "system"
ROW = re.compile(r"^\| (\d+) \| .* \| .* \| (.*) \| (.*) \|$", re.M)
FAULTS = 48


def rows():
    page = (ROOT / "docs" / "reliability.md").read_text()
    return [(int(number), tests, protections) for number, tests, protections in ROW.findall(page)]


def test_every_fault_has_its_line():
    assert [number for number, _, _ in rows()] == list(range(1, FAULTS + 1))


def test_what_is_named_exists():
    mutations = {}
    for path in (ROOT / "tests" / "mutations").glob("*.toml"):
        mutations |= {one["id"]: one["rows"] for one in tomllib.loads(path.read_text())["mutation"]}
    for number, tests, protections in rows():
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", tests)
        assert named or tests.startswith("not in this version"), f"row {number} names no test"
        for file, function in named:
            assert f"def {function}(" in (HERE / file).read_text(), f"row {number}: {file}::{function}"
        for protection in re.findall(r"`([\w-]+)`", protections):
            assert number in mutations[protection], f"row {number}: {protection}"
    covered = {number for number, _, protections in rows() if "`" in protections}
    missing = {row for faults in mutations.values() for row in faults} - covered
    assert not missing, f"protections of rows {sorted(missing)} are not on the page"


def test_planted_bugs_are_those_that_are_planted():
    page = (ROOT / "docs" / "reliability.md").read_text()
    section = page.partition("## Planted bugs")[2].partition("\n## ")[0]
    named = re.findall(r"^\| [^|]+ \| `([^`]+)` \| [^|]+ \|$", section, re.M)
    assert len(named) >= 12 and set(named) <= PLANTED.keys(), set(named) - PLANTED.keys()
    assert f"There are {len(PLANTED)};" in section
