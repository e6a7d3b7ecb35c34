"""Memory has one budget: what fills it is rolled, held back, or read again later, and each of them only as often as it helps."""

import json

import faulty
import generate
from test_faults_postgres import finish, padded, session


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
        case.produce(padded(generator, 12_000) for _ in range(16_000))  # some 190 MB

        def all_wait():
            # Beside the budget there are chunks on their way, an answer of each broker, and what the allocator keeps.
            assert memory.look() - memory.first < 120 * faulty.MIB
            return set(states(worker).values()) == {"waits for postgres"}

        case.wait(all_wait, lambda: f"every partition to wait; {states(worker)}, {(memory.most - memory.first) >> 20} MiB more", 90)
        other.rollback()
    print(f"{memory.first >> 20} → {memory.most >> 20} MiB")
    finish(case, worker, timeout_s=120)
