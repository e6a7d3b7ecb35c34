"""Memory has one budget: what fills it is rolled, held back, or read again later, and each of them only as often as it helps."""

import json
import time
import urllib.parse

import faulty
import generate
from test_faults_postgres import execute, finish, padded, session

HOUR_MS = 3_600_000
# Nothing but memory makes a file roll.
NEVER = {"ROLL__AGE_MS_MAX": HOUR_MS, "ROLL__ROWS_MAX": 1_000_000}


def files(case, partition):
    """How many files of a partition the ledger has."""
    return case.query("SELECT count(*) FROM export_files WHERE partition = %s", (partition,))[0][0]


def states(worker):
    return {one["partition"]: one["state"] for one in json.loads(worker.health("/health")[1])["partitions"]}


def test_batches_that_cannot_be_written_are_bounded_in_bytes(case):
    """Every ledger row is held by somebody else: the batches that wait are full long before 20,000 large rows."""
    generator = generate.Generator(301)
    worker = case.start_ready(
        ROLL__BYTES_MAX=2 * faulty.MIB,
        KAFKA__QUEUED_KBYTES_MAX=4096,
        BATCH__BYTES_MAX=2 * faulty.MIB,
        EXPORT__MEMORY_BYTES_MAX=24 * faulty.MIB,
    )
    case.produce(padded(generator, 12_000) for _ in range(2000))
    case.wait_drained()
    case.wait_exported()
    memory = faulty.MemoryWatch(worker)
    with session(case) as other:
        other.execute("SELECT FROM partition_ledger FOR UPDATE")
        case.produce(padded(generator, 12_000) for _ in range(8000))  # some 96 MB

        def all_wait():
            # Beside the budget there are chunks on their way, an answer of each broker, and what the allocator keeps.
            assert memory.look() - memory.first < 80 * faulty.MIB
            return set(states(worker).values()) == {"waits for postgres"}

        case.wait(all_wait, lambda: f"every partition to wait; {states(worker)}, {(memory.most - memory.first) >> 20} MiB more", 180)
        other.rollback()
    print(f"{memory.first >> 20} → {memory.most >> 20} MiB")
    finish(case, worker, timeout_s=120)


def test_full_memory_does_not_cut_small_files(own_case, s3):
    """One partition's PUT hangs and its next file fills the memory: rolling the others' few rows would not help."""
    case = own_case
    generator = generate.Generator(302)
    worker = case.start_ready(
        **NEVER | {"ROLL__ROWS_MAX": 1500},
        S3__TIMEOUT_MS=240_000,
        KAFKA__QUEUED_KBYTES_MAX=1024,
        EXPORT__MEMORY_BYTES_MAX=24 * faulty.MIB,
        ROLL__BYTES_MAX=12 * faulty.MIB,
        BATCH__BYTES_MAX=faulty.MIB,
    )
    case.produce(generator.valid() for _ in range(60))
    case.wait_drained()
    day = case.query("SELECT max(persist_day)::text FROM partition_ledger")[0][0]
    key = urllib.parse.quote(f"{case.prefix}/{day}/{case.topic}+0+", safe="")
    s3.set(f"mode=hang-before-apply&op=put&prefix={key}")
    case.produce((generator.valid() for _ in range(1500)), partition=0)
    case.wait(lambda: s3.state()["waiting"] == 1, "a file of the partition on its way")
    # Through every size that the memory can be full of.
    for _ in range(30):
        case.produce((padded(generator, 15_000) for _ in range(50)), partition=0)
        case.produce(generator.valid() for _ in range(10))
        time.sleep(0.1)  # the worker looks after its files as often
    case.wait_drained()
    small = {partition: files(case, partition) for partition in range(1, case.partitions)}
    assert set(small.values()) == {0}, small
    assert s3.state()["waiting"] == 1
    s3.off()
    case.wait(lambda: files(case, 0) >= 1, "the file that hung")
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_store_is_asked_again_after_an_upload_was_given_up(own_case, s3):
    """The only upload that met the outage ended with its partition: its successor must not think the store away for ever."""
    case = own_case
    generator = generate.Generator(303)
    worker = case.start_ready(
        **NEVER,
        KAFKA__QUEUED_KBYTES_MAX=1024,
        EXPORT__MEMORY_BYTES_MAX=24 * faulty.MIB,
        ROLL__BYTES_MAX=20 * faulty.MIB,
        BATCH__BYTES_MAX=faulty.MIB,
    )
    s3.set(f"mode=503&op=put&prefix={case.prefix}/")
    case.produce((padded(generator, 12_000) for _ in range(5000)), partition=0)  # some 60 MB
    case.wait_drained(180)
    case.wait(lambda: s3.state()["fired"] >= 3, "an upload to meet the outage")
    epoch = case.frontiers()[0][2]
    execute(case, "UPDATE partition_ledger SET epoch = epoch + 1 WHERE partition = 0")
    case.produce([generator.valid()], partition=0)
    case.wait(lambda: "another owner has the partition" in worker.log(), "the worker to notice")
    s3.off()
    case.wait(lambda: case.frontiers()[0][2] > epoch + 1, "the partition to be taken anew")
    case.wait(lambda: files(case, 0) >= 2, "files that roll for want of memory", 180)
    assert worker.stop() == 0, case.why()
    case.assert_clean("--allow-pending")  # it may end before it has caught up
