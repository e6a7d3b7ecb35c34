"""What every case needs: a stack, and in it a topic, a group, a database and a prefix of its own; workers; the checker."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import boto3
import botocore.config
import psycopg
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg import sql

import generate

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(os.environ.get("FEED_TEST_WORKER") or ROOT / "target" / "debug" / "feed-worker")
SCHEMA_FOLDER = ROOT / "schemas" / "feed.interactions.v1"
PARTITIONS = 6
SESSION_TIMEOUT_MS = 2000


def wait_until(condition, what, timeout_s=30.0, every_s=0.05):
    """Polls until the condition holds and returns what it gave; fails by name, never by guess."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what() if callable(what) else what}")
        time.sleep(every_s)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Stack:
    """One local stack in a folder, started by `dev/stack`."""

    def __init__(self, folder, *options, fresh=False):
        self.folder = Path(folder)
        if fresh:  # what an earlier run left behind has another clock
            self.command("down")
        self.command("up", *options)
        self.env = self._read_env()

    def command(self, verb, *options):
        done = subprocess.run(
            [ROOT / "dev" / "stack", verb, "--dir", self.folder, *options], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"dev/stack {verb}: {done.stdout}{done.stderr}")
        return done.stdout

    def _read_env(self):
        from checker.environment import read_env_file

        return read_env_file(self.folder / "env")

    def close(self):
        self.command("down")

    @property
    def clock_env(self):
        """What puts a process under the stack's clock."""
        if "STACK_LD_PRELOAD" not in self.env:
            return {}
        return {
            "LD_PRELOAD": self.env["STACK_LD_PRELOAD"],
            "FAKETIME": self.env["STACK_FAKETIME"],
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def clock_offset_s(self):
        return int(self.env.get("STACK_CLOCK_OFFSET_S", "0"))

    def now_s(self):
        return time.time() + self.clock_offset_s

    @contextlib.contextmanager
    def without_s3(self):
        self.command("stop-s3")
        try:
            yield
        finally:
            self.command("start-s3")


class Worker:
    """One `feed-worker run`."""

    def __init__(self, case, name, env, arguments=("run", "--migrate")):
        self.name = name
        self.health_port = free_port()
        self.log_path = case.folder / f"{name}.log"
        self.env = {**env, "FEED_WORKER_HEALTH__ADDR": f"127.0.0.1:{self.health_port}"}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [case.program, *arguments],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=case.folder,
            )

        self.end_is_wanted = False

    @property
    def pid(self):
        return self.process.pid

    @property
    def alive(self):
        return self.process.poll() is None

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.end_is_wanted = True
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s=30.0):
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s=30.0):
        """Until it ends; the exit code."""
        self.end_is_wanted = True
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s\n{self.log_tail()}") from None

    def log(self):
        return self.log_path.read_text(errors="replace")

    def log_tail(self, lines=40):
        return "\n".join(self.log().splitlines()[-lines:])

    def health(self, path="/health/ready"):
        """(status, body as text); (None, why) if nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return None, str(error)


class Case:
    """A topic, its DLQ, a group, a database and a prefix that nobody else uses."""

    def __init__(self, stack, name, folder, partitions=PARTITIONS, dlq_partitions=3, topic_config=None, program=WORKER):
        self.stack = stack
        self.folder = folder
        self.program = program
        token = f"{name.replace('_', '-')[:16].strip('-')}-{uuid.uuid4().hex[:6]}"
        self.topic = f"feed.{token}"
        self.dlq_topic = f"{self.topic}.dlq"
        self.group = f"group-{token}"
        self.prefix = f"exports-{token}"
        self.database = token.replace("-", "_").lower()
        self.partitions = partitions
        self.workers = []
        self.produced = []
        self.bootstrap = stack.env["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"]
        self.bucket = stack.env["FEED_WORKER_S3__BUCKET"]
        self._create_topics(dlq_partitions, topic_config or {})
        self._create_database()

    # ---- setting up ----------------------------------------------------------------------------------------

    def _create_topics(self, dlq_partitions, topic_config):
        source = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": "2097152", **topic_config}
        self.create_topic(self.topic, self.partitions, source)
        self.create_topic(self.dlq_topic, dlq_partitions, {"message.timestamp.type": "CreateTime"})

    def create_topic(self, name, partitions, config):
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        # As many copies as the stack's brokers keep by default.
        admin.create_topics([NewTopic(name, partitions, -1, config=config)])[name].result(20)
        wait_until(
            lambda: len(admin.list_topics(timeout=10).topics.get(name, _NONE).partitions) == partitions, f"topic {name}"
        )

    def _create_database(self):
        base = self.stack.env["DATABASE_URL"]
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.database)))
        self.database_url = base.rpartition("/")[0] + "/" + self.database

    @property
    def env(self):
        """The whole environment of a worker of this case."""
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("FEED_WORKER_")},
            **self.stack.env,
            **self.stack.clock_env,
            "DATABASE_URL": self.database_url,
            "FEED_WORKER_KAFKA__TOPIC": self.topic,
            "FEED_WORKER_KAFKA__DLQ_TOPIC": self.dlq_topic,
            "FEED_WORKER_KAFKA__GROUP_ID": self.group,
            "FEED_WORKER_KAFKA__SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
            "FEED_WORKER_S3__PREFIX": self.prefix,
            "FEED_WORKER_ROLL__ROWS_MAX": "5000",
            "FEED_WORKER_ROLL__AGE_MS_MAX": "1500",
            "FEED_WORKER_EXPORT__SETTLE_MS": "200",
            "FEED_WORKER_EXPORT__SHUTDOWN_ROWS_MIN": "1",
            "FEED_WORKER_REGISTRY__MISSING_AFTER_MS": "1000",
            "FEED_WORKER_STATSD__ENABLED": "false",
            "FEED_WORKER_LOG__FORMAT": "human",
            "RUST_BACKTRACE": "1",
        }

    # ---- workers and commands ------------------------------------------------------------------------------

    def start(self, name=None, **env):
        """A worker; keyword arguments are configuration: ROLL__ROWS_MAX="100"."""
        worker = Worker(self, name or f"worker-{len(self.workers)}", {**self.env, **configuration(env)})
        self.workers.append(worker)
        return worker

    def start_without_migration(self):
        worker = Worker(self, f"worker-{len(self.workers)}", self.env, ("run",))
        self.workers.append(worker)
        return worker

    def start_ready(self, *arguments, **env):
        worker = self.start(*arguments, **env)
        self.wait_ready(worker)
        return worker

    def wait_ready(self, worker, timeout_s=30.0):
        def ready():
            assert worker.alive, f"{worker.name} ended with {worker.process.returncode}\n{worker.log_tail()}"
            return worker.health()[0] == 200

        wait_until(ready, lambda: f"{worker.name} ready: {worker.health()}\n{worker.log_tail()}", timeout_s)

    def run(self, *arguments, timeout_s=60.0, **env):
        """A command of the worker's binary that ends by itself."""
        return subprocess.run(
            [self.program, *arguments],
            env={**self.env, **configuration(env)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=self.folder,
        )

    def close(self):
        for worker in self.workers:
            if worker.alive:
                with contextlib.suppress(ProcessLookupError):
                    worker.signal(signal.SIGCONT)
                worker.kill()

    # ---- what the world holds ------------------------------------------------------------------------------

    def connect(self):
        return psycopg.connect(self.database_url, autocommit=True, connect_timeout=5)

    def query(self, statement, parameters=()):
        with self.connect() as connection:
            return connection.execute(statement, parameters).fetchall()

    def frontiers(self):
        """partition → (persist, export, epoch); {} before the tables are there."""
        try:
            found = self.query(
                "SELECT partition, persist_frontier, export_frontier, epoch FROM partition_ledger WHERE topic = %s",
                (self.topic,),
            )
        except psycopg.errors.UndefinedTable:
            return {}
        return {partition: tuple(rest) for partition, *rest in found}

    def owned(self, worker):
        """The partitions that the ledger says this worker has."""
        found = self.query("SELECT partition, owner FROM partition_ledger WHERE topic = %s ORDER BY partition", (self.topic,))
        return [partition for partition, owner in found if owner.rpartition("/")[2] == str(worker.pid)]

    def rows(self):
        return self.query("SELECT count(*) FROM user_interactions")[0][0]

    def end_offsets(self):
        return {number: high for number, (_, high) in self.watermarks().items()}

    def watermarks(self):
        """partition → (the first offset that the broker has, the one after the last)"""
        client = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "harness"})

        def of(number):
            try:
                return client.get_watermark_offsets(TopicPartition(self.topic, number), timeout=10)
            except KafkaException as error:
                # A partition that was made a moment ago.
                if error.args[0].code() != KafkaError.NOT_LEADER_FOR_PARTITION:
                    raise
                return None

        try:
            return {
                number: wait_until(lambda n=number: of(n), f"a leader of {self.topic}/{number}") for number in range(self.partitions)
            }
        finally:
            client.close()

    @property
    def objects(self):
        """The bucket. Under a shifted clock as a folder: a signature by the real clock would be refused."""
        return FolderObjects(self) if self.stack.clock_offset_s else S3Objects(self)

    def keys(self):
        return self.objects.keys()

    def committed(self):
        """partition → the group's committed offset."""
        client = Consumer({"bootstrap.servers": self.bootstrap, "group.id": self.group})
        try:
            found = client.committed([TopicPartition(self.topic, number) for number in range(self.partitions)], timeout=10)
            return {entry.partition: max(entry.offset, 0) for entry in found}
        finally:
            client.close()

    def wait(self, condition, what, timeout_s=30.0, every_s=0.1):
        """As `wait_until`, with the ends of the logs in the failure's text."""

        def told():
            return f"{what() if callable(what) else what}{self.why()}"

        def held():
            for worker in self.workers:
                ended = worker.process.poll()
                if ended is not None and not worker.end_is_wanted:
                    raise AssertionError(f"{worker.name} ended with {ended}, waiting for {told()}")
            return condition()

        return wait_until(held, told, timeout_s, every_s)

    def wait_drained(self, timeout_s=60.0):
        """Every record persisted or dead-lettered, by the ledger."""
        ends = self.end_offsets()

        def drained():
            frontiers = self.frontiers()
            return all(end == 0 or frontiers.get(number, (0,))[0] >= end for number, end in ends.items())

        self.wait(drained, lambda: f"drained to {ends}; ledger {self.frontiers()}", timeout_s)

    def wait_exported(self, timeout_s=60.0):
        """Every row in a file that the ledger knows."""

        def exported():
            rows = self.rows()
            filed = self.query("SELECT coalesce(sum(rows), 0) FROM export_files WHERE topic = %s", (self.topic,))[0][0]
            return rows == filed

        self.wait(exported, lambda: f"every row exported; ledger {self.frontiers()}", timeout_s)

    def why(self):
        """The logs' ends, for a failure's text."""
        return "".join(f"\n--- {worker.name}\n{worker.log_tail(15)}" for worker in self.workers)

    # ---- producing -----------------------------------------------------------------------------------------

    def schemas(self):
        """Registers both versions of the event, and a schema that is no event."""
        versions = []
        for path in avro_schema_paths():
            text = path.read_text()
            versions.append((self.register(f"{self.topic}-value", text), generate.parsed(path)))
        foreign = {"type": "record", "name": "Heartbeat", "fields": [{"name": "beat", "type": "int"}]}
        return generate.Schemas(versions, self.register(f"{self.topic}-foreign-value", json.dumps(foreign)))

    def register(self, subject, schema):
        request = urllib.request.Request(
            f"{self.stack.env['FEED_WORKER_REGISTRY__URL']}/subjects/{subject}/versions",
            data=json.dumps({"schema": schema}).encode(),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)["id"]

    def producer(self):
        return Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "compression.type": "zstd",
                "message.max.bytes": 2_000_000,
            }
        )

    def produce(self, events, partition=None, per_second=None, stop=None):
        """Sends all events, waits for the acknowledgements, and remembers where each of them lies."""
        producer, started, sent = self.producer(), time.monotonic(), 0
        for event in events:
            if stop is not None and stop.is_set():
                break
            self.send(producer, event, **({} if partition is None else {"partition": partition}))
            sent += 1
            if sent % 200 == 0:
                producer.poll(0)
                if per_second:
                    time.sleep(max(0.0, started + sent / per_second - time.monotonic()))
        assert producer.flush(30) == 0, "the broker did not take every event"
        return sent

    def send(self, producer, event, **where):
        """One event; where it lies is remembered when it is acknowledged."""

        def acknowledged(error, message):
            assert error is None, error
            kind = "bad" if event.reason else "valid"
            self.produced.append((message.partition(), message.offset(), kind, event.reason))

        while True:
            try:
                producer.produce(
                    self.topic, key=event.key, value=event.value, headers=event.headers, on_delivery=acknowledged, **where
                )
                return
            except BufferError:
                producer.poll(0.1)

    @contextlib.contextmanager
    def producing(self, events, per_second=None, finish=False):
        """Produces beside what the case does; at the block's end it is stopped, or waited for."""
        stop = threading.Event()
        failed = []

        def body():
            try:
                self.produce(events, per_second=per_second, stop=stop)
            except BaseException as error:  # told to the case, not to the thread
                failed.append(error)

        thread = threading.Thread(target=body, name="producer")
        thread.start()
        try:
            yield thread
        except BaseException:
            finish = False
            raise
        finally:
            if not finish:
                stop.set()
            thread.join()
        if failed:
            raise failed[0]

    def produced_file(self):
        path = self.folder / "produced.ndjson"
        with open(path, "w", encoding="utf-8") as out:
            for partition, offset, kind, reason in self.produced:
                line = {"partition": partition, "offset": offset, "kind": kind}
                out.write(json.dumps(line | ({"reason": reason} if reason else {})) + "\n")
        return path

    # ---- the verdict ---------------------------------------------------------------------------------------

    def check(self, *options, produced=True):
        """Runs the checker as anybody would; (exit code, its JSON, its text)."""
        out = self.folder / "check.json"
        words = [sys.executable, "-m", "checker", "--env", self.stack.folder / "env", "--json", out]
        words += ["--topic", self.topic, "--dlq-topic", self.dlq_topic, "--group", self.group]
        words += ["--prefix", self.prefix, "--database-url", self.database_url, *options]
        if produced and self.produced:
            words += ["--produced", self.produced_file()]
        env = {**os.environ, **self.stack.clock_env, "PYTHONPATH": str(ROOT / "dev")}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(out.read_text()), done.stdout + done.stderr

    def assert_clean(self, *options, produced=True):
        """Exit code 0; the summary."""
        code, found, text = self.check(*options, produced=produced)
        assert code == 0, f"{text}{self.why()}"
        # One release never takes what it has refused.
        assert found["summary"]["dead_letters_of_rows"] == 0, text
        return found["summary"]


