"""topics.yaml against a real broker: plan, apply, drift; the other hand on the topic is Kafka's own tool."""

import shutil
import subprocess
import sys
import uuid

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from harness import ROOT, wait_until

sys.path.insert(0, str(ROOT / "dev"))

from stacklib.settings import KAFKA_LIBS  # noqa: E402

COMMITTED = (ROOT / "topics.yaml").read_text()
SOURCE, DLQ = "feed.interactions.v1", "feed.interactions.v1.dlq"
COMMON = {"cleanup.policy": "delete", "retention.ms": "604800000", "min.insync.replicas": "1"}
SETTINGS = {
    SOURCE: {**COMMON, "message.timestamp.type": "LogAppendTime"},
    DLQ: {**COMMON, "message.timestamp.type": "CreateTime"},
}


class Topics:
    """The contract under names of its own, on the stack's one broker."""

    def __init__(self, case):
        self.case = case
        token = f"topics-{uuid.uuid4().hex[:8]}"
        self.overrides = {SOURCE: f"{SOURCE}.{token}", DLQ: f"{DLQ}.{token}"}
        self.names = list(self.overrides.values())
        self.path = case.folder / "topics.yaml"
        self.path.write_text(COMMITTED)
        self.admin = AdminClient({"bootstrap.servers": case.bootstrap})

    def edit(self, old, new, count=1):
        """Changes the contract; the first occurrence is the source topic's."""
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new, count))

    def run(self, action, *options):
        words = ["topics", action, "--file", self.path, "--env", "local", *options]
        for name, other in self.overrides.items():
            words += ["--topic-override", f"{name}={other}"]
        done = self.case.run(*words)
        return done.returncode, done.stdout, done.stderr

    def described(self, name):
        """What an independent client sees: partitions, and the settings made on the topic itself."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        entries = self.admin.describe_configs([resource])[resource].result(20)
        own = {key: entry.value for key, entry in entries.items() if entry.source == 1}
        return len(self.admin.list_topics(timeout=20).topics[name].partitions), own

    def kafka_configs(self, name, *options):
        words = [shutil.which("java"), "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", f"{KAFKA_LIBS}/*", "kafka.admin.ConfigCommand"]
        words += ["--bootstrap-server", self.case.bootstrap, "--alter", "--entity-type", "topics", "--entity-name", name]
        subprocess.run([*words, *options], check=True, capture_output=True, timeout=120)


@pytest.fixture
def topics(case):
    made = Topics(case)
    yield made
    there = [name for name in made.names if name in made.admin.list_topics(timeout=20).topics]
    for future in made.admin.delete_topics(there).values() if there else ():
        future.result(30)


@pytest.fixture
def applied(topics):
    code, out, err = topics.run("apply")
    assert code == 0, out + err
    return topics


def test_apply_then_plan_and_drift_find_nothing(topics):
    code, out, _ = topics.run("plan")
    assert code == 2 and out.count("+ missing: create it") == 2, out
    assert topics.names[0] not in topics.admin.list_topics(timeout=20).topics, "plan has touched the cluster"
    code, out, _ = topics.run("drift")
    assert code == 2 and [line.partition(":")[2].strip() for line in out.splitlines()] == ["the topic is missing"] * 2, out
    code, out, err = topics.run("apply")
    assert code == 0, out + err
    for name, wanted in SETTINGS.items():
        assert topics.described(topics.overrides[name]) == (6, wanted)
    assert topics.run("plan")[0] == 0
    assert topics.run("drift") == (0, "", ""), "a scheduled job is silent when all is well"
    assert topics.run("apply")[0] == 0


def test_a_change_by_kafkas_own_tool_is_drift_and_is_put_right(applied):
    name = applied.names[0]
    applied.kafka_configs(name, "--add-config", "retention.ms=86400000")
    code, out, _ = applied.run("drift")
    assert (code, out) == (2, f"{name}: retention.ms is 86400000, not 604800000\n")
    code, out, _ = applied.run("plan")
    assert code == 2 and "86400000 (1 d) -> 604800000 (7 d)" in out, out
    code, out, err = applied.run("apply")
    assert code == 0, out + err
    assert applied.described(name)[1]["retention.ms"] == "604800000"
    # A setting that was taken off the topic counts by what holds instead.
    applied.kafka_configs(name, "--delete-config", "message.timestamp.type")
    code, out, _ = applied.run("drift")
    assert (code, out) == (2, f"{name}: message.timestamp.type is CreateTime, not LogAppendTime\n")


def test_what_the_contract_does_not_name_survives_an_apply(applied):
    name = applied.names[0]
    applied.kafka_configs(name, "--add-config", "segment.ms=3600000,compression.type=lz4,min.insync.replicas=2")
    assert applied.run("drift")[0] == 2
    code, out, err = applied.run("apply")
    assert code == 0, out + err
    assert "segment.ms" in out and "kept" in out, out
    own = applied.described(name)[1]
    assert (own["segment.ms"], own["compression.type"], own["min.insync.replicas"]) == ("3600000", "lz4", "1")
    assert own["message.timestamp.type"] == "LogAppendTime"
    # Kept is no difference to apply, but a job that watches tells it.
    assert applied.run("plan")[0] == 0
    code, out, _ = applied.run("drift")
    assert code == 2 and len(out.splitlines()) == 2 and "segment.ms is set to 3600000" in out, out


def test_nothing_is_made_smaller_and_nothing_else_is_done_then(applied):
    name = applied.names[0]
    applied.edit("partitions: 6", "partitions: 3")
    applied.edit("min.insync.replicas: 1", "min.insync.replicas: 1\n      segment.ms: 3600000")
    code, out, err = applied.run("apply", "--yes")
    assert code == 2 and "Kafka cannot take partitions away" in out and "nothing was changed" in err, out + err
    assert applied.described(name) == (6, SETTINGS[SOURCE])


def test_replicas_are_left_to_kafkas_own_tool(applied):
    applied.edit("    replication: 1", "    replication: 2")
    code, out, _ = applied.run("apply", "--yes")
    assert code == 2 and "kafka-reassign-partitions.sh" in out, out


def test_what_cannot_be_undone_needs_a_yes(applied):
    name = applied.names[0]
    applied.edit("partitions: 6", "partitions: 8")
    code, out, err = applied.run("apply")
    assert code == 2 and "keys move" in out and "--yes" in err, out + err
    assert applied.described(name)[0] == 6
    code, out, err = applied.run("apply", "--yes")
    assert code == 0, out + err
    assert applied.described(name)[0] == 8
    assert applied.run("plan")[0] == 0
    # A shorter retention deletes; the DLQ's follows, or the contract would contradict itself.
    applied.edit("retention.ms: 604800000", "retention.ms: 3600000", count=2)
    code, out, _ = applied.run("apply")
    assert code == 2 and "deleted at once" in out, out
    assert applied.described(name)[1]["retention.ms"] == "604800000"


def test_a_value_that_the_broker_refuses_changes_nothing(applied):
    name = applied.names[0]
    applied.edit("partitions: 6", "partitions: 8")
    applied.edit("cleanup.policy: delete", "cleanup.policy: delete\n      compression.type: quick")
    code, out, err = applied.run("apply", "--yes")
    assert code == 70 and "refuses the settings" in err, out + err
    assert applied.described(name)[0] == 6


def test_a_topic_that_exists_with_less_is_brought_into_line(topics):
    name = topics.names[0]
    topics.admin.create_topics([NewTopic(name, 2, 1, config={"segment.ms": "7200000"})])[name].result(20)
    wait_until(lambda: name in topics.admin.list_topics(timeout=10).topics, "the topic")
    code, out, err = topics.run("apply", "--yes")
    assert code == 0, out + err
    partitions, own = topics.described(name)
    assert partitions == 6 and own["segment.ms"] == "7200000" and own["retention.ms"] == "604800000"
