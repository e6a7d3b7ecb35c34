"""What one stack is: its folder, its choices and its ports. Kept in `state.json`, so that a part comes back on its old port."""
import base64
import json
import os
import secrets
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .process import StackError, free_ports

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
KAFKA_LIBS = ROOT / "target" / "kafka" / "libs"
TOOLS = ROOT / "target" / "tools"

BUCKET = "video-window-interactions"
REGION = "us-east-1"
DATABASE = "feed_worker"
# Not secret: they open a server on the loopback address that holds invented data.
ACCESS_KEY, SECRET_KEY = "feed-worker-local", "feed-worker-local-secret"


def new_cluster_id():
    """Kafka's form of a UUID: 22 characters of URL-safe base64. A leading dash would look like an option."""
    while True:
        text = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        if not text.startswith("-"):
            return text


# No broker has this number.
CONTROLLER_APART = 100


@dataclass
class Settings:
    folder: Path
    brokers: int = 1
    controller_apart: bool = False
    broker_session_timeout_ms: int = 2000
    s3: str = "builtin"
    s3_folder: str = ""
    clock_offset_s: int = 0
    postgres: int = 1
    postgres_fast: bool = False
    jvm_as_shipped: bool = False
    kafka_security: bool = False
    cluster_id: str = field(default_factory=new_cluster_id)
    ports: dict = field(default_factory=dict)
    # Postgres refuses to run as root, and its user may not be able to enter the repository: its data lie elsewhere.
    temporary: str = ""

    @classmethod
    def load(cls, folder):
        try:
            kept = json.loads((folder / "state.json").read_text())
        except FileNotFoundError:
            return None
        # What another version of this program wrote can still be taken down.
        known = {one.name for one in fields(cls)}
        return cls(folder=folder, **{name: value for name, value in kept.items() if name in known})

    def save(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        del values["folder"]
        temporary = self.folder / "state.json.new"
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        temporary.rename(self.folder / "state.json")

    def choose_ports(self):
        names = ["s3", "registry"] + [self.postgres_name(server) for server in range(self.postgres)]
        names += [f"controller-{node}" for node in self.controllers()]
        for node in self.nodes():
            names += [f"broker-{node}", f"proxied-{node}", f"proxy-{node}"]
            names += [f"{one}-{node}" for one in ("sasl-ssl", "ssl") if self.kafka_security]
        self.ports = dict(zip(names, free_ports(len(names))))

    def nodes(self):
        return range(1, self.brokers + 1)

    def controllers(self):
        """The nodes that keep the cluster's metadata: every broker, or one node that is no broker."""
        return [CONTROLLER_APART] if self.controller_apart else list(self.nodes())

    def kafka_nodes(self):
        """Every node of Kafka. They start side by side: a broker waits for its controller."""
        return sorted({*self.nodes(), *self.controllers()})

    def s3_data(self):
        return Path(self.s3_folder) if self.s3_folder else self.folder / "s3"

    def postgres_name(self, server):
        """The first one is called as when it is alone."""
        return f"postgres-{server}" if server else "postgres"

    def postgres_data(self, server=0):
        return Path(self.temporary) / self.postgres_name(server)

    def postgres_url(self, server=0):
        return f"postgres://postgres@127.0.0.1:{self.ports[self.postgres_name(server)]}/{DATABASE}"

    def clock_library(self):
        return f"{self.temporary}/libclock_shift.so"

    def bootstrap_servers(self):
        return ",".join(f"127.0.0.1:{self.ports[f'broker-{node}']}" for node in self.nodes())

    def proxied_broker(self, node):
        """Where the broker listens for what comes through a proxy, and where it says that this proxy listens."""
        return tuple(f"127.0.0.1:{self.ports[f'{name}-{node}']}" for name in ("proxied", "proxy"))

    def has_this_layout(self):
        """False for a folder that an older version of this program made."""
        return bool(self.temporary) and "proxy-1" in self.ports

    def clock_env(self):
        """Environment that puts a process under the stack's clock. The offset is relative, so all processes agree."""
        if self.clock_offset_s == 0:
            return {}
        return {
            "LD_PRELOAD": self.clock_library(),
            "FAKETIME": f"{self.clock_offset_s:+d}s",
        }

    def exports(self):
        """Everything in the env file: enough to run every command of the worker against this stack."""
        values = {
            "DATABASE_URL": self.postgres_url(),
            "FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap_servers(),
            "FEED_WORKER_REGISTRY__URL": f"http://127.0.0.1:{self.ports['registry']}",
            "STACK_REGISTRY_FAULT_URL": f"http://127.0.0.1:{self.ports['registry']}/_fault",
            "FEED_WORKER_S3__ENDPOINT": f"http://127.0.0.1:{self.ports['s3']}",
            "FEED_WORKER_S3__BUCKET": BUCKET,
            "FEED_WORKER_S3__REGION": REGION,
            "FEED_WORKER_S3__FORCE_PATH_STYLE": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "STACK_DIR": self.folder,
            "STACK_BROKERS": self.brokers,
            "STACK_KAFKA_LIBS": KAFKA_LIBS,
            "STACK_KAFKA_PROXIED": ",".join("=".join(self.proxied_broker(node)) for node in self.nodes()),
            "STACK_S3": self.s3,
            "STACK_S3_DIR": self.s3_data(),
            "STACK_POSTGRES_DATA": self.postgres_data(),
            "STACK_CLOCK_OFFSET_S": self.clock_offset_s,
        }
        if self.postgres > 1:
            # Which of them a worker is to use is for its configuration to say.
            values["STACK_POSTGRES_MORE_URLS"] = " ".join(self.postgres_url(server) for server in range(1, self.postgres))
        if self.kafka_security:
            # The brokers' certificates are for this name, and for no address.
            for name in ("sasl-ssl", "ssl"):
                servers = ",".join(f"localhost:{self.ports[f'{name}-{node}']}" for node in self.nodes())
                values[f"STACK_KAFKA_{name.upper().replace('-', '_')}"] = servers
            values["STACK_KAFKA_TLS_DIR"] = self.folder / "tls"
        if self.s3 == "builtin":
            values["STACK_S3_FAULT_URL"] = f"http://127.0.0.1:{self.ports['s3']}/_fault"
        clock = self.clock_env()
        if clock:
            # LD_PRELOAD itself is not exported: whoever sources the file keeps the real clock in his shell.
            values["STACK_LD_PRELOAD"] = clock["LD_PRELOAD"]
            values["STACK_FAKETIME"] = clock["FAKETIME"]
        return {name: str(value) for name, value in values.items()}

    def write_env(self):
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.exports().items()]
        (self.folder / "env").write_text("\n".join(lines) + "\n")

