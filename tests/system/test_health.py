"""Probes: ready says whether records get through, live whether the process moves."""

import json

import generate


def test_probes_through_an_outage_of_postgres(make_case, crossing):
    """On the stack of its own, because Postgres is stopped."""
    case = make_case(crossing.stack)
    generator = generate.Generator(51)
    worker = case.start_ready()
    status, body = worker.health("/health")
    assert status == 200
    assert json.loads(body)
    assert worker.health("/health/live")[0] == 200
    assert worker.health("/nothing")[0] == 404
    case.stack.command("stop-postgres")
    try:
        case.produce(generator.event() for _ in range(600))
        case.wait(lambda: worker.health("/health/ready")[0] == 503, "not ready while Postgres is away")
        assert worker.health("/health/live")[0] == 200, "an outage is no reason to be killed"
    finally:
        case.stack.command("start-postgres")
    case.wait(lambda: worker.health("/health/ready")[0] == 200, "ready again")
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_stopped_partition_is_not_hidden(case):
    """One stopped partition: the worker is alive, and /health names it."""
    generator = generate.Generator(52)
    case.produce((generator.event() for _ in range(600)))
    first = case.start_ready()
    case.wait_drained()
    assert first.stop() == 0
    case.query("UPDATE partition_ledger SET stopped = 'gap', stopped_detail = 'by the test' WHERE partition = 2 RETURNING 1")
    worker = case.start()
    case.wait(lambda: len(case.owned(worker)) >= 5, "the others assigned")
    case.wait(lambda: "by the test" in worker.health("/health")[1], lambda: f"/health to say so: {worker.health('/health')}")
    assert worker.health("/health/live")[0] == 200
    assert worker.stop() == 0, case.why()
