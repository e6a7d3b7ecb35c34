"""The dashboards ask for metrics that there are. What a real run answers to each query is in test_alerts_real.py."""

import importlib.machinery
import importlib.util
import json
import re

from harness import ROOT
from test_alerts import KNOWN, METRICS

FOLDER = ROOT / "helm" / "feed-worker" / "dashboards"
ROWS = ["Freshness", "Lag per partition", "Throughput", "Stages", "Rejects", "Exports and days", "Dependencies", "Memory"]
# By what a Datadog query begins with, and what it ends with for a counter.
KINDS = {
    "sum": "gauge",
    "max": "gauge",
    "min": "gauge",
    "avg": "distribution",
    "p50": "distribution",
    "p95": "distribution",
    "p99": "distribution",
}


def generator():
    """dev/dashboards, as a module."""
    loader = importlib.machinery.SourceFileLoader("dashboards", str(ROOT / "dev" / "dashboards"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def grafana():
    return json.loads((FOLDER / "grafana.json").read_text())


def panels():
    """Grafana's panels as (title, [query])."""
    return [
        (one["title"], [target["expr"] for target in one["targets"]]) for one in grafana()["panels"] if one["type"] != "row"
    ]


def test_files_are_what_the_list_makes():
    for name, text in generator().files().items():
        assert (FOLDER / name).read_text() == text, f"dev/dashboards writes {name} anew"


def test_grafana_asks_for_what_there_is():
    board = grafana()
    assert [panel["title"] for panel in board["panels"] if panel["type"] == "row"] == ROWS
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    variables = {one["name"] for one in board["templating"]["list"]}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places), "one lies on another"
    for title, queries in panels():
        assert queries, title
        for query in queries:
            names = re.findall(r"\bfeed_worker_\w+", query)
            assert names and set(names) <= set(KNOWN), (title, set(names) - set(KNOWN))
            assert query.count('consumer_group=~"$group",topic=~"$topic"') == len(names), title
            assert set(re.findall(r"\$(\w+)", query)) <= variables | {"__rate_interval"}, title
            grouped = {label.strip() for labels in re.findall(r"by \(([\w, ]+)\)", query) for label in labels.split(",")}
            assert grouped <= set.union({"le"}, *(METRICS[KNOWN[name][0]][1] for name in names)), title


def test_datadog_asks_for_what_there_is():
    board = json.loads((FOLDER / "datadog.json").read_text())
    groups = [group["definition"] for group in board["widgets"]]
    assert [group["title"] for group in groups] == ROWS
    variables = {one["name"] for one in board["template_variables"]}
    asked = 0
    for group in groups:
        for widget in group["widgets"]:
            for request in widget["definition"]["requests"]:
                names = {query["name"] for query in request["queries"]}
                for formula in request["formulas"]:
                    assert set(re.findall(r"query\d+", formula["formula"])) == names
                for query in request["queries"]:
                    match = re.fullmatch(
                        r"(\w+):feed_worker\.([\w.]+?)\{(.*?)\}(?: by \{(\w+)\})?((?:\.as_(?:rate|count)\(\))?)", query["query"]
                    )
                    assert match, query["query"]
                    how, name, scope, by, counted = match.groups()
                    kind, tags = METRICS[name]
                    assert kind == ("counter" if counted else KINDS[how]), query["query"]
                    assert {one.removeprefix("$") for one in scope.split(",")} == variables
                    assert by is None or by in tags, query["query"]
                    asked += 1
    assert asked > 40


def test_both_have_the_same_panels():
    board = json.loads((FOLDER / "datadog.json").read_text())
    found = [widget["definition"]["title"] for group in board["widgets"] for widget in group["definition"]["widgets"]]
    assert found == [title for title, _ in panels()]
    shown = {KNOWN[name][0] for _, queries in panels() for query in queries for name in re.findall(r"\bfeed_worker_\w+", query)}
    # Rare events that a log line says better, and what is told in another way.
    told_elsewhere = {
        "source.offset_jumps", "source.key_mismatch", "export.rows.uploaded", "export.rows.reread", "export.conflicts",
        "ledger.partitions.stopped", "ledger.commit_difference", "day.closed", "group.owned.partitions",
        "lag.retention_left.seconds", "canary.failed", "tokens.failing.seconds", "tokens.left.seconds",
    }  # fmt: skip
    assert set(METRICS) - shown == told_elsewhere
