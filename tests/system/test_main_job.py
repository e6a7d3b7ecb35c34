"""The job as a whole: two workers, events of every kind, files, a clean end, and the checker's verdict."""

from collections import Counter

import generate

EVENTS = 30_000
PER_SECOND = 6000
REASONS = (*generate.PLANTABLE, "schema_not_found", "value_too_large")


def test_two_workers_every_kind(case):
    schemas = case.schemas()
    generator = generate.Generator(1, schemas, bad_share=0.02)
    events = [generator.event() for _ in range(EVENTS)]
    # Each kind at least a few times, wherever the dice fell.
    for at, reason in enumerate(REASONS * 3):
        events.insert(at * 577, generator.bad(reason))
    planted = Counter(event.reason for event in events if event.reason)

    # A file takes whole batches, so they and the pace are such that batches are small.
    sizes = {"ROLL__ROWS_MAX": 1000, "EXPORT__CATCH_UP_ROWS": 500}
    workers = [case.start(name, **sizes) for name in ("left", "right")]
    case.wait_ready(workers[0])
    case.produce(events[: EVENTS // 2], per_second=PER_SECOND)
    case.wait_ready(workers[1])
    case.produce(events[EVENTS // 2 :], per_second=PER_SECOND)
    case.wait_drained(90)
    assert all(case.owned(worker) for worker in workers), "both have partitions"
    case.wait_exported(60)
    assert [worker.stop() for worker in workers] == [0, 0], case.why()

    summary = case.assert_clean()
    assert summary["produced"] == len(events)
    assert summary["persisted"] == len(events) - sum(planted.values())
    assert summary["dead_lettered"] == sum(planted.values())
    assert summary["dead_lettered_by_reason"] == dict(planted)
    assert summary["exported"] == summary["persisted"] == summary["rows_compared"]
    files = case.query("SELECT partition, count(*) FROM export_files GROUP BY partition")
    assert len(files) == case.partitions and all(count >= 3 for _, count in files), files
    committed = case.committed()
    assert committed == {partition: persist for partition, (persist, _, _) in case.frontiers().items()}


def test_worker_alone_goes_on_where_it_ended(case):
    """Stop, produce, start: what came in between is neither lost nor read twice."""
    generator = generate.Generator(2, case.schemas())
    for _ in range(3):
        case.produce(generator.event() for _ in range(2000))
        worker = case.start()
        case.wait_drained()
        case.wait_exported()
        assert worker.stop() == 0, case.why()
    summary = case.assert_clean()
    assert summary["produced"] == 6000 and summary["exported"] == summary["persisted"]
    assert summary["dead_letter_copies"] == summary["dead_lettered"], "a clean stop leaves no second copy"


def test_joining_worker_takes_its_share(case):
    generator = generate.Generator(3)
    first = case.start_ready("first")
    with case.producing((generator.event() for _ in range(100_000)), per_second=2000):
        second = case.start_ready("second")
        case.wait(lambda: len(case.owned(first)) == len(case.owned(second)) == 3, "three partitions each")
        assert second.stop() == 0, case.why()
        case.wait(lambda: len(case.owned(first)) == 6, "all partitions back with the first")
    case.wait_drained()
    case.wait_exported()
    assert first.stop() == 0, case.why()
    case.assert_clean()
