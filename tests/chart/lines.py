"""No line of a template can go without an item noticing. Minutes long: `pytest tests/chart/lines.py`, not part of `.ci/test`."""

import re
import shutil

import pytest
import rendering
from items import ITEMS
from rendering import CHART

# Held by tests of their own.
ELSEWHERE = {"prometheusrule.yaml", "datadogmonitors.yaml", "dashboards.yaml", "NOTES.txt"}
TEMPLATES = sorted(path.name for path in (CHART / "templates").iterdir() if path.name not in ELSEWHERE)
USED = sorted({fixture for fixture, _ in ITEMS})
# Values that no release may have.
REFUSED = "database.secret="
# A line that says something: a key, an entry of a list, or something put in. Not control flow, comments, definitions.
SAYS = re.compile(r"^\s*(- )?(\{protocol|[\w./-]+:|\{\{-? ?(toYaml|include|with include|tpl|\. \|)|- \{)")


def indentation(line):
    return len(line) - len(line.lstrip())


def without(lines, at):
    """The lines without one and what is below it: what is further in, but no control flow, which would end unmatched."""
    end = at + 1
    while end < len(lines) and lines[end].strip() and indentation(lines[end]) > indentation(lines[at]):
        end += 1
    gone = lines[at:end]
    opened = sum(bool(re.match(r"\s*\{\{-? ?(if|range|with|define)\b", line)) and "end }}" not in line for line in gone)
    closed = sum(bool(re.match(r"\s*\{\{-? ?end\b", line)) for line in gone)
    return None if opened != closed else lines[:at] + lines[end:]


def noticed(chart):
    """Whether a check fails, or helm itself, with the chart that lacks a line. Only what it renders differently is looked at."""
    if rendering.run("minimal", "--set", REFUSED, chart=chart).returncode == 0:
        return True  # as tests/chart/test_values.py would
    for fixture in USED:
        ended = rendering.run(fixture, chart=chart)
        if ended.returncode != 0:
            return True
        if ended.stdout == rendering._rendered(fixture, ()):
            continue
        try:
            objects = rendering.parse(ended.stdout)
        except rendering.yaml.YAMLError:
            return True
        for _, check in (one for one in ITEMS if one[0] == fixture):
            try:
                check(objects)
            except Exception:  # an item that stumbles has noticed
                return True
    return False


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_line_can_go_unnoticed(template, tmp_path):
    copy = tmp_path / "feed-worker"
    shutil.copytree(CHART, copy)
    path = copy / "templates" / template
    lines = path.read_text().splitlines(keepends=True)
    assert noticed(copy) is False, "the whole chart is as it must be"
    tried, survived = 0, []
    for at, line in enumerate(lines):
        rest = without(lines, at) if SAYS.match(line) else None
        if rest is None:
            continue
        tried += 1
        path.write_text("".join(rest))
        if not noticed(copy):
            survived.append(f"{template}:{at + 1} {line.strip()}")
    assert survived == []
    assert tried, "nothing was taken out"
