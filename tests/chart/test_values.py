"""Values: each is documented, and a bad one is refused with its key named."""

import json
import re

import pytest
import rendering
from rendering import CHART, yaml

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("replicaCont=3", "replicaCont"),
        ("replicaCount=three", "replicaCount"),
        ("replicaCount=7", "replicaCount (7) is more than topic.partitions (6)"),
        ("image.digest=sha256:short", "image/digest"),
        ("image.pulPolicy=Always", "pulPolicy"),
        ("config.kafka.bootstrap_servers=", "config.kafka.bootstrap_servers is missing"),
        ("config.registry.url=", "config.registry.url is missing"),
        ("database.secret=", "database.secret is missing"),
        ("migration.database.secret=", "migration.database.secret is missing"),
        ("maintain.database.secret=", "maintain.database.secret is missing"),
        ("audit.database.secret=", "audit.database.secret is missing"),
        ("operator.enabled=true", "operator.database.secret is missing"),
        ("operator.schedule=0 0 * * *", "schedule"),
        ("database.moreKey=more", "database.moreKey (the Secret's key"),
        ("config.postgres.placement=3: 1", "database.moreKey (the Secret's key"),
        ("config.postgres.placement=3: 1,database.moreKey=more", "audit.database.moreKey is missing"),
        ("config.postgres.more_urls=postgres://u:p@h/d", "more_urls"),
        ("autoscaling.mode=both", "autoscaling/mode"),
        ("autoscaling.mode=keda,autoscaling.minReplicas=0", "autoscaling/minReplicas"),
        ("autoscaling.mode=keda,autoscaling.maxReplicas=7", "autoscaling.maxReplicas (7) is more than topic.partitions (6)"),
        ("autoscaling.mode=hpa,autoscaling.minReplicas=5,autoscaling.maxReplicas=4", "autoscaling.minReplicas is more"),
        ("statsd.target=everywhere", "statsd/target"),
        ("statsd.target=address", "statsd.address is missing"),
        ("resources.limits.memory=", "resources/limits/memory"),
        ("resources.limits.memory=null", "resources/limits"),
        ("terminationGracePeriodSeconds=5", "terminationGracePeriodSeconds"),
        ("maintain.schedule=daily", "maintain/schedule"),
        ("serviceAccount.anotations.x=y", "anotations"),
        ("networkPolicy.databasePort=0", "networkPolicy/databasePort"),
        ("secretEnv.PASSWORD.secret=x", "secretEnv"),
        ("secretEnv.FEED_WORKER_REGISTRY__PASSWORD.secret=x", "secretEnv/FEED_WORKER_REGISTRY__PASSWORD"),
        ("monitors.prometheus.interval=often", "monitors/prometheus/interval"),
        ("monitors.prometheus.kind=NodeMonitor", "monitors/prometheus/kind"),
        # The program's own keys: a wrong one is told before it makes a pod crash.
        ("config.roll.row_max=5", "row_max"),
        ("config.rol.rows_max=5", "rol"),
        ("config.batch.rows_max=many", "config/batch/rows_max"),
        ("config.traces.ratio=all", "config/traces/ratio"),
        ("config.kafka.allow_create_time=perhaps", "config/kafka/allow_create_time"),
        ("config.kafka.auth=msk_iam", "topicsDrift.enabled: `feed-worker topics` cannot work with config.kafka.auth msk_iam"),
        ("config.kafka.auth=token_file,topicsDrift.enabled=false", "config.kafka.retention_ms is missing: with config.kafka.auth token_file"),
        ("monitors.prometheus.enabled=true", "networkPolicy.metricsFrom is empty"),
        # What the chart sets itself, and what is a secret.
        ("config.shutdown.grace_ms=1", "grace_ms"),
        ("config.statsd.addr=x:1", "addr"),
        ("config.postgres.url=postgres://u:p@h/d", "url"),
        ("config.registry.password=x", "password"),
        ("config.registry.token=x", "token"),
        ("config.kafka.password=x", "password"),
        ("config.kafka.private_key_password=x", "private_key_password"),
        ("config.kafka.properties.sasl\\.password=x", "sasl.password"),
    ],
)
def test_a_bad_value_is_refused_by_name(option, named):
    ended = rendering.run("minimal", "--set", option)
    assert ended.returncode != 0, option
    said = ended.stderr
    # Helm 4 writes paths with slashes; what the chart itself says has dots.
    assert named in said, said


def test_everything_that_is_missing_is_told_at_once():
    ended = rendering.run(None)
    assert ended.returncode != 0
    for key in ("config.kafka.bootstrap_servers", "config.registry.url", "database.secret", "audit.database.secret"):
        assert f"{key} is missing" in ended.stderr


def test_the_drift_job_may_have_its_own_way_to_the_brokers():
    drift = "topicsDrift.extraEnv[0].name=FEED_WORKER_KAFKA__AUTH,topicsDrift.extraEnv[0].value=scram"
    iam = "config.kafka.auth=msk_iam,config.kafka.tls=true,config.kafka.retention_ms=604800000"
    ended = rendering.run("minimal", "--set", f"{iam},{drift}")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("option", ["networkPolicy.enabled=false", "networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus"])
def test_prometheus_may_ask_where_no_policy_forbids_it(option):
    ended = rendering.run("minimal", "--set", f"monitors.prometheus.enabled=true,{option}")
    assert ended.returncode == 0, ended.stderr


def test_how_long_the_topic_keeps_records_may_come_as_a_variable():
    variable = "extraEnv[0].name=FEED_WORKER_KAFKA__RETENTION_MS,extraEnv[0].value=604800000"
    ended = rendering.run("minimal", "--set", f"config.kafka.auth=token_file,topicsDrift.enabled=false,{variable}")
    assert ended.returncode == 0, ended.stderr


def test_keda_needs_its_operator():
    ended = rendering.run("full", apis=["monitoring.coreos.com/v1"])
    assert ended.returncode != 0 and "keda.sh/v1alpha1" in ended.stderr


def objects(schema, path=""):
    if schema.get("type") == "object" and "properties" in schema:
        yield path, schema
        for name, part in schema["properties"].items():
            yield from objects(part, f"{path}/{name}")


def test_no_object_of_the_schema_takes_unknown_keys():
    found = dict(objects(SCHEMA))
    assert len(found) > 30
    assert [path for path, schema in found.items() if schema.get("additionalProperties") is not False] == []


def test_schema_and_values_have_the_same_keys():
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(schema, values, path):
        if "properties" not in schema or path == "/config":
            return
        left_out = {"global"} if path == "" else set()
        # Resources and probes have keys that need no default.
        if re.search(r"/(resources|probes)(/|$)", path):
            assert set(values) <= set(schema["properties"]), path
        else:
            assert set(values) == set(schema["properties"]) - left_out, path
        for name, part in values.items():
            compare(schema["properties"][name], part, f"{path}/{name}")

    compare(SCHEMA, values, "")


def test_every_value_is_documented():
    """A comment above it, or above what it is part of; a group's own parts may share one."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    bare = []
    for at, line in enumerate(lines):
        if re.match(r"^\w+:", line):
            above = at - 1
            while above >= 0 and re.match(r"^\w+:", lines[above]):
                above -= 1  # keys in a row share the comment above the first
            block = lines[at : next((n for n in range(at + 1, len(lines)) if re.match(r"^\w+:", lines[n])), len(lines))]
            if not lines[above].startswith("#") and not any(part.strip().startswith("#") for part in block):
                bare.append(line)
    assert bare == []
