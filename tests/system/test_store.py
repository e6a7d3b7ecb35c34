"""The store that the exports go to: it must honour the condition, and its faults cost nothing but time."""

import urllib.request

import pytest

import generate


@pytest.fixture
def faulty(crossing):
    """Sets a fault of our own S3 server; (urlencoded) query as in dev/s3.rs. Cleared at the end."""
    url = crossing.stack.env["STACK_S3_FAULT_URL"]

    def fault(query):
        urllib.request.urlopen(urllib.request.Request(f"{url}?{query}", method="POST"), timeout=5).close()

    yield fault
    fault("mode=off")


@pytest.fixture
def own_case(crossing, make_case):
    return make_case(crossing.stack)


def test_store_that_ignores_the_condition_is_refused(own_case, faulty):
    faulty("mode=ignore-condition")
    generator = generate.Generator(41)
    own_case.produce(generator.event() for _ in range(500))
    worker = own_case.start()
    assert worker.wait(30) == 67, own_case.why()
    assert "condition" in worker.log()
    assert not [key for key in own_case.keys() if key.endswith(".parquet")]
    faulty("mode=off")
    worker = own_case.start_ready()
    own_case.wait_drained()
    own_case.wait_exported()
    assert worker.stop() == 0, own_case.why()
    own_case.assert_clean()


@pytest.mark.parametrize("fault", ["mode=500", "mode=503", "mode=409", "mode=403", "mode=hang-after-apply&op=put"])
def test_faults_cost_only_time(own_case, faulty, fault):
    generator = generate.Generator(42, own_case.schemas())
    worker = own_case.start_ready(ROLL__ROWS_MAX=300, S3__TIMEOUT_MS=1500, S3__CONNECT_TIMEOUT_MS=1000)
    own_case.produce(generator.event() for _ in range(1000))
    own_case.wait_drained()
    own_case.wait_exported()
    faulty(fault)
    own_case.produce(generator.event() for _ in range(6000))
    own_case.wait_drained()  # persisting never waits for S3
    filed = own_case.query("SELECT sum(rows) FROM export_files")[0][0]
    assert filed < own_case.rows()
    faulty("mode=off")
    own_case.wait_exported()
    assert worker.stop() == 0, own_case.why()
    own_case.assert_clean()


def test_ledger_of_another_group_is_refused(case):
    first = case.start_ready()
    assert first.stop() == 0
    other = case.start(KAFKA__GROUP_ID=f"{case.group}-other")
    assert other.wait(30) == 66, case.why()
    assert case.group in other.log()


def test_ledger_of_another_cluster_is_refused(case):
    first = case.start_ready()
    assert first.stop() == 0
    case.query("UPDATE topic_ledger SET cluster_id = 'another-cluster' RETURNING 1")
    case.query("UPDATE partition_ledger SET cluster_id = 'another-cluster' RETURNING 1")
    other = case.start()
    assert other.wait(30) == 66, case.why()
    assert "another-cluster" in other.log()


def test_tables_that_are_not_there_are_refused(case):
    worker = case.start_without_migration()
    assert worker.wait(30) == 66, case.why()
    assert "migrate" in worker.log()
