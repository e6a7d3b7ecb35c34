"""What a real worker says at /metrics: the names that are documented, and the truth about lag."""

import alerts
import generate
from test_alerts import KNOWN


def values(worker, name):
    """The values of a metric on the worker's page, by whatever labels."""
    return [value for series, value in alerts.page(worker).items() if series.partition("{")[0] == f"feed_worker_{name}"]


def test_page_is_documented_and_tells_a_stopped_partition(case):
    generator = generate.Generator(71, case.schemas())
    worker = case.start_ready(METRICS__LAG_INTERVAL_MS=300, ROLL__AGE_MS_MAX=3_600_000)
    case.produce(generator.event() for _ in range(600))
    case.wait_drained()
    case.wait(lambda: values(worker, "lag_status") == [1.0] * case.partitions, "every partition well")
    case.wait(lambda: set(values(worker, "lag_persist_records")) == {0.0}, "nothing that waits")
    case.wait(lambda: values(worker, "group_unowned_partitions") == [0.0], "the group to be settled")
    # Rows that are in no file yet have an age; those of a topic with a retention have used some of it, or nothing.
    case.wait(lambda: max(values(worker, "lag_export_seconds")) > 0, "rows that wait for their file")
    assert sum(values(worker, "lag_export_records")) > 0
    assert len(values(worker, "lag_retention_used_percent")) == case.partitions
    assert sum(values(worker, "freshness_events_total")) == 600 and sum(values(worker, "freshness_late_total")) == 0
    assert values(worker, "ledger_stopped_partitions") == [0.0]
    found = {series.partition("{")[0] for series in alerts.page(worker)}
    assert found <= set(KNOWN), found - set(KNOWN)
    worker.kill()

    case.query("UPDATE partition_ledger SET stopped = 'gap', stopped_detail = 'by the test' WHERE partition = 2 RETURNING 1")
    case.produce((generator.valid() for _ in range(30)), partition=2)
    heir = case.start("heir", METRICS__LAG_INTERVAL_MS=300)
    case.wait(lambda: values(heir, "ledger_stopped_partitions") == [1.0], "the stopped partition to be counted")
    case.wait(lambda: sorted(values(heir, "lag_status")) == [1.0] * 5 + [4.0], "its lag to be told, though nobody works on it")
    case.wait(lambda: max(values(heir, "lag_persist_seconds"), default=0) > 0, "the age of its next record")
    assert max(values(heir, "lag_persist_records")) == 30


def test_canary_measures_and_leaves_the_source_topic_alone(case):
    canary = f"{case.topic}.canary"
    case.create_topic(canary, 3, {})
    env = {"KAFKA__CANARY_TOPIC": canary, "HEALTH__ADDR": "127.0.0.1:0"}
    done = case.run("produce", "--canary", "--rate", "20", "--duration", "3s", **env)
    assert done.returncode == 0 and "delivered 60 records" in done.stdout, done.stdout + done.stderr
    assert set(case.end_offsets().values()) == {0}, "the source topic has got records"
    refused = case.run("produce", "--canary", "--duration", "1s", KAFKA__CANARY_TOPIC=case.topic)
    assert refused.returncode == 64 and "kafka.canary_topic" in refused.stderr
