"""Every alert has fired under the fault that it is for, on series that real workers told, and was silent before and after.

real_faults.py makes the faults, once for all of them; what Prometheus makes of the series is promtool's verdict.
"""

import re

import pytest

import alerts
import harness
import proxy
import real_faults
from test_dashboards import panels

NAMES = sorted({one["name"] for one in alerts.ALERTS})
DEPENDENCIES = ("postgres", "registry", "s3")
# Has its fault where there are brokers that take tokens: test_security.py, test_no_new_token_for_longer_than_the_old_one_lives.
ELSEWHERE = {"TokensNotRenewed"}
PARTS = [(name, "") for name in NAMES if name not in {"DependencyRetries"} | ELSEWHERE]
PARTS += [("DependencyRetries", f',dependency="{one}"') for one in DEPENDENCIES]


@pytest.fixture(scope="module")
def told(stack):
    """The story, and what ended it early: that an alert did not fire is for a test to say."""
    folder = harness.ROOT / "target" / "system-tests" / "alerts-real"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.log"):
        old.unlink()
    retention = {"retention.ms": str(real_faults.RETENTION_MS)}
    main = harness.Case(stack, "alerts-main", folder)
    away = harness.Case(stack, "alerts-away", folder, topic_config=retention)
    try:
        with proxy.Proxies(folder) as proxies:
            story, failure = real_faults.Story(main, away, proxies, folder), None
            try:
                story.run()
            except AssertionError as failed:
                failure = failed
            yield story, failure
    finally:
        main.close()
        away.close()


def to_its_end(told):
    story, failure = told
    if failure is not None:
        raise failure
    return story


@pytest.mark.parametrize(("name", "labels"), PARTS, ids=lambda one: re.sub(r"\W", "", one))
def test_fires_under_its_fault_and_recovers(told, name, labels):
    story = to_its_end(told)
    part, last = story.parts[name, labels], story.recorder.now
    whole = [(part.began, 1, False), (last, last - part.began, True), (last, 1, False)]
    code, said = part.says(name, whole)
    assert code == 0, said
    # promtool looks at what it is told to: each of the three, the other way round, is refused.
    for at, back, does in whole:
        code, said = part.says(name, [(at, back, not does)])
        assert code != 0 and "FAILED" in said, said


def test_no_fault_was_left_out(told):
    story = to_its_end(told)
    assert set(story.parts) == set(PARTS)
    assert {name for name, _ in PARTS} | ELSEWHERE == {one["name"] for one in alerts.ALERTS}


QUERIES = [(title, query) for title, queries in panels() for query in queries]


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=lambda one: re.sub(r"\W+", "-", one)[:50])
def test_each_panel_of_the_dashboard_shows_something(told, title, query):
    """Each query has at least one series at some time of the run."""
    story = to_its_end(told)
    names = set(re.findall(r"\bfeed_worker_\w+", query))
    scope = f'consumer_group="{story.main.group}"'
    last = story.recorder.now
    series = story.recorder.series(names, scope, last)
    asked = query.replace("$__rate_interval", "5m").replace("$group", story.main.group).replace("$topic", ".+")
    assert "$" not in asked, title
    code, said = alerts.shows(story.folder, asked, series, last)
    assert code == 0, f"{title}: {said}"
    code, said = alerts.shows(story.folder, asked, {}, last)
    assert code != 0 and "FAILED" in said, "without any series nothing is shown"
