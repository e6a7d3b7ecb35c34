"""The worker's own process in the fault matrix (docs/reliability.md): killed, stopped, starved, squeezed.

Rows 1, 2, 6, 10, 12, 40, 42, 43, 44, 45 and 46.
"""

import base64
import contextlib
import json
import os
import random
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
import uuid
from pathlib import Path

from stacklib import clock

import generate
import harness
from test_zombie import stopped_in_transaction

# The long run has the storm at five minutes.
STORM_S = float(os.environ.get("FEED_TEST_STORM_S", "20"))
EVENTS_OF_15_KB = 12_000
# Beside the budget: what the allocator holds on to, uploads' copies, the dead letters' producer.
MEMORY_OVERHEAD_KIB = 128 << 10


def persisted(case):
    return {partition: persist for partition, (persist, _, _) in case.frontiers().items()}


def finish(case, *workers):
    case.wait_drained(90)
    case.wait_exported(90)
    assert [worker.stop() for worker in workers] == [0] * len(workers), case.why()


def test_kill_before_the_commit(case):
    """Row 1: killed with a transaction open. It is gone; its records are taken again."""
    generator = generate.Generator(81, case.schemas())
    worker = case.start_ready(BATCH__AGE_MS_MAX=200)
    events = (generator.event() for _ in range(1_000_000))
    with case.producing(events, per_second=3000), harness.FrontierWatch(case) as watch:
        case.wait(lambda: case.rows() > 1000, "the worker at work")
        stopped_in_transaction(case, worker)
        before = (persisted(case), case.rows())
        worker.kill()
        case.wait(lambda: not in_transaction(case), "postgres to end the killed worker's transaction")
        assert (persisted(case), case.rows()) == before, "of the open transaction nothing is left"
        heir = case.start_ready("heir")
        case.wait(lambda: case.rows() > before[1] + 1000, "the heir to go on")
    assert watch.regressions == []
    finish(case, heir)
    case.assert_clean()


