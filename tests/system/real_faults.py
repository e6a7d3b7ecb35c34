"""One run of real workers in which every alert's fault really happens, and is put right again; /metrics is read all along.

Half a second between two looks is told to Prometheus as a minute (`ALERTS` below says where it is told otherwise), so that
`for: 10m` is five seconds, and no rule's windows are changed. A threshold that is a length of time, or a rate, would not
fit that clock, and is set as `monitors.thresholds` of the chart would.
"""

import contextlib
import signal
import socket
import threading
import time

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

import alerts
import generate
from test_faults_dlq import alter

# name → how it is told and rendered. All others: a minute a look, the chart's own threshold.
TOLD = {
    # Three times roll.age_ms_max (1.5 s here), as the chart's 10,800 s are of an hour.
    "ExportLate": {"threshold": 4.5},
    # What a loaded machine needs for an acknowledgement is below it, what the fault adds is above it.
    "ProduceSlow": {"threshold": 1000},
    # A rate: told 120 times as slowly as it was, with as much room below it as above.
    "DependencyRetries": {"threshold": 0.1 / 50},
    "LagGrows": {"minutes": 5},
    # 72 looks are the rule's long window.
    "FreshnessBurns": {"minutes": 5},
    "FreshnessBurnsSlowly": {"minutes": 60},
}
# What is late is late by the real clock (`FRESH_MS_MAX`, 60 s).
LATE_S = 63
# A quarter and a half of it pass while Postgres is away for LATE_S; Kafka deletes nothing within a run of this length.
RETENTION_MS = 90_000
PATIENCE_S = 90


