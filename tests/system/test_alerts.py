"""Every alert fires and recovers, asks for metrics that there are, and leads to a page with commands that there are."""

import json
import re
import subprocess

import pytest
import yaml

import alerts
from harness import ROOT, WORKER

WHO = 'topic="feed.interactions.v1",consumer_group="feed-worker"'


def metrics():
    """name → (kind, tags), as docs/metrics.md has them (a Rust test holds that page to the code)."""
    table = re.findall(r"^\| `([\w.]+)` \| (\w+) \| (.*?) \|", (ROOT / "docs" / "metrics.md").read_text(), re.M)
    return {name: (kind, set(re.findall(r"`(\w+)`", tags))) for name, kind, tags in table}


METRICS = metrics()
# Names of others: the topic's settings, the kernel's, dead letters' headers.
OTHERS = {"retention.ms", "retention.bytes", "max.message.bytes", "net.core.rmem_max"}
OTHERS |= {"feed_worker.reject.reason", "__connect.errors.exception.message"}
KNOWN = {
    f"feed_worker_{name.replace('.', '_')}{suffix}": (name, kind)
    for name, (kind, _) in METRICS.items()
    for suffix in {"counter": ["_total"], "gauge": [""], "distribution": ["_bucket", "_sum", "_count"]}[kind]
}


def of(name, **labels):
    more = "".join(f',{label}="{value}"' for label, value in labels.items())
    return f"feed_worker_{name}{{{WHO}{more}}}"


