"""No secret and no user's id leaves the worker but to where it belongs: not in logs, metrics, probes, panics, dumps or help.

Secrets are put into every key that takes one, and users into events good and bad; then everything that goes wrong in the
fault matrix' ways goes wrong once, at the most talkative level, and everything that the worker has said is searched.
"""

import json
import re
import socket
import subprocess

import pytest

import generate
import harness
from test_dlq import dead_letters

FAILPOINTS = harness.ROOT / "target" / "debug" / "examples" / "failpoints"
SECRETS = {
    "REGISTRY__PASSWORD": "canary-registry-password",
    "KAFKA__PROPERTIES__SASL_PASSWORD": "canary-sasl-password",
    "KAFKA__PROPERTIES__SSL_KEY_PASSWORD": "canary-key-password",
    "KAFKA__PROPERTIES__SSL_KEYSTORE_PASSWORD": "canary-keystore-password",
    "KAFKA__PROPERTIES__SSL_KEY_PEM": "canary-key-pem",
    "KAFKA__PROPERTIES__SASL_OAUTHBEARER_CONFIG": "principal=canary-principal",
}
# A client that was built without OIDC takes no secret for it; it can be configured all the same.
OIDC = {"KAFKA__PROPERTIES__SASL_OAUTHBEARER_CLIENT_SECRET": "canary-client-secret"}
POSTGRES = "canary-postgres-password"
MARK = "canary-of-a-bad-event"
# What the DLQ's readers are promised (docs/producing.md) beside the record's own headers.
ADDED = re.compile(
    r"__connect\.errors\.(topic|partition|offset|exception\.class\.name|exception\.message)|feed_worker\.(reject\.(reason|field)|schema\.id)"
)


class Agent(harness.Background):
    """A statsd agent that keeps every line."""

    def __init__(self):
        super().__init__()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.2)
        self.env = {"STATSD__ENABLED": "true", "STATSD__ADDR": f"127.0.0.1:{self.socket.getsockname()[1]}"}
        self.packets = []

    def _run(self):
        while not self._stop.is_set():
            try:
                self.packets.append(self.socket.recv(65536).decode())
            except TimeoutError:
                continue

    def __exit__(self, *_):
        super().__exit__()
        self.socket.close()


def with_password(url):
    """The database's address with a password in it: local connections are trusted whatever it is."""
    scheme, _, rest = url.partition("://")
    user, _, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0] or 'postgres'}:{POSTGRES}@{place}"


def spoilt(generator):
    """Bad events with the mark, and a user, wherever the reader may stumble."""
    user = generator.users[0]
    whole = {"userId": user, "videoId": generator.videos[0], "interactionType": "like", "timestamp": 1_700_000_000_000}
    changed = [
        {"userId": f"{user}{MARK}"},
        {"interactionType": MARK},
        {"timestamp": MARK},
        {"position": MARK},
        {"algorithm": MARK * 20},
        {"metadata": {MARK * 20: MARK * 2000}},
        {"watchTime": MARK},
    ]
    values = [json.dumps(whole | one).encode() for one in changed]
    values += [
        json.dumps(whole).encode() + MARK.encode(),
        MARK.encode(),
        b"\x00\x00\x00\x00\x01" + MARK.encode() + user.encode(),
    ]
    values += [b'{"' + MARK.encode() + b'":"' + user.encode()]
    return [generate.Event(f"{user}{MARK}".encode(), value, "planted") for value in values]


def planted(case, generator):
    """Everything that must be found nowhere."""
    real = case.stack.env["AWS_SECRET_ACCESS_KEY"]
    assert len(real) > 6, "too common a word to be searched for"
    principal = SECRETS["KAFKA__PROPERTIES__SASL_OAUTHBEARER_CONFIG"].partition("=")[2]
    secrets = {*SECRETS.values(), *OIDC.values(), principal, POSTGRES, real}
    users = {form for user in generator.users for form in (user, user.replace("-", ""), user.upper())}
    return secrets | users | {MARK}


def found_in(text, canaries):
    return sorted(canary for canary in canaries if canary in text)