class Story:
    """Two topics: `main` with most of the faults, and `away`, whose Postgres is away for more than a minute meanwhile."""

    def __init__(self, main, away, proxies, folder):
        self.main, self.away, self.proxies, self.folder = main, away, proxies, folder
        self.recorder = alerts.Recorder()
        self.parts = {}
        self.timeline = []
        schemas = main.schemas()
        # A generator is not for two threads.
        self.trickle, self.faulty = generate.Generator(901, schemas), generate.Generator(902, schemas)
        self.away_trickle = generate.Generator(903)

    # ---- what is judged ----------------------------------------------------------------------------------------

    def begins(self, case, name, labels=""):
        """The fault begins; now the alert has to be silent."""
        told = TOLD.get(name, {})
        values = {"threshold": told["threshold"]} if "threshold" in told else {}
        part = alerts.Recording(
            self.recorder, self.folder, f'consumer_group="{case.group}"', told.get("minutes", 1), labels, **values
        )
        self.parts[name, labels] = part
        # A pause between two looks is no part of either.
        self.looks(2)
        # An earlier fault may have been one of this alert's too.
        part.began = self.recovers(name, labels)

    def looks(self, count):
        until = self.recorder.now + count
        while self.recorder.now < until:
            time.sleep(self.recorder.every_s / 5)

    def until(self, name, labels, does_fire, turn=lambda: None):
        """Until the alert has fired, or does so no more; `turn` goes on with the fault. The look at which that was seen."""
        part = self.parts[name, labels]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            turn()
            last = self.recorder.now
            # Some fire only for some looks: it counts that it did. Silent it has to be now.
            back = max(1, last - part.began) if does_fire else 1
            code, said = part.says(name, [(last, back, does_fire)])
            if code == 0:
                self.timeline.append(f"{last / 2:6.1f} s: {name}{labels} {'fires' if does_fire else 'is silent'}")
                return last
            assert time.monotonic() < deadline, f"{name} {'does not fire' if does_fire else 'goes on'}: {said}{self.why()}"
            time.sleep(self.recorder.every_s)

    def fires(self, name, labels="", turn=lambda: None):
        return self.until(name, labels, True, turn)

    def recovers(self, name, labels=""):
        return self.until(name, labels, False)

    def why(self):
        return "\n".join(["", *self.timeline]) + self.main.why() + self.away.why()

    # ---- what happens ------------------------------------------------------------------------------------------

    def run(self):
        """The faults, one after the other, but for those that go on beside others."""
        with contextlib.ExitStack() as stack:
            self.start(stack)
            self.bad_events()
            self.foreign_member()
            self.another_owner_and_slow_brokers()
            self.slow_postgres()
            self.store_and_registry_away()
            self.dead_letters_refused()
            self.recovers("ManyRejects")
            self.postgres_is_back()
            self.stop_producing()
            self.killed()
            self.partitions_added()
            self.nobody_is_given_partitions()
            for name, labels in self.parts:
                self.recovers(name, labels)
        print("\n".join(self.timeline))

    def start(self, stack):
        main, away, proxies = self.main, self.away, self.proxies
        self.postgres, self.s3 = proxies.postgres(main.database_url), proxies.s3(main.stack)
        self.registry, self.kafka = proxies.registry(main.stack), proxies.kafka(main.stack)
        self.away_postgres = proxies.postgres(away.database_url)
        env = {"METRICS__LAG_INTERVAL_MS": 300, "REJECTS__RATIO_MAX": 1, "POSTGRES__CONNECT_TIMEOUT_MS": 1000}
        # An added partition is not to be found by chance.
        self.env = env | {"KAFKA__METADATA_REFRESH_MS": 600_000}
        self.env |= self.s3.env | self.registry.env | self.postgres.env
        # A socket must be allowed to send to everybody; this one is not, so no line leaves.
        deaf = {"STATSD__ENABLED": "true", "STATSD__ADDR": "255.255.255.255:8125"}
        # Whoever is stopped here is given time.
        self.away_env = env | self.away_postgres.env | {"KAFKA__SESSION_TIMEOUT_MS": 120_000}
        self.worker = main.start_ready("first", **self.env, **deaf)
        self.late = away.start_ready("late", **self.away_env)
        self.canary_topic = f"{main.topic}.canary"
        main.create_topic(self.canary_topic, 1, {})
        canary = Canary(main, KAFKA__CANARY_TOPIC=self.canary_topic, **self.kafka.env)
        stack.callback(canary.close)
        self.stop_producing = trickling(stack, main, self.trickle, 100)
        trickling(stack, away, self.away_trickle, 50)
        main.wait(lambda: canary.health("/metrics")[0] == 200 and main.rows() > 0 and away.rows() > 0, "everybody at work")
        stack.enter_context(self.recorder)
        for worker in (self.worker, self.late, canary):
            self.recorder.watch(worker)
        self.looks(2)
        self.begins(main, "StatsdDrops")
        for name in (*LATE, "PartitionStalled", "RetentionRisk", "RetentionDanger"):
            self.begins(away, name)
        self.begins(away, "DependencyRetries", ',dependency="postgres"')
        self.away_postgres.cut()
        self.away_since = time.monotonic()

    def bad_events(self):
        """One in ten."""
        self.begins(self.main, "ManyRejects")
        self.fires("ManyRejects", turn=lambda: self.main.produce(self.faulty.bad("bad_uuid") for _ in range(10)))

    def foreign_member(self):
        """A client with the same group comes and goes."""
        self.begins(self.main, "RebalancesOften")
        self.fires("RebalancesOften", turn=lambda: visit(self.main))

    def another_owner_and_slow_brokers(self):
        """The ledger is told of other owners, one partition after the other; meanwhile brokers take two seconds."""
        self.begins(self.main, "OwnersConflict")
        self.begins(self.main, "ProduceSlow")
        self.kafka.delay(2000)
        turns = iter(range(10_000))

        def take_over():
            take = "UPDATE partition_ledger SET epoch = epoch + 1 WHERE partition = %s RETURNING 1"
            self.main.query(take, (next(turns) % self.main.partitions,))

        self.fires("ProduceSlow", turn=take_over)
        self.kafka.restore()
        self.fires("OwnersConflict", turn=take_over)

    def slow_postgres(self):
        """A kilobyte a second is a handful of events, and more come than that."""
        self.main.wait_drained()
        self.begins(self.main, "LagGrows")
        self.postgres.limit(1)
        self.fires("LagGrows")
        self.postgres.restore()
        self.fires("StatsdDrops")

    def store_and_registry_away(self):
        main = self.main
        main.wait_drained()
        self.begins(main, "ExportLate")
        self.begins(main, "DependencyRetries", ',dependency="s3"')
        self.begins(main, "DependencyRetries", ',dependency="registry"')
        self.begins(main, "ExportConflict")
        self.s3.cut()
        self.registry.cut()
        # Of a schema that no worker has seen yet.
        value = b"\x00" + generate.NO_SUCH_SCHEMA_ID.to_bytes(4, "big") + b"\x02"
        main.produce([generate.Event(b"k", value, "schema_not_found")], partition=1)
        self.fires("ExportLate")
        self.fires("DependencyRetries", ',dependency="s3"')
        self.fires("DependencyRetries", ',dependency="registry"')
        # What somebody else's worker would leave: an object where the next file belongs.
        day, frontier = main.query("SELECT persist_day::text, export_frontier FROM partition_ledger WHERE partition = 2")[0]
        self.strange = f"{main.prefix}/{day}/{main.topic}+2+{frontier:020}.parquet"
        main.objects.client.put_object(Bucket=main.bucket, Key=self.strange, Body=b"not ours")
        self.s3.restore()
        self.registry.restore()
        self.fires("ExportConflict")

    def dead_letters_refused(self):
        self.begins(self.main, "DeadLettersNotTaken")
        alter(self.main, self.main.dlq_topic, "max.message.bytes", "60")
        bad = [generate.Event(b"k", b"hello", "bad_framing") for _ in range(30)]
        self.main.produce(bad)
        self.fires("DeadLettersNotTaken")
        alter(self.main, self.main.dlq_topic, "max.message.bytes", "1000000")

    def postgres_is_back(self):
        """After more than a minute: what waited is late."""
        for name in ("PartitionStalled", "RetentionRisk", "RetentionDanger"):
            self.fires(name)
        self.fires("DependencyRetries", ',dependency="postgres"')
        time.sleep(max(0.0, self.away_since + LATE_S - time.monotonic()))
        self.away_postgres.restore()
        for name in LATE:
            self.fires(name)

    def killed(self):
        """Nobody works; Kafka deletes what was not read; and by the ledger two days are to be closed."""
        main = self.main
        self.begins(main, "NoWorker")
        self.worker.kill()
        main.produce((self.faulty.valid() for _ in range(50)), partition=0)
        admin = AdminClient({"bootstrap.servers": main.bootstrap})
        end = main.end_offsets()[0]
        for future in admin.delete_records([TopicPartition(main.topic, 0, end - 10)]).values():
            future.result(20)
        main.query("UPDATE partition_ledger SET persist_day = current_date - 2, closed_day = current_date - 3 RETURNING 1")
        main.query("UPDATE topic_ledger SET closed_day = current_date - 3, success_day = current_date - 3 RETURNING 1")
        # Whoever looked into it moves the object away before the partition has an owner again.
        main.objects.delete(self.strange)
        self.fires("NoWorker")
        self.begins(main, "PartitionStopped")
        self.begins(main, "DayNotClosed")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as agent:
            agent.bind(("127.0.0.1", 0))
            heard = {"STATSD__ENABLED": "true", "STATSD__ADDR": f"127.0.0.1:{agent.getsockname()[1]}"}
            self.worker = main.start("second", **self.env, **heard)
            self.recorder.watch(self.worker)
            self.fires("PartitionStopped")
            self.fires("DayNotClosed")
        command = ("ledger", "accept-gap", "--partition", "0", "--to", str(end - 10), "--reason", "retention was too short")
        done = main.run(*command)
        assert done.returncode == 0, done.stderr
        self.recovers("PartitionStopped")
        self.recovers("DayNotClosed")

    def partitions_added(self):
        main = self.main
        self.begins(main, "PartitionsWithoutOwner")
        admin = AdminClient({"bootstrap.servers": main.bootstrap})
        admin.create_partitions([NewPartitions(main.topic, main.partitions + 2)])[main.topic].result(20)
        self.fires("PartitionsWithoutOwner")
        # As the runbook says, the workers are restarted, one after the other.
        self.recorder.watch(main.start_ready("third", **self.env))
        self.recorder.forget(self.worker)
        assert self.worker.stop() == 0, self.why()

    def nobody_is_given_partitions(self):
        """One has all partitions, and is stopped; the other waits for its share."""
        self.begins(self.away, "LagUnknown")
        self.late.signal(signal.SIGSTOP)
        self.recorder.forget(self.late)
        self.recorder.watch(self.away.start("heir", **self.away_env))
        self.fires("LagUnknown")
        self.late.signal(signal.SIGCONT)


