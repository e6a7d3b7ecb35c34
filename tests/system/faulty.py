"""Stacks with a fault in them: an S3 server with switches, Postgres behind a wire that can be cut."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import harness

sys.path.insert(0, str(harness.ROOT / "dev"))

from stacklib import s3 as stack_s3  # noqa: E402
from stacklib.process import accepts_connections, free_ports  # noqa: E402

MIB = 1 << 20


class Switch:
    """The fault switch of a server: `set("mode=503&op=put")`, `off()`, `state()`."""

    def __init__(self, url):
        self.url = url

    def set(self, query):
        request = urllib.request.Request(f"{self.url}?{query}", method="POST")
        urllib.request.urlopen(request, timeout=5).close()

    def off(self):
        self.set("mode=off")

    def state(self):
        with urllib.request.urlopen(self.url, timeout=5) as answer:
            return json.load(answer)


class WithOwnS3:
    """The session's stack, with the bucket on an S3 server of ours beside it."""

    def __init__(self, stack, folder):
        self._stack = stack
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (port,) = free_ports(1)
        data = self.folder / f"bucket-{time.time_ns()}"
        key, secret = stack.env["AWS_ACCESS_KEY_ID"], stack.env["AWS_SECRET_ACCESS_KEY"]
        command = [stack_s3._builtin(), "--port", str(port), "--root", data, "--bucket", stack.env["FEED_WORKER_S3__BUCKET"]]
        with open(self.folder / "s3.log", "ab") as log:
            self.server = subprocess.Popen(
                command, env={**os.environ, "S3_ACCESS_KEY": key, "S3_SECRET_KEY": secret}, stdout=log, stderr=log
            )
        harness.wait_until(lambda: accepts_connections(port), "our S3 server")
        self.env = {**stack.env, "FEED_WORKER_S3__ENDPOINT": f"http://127.0.0.1:{port}", "STACK_S3_DIR": str(data)}
        self.env["STACK_S3_FAULT_URL"] = f"http://127.0.0.1:{port}/_fault"
        (self.folder / "env").write_text("".join(f"export {name}='{value}'\n" for name, value in self.env.items()))
        self.s3 = Switch(self.env["STACK_S3_FAULT_URL"])

    def __getattr__(self, name):
        return getattr(self._stack, name)

    def close(self):
        self.server.kill()
        self.server.wait()


def postgres_address(case):
    parts = urlsplit(case.database_url)
    return parts.hostname, parts.port


def through(case, port):
    """The environment of a worker whose Postgres is reached by another port."""
    host, own = postgres_address(case)
    return {"_DATABASE_URL": case.database_url.replace(f"{host}:{own}", f"127.0.0.1:{port}")}


def resident_bytes(worker):
    """What the process holds in memory now."""
    for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


class MemoryWatch:
    """The most that a worker held, from now on; asked for by hand, at every turn of a wait."""

    def __init__(self, worker):
        self.worker = worker
        self.first = self.most = resident_bytes(worker)

    def look(self):
        self.most = max(self.most, resident_bytes(self.worker))
        return self.most
