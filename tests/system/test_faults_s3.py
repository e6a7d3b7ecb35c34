"""Faults of the object store: persisting goes on, nothing is overwritten, nothing is exported twice or taken for exported."""

import time

import faulty
import generate
from test_faults_postgres import finish, moved, padded, session


def entered(case):
    return case.query("SELECT count(*), coalesce(max(next_offset), 0) FROM export_files")[0]


def data_keys(case):
    return sorted(key for key in case.keys() if key.endswith(".parquet"))


SHORT = {"S3__TIMEOUT_MS": 1500, "S3__CONNECT_TIMEOUT_MS": 1000}
# What a store answers, and how long it is left so. None of these is an answer to "was it written?".
AWAY = ("500", "503", "403", "expired", "kms", "409", "200-error", "hang-before-apply")


def test_no_answer_of_the_store_is_taken_for_success(own_case, s3):
    """Rows 21, 22, 24, 27: while the store says no, in whatever way, ingest goes on and nothing counts as exported."""
    case = own_case
    generator = generate.Generator(201, case.schemas())
    worker = case.start_ready(ROLL__ROWS_MAX=200, ROLL__AGE_MS_MAX=300, **SHORT)
    with case.producing((generator.event() for _ in range(400_000)), per_second=1000):
        case.wait(lambda: entered(case)[0] >= 6, "files before any fault")
        for fault in AWAY:
            s3.set(f"mode={fault}&op=put")
            case.wait(lambda: s3.state()["fired"] >= 3, f"{fault} to be met")
            # What was in between when the fault was set is done with.
            time.sleep(0.3)
            then, files, keys = case.frontiers(), entered(case), data_keys(case)
            case.wait(lambda then=then: moved(case, then, exported=False), f"ingest to go on under {fault}")
            assert entered(case) == files, f"{fault} was taken for success"
            assert data_keys(case) == keys
            assert worker.alive and worker.health("/health/live")[0] == 200 and worker.health()[0] == 200
            s3.off()
            case.wait(lambda then=then: moved(case, then), f"every export to go on after {fault}", 20)
    finish(case, worker)


def test_ingest_keeps_its_rate_while_the_store_is_away(own_case, s3):
    """Row 21: SlowDown for long: ingest at its rate, memory within its budget, and all caught up."""
    case = own_case
    generator = generate.Generator(202)
    budget = 24 * faulty.MIB
    worker = case.start_ready(
        ROLL__ROWS_MAX=100_000,
        KAFKA__QUEUED_KBYTES_MAX=4096,
        EXPORT__MEMORY_BYTES_MAX=budget,
        BATCH__BYTES_MAX=2 * faulty.MIB,
        ROLL__BYTES_MAX=12 * faulty.MIB,
    )
    events = [padded(generator, 6000) for _ in range(4000)]

    def rate():
        before, started = case.rows(), time.monotonic()
        case.produce(events)  # some 24 MB
        case.wait(lambda: case.rows() >= before + len(events), "persisted")
        return len(events) / (time.monotonic() - started)

    normal = rate()
    case.wait_exported()
    memory = faulty.MemoryWatch(worker)
    s3.set("mode=503&op=put")
    begun_at, away = time.monotonic(), []
    # Without shedding each turn would leave its 25 MB: twelve are more than what is allowed below.
    while time.monotonic() < begun_at + 10 or len(away) < 12:
        away.append(rate())
        memory.look()
    print(f"{normal:.0f} rows/s before, {[round(r) for r in away]} away; {memory.first / 1e6:.0f} → {memory.most / 1e6:.0f} MB")
    assert max(away) > 0.5 * normal
    # Beside the budget there are chunks on their way and what the allocator keeps; a busy machine keeps more.
    assert memory.most - memory.first < budget + 160 * faulty.MIB
    s3.off()
    case.wait_exported(90)
    assert worker.stop() == 0, case.why()
    case.assert_clean()


def test_store_that_is_away_is_asked_seldom(own_case, s3):
    """Row 21: small files, so that only the waits between the tries bound how many there are."""
    case = own_case
    generator = generate.Generator(216)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, ROLL__ROWS_MAX=100)
    s3.set("mode=503&op=put")
    for partition in range(case.partitions):
        case.produce((generator.valid() for _ in range(100)), partition=partition)
    case.wait(lambda: s3.state()["fired"] >= case.partitions, "every partition to try")
    tries, begun_at = s3.state()["fired"], time.monotonic()
    time.sleep(5)
    per_second = (s3.state()["fired"] - tries) / (time.monotonic() - begun_at) / case.partitions
    print(f"{per_second:.1f} tries a second of a partition")
    # The waits begin at 50 ms and double: six tries in these five seconds. Some, or nothing was measured.
    assert 0 < per_second < 4
    s3.off()
    case.wait_exported()
    finish(case, worker)


def test_put_was_applied_and_its_answer_lost(own_case, s3):
    """Row 23: the second try meets the first one's object, compares it with the table and takes it."""
    case = own_case
    generator = generate.Generator(203)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, ROLL__ROWS_MAX=300, **SHORT)
    s3.set("mode=hang-after-apply&op=put&count=2")
    for partition in (0, 1):
        case.produce((generator.valid() for _ in range(300)), partition=partition)
    case.wait(lambda: len(data_keys(case)) == 2, "both objects")
    written = {key: case.objects.read(key) for key in data_keys(case)}
    assert entered(case)[0] == 0
    refused = s3.state()["puts_refused"]
    case.wait_exported()
    assert s3.state()["puts_refused"] > refused, "the second try met no object"
    assert {key: case.objects.read(key) for key in data_keys(case)} == written
    finish(case, worker)


