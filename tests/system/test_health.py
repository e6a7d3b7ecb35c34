"""Probes: ready says whether records get through, live whether the process moves."""

import json
import signal

import generate


def test_probes_through_an_outage_of_postgres(make_case, crossing):
    """On the stack of its own, because Postgres is stopped. Ready = it has joined; live = it moves."""
    case = make_case(crossing.stack)
    generator = generate.Generator(51)
    worker = case.start_ready()
    assert worker.health("/health")[0] == 200
    case.wait(lambda: len(json.loads(worker.health("/health")[1])["partitions"]) == 6, "/health to list the partitions")
    assert worker.health("/health/live")[0] == 200
    assert worker.health("/nothing")[0] == 404
    case.stack.command("stop-postgres")
    try:
        case.produce(generator.event() for _ in range(600))
        case.wait(lambda: "postgres did not take a batch" in worker.log(), "it to notice")
        late = case.start("late")
        late.end_is_wanted = True
        case.wait(lambda: late.health("/health/live")[0] is not None or not late.alive, "the second one to answer or end")
        assert late.health()[0] != 200, "not ready without the ledger"
        assert worker.health("/health/live")[0] == 200, "an outage is no reason to be killed"
        late.kill()
    finally:
        case.stack.command("start-postgres")
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_not_ready_from_sigterm_on(case):
    """The store is away, so that ending takes a while."""
    generator = generate.Generator(53)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, SHUTDOWN__DEADLINE_MS=3000)
    case.produce(generator.event() for _ in range(600))
    case.wait_drained()
    with case.stack.without_s3():
        worker.signal(signal.SIGTERM)
        worker.end_is_wanted = True
        case.wait(lambda: worker.health()[0] == 503, "not ready")
        assert worker.health("/health/live")[0] == 200
        worker.wait()
    case.assert_clean("--allow-unexported")


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