# name → (series with values, by the minute; when it must fire; when it must be silent)
CASES = {
    "DayNotClosed": ({of("day_late_seconds"): "0x10 3000+60x60 0x10"}, ["53m", "60m"], ["5m", "49m", "75m"]),
    "PartitionStalled": (
        {of("lag_status", partition=3): "1x10 5x20 1x10", of("lag_status", partition=4): "2x40"},
        ["20m", "29m"],
        ["10m", "17m", "35m"],
    ),
    "FreshnessBurnsFast": (
        {of("freshness_events_total"): "0+100x120", of("freshness_late_total"): "0x30 50+50x30 1550x60"},
        ["45m", "60m"],
        ["20m", "34m", "70m"],
    ),
    "FreshnessBurns": (
        {of("freshness_events_total"): "0+100x600", of("freshness_late_total"): "0x60 5+5x300 1505x240"},
        ["300m"],
        ["60m", "440m"],
    ),
    "FreshnessBurnsSlowly": (
        {of("freshness_events_total"): "0+100x6000", of("freshness_late_total"): "0x60 1+1x3000 3001x3000"},
        ["2500m"],
        ["60m", "3600m"],
    ),
    "LagGrows": ({of("lag_status", partition=3): "1x10 2x60 1x10"}, ["45m", "69m"], ["10m", "39m", "75m"]),
    "RetentionRisk": (
        {of("lag_retention_used_percent", partition=3): "0+1x40 0x20"},
        ["32m", "40m"],
        ["25m", "30m", "45m"],
    ),
    "RetentionDanger": (
        {of("lag_retention_used_percent", partition=3): "0+1x60 0x20"},
        ["57m", "60m"],
        ["50m", "55m", "65m"],
    ),
    "NoWorker": ({of("build_info", version="1"): "1x10 _x30 1x20"}, ["26m", "38m"], ["10m", "24m", "50m"]),
    "LagUnknown": (
        {of("build_info", version="1"): "1x60", of("lag_persist_records", partition=3): "7x10 _x30 7x20"},
        ["26m", "38m"],
        ["10m", "24m", "45m"],
    ),
    "PartitionsWithoutOwner": (
        # A worker that rebalances says nothing; the others' word is taken.
        {of("group_unowned_partitions", pod="a"): "0x10 2x30 0x10", of("group_unowned_partitions", pod="b"): "_x50"},
        ["21m", "39m"],
        ["10m", "19m", "45m"],
    ),
    "PartitionStopped": ({of("ledger_stopped_partitions"): "0x10 1x10 0x10"}, ["11m", "20m"], ["10m", "25m"]),
    "ExportConflict": ({of("export_halted_partitions"): "0x10 1x10 0x10"}, ["11m", "20m"], ["10m", "25m"]),
    "DeadLettersNotTaken": (
        # One attempt that failed is nothing.
        {of("dead_letter_send_failed_total"): "0x10 1x20 2+6x20 122x20"},
        ["40m", "50m"],
        ["12m", "30m", "36m", "60m"],
    ),
    "ManyRejects": (
        {
            of("source_records_received_total"): "0+100x90",
            of("decode_records_rejected_total", reason="bad_uuid"): "0x20 1+1x40 41x30",
            of("decode_records_rejected_total", reason="tombstone"): "0x20 1+1x40 41x30",
        },
        ["45m", "60m"],
        ["20m", "30m", "80m"],
    ),
    "ExportLate": ({of("lag_export_seconds", partition=3): "0x10 10000+60x40 20x10"}, ["35m", "50m"], ["10m", "28m", "55m"]),
    "ProduceSlow": (
        {
            of("canary_produce_ms_bucket", le="25"): "0+60x20 1200x30 1200+60x30",
            of("canary_produce_ms_bucket", le="50"): "0+60x20 1200x30 1200+60x30",
            of("canary_produce_ms_bucket", le="100"): "0+60x20 1200+60x60",
            of("canary_produce_ms_bucket", le="+Inf"): "0+60x20 1200+60x60",
        },
        ["30m", "50m"],
        ["15m", "70m"],
    ),
    "RebalancesOften": (
        {of("source_rebalances_total", kind="assign"): "1x30 2+1x9 11x100"},
        ["45m", "60m"],
        ["30m", "120m"],
    ),
    "OwnersConflict": (
        {of("persist_conflicts_total"): "0x10 1x60 2+1x60 62x60"},
        ["110m", "130m"],
        ["40m", "90m", "160m"],
    ),
    "DependencyRetries": (
        {of("retries_total", dependency="postgres"): "0x10 12+12x60 732x30", of("retries_total", dependency="s3"): "0+1x100"},
        ["40m", "70m"],
        ["10m", "20m", "95m"],
    ),
    "TokensNotRenewed": (
        # One attempt that failed, after 10 s the next one, is nothing; nor is another worker that has its token.
        {of("tokens_failing_seconds", pod="a"): "0x10 10 0x10 0+60x12 0x10", of("tokens_failing_seconds", pod="b"): "0x50"},
        ["27m", "35m"],
        ["11m", "12m", "22m", "25m", "38m"],
    ),
    "StatsdDrops": ({of("statsd_lines_dropped_total"): "0x10 5+5x60 305x60"}, ["50m", "70m"], ["30m", "100m"]),
}


# Exit code 65 a few seconds after each start: two pods, each waited with for longer and longer, at most five minutes. A scrape
# that meets a life has the series, the next one fails and ends it ("stale"). By the half-minute.
LIVES = "1 stale 1 _ stale 1 stale _x3 " + "1 stale _x7 " * 12
OTHER_LIVES = "1 stale _ 1 stale _x4 " + "1 stale _x8 " * 11
LOOPING = {
    of("build_info", version="1", pod="a"): f"1x59 stale {LIVES}",
    of("build_info", version="1", pod="b"): f"1x60 stale {OTHER_LIVES}",
}


def test_workers_that_end_soon_after_each_start_are_no_workers(folder):
    """Each life would begin an `absent(…)` anew; that they cannot tell their lag is not what is wrong with them."""
    lag = {of("lag_persist_records", partition=3, pod="a"): "7x59 stale"}
    at = ["45m", "55m", "65m", "75m"]
    wanted = [("NoWorker", 0, "30m"), ("LagUnknown", 0, "30m")]
    wanted += [("NoWorker", 1, one) for one in at] + [("LagUnknown", 0, one) for one in at]
    code, said = alerts.run(folder, [(LOOPING | lag, wanted)], interval="30s")
    assert code == 0, said


