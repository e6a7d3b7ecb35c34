"""Row 47 of the fault matrix: a stream that stops without an error ends the worker, and nothing else does.

The client's own thread for a broker is halted, by a debugger's means: the process, its heartbeats and every other
connection go on, no error is reported, and no record comes any more.
"""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

import generate
import harness

SILENCE = {"KAFKA__SILENCE_MS_MAX": 1500, "KAFKA__ASSIGN_DEADLINE_MS": 1000}
# Several times what would end a worker.
PATIENCE_S = 6
PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 0x4206, 0x4207, 0x40000000


def ptrace(request, thread):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(request, ctypes.c_long(thread), None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of thread {thread}")


def reaped(threads):
    """Takes note of what became of halted threads; a process is not gone before its debugger has done so."""
    for thread in threads:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(thread, os.WNOHANG | WALL)
    return True


def broker_threads(worker):
    """The client's threads that talk to a broker of the cluster; those of the coordinator have no number."""
    tasks = Path(f"/proc/{worker.pid}/task")
    return [int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() in ("rdk:broker1", "rdk:broker0")]


def test_stream_stops_without_an_error(case):
    generator = generate.Generator(101)
    worker = case.start_ready(**SILENCE)
    case.produce(generator.event() for _ in range(2000))
    case.wait_drained()
    threads = broker_threads(worker)
    assert threads, "the client's threads have the names that they are looked for by"
    for thread in threads:
        ptrace(PTRACE_SEIZE, thread)
        ptrace(PTRACE_INTERRUPT, thread)
    case.produce(generator.event() for _ in range(2000))
    worker.end_is_wanted = True

    def ended():
        return reaped(threads) and not worker.alive

    try:
        case.wait(ended, "the worker to end by itself", 60)
    except AssertionError:
        # Who cleans up would wait for ever: killed, too, it is not gone before its debugger has taken note.
        worker.signal(signal.SIGKILL)
        harness.wait_until(ended, "its end")
        raise
    assert worker.process.returncode == 70, case.why()
    assert "the stream has stopped: partition" in worker.log()
    assert "another owner has" not in worker.log(), "the group knew nothing of it"
    heir = case.start_ready("heir", **SILENCE)
    case.wait_drained()
    case.wait_exported()
    assert heir.stop() == 0, case.why()
    case.assert_clean()


def stays(case, worker):
    """It lives on, for several times as long as a silence may last."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert worker.alive, case.why()
        time.sleep(0.2)
    assert worker.health("/health/live")[0] == 200


def test_nothing_to_read_is_no_silence(case):
    """Nothing was produced; then a partition is stopped, and has records that it may not take."""
    generator = generate.Generator(102)
    worker = case.start_ready(**SILENCE)
    stays(case, worker)
    case.produce(generator.event() for _ in range(600))
    case.wait_drained()
    assert worker.stop() == 0
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    case.produce((generator.event() for _ in range(100)), partition=0)
    gone = TopicPartition(case.topic, 0, case.end_offsets()[0] - 10)
    admin.delete_records([gone])[gone].result(20)
    worker = case.start(**SILENCE)
    case.wait(lambda: case.query("SELECT 1 FROM partition_ledger WHERE stopped = 'gap'"), "partition 0 stopped")
    stays(case, worker)
    assert worker.stop() == 0, case.why()


@contextlib.contextmanager
def without(stack, part):
    stack.command(f"stop-{part}")
    try:
        yield
    finally:
        stack.command(f"start-{part}")


def test_what_is_away_is_no_silence(make_case, crossing):
    """Postgres away with records waiting, the registry with a schema to ask for, Kafka itself. On the stack of its own."""
    case = make_case(crossing.stack)
    stack = crossing.stack
    worker = case.start_ready(**SILENCE)
    plain = generate.Generator(103, bad_share=0)
    with without(stack, "postgres"):
        case.produce(plain.event() for _ in range(60_000))
        stays(case, worker)
    case.wait_drained(120)
    avro = generate.Generator(104, case.schemas(), bad_share=0)
    with without(stack, "registry"):
        case.produce(avro.event() for _ in range(600))
        case.wait(lambda: "waits for the registry" in worker.health("/health")[1], "it to wait for the registry")
        stays(case, worker)
    case.wait_drained()
    stack.command("stop-broker", "1")
    try:
        stays(case, worker)
    finally:
        stack.command("start-broker", "1")
    case.produce(plain.event() for _ in range(600))
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_last_batch_that_cannot_be_read_stops_its_partition(case):
    """A bad checksum with nothing behind it: the worker's client skips it, another one need not. No reason to start anew."""
    generator = generate.Generator(105)
    worker = case.start_ready(**SILENCE)
    case.produce((generator.valid() for _ in range(60)))
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    case.produce([generator.valid()], partition=2)
    end = case.end_offsets()[2]
    (log,) = case.stack.folder.glob(f"**/{case.topic}-2/00000000000000000000.log")
    with open(log, "r+b") as file:
        file.seek(-20, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    worker = case.start(**SILENCE)
    case.wait(lambda: case.query("SELECT 1 FROM partition_ledger WHERE stopped = 'unreadable'"), "the partition to stop", 60)
    assert worker.alive and "a record that may be unreadable is fetched again" in worker.log()
    assert case.frontiers()[2][0] == end - 1
    case.produce((generator.valid() for _ in range(60)), partition=3)
    ends = case.end_offsets()
    case.wait(lambda: case.frontiers()[3][0] == ends[3], "another partition drained")
    assert worker.stop() == 0, case.why()
