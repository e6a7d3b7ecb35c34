"""Rules, monitors and the dashboard, as values ask for them."""

import json

import pytest
import rendering
from rendering import CHART, yaml

ALERTS = yaml.safe_load((CHART / "alerts" / "alerts.yaml").read_text())


def rules(chart):
    (group,) = chart.one("PrometheusRule")["spec"]["groups"]
    return {rule["alert"].removeprefix("FeedWorker"): rule for rule in group["rules"]}


def monitors(chart):
    """By the alert's name: the object's own is the same in another spelling."""
    found = chart.all("DatadogMonitor")
    assert len(found) == len(ALERTS)
    return dict(zip((one["name"] for one in ALERTS), found, strict=True))


def test_each_alert_is_a_rule_and_a_monitor_with_its_runbook():
    chart = rendering.rendered("full")
    assert list(rules(chart)) == [one["name"] for one in ALERTS]
    for one in ALERTS:
        rule, monitor = rules(chart)[one["name"]], monitors(chart)[one["name"]]
        page = f"https://wiki.example.com/feed-worker/{one['runbook']}.md"
        assert rule["annotations"]["runbook_url"] == page
        assert rule["labels"] == {"id": one["id"], "severity": one["severity"]}
        assert rule.get("for") == one["prometheus"].get("for")
        spec = monitor["spec"]
        assert page in spec["message"] and spec["name"] == f"[feed-worker] {one['id']}: {one['summary']}"
        assert spec["priority"] == {"page": 1, "ticket": 3}[one["severity"]]
        told = {"page": "@pagerduty-feed", "ticket": "@slack-feed"}[one["severity"]]
        assert spec["message"].endswith(told)
        assert spec["options"]["notifyNoData"] is bool(one["datadog"].get("no_data"))
        assert {"team:feed", f"alert:{one['id']}"} <= set(spec["tags"])
        for text in (rule["expr"], spec["query"]):
            assert "$" not in text and "feed-worker" in text


def test_a_threshold_can_be_another():
    chart = rendering.rendered("full")
    for name, threshold in {"ExportLate": "7200", "RetentionDanger": "50", "FreshnessBurnsSlowly": "0.005"}.items():
        assert f"> {threshold}" in rules(chart)[name]["expr"]
        spec = monitors(chart)[name]["spec"]
        assert spec["query"].endswith(f"> {threshold}")
        assert spec["options"]["thresholds"] == {"critical": threshold}
    chart = rendering.rendered("full", "--set", "monitors.thresholds.ExportLate=0")
    assert monitors(chart)["ExportLate"]["spec"]["options"]["thresholds"] == {"critical": "0"}


@pytest.mark.parametrize("option", ["monitors.thresholds.ExportLat=5", "monitors.thresholds.ExportLate=late"])
def test_a_threshold_of_nothing_is_refused(option):
    ended = rendering.run("full", "--set", option)
    assert ended.returncode != 0 and "thresholds" in ended.stderr, ended.stderr


def test_without_a_url_runbooks_are_paths():
    chart = rendering.rendered("minimal", "--set", "monitors.prometheus.enabled=true,networkPolicy.enabled=false")
    assert all(rule["annotations"]["runbook_url"].startswith("docs/runbooks/") for rule in rules(chart).values())


def test_the_dashboard_is_where_grafanas_sidecar_looks():
    found = rendering.rendered("full").one("ConfigMap", "-dashboard")
    assert found["metadata"]["namespace"] == "monitoring"
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"]["grafana_folder"] == "Pipelines"
    (text,) = found["data"].values()
    assert json.loads(text) == json.loads((CHART / "dashboards" / "grafana.json").read_text())
    assert len(text) < 900_000, "a ConfigMap holds a mebibyte"
    assert [one["metadata"]["name"] for one in rendering.rendered("minimal").all("ConfigMap")] == ["feed-feed-worker"]