class S3Objects:
    def __init__(self, case):
        env = case.stack.env
        self.bucket, self.prefix = case.bucket, case.prefix
        self.client = boto3.client(
            "s3",
            endpoint_url=env["FEED_WORKER_S3__ENDPOINT"],
            region_name=env["FEED_WORKER_S3__REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(s3={"addressing_style": "path"}),
        )

    def keys(self):
        found = []
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + "/"):
            found.extend(entry["Key"] for entry in page.get("Contents", ()))
        return found

    def read(self, key):
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put(self, key, body):
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def delete(self, key):
        self.client.delete_object(Bucket=self.bucket, Key=key)


class FolderObjects:
    """Our own S3 server keeps its objects as plain files."""

    def __init__(self, case):
        self.root = Path(case.stack.env["STACK_S3_DIR"]) / case.bucket
        self.prefix = case.prefix

    def keys(self):
        paths = (self.root / self.prefix).rglob("*")
        return [str(path.relative_to(self.root)) for path in paths if path.is_file() and not path.name.startswith(".")]

    def read(self, key):
        return (self.root / key).read_bytes()

    def put(self, key, body):
        (self.root / key).write_bytes(body)

    def delete(self, key):
        (self.root / key).unlink()


class _NONE:
    partitions = {}


def configuration(env):
    """Keyword arguments as FEED_WORKER_ variables; capitals without prefix that are not ours start with an underscore."""
    return {(name[1:] if name.startswith("_") else f"FEED_WORKER_{name}"): str(value) for name, value in env.items()}


def avro_schema_paths():
    """The event's Avro schemas, oldest first."""
    return [SCHEMA_FOLDER / name for name in ("interaction.v1.avsc", "interaction.avsc")]


class Background:
    """A thread that runs while the block does: `_run`, until `_stop` is set."""

    def __init__(self):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


class Watch(Background):
    """Looks again and again while the block runs; `look` is what a kind of watch does."""

    def __init__(self, case, every_s):
        super().__init__()
        self.case = case
        self.every_s = every_s

    def _run(self):
        while not self._stop.wait(self.every_s):
            self.look()


class FrontierWatch(Watch):
    """Reads the ledger again and again; remembers every step back."""

    def __init__(self, case, every_s=0.05):
        super().__init__(case, every_s)
        self.regressions = []
        self.epochs = {}
        self.reads = 0
        self._last = {}

    def look(self):
        try:
            now = self.case.frontiers()
        except psycopg.Error:
            return  # Postgres is being restarted
        self.reads += 1
        for partition, found in now.items():
            before = self._last.get(partition, found)
            if any(new < old for new, old in zip(found, before, strict=True)):
                self.regressions.append((partition, before, found))
            self.epochs.setdefault(partition, set()).add(found[2])
        self._last.update(now)