@pytest.mark.parametrize("level", ["debug", "trace"])
def test_nothing_planted_is_said(case, proxies, level):
    generator = generate.Generator(811, case.schemas(), users=40)
    canaries = planted(case, generator)
    postgres, s3 = proxies.postgres(with_password(case.database_url)), proxies.s3(case.stack)
    registry, kafka = proxies.registry(case.stack), proxies.kafka(case.stack)
    said = {}
    with Agent() as agent:
        env = SECRETS | agent.env | postgres.env | s3.env | registry.env | kafka.env
        env |= {"REGISTRY__USERNAME": "registry-user", "LOG__LEVEL": level, "REJECTS__RATIO_MAX": 1, "LOG__FORMAT": "json"}
        env |= {"POSTGRES__CONNECT_TIMEOUT_MS": 1000, "S3__CONNECT_TIMEOUT_MS": 500, "S3__TIMEOUT_MS": 1000}
        case.program = FAILPOINTS
        worker = case.start_ready("planted", METRICS__LAG_INTERVAL_MS=300, **env)
        case.produce(generator.event() for _ in range(300))
        case.produce(spoilt(generator))
        for kind in generate.PLANTABLE:
            case.produce([generator.bad(kind)])
        case.wait_drained()
        for part, told in (
            (postgres, "postgres did not take a batch"),
            (s3, "upload"),
            (registry, "registry"),
            (kafka, "kafka"),
        ):
            before = worker.log().count(told)
            part.cut()
            if part is not kafka:
                # Of a schema that nobody knows yet: the registry is asked, with its password.
                unknown = (generate.NO_SUCH_SCHEMA_ID + len(said)).to_bytes(4, "big")
                case.produce([generator.valid(), generate.Event(b"k", b"\x00" + unknown + b"\x02", "planted")])
            case.wait(lambda told=told, before=before: worker.log().count(told) > before, f"it to say {told}", 60)
            part.restore()
            said[f"/health with {told}"] = worker.health("/health")[1]
        case.wait_drained()
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            said[path] = worker.health(path)[1]
        assert "feed_worker_persist_rows_committed_total" in said["/metrics"]
        worker.stop()
        panics = case.start("panics", _FAILPOINTS="persist.before-commit=panic", **env)
        case.produce(generator.event() for _ in range(50))
        case.wait(lambda: "a failpoint" in panics.log() and "panicked" in panics.log(), "a panic")
        panics.kill()
        for words in (
            ("config",),
            ("config", "--format", "json"),
            ("lag", "--json"),
            ("ledger", "show"),
            ("--help",),
            ("run", "--help"),
        ):
            done = case.run(*words, **env, **(OIDC if words[0] == "config" else {}))
            assert done.returncode == 0, done.stderr
            said[" ".join(words)] = done.stdout + done.stderr
        # What cannot be used is not repeated either.
        for key, value in (("_DATABASE_URL", f"postgres//u:{POSTGRES}@h"), ("S3__ENDPOINT", f"http://u:{POSTGRES}@h")):
            done = case.run("config", **(env | {key: value}))
            assert done.returncode == 64
            said[key] = done.stdout + done.stderr
    said["statsd"] = "\n".join(agent.packets)
    assert "persist.rows.committed" in said["statsd"]
    said["log"], said["log of the panic"] = worker.log(), panics.log()
    assert said["log"].count('"level":"DEBUG"') > 0, "the level is not the one that was asked for"
    for what, text in said.items():
        assert text and found_in(text, canaries) == [], what
    for letter in dead_letters(case):
        for name, value in letter.headers():
            if name not in ("trace", "x-planted-reason"):
                assert ADDED.fullmatch(name), name
                assert found_in((value or b"").decode(), canaries) == [], name
    # The search finds what is there: the letters' own bytes have all that was planted into events.
    bytes_of_letters = "".join(f"{letter.key()}{letter.value()}" for letter in dead_letters(case))
    assert {MARK, generator.users[0]} <= set(found_in(bytes_of_letters, canaries))


def test_started_worker_says_what_it_is_and_what_it_found(case):
    """One line with version and the whole configuration, one with what is there."""
    case.create_topic(f"{case.topic}.other", 1, {})
    worker = case.start_ready(LOG__FORMAT="json", BATCH__ROWS_MAX=123)
    lines = [json.loads(line) for line in worker.log().splitlines() if line.startswith("{")]
    (starts,) = [line for line in lines if line["message"] == "feed-worker starts"]
    version = subprocess.run([case.program, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    assert starts["version"] == version
    told = json.loads(starts["configuration"])
    dumped = json.loads(case.run("config", "--format", "json", LOG__FORMAT="json", BATCH__ROWS_MAX=123).stdout)["values"]
    told["health"]["addr"] = dumped["health"]["addr"]  # each has a port of its own
    assert told == dumped and told["batch"]["rows_max"] == 123
    (found,) = [line for line in lines if "honours conditional writes" in line["message"]]
    assert found["partitions"] == case.partitions and found["in_ledger"] == 0
    assert found["cluster_id"] and str(worker.pid) in found["owner"]
    assert worker.stop() == 0
    again = case.start_ready("again", LOG__FORMAT="json")
    (found,) = [json.loads(line) for line in again.log().splitlines() if "honours conditional writes" in line]
    assert found["in_ledger"] == case.partitions and found["closed_day"]