def test_one_restart_does_not_hide_that_the_lag_is_unknown(folder):
    """Half a minute in which nobody was heard, every six minutes."""
    given = {of("build_info", version="1"): "1x20 " + "stale 1x10 " * 10}
    wanted = [("LagUnknown", 0, "8m"), ("LagUnknown", 1, "25m"), ("LagUnknown", 1, "45m"), ("NoWorker", 0, "45m")]
    code, said = alerts.run(folder, [(given, wanted)], interval="30s")
    assert code == 0, said


@pytest.mark.parametrize("name", ["PartitionStopped", "ExportConflict"])
def test_the_partitions_of_all_workers_are_told(folder, name):
    gauge = {"PartitionStopped": "ledger_stopped_partitions", "ExportConflict": "export_halted_partitions"}[name]
    given = {of(gauge, pod="a"): "1x10", of(gauge, pod="b"): "1x10"}
    told = {"expr": alerts.expression(alerts.alert(name), "prometheus", alerts.SCOPE), "eval_time": "5m"}
    told["exp_samples"] = [{"labels": '{topic="feed.interactions.v1"}', "value": 2}]
    code, said = alerts.run(folder, [(given, [])], more=[told])
    assert code == 0, said


def test_rules_are_rules(folder):
    path = folder / "rules.yaml"
    path.write_text(json.dumps(alerts.rules()))
    code, said = alerts.promtool("check", "rules", "--lint=all", "--lint-fatal", path)
    assert code == 0 and f"{len(alerts.ALERTS)} rules found" in said, said


def asks_for_silence(one):
    """Series that are not there are what it is about."""
    return re.search(r"\babsent\(|\bvector\(0\)", one["prometheus"]["expr"]) is not None


@pytest.mark.parametrize("name", [one["name"] for one in alerts.ALERTS])
def test_fires_and_recovers(folder, name):
    given, fires, silent = CASES[name]
    wanted = [(name, 1, at) for at in fires] + [(name, 0, at) for at in silent]
    code, said = alerts.run(folder, [(given, wanted)])
    assert code == 0, said
    # The other way round promtool must say no: it looks at what it is told to.
    code, said = alerts.run(folder, [(given, [(name, 0, fires[0])])])
    assert code != 0 and "FAILED" in said, said
    # Another release's series are not this one's.
    others = {series.replace('"feed-worker"', '"other"'): values for series, values in given.items()}
    if not asks_for_silence(alerts.alert(name)):
        code, said = alerts.run(folder, [(others, [(name, 0, at) for at in fires])])
        assert code == 0, said


@pytest.mark.parametrize("one", alerts.ALERTS, ids=lambda one: one["name"])
def test_prometheus_rule_asks_for_what_there_is(one):
    text = alerts.expression(one, "prometheus", alerts.SCOPE)
    found = set(re.findall(r"\bfeed_worker_\w+", text))
    assert found and found <= set(KNOWN), found - set(KNOWN)
    assert text.count(alerts.SCOPE) == len(re.findall(r"\bfeed_worker_\w+", text)), "each series is of this release"
    label_names = set(re.findall(r"by \(([\w, ]+)\)", text))
    tags = set.union({"topic", "le"}, *(METRICS[KNOWN[name][0]][1] for name in found))
    assert {label.strip() for names in label_names for label in names.split(",")} <= tags
    assert {label for label in re.findall(r"\$labels\.(\w+)", one["description"])} <= tags | {"topic"}


