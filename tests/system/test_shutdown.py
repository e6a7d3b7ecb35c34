"""Ending: SIGTERM drains and uploads, a second signal ends at once, and either way nothing is lost."""

import signal
import time

import pytest

import generate


def test_sigterm_uploads_what_is_open(case):
    """Nothing would have rolled for hours."""
    generator = generate.Generator(61, case.schemas())
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, ROLL__ROWS_MAX=1_000_000)
    case.produce(generator.event() for _ in range(5000))
    case.wait_drained()
    assert not case.query("SELECT 1 FROM export_files")
    started = time.monotonic()
    assert worker.stop() == 0, case.why()
    assert time.monotonic() - started < 10
    summary = case.assert_clean()
    assert summary["exported"] == summary["persisted"] and summary["files"] == case.partitions


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_in_the_middle_of_the_stream(case, number):
    generator = generate.Generator(62, case.schemas())
    worker = case.start_ready()
    with case.producing((generator.event() for _ in range(200_000)), per_second=4000):
        case.wait(lambda: case.rows() > 3000, "the worker at work")
        worker.signal(number)
        assert worker.wait(20) == 0, case.why()
        summary = case.assert_clean("--allow-pending", produced=False)
        assert summary["unexported"] == 0
    next_one = case.start_ready()
    case.wait_drained()
    assert next_one.stop() == 0, case.why()
    case.assert_clean()


def test_files_go_out_a_few_at_a_time(own_case, s3):
    """Sealing every open file at once would take memory beside what they take open."""
    case = own_case
    generator = generate.Generator(65)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, ROLL__ROWS_MAX=1_000_000)
    for partition in range(case.partitions):
        case.produce((generator.valid() for _ in range(300 + 100 * partition)), partition=partition)
    case.wait_drained()
    s3.set("mode=hang-before-apply&op=put")
    worker.signal(signal.SIGTERM)
    case.wait(lambda: s3.state()["waiting"] >= 2, "files on their way")
    time.sleep(1)  # another one would have come by now
    assert s3.state()["waiting"] == 2
    s3.off()
    assert worker.wait(30) == 0, case.why()
    summary = case.assert_clean()
    assert summary["exported"] == summary["persisted"] and summary["files"] == case.partitions


def test_second_signal_ends_at_once(case):
    """S3 is away, so the first signal cannot be done with."""
    generator = generate.Generator(63, case.schemas())
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000)
    case.produce(generator.event() for _ in range(5000))
    case.wait_drained()
    with case.stack.without_s3():
        worker.signal(signal.SIGTERM)
        case.wait(lambda: worker.health()[0] != 200, "it to begin to end")
        assert worker.alive, case.why()
        started = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 130, case.why()
        assert time.monotonic() - started < 2
    next_one = case.start_ready()
    case.wait_exported()
    assert next_one.stop() == 0, case.why()
    case.assert_clean()


def test_shutdown_deadline(case):
    """The store is away for longer than the deadline: the worker leaves, the next owner does the rest."""
    generator = generate.Generator(64)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, SHUTDOWN__DEADLINE_MS=2000)
    case.produce(generator.event() for _ in range(2000))
    case.wait_drained()
    with case.stack.without_s3():
        started = time.monotonic()
        assert worker.stop(20) in (0, 75), case.why()
        assert time.monotonic() - started < 8
    next_one = case.start_ready()
    case.wait_exported()
    assert next_one.stop() == 0, case.why()
    case.assert_clean()