def in_transaction(case):
    found = case.query(
        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
           AND backend_type = 'client backend' AND xact_start IS NOT NULL AND backend_xid IS NOT NULL"""
    )
    return found[0][0]


def test_kill_before_kafka_is_told(case):
    """Row 2: committed in Postgres, not in Kafka. Nothing is processed twice, and Kafka's offset is mended."""
    generator = generate.Generator(82, case.schemas(), bad_share=0.05)
    case.produce(generator.event() for _ in range(6000))
    worker = case.start_ready(KAFKA__COMMIT_INTERVAL_MS=3_600_000)
    case.wait_drained()
    worker.kill()
    ends = case.end_offsets()
    assert persisted(case) == ends and set(case.committed().values()) == {0}, "kafka knows of nothing"
    heir = case.start_ready("heir")
    case.wait(lambda: case.committed() == ends, lambda: f"kafka's offset mended: {case.committed()} → {ends}")
    finish(case, heir)
    summary = case.assert_clean()
    assert summary["dead_lettered"] > 0
    assert summary["dead_letter_copies"] == summary["dead_lettered"], "a record was processed twice"


def test_kill_while_it_shuts_down(case):
    """Row 6: SIGKILL at several moments after SIGTERM. A graceful end is never needed."""
    generator = generate.Generator(83, case.schemas())
    env = {"ROLL__ROWS_MAX": 1000, "KAFKA__SESSION_TIMEOUT_MS": 1500}
    events = (generator.event() for _ in range(1_000_000))
    ended = []
    with case.producing(events, per_second=3000), harness.FrontierWatch(case) as watch:
        for moment_s in (0.0, 0.01, 0.03, 0.1, 0.3):
            worker = case.start_ready(**env)
            rows = case.rows()
            case.wait(lambda rows=rows: case.rows() > rows + 1000, "the worker at work")
            worker.signal(signal.SIGTERM)
            time.sleep(moment_s)  # the moment is what is varied
            ended.append(worker.process.poll())
            worker.kill()
    print(f"exit codes before the kill: {ended}")
    assert ended[0] is None, "the first is killed in the middle of it"
    assert watch.regressions == []
    last = case.start_ready("last", **env)
    finish(case, last)
    case.assert_clean()


class ProgressWatch(harness.Watch):
    """The longest time that any partition stood still while it had records to take."""

    def __init__(self, case):
        super().__init__(case, every_s=0.1)
        self.worst_s = 0.0
        self._last = {}

    def look(self):
        now = time.monotonic()
        for partition, frontier in persisted(self.case).items():
            before, since = self._last.get(partition, (None, now))
            if frontier != before:
                since = now
            self._last[partition] = (frontier, since)
            self.worst_s = max(self.worst_s, now - since)


def test_rebalance_storm(case):
    """Row 10: somebody joins or leaves every second, politely or not; every partition still moves."""
    generator = generate.Generator(84, case.schemas())
    workers = [case.start_ready(name) for name in ("left", "right")]
    events = (generator.event() for _ in range(10_000_000))
    guests = 0
    with case.producing(events, per_second=1000), harness.FrontierWatch(case) as watch:
        case.wait(lambda: len(persisted(case)) == 6 and all(persisted(case).values()), "every partition begun")
        with ProgressWatch(case) as progress:
            until = time.monotonic() + STORM_S
            guest = None
            while time.monotonic() < until:
                time.sleep(1)  # the storm's pace
                if guest is None:
                    guest = case.start(f"guest-{guests}")
                    guests += 1
                else:
                    guest.kill() if guests % 2 else guest.stop()
                    guest = None
            if guest is not None:
                guest.stop()
            case.wait(lambda: sum(len(case.owned(worker)) for worker in workers) == 6, "all with the two who stayed")
    rebalances = max(len(found) for found in watch.epochs.values())
    print(f"{guests} guests, at most {rebalances} owners of a partition, at most {progress.worst_s:.1f} s without progress")
    # On a busy machine a guest may be gone before the group has let it in.
    assert guests >= STORM_S / 4 and rebalances >= 2
    # Who was killed is noticed after the session timeout; some in a row and a busy machine are allowed for, but not
    # that a partition stands for the whole storm.
    assert progress.worst_s < 7.5 * harness.SESSION_TIMEOUT_MS / 1000 < STORM_S
    assert watch.regressions == []
    finish(case, *workers)
    case.assert_clean()


def test_who_joins_interrupts_only_what_moves(case):
    """Row 10: of two workers' six partitions a third gets two; the other four keep their owners' epochs."""
    generator = generate.Generator(97, case.schemas())
    # Nobody is to be expelled beside it, however busy the machine is.
    env = {"KAFKA__SESSION_TIMEOUT_MS": 15_000}
    workers = [case.start_ready(name, **env) for name in ("left", "right")]

    def shares(count):
        return sorted(len(case.owned(worker)) for worker in workers) == [6 // count] * count

    with case.producing((generator.event() for _ in range(10_000_000)), per_second=500):
        case.wait(lambda: shares(2) and all(persisted(case).values()), "halves")
        before = {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()}
        workers.append(case.start("third", **env))
        case.wait(lambda: shares(3), "thirds")
        after = {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()}
        kept = [partition for partition in before if after[partition] == before[partition]]
        assert len(kept) == 4 and not set(kept) & set(case.owned(workers[2])), (before, after)
    finish(case, *workers)


def test_stopped_past_the_poll_interval(case):
    """Row 12, past max.poll.interval.ms too, with files open and dead letters on their way."""
    limits = {"KAFKA__MAX_POLL_INTERVAL_MS": 4000, "KAFKA__ASSIGN_DEADLINE_MS": 3000, "ROLL__ROWS_MAX": 1000}
    generator = generate.Generator(85, case.schemas(), bad_share=0.05)
    zombie = case.start_ready("zombie", **limits)
    with case.producing((generator.event() for _ in range(1_000_000)), per_second=1500), harness.FrontierWatch(case) as watch:
        case.wait(lambda: case.rows() > 1000 and len(case.owned(zombie)) == 6, "the owner at work")
        zombie.signal(signal.SIGSTOP)
        heir = case.start("heir", **limits)
        case.wait(lambda: len(case.owned(heir)) == 6, "all with the heir")
        before = persisted(case)
        time.sleep(5)  # past the poll interval; nothing tells when it is over
        case.wait(lambda: all(now > before[n] for n, now in persisted(case).items()), "the heir to go on")
        zombie.signal(signal.SIGCONT)
        case.wait(lambda: len(case.owned(zombie)) == len(case.owned(heir)) == 3, "shared again", 60)
    assert watch.regressions == []
    finish(case, zombie, heir)
    case.assert_clean()


def test_starved_of_cpu(case):
    """Row 43: stopped for 2 s again and again, under a session of 6 s: the group does not move a partition."""
    generator = generate.Generator(86, case.schemas())
    workers = [case.start_ready(name, KAFKA__SESSION_TIMEOUT_MS=6000) for name in ("left", "right")]
    case.wait(lambda: [len(case.owned(worker)) for worker in workers] == [3, 3], "three partitions each")
    before = {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()}
    with case.producing((generator.event() for _ in range(1_000_000)), per_second=1000):
        for _ in range(5):
            workers[0].signal(signal.SIGSTOP)
            time.sleep(2)  # the stall
            workers[0].signal(signal.SIGCONT)
            time.sleep(0.2)
        moved = persisted(case)
        case.wait(lambda: all(now > moved[n] for n, now in persisted(case).items()), "both to go on")
        assert {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()} == before, case.why()
    finish(case, *workers)
    case.assert_clean()


def test_no_scratch_disk(case):
    """Row 45 is absent: the worker does its whole job where no file can be written to by a single byte."""
    generator = generate.Generator(87, case.schemas())
    log = case.folder / "diskless.log"
    env = {**case.env, "TMPDIR": "/nonexistent", "FEED_WORKER_HEALTH__ADDR": f"127.0.0.1:{harness.free_port()}"}
    process = subprocess.Popen(
        [harness.WORKER, "run", "--migrate"],
        env=env,
        cwd="/proc",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    keeper = threading.Thread(target=lambda: log.write_bytes(process.stdout.read()))
    keeper.start()
    try:
        case.produce(generator.event() for _ in range(20_000))
        harness.wait_until(lambda: case.frontiers() or process.poll() is not None, "the worker to begin")
        case.wait_drained()
        case.wait_exported()
        assert regular_files(process.pid) == [], "it holds no file open for writing"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text(errors="replace")
    finally:
        process.kill()
        keeper.join()
    case.assert_clean()


def regular_files(pid):
    """Files on a disk that the process can write to."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            flags = int(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0], 8)
            if stat.S_ISREG(link.stat().st_mode) and flags & os.O_ACCMODE != os.O_RDONLY:
                found.append(os.readlink(link))
        except FileNotFoundError:
            continue
    return found


def test_static_membership(case):
    """Row 46: the worker is no static member unless told so; then the fenced one ends, and does not spin."""
    generator = generate.Generator(88)
    admin = harness.AdminClient({"bootstrap.servers": case.bootstrap})

    def instances():
        found = admin.describe_consumer_groups([case.group], request_timeout=10)[case.group].result(20)
        return [member.group_instance_id for member in found.members]

    worker = case.start_ready()
    assert instances() == [None]
    assert worker.stop() == 0
    static = {"KAFKA__PROPERTIES__GROUP_INSTANCE_ID": "the-one"}
    first = case.start_ready("first", **static)
    assert instances() == ["the-one"]
    first.end_is_wanted = True
    second = case.start_ready("second", **static)
    assert first.wait(30) == 70, case.why()
    assert "fenced" in first.log().lower()
    case.produce(generator.event() for _ in range(2000))
    finish(case, second)
    case.assert_clean()


class Clock:
    """A worker's wall clock, that the test can make jump; see dev/clock_shift.c."""

    def __init__(self, folder, name):
        self.library = folder / "libclock_shift.so"
        if not self.library.exists():
            clock.build(self.library)
        self.file = folder / f"{name}.clock"
        self.jump_to(0)

    @property
    def env(self):
        return {"_LD_PRELOAD": self.library, "_CLOCK_SHIFT_FILE": self.file}

    def jump_to(self, offset_s):
        """In place: the worker has the file mapped."""
        with open(self.file, "r+b" if self.file.exists() else "wb") as out:
            out.write(struct.pack("=q", offset_s))


def test_clocks_that_are_wrong_and_jump(case):
    """Row 40: the clocks of two workers an hour ahead and behind, jumping both ways, then ten minutes back."""
    generator = generate.Generator(89, case.schemas())
    clocks = [Clock(case.folder, name) for name in ("ahead", "behind")]
    workers = [case.start_ready(f"clock-{number}", **one.env) for number, one in enumerate(clocks)]
    case.wait(lambda: [len(case.owned(worker)) for worker in workers] == [3, 3], "three partitions each")
    began = case.query("SELECT now()")[0][0]
    epochs = {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()}

    def wait_progress(which, what):
        before = {partition: found[which] for partition, found in case.frontiers().items()}
        case.wait(lambda: all(case.frontiers()[n][which] > before[n] for n in before), what)

    with case.producing((generator.event() for _ in range(1_000_000)), per_second=1000):
        wait_progress(1, "files while the clocks are right")
        for offsets_s in ((3600, -3600), (-3600, 3600)):
            for one, offset_s in zip(clocks, offsets_s, strict=True):
                one.jump_to(offset_s)
            wait_progress(0, "rows while the clocks are an hour off")
        for worker in workers:
            case.wait(lambda worker=worker: "RequestTimeTooSkewed" in worker.log(), f"{worker.name} to say what is wrong")
        ingested = case.query("SELECT min(ingested_at) - now(), max(ingested_at) - now() FROM user_interactions")[0]
        assert ingested[0].total_seconds() < -3500 and ingested[1].total_seconds() > 3500, "the clocks were off indeed"
        for one in clocks:
            one.jump_to(0)
        wait_progress(1, "files when the clocks are right again")
        # Within what S3 bears: files that were begun in what is the future now do not wait for it.
        for one in clocks:
            one.jump_to(-600)
        for _ in range(2):
            wait_progress(1, "files when the clocks went back")
    assert {partition: epoch for partition, (_, _, epoch) in case.frontiers().items()} == epochs, "nobody was expelled"
    recorded = case.query("SELECT min(recorded_at), max(recorded_at), now() FROM user_interactions")[0]
    assert began <= recorded[0] and recorded[1] <= recorded[2], "the broker's time, not the worker's"
    finish(case, *workers)
    case.assert_clean()


def large(generator, rng):
    """A valid event with 15 kB that do not compress."""
    fields = generator.fields(None)
    fields["metadata"] = {"noise": base64.b64encode(rng.randbytes(11_250)).decode()}
    return generate.Event(fields["userId"].encode(), json.dumps(fields).encode())


def test_memory_stays_in_its_budget(make_case, stack):
    """Row 42: one worker with fifty partitions, large events, dead letters of 1.5 MB, and files that nothing but memory makes roll."""
    case = make_case(stack, partitions=50)
    budget = 64 << 20
    limits = {
        "EXPORT__MEMORY_BYTES_MAX": budget,
        "KAFKA__QUEUED_KBYTES_MAX": 8192,
        "BATCH__BYTES_MAX": 4 << 20,
        "ROLL__BYTES_MAX": 16 << 20,
        "ROLL__ROWS_MAX": 1_000_000,
        "ROLL__AGE_MS_MAX": 3_600_000,
    }
    worker = case.start_ready(**limits)
    case.wait(lambda: len(case.owned(worker)) == 50, "all partitions", 60)
    idle_kib = peak_kib(worker)
    generator, rng = generate.Generator(90, bad_share=0), random.Random(90)
    events = (large(generator, rng) for _ in range(EVENTS_OF_15_KB))
    case.produce(spread(events, generator))
    case.wait_drained(120)
    used_kib = peak_kib(worker)
    rolled = case.query("SELECT count(*) FROM export_files")[0][0]
    print(f"{EVENTS_OF_15_KB * 15 >> 10} MiB of events, RSS {idle_kib >> 10} MiB idle, at most {used_kib >> 10} MiB, {rolled} files")
    assert rolled > 0, "memory made files roll"
    assert used_kib - idle_kib < (budget >> 10) + MEMORY_OVERHEAD_KIB
    assert worker.stop(60) == 0, case.why()
    heir = case.start_ready("heir", ROLL__AGE_MS_MAX=1000)
    finish(case, heir)
    case.assert_clean()


def spread(events, generator):
    """With a record in a thousand that is too large for any row."""
    for number, event in enumerate(events):
        yield event
        if number % 1000 == 0:
            yield generator.bad("value_too_large")


def peak_kib(worker):
    with open(f"/proc/{worker.pid}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def cpu_s_of_a_drain(case, **env):
    """The same topic into sinks that nobody has used, by one worker; its user and system seconds."""
    token = uuid.uuid4().hex[:6]
    case.group, case.prefix, case.database = f"group-{token}", f"exports-{token}", f"statsd_{token}"
    case._create_database()
    worker = case.start_ready(**env)
    case.wait_drained()
    case.wait_exported()
    with open(f"/proc/{worker.pid}/stat", encoding="ascii") as told:
        user, system = told.read().rpartition(")")[2].split()[11:13]
    assert worker.stop() == 0, case.why()
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_agent_for_metrics_is_absent_or_slow(case):
    """Row 44: nobody listens, or listens and never reads; the worker drains all the same, and has no more to do than with
    an agent. Not timed: its CPU is compared, which other work on the machine changes little."""
    generator = generate.Generator(91, bad_share=0)
    case.produce(generator.event() for _ in range(30_000))
    used = {"read": [], "unread": [], "absent": []}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as agent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        for one in (agent, deaf):
            one.bind(("127.0.0.1", 0))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        agent.settimeout(0.1)
        ports = {"read": agent.getsockname()[1], "unread": deaf.getsockname()[1], "absent": harness.free_port()}
        stop, lines = threading.Event(), []

        def listen():
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    lines.append(agent.recv(65_536))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            for kind in (*ports, *reversed(ports)):  # twice each, so that a busy machine is fair
                env = {"STATSD__ENABLED": "true", "STATSD__ADDR": f"127.0.0.1:{ports[kind]}"}
                used[kind].append(cpu_s_of_a_drain(case, **env))
        finally:
            stop.set()
            listener.join()
    least = {kind: min(found) for kind, found in used.items()}
    print(least)
    assert any(b"persist.rows.committed" in line for line in lines), "the agent that is there gets metrics"
    assert least["absent"] < 2 * least["read"] and least["unread"] < 2 * least["read"], least
    case.assert_clean()