@pytest.mark.parametrize("one", alerts.ALERTS, ids=lambda one: one["name"])
def test_datadog_monitor_is_the_same_alert(one):
    query = alerts.expression(one, "datadog", "consumer_group:feed-worker")
    whole = re.fullmatch(r"(?:min|max|avg|sum)\(last_(\d+)([mh])\):(.*) (>|>=|<) ([\d.]+)", query)
    assert whole, query
    number, unit, terms, comparator, threshold = whole.groups()
    assert int(number) * {"m": 1, "h": 60}[unit] <= 7 * 24 * 60
    assert float(threshold) == float(one["threshold"])
    prometheus = one["prometheus"]["expr"]
    if asks_for_silence(one):
        assert one["datadog"]["no_data"]
    else:
        assert f" {comparator} $threshold" in prometheus
        assert not one["datadog"].get("no_data")
    asked = {KNOWN[name][0] for name in re.findall(r"\bfeed_worker_\w+", prometheus)}
    found = set()
    term = r"(min|max|avg|sum|p95):feed_worker\.([\w.]+)\{([^}]*)\}(?: by \{([^}]*)\})?((?:\.as_\w+\(\))?)(?:\.rollup\((?:sum|max), \d+\))?"
    for piece in terms.split(" / "):
        match = re.fullmatch(term, piece)
        assert match, piece
        how, name, scope, by, kind_of = match.groups()
        assert name in METRICS, name
        found.add(name)
        kind, tags = METRICS[name]
        assert kind == {"p95": "distribution"}.get(how, "counter" if kind_of else "gauge"), query
        used = {tag.partition(":")[0] for tag in scope.split(",")} | set((by or "topic").split(","))
        assert used <= tags | {"topic", "consumer_group"}, used
        assert "consumer_group:feed-worker" in scope
    assert found == asked - ({"build.info"} if one["name"] == "LagUnknown" else set())


def test_every_alert_has_its_page_and_every_page_its_alert():
    wanted = {one["runbook"] for one in alerts.ALERTS}
    assert {path.stem for path in alerts.RUNBOOKS.glob("*.md")} == wanted | {"README"}
    listed = (alerts.RUNBOOKS / "README.md").read_text()
    for one in alerts.ALERTS:
        row = rf"^\| {one['id']} \| `FeedWorker{one['name']}` \| {one['severity']} \| .* \| \[.*\]\({one['runbook']}\.md\) \|$"
        assert re.search(row, listed, re.M), f"no row of {one['name']} in docs/runbooks/README.md"
    assert {one["id"] for one in alerts.ALERTS} == {f"A{number}" for number in range(11)}
    assert len({one["name"] for one in alerts.ALERTS}) == len(alerts.ALERTS) == len(CASES)


@pytest.mark.parametrize("path", sorted(alerts.RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_page_has_commands_that_exist(path):
    text = path.read_text()
    if path.stem != "README":
        headings = re.findall(r"^## (.*)$", text, re.M)
        assert headings == ["What it means", "How to see it", "What to do", "When to escalate"], headings
    commands = re.findall(r"feed-worker ([a-z][a-z-]*(?: [^`\n]*)?)`", text)
    for command in commands:
        exists(command)
    for name in re.findall(r"`feed_worker_(\w+)`", text):
        assert f"feed_worker_{name}" in KNOWN, name
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text):
        known = name in METRICS or name in OTHERS or is_key(name) or (ROOT / name).exists()
        assert known, f"{name} is neither a metric nor a key of the configuration"
    for target in re.findall(r"\]\(([\w./-]+?\.md)(?:#[\w-]+)?\)", text):
        assert (path.parent / target).exists(), target


def is_key(name):
    if name.startswith("monitors."):  # a value of the chart
        values = yaml.safe_load((ROOT / "helm" / "feed-worker" / "values.yaml").read_text())
        return name.removeprefix("monitors.") in values["monitors"]
    return name.startswith("kafka.properties.") or f"`{name}`" in (ROOT / "docs" / "configuration.md").read_text()


_HELP = {}


def exists(command):
    """The subcommand's own help knows each of its flags."""
    words = command.rstrip(".,;:)").split()
    path = []
    for word in words:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        path.append(word)
    while path and tuple(path) not in _HELP:
        done = subprocess.run([WORKER, *path, "--help"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            _HELP[tuple(path)] = done.stdout
            break
        path.pop()
    assert path, f"feed-worker {command}: there is no such command"
    for flag in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", command):
        assert re.search(rf"(?<!\S){flag}\b", _HELP[tuple(path)]), f"feed-worker {' '.join(path)} has no {flag}"


def test_a_command_that_does_not_exist_is_noticed():
    for command in ("lagg --json", "lag --jason", "ledger accept --partition 3"):
        with pytest.raises(AssertionError):
            exists(command)
