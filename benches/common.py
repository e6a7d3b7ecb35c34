"""What the benchmarks share: a stack of their own, the worker's commands, fresh databases, and who used how much CPU."""

import json
import os
import pathlib
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHON = ROOT / "target/venv/bin/python"
WORKER = pathlib.Path(os.environ.get("FEED_BENCH_WORKER") or ROOT / "target/release/feed-worker")


def in_venv():
    """Begins this program again with the tools' Python, which has the clients; builds the worker unless it is given."""
    if pathlib.Path(sys.prefix) != ROOT / "target/venv":
        subprocess.run([ROOT / "dev/venv", "demo"], check=True)
        os.execv(PYTHON, [PYTHON, *sys.argv])
    if "FEED_BENCH_WORKER" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "feed-worker"], cwd=ROOT, check=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def leaves_program():
    """The program of `benches/leaves`, optimised as the worker is."""
    command = ["cargo", "bench", "--locked", "--bench", "leaves", "--no-run", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in reversed(messages) if m.get("target", {}).get("name") == "leaves" and m.get("executable"))


class Stack:
    """Broker, Postgres, S3 server and registry, up while the block runs."""

    def __init__(self, folder, *options):
        self.folder = ROOT / "target" / folder
        self.options = options

    def __enter__(self):
        if "versitygw" in self.options:
            subprocess.run([ROOT / "dev/versitygw"], check=True)  # nothing, if it is there
        self.run("up", *self.options)
        return self

    def __exit__(self, *_):
        self.run("down", check=False)

    def run(self, verb, *options, check=True):
        return subprocess.run([ROOT / "dev/stack", verb, "--dir", self.folder, *map(str, options)], check=check)

    def env(self):
        """The environment of a worker that nobody else watches."""
        lines = (self.folder / "env").read_text().splitlines()
        pairs = (line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
        values = {name: value.strip("'") for name, value in pairs}
        return {**os.environ, **values, "FEED_WORKER_HEALTH__ADDR": "127.0.0.1:0", "FEED_WORKER_STATSD__ENABLED": "false"}

    def postgres_cpu_s(self):
        """User + system seconds of the stack's Postgres servers: their processes that live, and those that ended."""
        servers = {int(file.read_text().split()[0]) for file in (self.folder / "run").glob("postgres*.pid")}
        ticks = 0
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            number = int(stat.parent.name)
            if number in servers:
                ticks += sum(int(fields[index]) for index in (11, 12, 13, 14))
            elif int(fields[1]) in servers:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def brokers_cpu_s(self):
        """User + system seconds of the Kafka nodes that run now."""
        return sum(process_cpu_s(int(file.read_text().split()[0])) for file in (self.folder / "run").glob("kafka-*.pid"))


def process_cpu_s(pid):
    """User + system seconds of one process that runs."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_s():
    """Seconds of all cores that somebody used: what of it is not ours says how busy the machine was beside us."""
    fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, _stolen = fields
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def machine():
    model = re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(errors="replace"), re.M)
    memory = int(re.search(r"MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    return {
        "cpu": model[1] if model else platform.machine(), "cores": os.cpu_count(), "memory_gib": round(memory / 2**20, 1),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def commit():
    """What is checked out; with a plus where something was changed since."""
    def said(*command):
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return said("rev-parse", "--short=12", "HEAD") + ("+" if said("status", "--porcelain", "--untracked-files=no") else "")


def worker(env, *arguments, **options):
    return subprocess.run([WORKER, *map(str, arguments)], env=env, cwd=ROOT, check=True, **options)


def start_worker(env):
    return subprocess.Popen([WORKER, "run"], env=env, cwd=ROOT, stderr=subprocess.DEVNULL)


def preload(env, events):
    """The topic, with so many valid Avro events of today's schema."""
    worker(env, "topics", "apply", "--environment", "local")
    worker(env, "schemas", "register")
    worker(env, "produce", "--count", events, "--json-share", 0, "--avro-v1-share", 0, "--bad-share", 0, "--quiet")


def make_topic(env, topic, partitions):
    """A topic with one replica, and its dead-letter topic. False if an earlier run has made it."""
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": env["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"]})
    if topic in admin.list_topics(timeout=20).topics:
        return False
    wanted = NewTopic(topic, partitions, 1, config={"message.timestamp.type": "LogAppendTime"})
    for made in admin.create_topics([wanted, NewTopic(f"{topic}.dlq", 3, 1)]).values():
        made.result(30)
    return True


def fresh_database(env, name, with_user_index=True):
    """An empty database with the tables as shipped; group and prefix of the same name."""
    query(env, f"DROP DATABASE IF EXISTS {name}", "CREATE DATABASE " + name)
    base, _ = env["DATABASE_URL"].rsplit("/", 1)
    env = {**env, "DATABASE_URL": f"{base}/{name}", "FEED_WORKER_KAFKA__GROUP_ID": name, "FEED_WORKER_S3__PREFIX": name}
    worker(env, "migrate", stderr=subprocess.DEVNULL)
    worker(env, "maintain", stderr=subprocess.DEVNULL)
    if not with_user_index:
        query(env, "DROP INDEX user_interactions_user")
    return env


def drained(stack, env, events):
    """One worker from nothing to the last of so many valid events in both sinks; it is told to end as soon as all are committed."""
    postgres_before = stack.postgres_cpu_s()
    started = time.monotonic()
    process = start_worker(env)
    over = first = None
    while over is None:
        time.sleep(0.05)
        persisted = query(env, "SELECT coalesce(sum(persist_frontier), 0) FROM partition_ledger")[0][0]
        if first is None and persisted > 0:
            first = time.monotonic()
        if persisted >= events:
            over = time.monotonic()
    usage = stop(process)  # uploads what is open
    rows, files = query(env, "SELECT (SELECT count(*) FROM user_interactions), (SELECT count(*) FROM export_files)")[0]
    exported_rows, size = query(env, "SELECT coalesce(sum(rows), 0)::bigint, coalesce(sum(bytes), 0)::bigint FROM export_files")[0]
    return {
        "rows": rows, "exported_rows": exported_rows, "files": files, "bytes_per_row": round(size / max(exported_rows, 1), 1),
        "seconds_from_first_commit": round(over - first, 2), "seconds_to_first_commit": round(first - started, 2),
        "events_per_second": round(events / max(over - first, 1e-3)), **cpu(usage, events),
        "postgres_cpu_us_per_event": round((stack.postgres_cpu_s() - postgres_before) / events * 1e6, 2),
    }


def query(env, *statements):
    import psycopg

    with psycopg.connect(env["DATABASE_URL"], autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def waited(process):
    """Waits for a child; the resources that it, and its own children, used."""
    if process.returncode is None:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage
    raise RuntimeError("the child was already waited for")


def has_ended(process):
    """Whether a child has ended; leaves it to be waited for, with its resources."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True  # somebody else has waited for it


def settled(count, seconds):
    """Waits until what is counted is not zero and has not changed for so long."""
    last, since = count(), time.monotonic()
    while not last or time.monotonic() - since < seconds:
        time.sleep(0.5)
        now = count()
        if now != last:
            last, since = now, time.monotonic()


def ended_well(process):
    usage = waited(process)
    assert process.returncode == 0, f"exit code {process.returncode}"
    return usage


def cpu(usage, events):
    seconds = usage.ru_utime + usage.ru_stime
    return {
        "cpu_us_per_event": round(seconds / events * 1e6, 3), "events_per_cpu_second": round(events / seconds),
        "peak_memory_mb": round(usage.ru_maxrss / 1024),
    }


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def health(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return json.load(answer)
    except OSError:
        return {}


def stop(process):
    process.send_signal(signal.SIGTERM)
    return ended_well(process)
