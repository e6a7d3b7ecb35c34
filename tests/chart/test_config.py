"""The configuration that the chart renders is one that the program takes, and says there what values say."""

import json
import os
import subprocess

import pytest
import rendering
from rendering import FIXTURES, ROOT, environment

WORKER = ROOT / "target" / "debug" / "feed-worker"
SECRETS = {
    "DATABASE_URL": "postgres://feed_worker:x@db.example.com/feed",
    "FEED_WORKER_POSTGRES__MORE_URLS": "postgres://feed_worker:x@more.example.com/feed",
}
# A client that hangs keeps the process for this long past its own deadline.
HUNG_CLIENTS_S = 5


def effective(chart, tmp_path, container=None):
    """What a container of the chart would run with: its file and its variables; Secrets are made up."""
    path = tmp_path / "config.yaml"
    path.write_text(chart.config())
    found = environment(container or chart.worker)
    variables = {"FEED_WORKER_CONFIG": str(path)}
    for name, value in found.items():
        if name == "FEED_WORKER_CONFIG":
            assert value == "/etc/feed-worker/config.yaml"
        elif isinstance(value, str):
            variables[name] = value.replace("$(HOST_IP)", "10.0.0.7")
        elif "secretKeyRef" in value:
            variables[name] = SECRETS.get(name, "made-up")
    ended = subprocess.run([WORKER, "config", "--format", "json"], env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_program_takes_it(fixture, tmp_path):
    chart = rendering.rendered(fixture)
    config = effective(chart, tmp_path)
    values = rendering.yaml.safe_load((rendering.CHART / "ci" / f"{fixture}-values.yaml").read_text())
    for section, keys in values["config"].items():
        for key, value in keys.items():
            found = config["values"][section][key]
            if key == "properties":  # those of Secrets come beside them
                found = {name: found.get(name) for name in value}
            assert found == value, f"{section}.{key}"
            assert config["sources"].get(f"{section}.{key}", "file").startswith("file"), f"{section}.{key}"


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_grace_period_has_room_for_every_deadline(fixture, tmp_path):
    chart = rendering.rendered(fixture)
    config = effective(chart, tmp_path)["values"]
    grace_s = chart.pod["terminationGracePeriodSeconds"]
    assert config["shutdown"]["grace_ms"] == grace_s * 1000
    assert config["shutdown"]["deadline_ms"] / 1000 + HUNG_CLIENTS_S < grace_s
    assert config["kafka"]["revoke_deadline_ms"] < config["shutdown"]["deadline_ms"]


def test_a_grace_period_that_is_too_short_is_told_by_the_program(tmp_path):
    chart = rendering.rendered("minimal", "--set", "terminationGracePeriodSeconds=20")
    with pytest.raises(AssertionError, match="shutdown.deadline_ms .* and shutdown.grace_ms"):
        effective(chart, tmp_path)


@pytest.mark.parametrize(
    ("limit", "budget"), [("512Mi", 201_326_592), ("1Gi", 402_653_184), ("2G", 750_000_000), ("1073741824", 402_653_184)]
)
def test_the_memory_budget_follows_the_limit(limit, budget, tmp_path):
    chart = rendering.rendered("minimal", "--set-string", f"resources.limits.memory={limit}")
    assert effective(chart, tmp_path)["values"]["export"]["memory_bytes_max"] == budget


def test_a_memory_budget_can_be_set(tmp_path):
    chart = rendering.rendered("minimal", "--set", "config.export.memory_bytes_max=160000000")
    assert effective(chart, tmp_path)["values"]["export"]["memory_bytes_max"] == 160_000_000


def test_the_health_port_is_the_configured_one(tmp_path):
    chart = rendering.rendered("minimal", "--set", "config.health.addr=0.0.0.0:9999")
    assert effective(chart, tmp_path)["values"]["health"]["addr"] == "0.0.0.0:9999"
    assert chart.worker["ports"] == [{"name": "health", "containerPort": 9999}]


@pytest.mark.parametrize(
    ("fixture", "enabled", "addr"),
    [("full", True, "10.0.0.7:8125"), ("hpa", True, "datadog.monitoring.svc:8126"), ("gitops", False, None)],
)
def test_metrics_go_where_values_say(fixture, enabled, addr, tmp_path):
    statsd = effective(rendering.rendered(fixture), tmp_path)["values"]["statsd"]
    assert statsd["enabled"] is enabled
    assert addr is None or statsd["addr"] == addr


def test_the_scaler_asks_for_the_group_that_the_worker_is_in(tmp_path):
    chart = rendering.rendered("minimal", "--set", "autoscaling.mode=keda")
    (trigger,) = chart.one("ScaledObject")["spec"]["triggers"]
    kafka = effective(chart, tmp_path)["values"]["kafka"]
    assert trigger["metadata"]["topic"] == kafka["topic"]
    assert trigger["metadata"]["consumerGroup"] == kafka["group_id"]
    assert trigger["metadata"]["bootstrapServers"] == kafka["bootstrap_servers"]


@pytest.mark.parametrize(
    ("fixture", "name"),
    [(fixture, name) for fixture in ("full", "minimal") for name in ("maintain", "topics-drift", "audit")] + [("full", "operator")],
)
def test_the_jobs_take_it_too(fixture, name, tmp_path):
    """Without a database of their own `config` misses one, and names it."""
    chart = rendering.rendered(fixture)
    _, _, _, container = chart.cron_job(name)
    if name == "topics-drift":
        with pytest.raises(AssertionError, match="postgres.url"):
            effective(chart, tmp_path, container)
    else:
        effective(chart, tmp_path, container)


@pytest.mark.parametrize("name", ["migrate", "maintain", "topics-drift", "audit", "operator", "worker"])
def test_the_program_has_the_commands_that_the_chart_calls(name):
    chart = rendering.rendered("full")
    containers = {container["name"]: container for _, _, pod in chart.pods() for container in pod["containers"]}
    # Every argument but values, with a --help behind them, is only looked at, not done; a wrong one ends with 64.
    ended = subprocess.run([WORKER, *containers[name]["args"], "--help"], env={}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    flags = [argument for argument in containers[name]["args"] if argument.startswith("--")]
    assert [flag for flag in flags if flag not in ended.stdout] == []


def test_the_schema_of_values_has_the_programs_keys():
    """Written by `UPDATE_DOCS=1 cargo test --test config`, which holds it to the declarations; seen here from outside."""
    ended = subprocess.run([WORKER, "config", "--format", "json"], env=dict(PATH=os.environ["PATH"]), capture_output=True, text=True)
    program = json.loads(ended.stdout)["values"]
    schema = json.loads((rendering.CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    chart_sets = {"shutdown.grace_ms", "statsd.addr", "statsd.enabled"}
    expected = {f"{section}.{key}" for section, keys in program.items() for key in keys} - chart_sets
    found = {f"{section}.{key}" for section, part in schema.items() for key in part["properties"]}
    assert found <= expected
    secrets = ("url", "more_urls", "password", "token")
    assert all(key.endswith(secrets) for key in expected - found)