def test_killed_between_put_and_entry(own_case, s3):
    """Row 4: the object is there and the ledger does not know; the next owner takes it as it is, or what of it is true."""
    case = own_case
    generator = generate.Generator(204)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, ROLL__ROWS_MAX=300)
    case.produce((generator.valid() for _ in range(10)), partition=0)
    case.wait_drained()
    with session(case) as other:
        other.execute("LOCK TABLE export_files IN ACCESS EXCLUSIVE MODE")
        for partition in (0, 1):
            case.produce((generator.valid() for _ in range(400)), partition=partition)
        case.wait(lambda: len(data_keys(case)) == 2, "both objects")
        case.wait_drained()
        worker.kill()
        other.rollback()
    written = {key: case.objects.read(key) for key in data_keys(case)}
    assert entered(case)[0] == 0
    # The next owner would cut its files elsewhere.
    heir = case.start_ready(ROLL__ROWS_MAX=1000, ROLL__AGE_MS_MAX=1000)
    case.wait_exported()
    assert {key: case.objects.read(key) for key in written} == written
    finish(case, heir)


def test_object_with_other_content_stops_that_export_only(own_case, s3):
    """Row 25: somebody else's object under the next key: never overwritten, never adopted; the other partitions go on."""
    case = own_case
    generator = generate.Generator(205)
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, ROLL__ROWS_MAX=300)
    case.produce(generator.valid() for _ in range(60))
    case.wait_drained()
    day = case.query("SELECT max(persist_day)::text FROM partition_ledger")[0][0]
    key = {n: f"{case.prefix}/{day}/{case.topic}+{n}+{0:020}.parquet" for n in (0, 1)}
    client = case.objects.client
    client.put_object(Bucket=case.bucket, Key=key[0], Body=b"not ours")
    # It says the right range, and holds other rows.
    lie = {"next-offset": "10", "rows": "10", "epoch": "1", "row-hash": "0" * 64, "first-offset": "0"}
    client.put_object(Bucket=case.bucket, Key=key[1], Body=b"not ours either", Metadata=lie)
    for partition in range(case.partitions):
        case.produce((generator.valid() for _ in range(400)), partition=partition)
    case.wait_drained()
    case.wait(lambda: all(case.frontiers()[n][1] >= 300 for n in range(2, 6)), "the other partitions' exports")
    case.wait(lambda: worker.log().count("bucket and table disagree") == 2, "both to be told")
    assert case.objects.read(key[0]) == b"not ours" and case.objects.read(key[1]) == b"not ours either"
    case.produce((generator.valid() for _ in range(400)), partition=0)
    case.wait_drained()
    assert [case.frontiers()[n][1] for n in (0, 1)] == [0, 0]
    assert worker.stop() == 0, case.why()
    # Whoever looked into it takes the objects away, and the next owner goes on.
    for one in key.values():
        case.objects.delete(one)
    heir = case.start_ready()
    case.wait_exported()
    finish(case, heir)


def test_store_that_ignores_the_condition_is_refused_at_start(own_case, s3):
    """Row 26: nothing is taken, nothing is written, and the exit code says which."""
    case = own_case
    s3.set("mode=ignore-condition")
    generator = generate.Generator(206)
    case.produce(generator.valid() for _ in range(500))
    worker = case.start()
    assert worker.wait(30) == 67, case.why()
    assert case.query("SELECT count(*) FROM partition_ledger")[0] == (0,) and case.rows() == 0
    assert data_keys(case) == []
    s3.off()
    again = case.start_ready()
    finish(case, again)


def test_there_is_no_multipart_upload(own_case, s3):
    """Rows 5, 22: a file of many megabytes is one request too; nothing half uploaded can be left in the bucket."""
    case = own_case
    generator = generate.Generator(207)
    before = s3.state()["requests"]
    assert "multipart" not in before
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, KAFKA__QUEUED_KBYTES_MAX=4096)
    case.produce((padded(generator, 14_000) for _ in range(3000)), partition=0)
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    assert max(len(case.objects.read(key)) for key in data_keys(case)) > 16 * faulty.MIB
    # Killed in the middle of a PUT: there is no object, whole or half.
    s3.set("mode=hang-before-apply&op=put")
    keys = data_keys(case)
    worker = case.start("killed", ROLL__AGE_MS_MAX=300)
    case.wait(lambda: s3.state()["waiting"] > 0, "the proof of the condition to hang")
    s3.set(f"mode=hang-before-apply&op=put&prefix={case.prefix}/2")
    case.wait_ready(worker)
    case.produce(generator.valid() for _ in range(600))
    case.wait(lambda: s3.state()["waiting"] > 0, "a PUT on its way")
    worker.kill()
    assert data_keys(case) == keys
    s3.off()
    heir = case.start_ready()
    finish(case, heir)
    assert "multipart" not in s3.state()["requests"]