LATE = ("FreshnessBurnsFast", "FreshnessBurns", "FreshnessBurnsSlowly")


class Canary:
    """`feed-worker produce --canary`, read like a worker."""

    def __init__(self, case, **env):
        import harness

        settings = {**case.env, **harness.configuration(env)}
        self._worker = harness.Worker(case, "canary", settings, ("produce", "--canary", "--rate", "5"))
        self.name = "canary"
        self.health = self._worker.health

    def close(self):
        self._worker.kill()


def trickling(stack, case, generator, per_second):
    """Good events until the stack ends, or what is given back is called."""
    stop = threading.Event()

    def body():
        producer = case.producer()
        while not stop.wait(0.1):
            for _ in range(per_second // 10):
                case.send(producer, generator.valid())
            producer.poll(0)
        producer.flush(30)

    thread = threading.Thread(target=body, name=f"to {case.topic}")

    def end():
        stop.set()
        thread.join()

    thread.start()
    stack.callback(end)
    return end


def visit(case):
    """A consumer joins the group, is given partitions, and leaves; it commits nothing."""
    given = []
    visitor = Consumer(
        {
            "bootstrap.servers": case.bootstrap,
            "group.id": case.group,
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "session.timeout.ms": 6000,
        }
    )
    visitor.subscribe([case.topic], on_assign=lambda _, partitions: given.extend(partitions))
    deadline = time.monotonic() + 30
    while not given and time.monotonic() < deadline:
        visitor.poll(0.1)
    visitor.close()
