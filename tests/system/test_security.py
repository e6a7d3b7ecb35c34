"""Who the worker is to Kafka, and who Kafka is to the worker: SCRAM, tokens, certificates, ACLs, against real listeners."""

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

import alerts
import generate
import harness
from harness import ROOT, wait_until
from stacklib.kafka_security import KEY_PASSWORD, PASSWORDS

TARGET = ROOT / "target"
WRONG = "a-wrong-password-that-nobody-may-see"


@pytest.fixture(scope="module")
def secure():
    """A stack with two more listeners: SASL_SSL and SSL. Whoever comes by them may do only what ACLs say."""
    started = harness.Stack(TARGET / "stack-security", "--kafka-security", "--postgres-fast", fresh=True)
    yield started
    started.close()


def jwt(subject, lives_s):
    """A token as Kafka's own validator for tests takes it: signed by nobody."""

    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now_s = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': subject, 'iat': now_s, 'exp': now_s + lives_s})}."


def tls(stack, name):
    return f"{stack.env['STACK_KAFKA_TLS_DIR']}/{name}"


def server(stack, listener):
    return {
        "KAFKA__BOOTSTRAP_SERVERS": stack.env[f"STACK_KAFKA_{listener}"],
        "KAFKA__TLS": "true",
        "KAFKA__CA_FILE": tls(stack, "ca.pem"),
    }


def scram(stack, folder, user="feed-admin"):
    secret = folder / f"password-of-{user}"
    secret.write_text(PASSWORDS[user] + "\n")
    return server(stack, "SASL_SSL") | {
        "KAFKA__AUTH": "scram",
        "KAFKA__USERNAME": user,
        "KAFKA__PASSWORD_FILE": str(secret),
    }


def token_file(stack, folder, lives_s=3600):
    token = folder / "token"
    token.write_text(jwt("feed-admin", lives_s))
    return server(stack, "SASL_SSL") | {"KAFKA__AUTH": "token_file", "KAFKA__TOKEN_FILE": str(token)}


def mutual(stack, folder):
    return server(stack, "SSL") | {
        "KAFKA__CERTIFICATE_FILE": tls(stack, "client.pem"),
        "KAFKA__PRIVATE_KEY_FILE": tls(stack, "client-locked.key"),
        "KAFKA__PRIVATE_KEY_PASSWORD": KEY_PASSWORD,
    }


def letters_of(case, partitions=3):
    client = Consumer({"bootstrap.servers": case.bootstrap, "group.id": "harness"})
    try:
        ends = [client.get_watermark_offsets(TopicPartition(case.dlq_topic, n), timeout=10)[1] for n in range(partitions)]
        return sum(ends)
    finally:
        client.close()


def send_file(case, count, **settings):
    """`produce --file`; the same command again has nothing left to do."""
    generator = generate.Generator(52)
    events = []
    while len(events) < count:
        event = generator.valid()
        if event.value[0] != 0:
            events.append(event.value.decode())
    path = case.folder / "events.ndjson"
    path.write_text("\n".join(events) + "\n")
    words = ["produce", "--file", path, "--settle", "200ms", "--progress", "none"]
    return [case.run(*words, **settings) for _ in range(2)]


@pytest.mark.parametrize("way", [scram, token_file, mutual])
def test_everything_goes_through_a_secured_listener(secure, make_case, way):
    """Every client that the program has, by this listener alone; nothing secret in what any of them says."""
    case = make_case(secure)
    settings = way(secure, case.folder)
    loud = {**settings, "LOG__LEVEL": "trace"}
    said = []

    def run(*words, expected=0):
        done = case.run(*words, **loud)
        said.append(done.stdout + done.stderr)
        assert done.returncode == expected, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    run("produce", "--count", "400", "--bad-share", "0.1")
    for done in send_file(case, 100, **loud):
        said.append(done.stdout + done.stderr)
        assert done.returncode == 0, done.stderr
    assert sum(case.end_offsets().values()) == 500
    worker = case.start_ready(**loud)
    case.wait_drained()
    case.wait_exported()
    letters = letters_of(case)
    assert letters > 0 and case.rows() + letters == 500
    lag = json.loads(run("lag", "--json").stdout)["partitions"]
    assert {p["partition"]: p["end"] for p in lag} == case.end_offsets()
    assert worker.stop() == 0
    # Looks at the record before each frontier.
    worker = case.start_ready(**loud)
    run("audit")
    assert worker.stop() == 0
    plan = ("topics", "plan", "--file", ROOT / "topics.yaml", "--env", "local")
    plan += ("--topic-override", f"feed.interactions.v1={case.topic}")
    if way is token_file:
        assert "kafka-configs.sh" in run(*plan, expected=70).stderr
    else:
        run(*plan, expected=2)
    said.append(worker.log())
    secrets = [*PASSWORDS.values(), KEY_PASSWORD, "BEGIN PRIVATE KEY", "BEGIN ENCRYPTED PRIVATE KEY"]
    if way is token_file:
        secrets.append((case.folder / "token").read_text())
    assert [secret for secret in secrets if secret in "".join(said)] == []


def test_a_refusal_says_what_to_do_and_no_secret(secure, make_case):
    """Wrong password, unknown CA, another name than the certificate's, no certificate: each names the key to look at."""
    case = make_case(secure)
    good, certificates = scram(secure, case.folder), mutual(secure, case.folder)
    password = {name: value for name, value in good.items() if name != "KAFKA__PASSWORD_FILE"}
    by_address = good["KAFKA__BOOTSTRAP_SERVERS"].replace("localhost", "127.0.0.1")
    nobody = {name: value for name, value in certificates.items() if "CERTIFICATE" not in name and "PRIVATE" not in name}
    refusals = {
        "password": ({**password, "KAFKA__PASSWORD": WRONG}, "kafka.password"),
        "ca": ({**good, "KAFKA__CA_FILE": tls(secure, "other-ca.pem")}, "kafka.ca_file"),
        "name": ({**good, "KAFKA__BOOTSTRAP_SERVERS": by_address}, "kafka.bootstrap_servers"),
        "certificate": (nobody, "kafka.certificate_file"),
    }
    workers = {name: case.start(name, **settings, LOG__LEVEL="trace") for name, (settings, _) in refusals.items()}
    for name, worker in workers.items():
        _, key = refusals[name]

        def told(worker=worker, key=key):
            return [line for line in worker.log().splitlines() if "was refused" in line and key in line]

        wait_until(told, lambda worker=worker: f"{worker.name}: {worker.log_tail()}", timeout_s=60)
        assert worker.alive, "it goes on trying: a password may be put right at the broker"
        worker.kill()
        for secret in (WRONG, *PASSWORDS.values(), KEY_PASSWORD):
            assert secret not in worker.log()
    assert all(persist == 0 for persist, _, _ in case.frontiers().values()), "nobody got anything"


def test_a_file_that_cannot_be_used_is_told_and_a_key_without_its_password(secure, make_case):
    case = make_case(secure)
    settings = mutual(secure, case.folder) | {"KAFKA__PRIVATE_KEY_PASSWORD": WRONG}
    for words in (("produce", "--count", "1"), ("lag",), ("run", "--migrate")):
        done = case.run(*words, **settings, LOG__LEVEL="trace")
        assert done.returncode not in (0, 2), done.stderr
        assert "kafka.private_key_file and kafka.private_key_password" in done.stderr, done.stderr
        assert WRONG not in done.stdout + done.stderr
    for key in ("CERTIFICATE_FILE", "CA_FILE"):
        done = case.run("lag", **{**mutual(secure, case.folder), f"KAFKA__{key}": "/no/such/file"})
        assert done.returncode not in (0, 2) and f"check kafka.{key.lower()}" in done.stderr, done.stderr


# ---- tokens that end -----------------------------------------------------------------------------------------------


def page_says(worker, gauges):
    """Whether the worker's page has each of them, with a value that fits."""
    found = {series.partition("{")[0]: value for series, value in alerts.page(worker).items()}
    return all(f"feed_worker_{name}" in found and fits(found[f"feed_worker_{name}"]) for name, fits in gauges.items())


def test_a_token_that_expires_is_replaced_from_the_file(secure, make_case):
    """Row 41. The broker ends what a token's life ends; the file's new token is read before that, and nobody notices."""
    case = make_case(secure)
    settings, begun = token_file(secure, case.folder, lives_s=25), time.monotonic()
    worker = case.start_ready(**settings, LOG__LEVEL="debug")
    epochs = {number: epoch for number, (_, _, epoch) in case.frontiers().items()}
    (case.folder / "token").write_text(jwt("feed-admin", 3600))
    # The first token's life: nothing can be asked that would tell that it is over.
    time.sleep(max(0.0, begun + 26 - time.monotonic()))
    case.produce(generate.Generator(53).valid() for _ in range(50))
    case.wait_drained()
    assert case.rows() == 50
    assert worker.log().count("a new token for Kafka") >= 2
    assert "was refused" not in worker.log() and "no new token" not in worker.log()
    assert {number: epoch for number, (_, _, epoch) in case.frontiers().items()} == epochs, "the group was left"
    assert worker.stop() == 0
    case.assert_clean()


def test_no_new_token_for_longer_than_the_old_one_lives(secure, make_case):
    """Row 41. While no new token is to be had the old one serves; when it ends too, the worker waits, and then goes on."""
    case = make_case(secure)
    settings = token_file(secure, case.folder, lives_s=40) | {"KAFKA__RETENTION_MS": "604800000"}
    generator = generate.Generator(54)
    begun = time.monotonic()
    worker = case.start_ready(**settings, LOG__LEVEL="debug")
    recorder = alerts.Recorder()
    recorder.watch(worker)
    # No token of a test lives long enough for the chart's threshold.
    rule = alerts.Recording(recorder, case.folder, f'consumer_group="{case.group}"', threshold=5)

    def alert_is(firing):
        last = recorder.now
        return last > 0 and rule.says("TokensNotRenewed", [(last, 1, firing)])[0] == 0

    (case.folder / "token").write_text("what keeps it fresh is broken")
    with recorder, case.producing((generator.valid() for _ in range(100_000)), per_second=50):
        # At four fifths of its life: no new one, the old one still serves.
        case.wait(lambda: "no new token for Kafka" in worker.log(), "an attempt that fails", timeout_s=60)
        assert time.monotonic() - begun < 40, "the token was to be renewed ahead of time"
        rows = case.rows()
        case.wait(lambda: case.rows() > rows, "rows with the old token", timeout_s=8)
        # Whatever the old token was for is over now: the broker ends the connections.
        case.wait(lambda: "has expired, and no new one" in worker.log(), "the end of the old one", timeout_s=60)
        wait_until(lambda: sum(case.end_offsets().values()) > case.rows() + 100, "records that nobody fetches", timeout_s=60)
        gauges = {"tokens_left_seconds": lambda left: left == 0, "tokens_failing_seconds": lambda failing: failing > 5}
        case.wait(lambda: page_says(worker, gauges), "the metrics to say so", timeout_s=60)
        case.wait(lambda: alert_is(firing=True), "somebody to be paged", timeout_s=60)
        assert worker.alive, worker.log_tail()
        (case.folder / "token").write_text(jwt("feed-admin", 3600))
        stalled = case.rows()
        case.wait(lambda: case.rows() > stalled + 100, "rows with the new token", timeout_s=90)
        case.wait(lambda: alert_is(firing=False), "the alert to be over", timeout_s=60)
    code, said = rule.says("TokensNotRenewed", [(1, 1, False)])
    assert code == 0, f"fired while the token was good: {said}"
    gauges = {
        "tokens_left_seconds": lambda left: left > 1000,
        "tokens_failing_seconds": lambda failing: failing == 0,
        # With a token nobody can ask the brokers for the retention.
        "lag_retention_used_percent": lambda used: 0 <= used < 100,
    }
    case.wait(lambda: page_says(worker, gauges), "the metrics to say that all is well", timeout_s=60)
    case.wait_drained()
    assert "what keeps it fresh is broken" not in worker.log(), "whatever the file holds may be a secret"
    assert worker.alive and worker.stop() == 0
    case.wait_exported()
    case.assert_clean()


# ---- rights --------------------------------------------------------------------------------------------------------

RIGHTS = {  # what IAM calls it → what Kafka's own ACLs call it
    "kafka-cluster:WriteDataIdempotently": (ResourceType.BROKER, AclOperation.IDEMPOTENT_WRITE),
    "kafka-cluster:DescribeTopic": (ResourceType.TOPIC, AclOperation.DESCRIBE),
    "kafka-cluster:DescribeTopicDynamicConfiguration": (ResourceType.TOPIC, AclOperation.DESCRIBE_CONFIGS),
    "kafka-cluster:ReadData": (ResourceType.TOPIC, AclOperation.READ),
    "kafka-cluster:WriteData": (ResourceType.TOPIC, AclOperation.WRITE),
    "kafka-cluster:DescribeGroup": (ResourceType.GROUP, AclOperation.DESCRIBE),
    "kafka-cluster:AlterGroup": (ResourceType.GROUP, AclOperation.READ),
}
ANYTHING = AclBindingFilter(
    ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
)


def rights(case, policy):
    """A policy of docs/policies as ACLs for the user of that name, for the case's own topics and group."""
    names = {"feed.interactions.v1": case.topic, "feed.interactions.v1.dlq": case.dlq_topic, "feed-worker": case.group}
    user = {"worker": "feed-worker", "producer": "feed-rec-producer"}[policy]
    found = []
    for statement in json.loads((ROOT / "docs" / "policies" / f"{policy}.json").read_text())["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        for action in actions:
            if action == "kafka-cluster:Connect" or not action.startswith("kafka-cluster:"):
                continue
            kind, operation = RIGHTS[action]
            name = "kafka-cluster" if kind is ResourceType.BROKER else names[statement["Resource"].rpartition("/")[2]]
            found.append(
                AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
            )
    return found


@pytest.fixture
def acls(secure):
    admin = AdminClient({"bootstrap.servers": secure.env["FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"]})

    def give(*found):
        for future in admin.create_acls(list(found)).values():
            future.result(20)

    yield give
    for future in admin.delete_acls([ANYTHING]).values():
        future.result(20)


def test_the_policies_are_enough_and_a_right_less_is_not(secure, make_case, acls):
    """docs/policies/*.json, taken over into Kafka's own ACLs: each role does its work with them, and not without."""
    case = make_case(secure)
    producer = scram(secure, case.folder, "feed-rec-producer")
    worker_settings = scram(secure, case.folder, "feed-worker")
    refused = case.run("produce", "--count", "1", **producer)
    assert refused.returncode != 0, "without a right"
    acls(*rights(case, "producer"), *rights(case, "worker"))

    def produced():
        return case.run("produce", "--count", "400", "--bad-share", "0.1", **producer).returncode == 0

    wait_until(produced, "what the producer may do", timeout_s=30, every_s=1)
    worker = case.start_ready(**worker_settings)
    case.wait_drained()
    letters = letters_of(case)
    assert letters > 0 and case.rows() + letters == sum(case.end_offsets().values())
    assert worker.stop() == 0
    # A second owner looks at what stands before its frontiers.
    worker = case.start_ready(**worker_settings)
    case.wait(lambda: len(case.owned(worker)) == case.partitions, "every partition")
    lag = case.run("lag", **worker_settings)
    assert lag.returncode == 0, lag.stderr
    assert worker.stop() == 0
    assert "was refused" not in worker.log() and "AuthorizationFailed" not in worker.log(), worker.log_tail()
    # Each in the other's place.
    assert case.run("produce", "--count", "1", **worker_settings).returncode != 0
    ends = case.end_offsets()
    stranger = case.start("stranger", **producer)
    case.wait(lambda: "AuthorizationFailed" in stranger.log(), lambda: stranger.log_tail(), timeout_s=60)
    stranger.kill()
    assert case.end_offsets() == ends


# ---- the registry's token ------------------------------------------------------------------------------------------


@pytest.fixture
def guarded_registry(secure):
    """The stack's registry, for whoever brings the token."""
    token, turned_away = "a-registry-token-that-nobody-may-see", []

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers.get("Authorization") != f"Bearer {token}":
                turned_away.append(self.path)
                return self.answer(401, b"{}")
            length = int(self.headers.get("Content-Length") or 0)
            kind = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
            url, body = secure.env["FEED_WORKER_REGISTRY__URL"] + self.path, self.rfile.read(length) or None
            try:
                with urllib.request.urlopen(urllib.request.Request(url, body, kind, method=self.command), timeout=10) as answer:
                    self.answer(answer.status, answer.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

        do_POST = do_PUT = do_GET

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}", token, turned_away
    listening.shutdown()
    listening.server_close()


def test_every_command_brings_the_registrys_token(secure, make_case, guarded_registry):
    """The worker, `audit`, `schemas` and `produce` in both modes; and the token is in nothing that they say."""
    url, token, turned_away = guarded_registry
    case = make_case(secure)
    settings = {"REGISTRY__URL": url, "REGISTRY__TOKEN": token, "LOG__LEVEL": "trace"}
    subject = f"{case.topic}-registered-value"
    said = []
    for words in (
        ("schemas", "register", str(harness.avro_schema_paths()[-1]), "--subject", subject),
        ("produce", "--count", "200"),
    ):
        done = case.run(*words, **settings)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        said.append(done.stdout + done.stderr)
    worker = case.start_ready(**settings)
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0
    done = case.run("audit", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    said += [worker.log(), done.stdout + done.stderr]
    assert case.rows() == 200 and turned_away == []
    assert token not in "".join(said)
    case.run("schemas", "check", str(harness.avro_schema_paths()[-1]), "--subject", subject, REGISTRY__URL=url)
    assert turned_away, "the guard lets anybody in"


# ---- the configuration ---------------------------------------------------------------------------------------------

# What every configuration needs.
ADDRESSES = {"KAFKA__BOOTSTRAP_SERVERS": "b:1", "REGISTRY__URL": "http://r:1", "POSTGRES__URL": "postgres://u@h/d"}
SECRETS = ["postgres.url", "registry.password", "registry.token", "kafka.password", "kafka.private_key_password"]


def configured(*words, folder, **settings):
    """A worker waits for what is away: it is ended after some seconds."""
    env = {"PATH": "/usr/bin:/bin", **harness.configuration(settings)}
    words = [*(["timeout", "5"] if "run" in words else []), harness.WORKER, *words]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False, cwd=folder)


def variable(key):
    return key.upper().replace(".", "__")


def planted(folder):
    """Every secret with a canary of its own, each by another way; what else has to be there for them to be taken."""
    canaries = {key: f"canary-of-{key.replace('.', '-')}" for key in SECRETS}
    url = f"postgres://someone:{canaries['postgres.url']}@127.0.0.1:1/feed"
    key_password, password = folder / "key-password", folder / "password"
    key_password.write_text(canaries["kafka.private_key_password"])
    password.write_text(canaries["kafka.password"] + "\n")
    (folder / "canary.yaml").write_text(f"registry:\n  token: {canaries['registry.token']}\n")
    return canaries, ("--config", str(folder / "canary.yaml")), {
        "_DATABASE_URL": url,
        "KAFKA__PASSWORD_FILE": str(password),
        "KAFKA__PRIVATE_KEY_PASSWORD_FILE": str(key_password),
        "KAFKA__AUTH": "scram",
        "KAFKA__TLS": "true",
        "KAFKA__USERNAME": "someone",
        "KAFKA__CERTIFICATE_FILE": "/nowhere.pem",
        "KAFKA__PRIVATE_KEY_FILE": "/nowhere.key",
        "KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "REGISTRY__URL": "http://127.0.0.1:1",
        "STATSD__ENABLED": "false",
    }  # fmt: skip


def test_no_secret_is_printed_whatever_is_asked(folder):
    canaries, file, settings = planted(folder)
    loud = {**settings, "LOG__LEVEL": "trace"}
    for words in (
        ("config",),
        ("config", "--format", "json"),
        ("--help",),
        ("run", "--help"),
        ("lag",),
        ("run", "--migrate"),
        ("produce", "--count", "1"),
        ("topics", "plan", "--env", "local", "--file", str(ROOT / "topics.yaml")),
        ("audit",),
    ):
        done = configured(*file, *words, folder=folder, **loud)
        shown = done.stdout + done.stderr
        assert [key for key, canary in canaries.items() if canary in shown] == [], f"{words}\n{shown}"
        if words[0] == "config":
            assert done.returncode == 0, done.stderr
            assert shown.count("[redacted]") >= 4, "they were not taken"
    # And each of them where it breaks something: said twice, of the wrong form, where it is not wanted.
    for key, canary in canaries.items():
        for words, more in (
            (("--set", f"{key}={canary}", "--set", "registry.username=someone", "config"), {}),
            (("--set", f"{key}=[{canary}]", "config"), {}),
            (("--set", f"{key}.{canary}={canary}", "config"), {}),
            (("config",), {variable(key): canary, "KAFKA__AUTH": "none", "KAFKA__TLS": "false"}),
            (("config",), {f"{variable(key)}_FILE": str(folder)}),
        ):
            shown = configured(*words, folder=folder, **{**settings, **more})
            # What was typed as a key's name is no secret of ours.
            text = (shown.stdout + shown.stderr).replace(f"{key}.{canary}", "")
            assert canary not in text, f"{words} {more}\n{text}"


@pytest.mark.parametrize("key", SECRETS)
def test_a_secret_can_be_read_from_a_file(folder, key):
    path = folder / "secret"
    path.write_text("postgres://u:p@127.0.0.1:1/x\n" if key == "postgres.url" else "what-is-in-it\n")
    more = {"registry.password": {"REGISTRY__USERNAME": "u"}}.get(key, {})
    if key == "kafka.password":
        more = {"KAFKA__AUTH": "scram", "KAFKA__TLS": "true", "KAFKA__USERNAME": "u"}
    if key == "kafka.private_key_password":
        more = {"KAFKA__TLS": "true", "KAFKA__CERTIFICATE_FILE": "/c", "KAFKA__PRIVATE_KEY_FILE": "/k"}
    others = {name: value for name, value in ADDRESSES.items() if key != "postgres.url" or name != "POSTGRES__URL"}
    done = configured("config", "--format", "json", folder=folder, **{f"{variable(key)}_FILE": str(path)}, **more, **others)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    section, name = key.split(".")
    assert "[redacted]" in shown["values"][section][name]
    assert str(path) in shown["sources"][key]
    assert "what-is-in-it" not in done.stdout and ":p@" not in done.stdout


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"KAFKA__AUTH": "msk_iam", "KAFKA__REGION": "eu-central-1"}, ["kafka.auth", "kafka.tls"]),
        ({"KAFKA__AUTH": "msk_iam", "KAFKA__TLS": "true", "S3__REGION": ""}, ["kafka.region"]),
        ({"KAFKA__AUTH": "scram", "KAFKA__TLS": "true", "KAFKA__USERNAME": "u"}, ["kafka.password"]),
        ({"KAFKA__AUTH": "token_file", "KAFKA__TLS": "true"}, ["kafka.token_file"]),
        ({"KAFKA__TLS": "true", "KAFKA__CERTIFICATE_FILE": "/c"}, ["kafka.certificate_file", "kafka.private_key_file"]),
        ({"KAFKA__TLS": "true", "KAFKA__PROPERTIES__SSL_CA_LOCATION": "/c"}, ["kafka.properties.ssl.ca.location"]),
        ({"KAFKA__PASSWORD_FILE": "/no/such/file"}, ["FEED_WORKER_KAFKA__PASSWORD_FILE"]),
        ({"REGISTRY__USERNAME": "u", "REGISTRY__TOKEN": "t"}, ["registry.token", "registry.username"]),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_touched(folder, settings, keys):
    done = configured("config", folder=folder, **ADDRESSES, **settings)
    assert done.returncode == 64, done.stderr
    assert "is missing: give it" not in done.stderr, "it is refused for another reason"
    for key in keys:
        assert re.search(rf"\b{re.escape(key)}\b", done.stderr), done.stderr


# ---- the image -----------------------------------------------------------------------------------------------------

BUNDLE = "etc/ssl/certs/ca-certificates.crt"


@pytest.fixture
def image(folder):
    """The root of the image, and a program that starts the worker in it, as the image's user."""
    root, program = folder / "root", folder / "in-the-image"
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run([ROOT / "dev" / "image-root", harness.WORKER, root], check=True)
    # What Kubernetes mounts into every container.
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    (root / "etc" / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    if os.geteuid() == 0:
        into = ["chroot", "--userspec=65532:65532", root]
    else:
        into = ["unshare", "--map-root-user", "--root", root]
    words = shlex.join(map(str, [*into, "/usr/local/bin/feed-worker"]))
    program.write_text(f'#!/bin/sh\nPATH=$PATH:/usr/sbin exec {words} "$@"\n')
    program.chmod(0o755)
    yield root, program
    shutil.rmtree(root)


class TlsFront:
    """TLS before a server that has none."""

    def __init__(self, address, certificate, key):
        parsed = urllib.parse.urlsplit(address)
        self.upstream = (parsed.hostname, parsed.port)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        front = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError), context.wrap_socket(self.request, server_side=True) as secured:
                    front.pass_on(secured)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"https://localhost:{self.server.server_address[1]}"

    def pass_on(self, secured):
        with socket.create_connection(self.upstream) as plain:

            def back():
                with contextlib.suppress(OSError):
                    while data := plain.recv(65536):
                        secured.sendall(data)
                with contextlib.suppress(OSError):
                    secured.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=back, daemon=True).start()
            with contextlib.suppress(OSError):
                while data := secured.recv(65536):
                    plain.sendall(data)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def fronts(secure):
    """Registry and object store behind TLS, with a certificate of the stack's own CA."""
    pair = tls(secure, "broker.pem"), tls(secure, "broker.key")
    made = {key: TlsFront(secure.env[f"FEED_WORKER_{key}"], *pair) for key in ("REGISTRY__URL", "S3__ENDPOINT")}
    yield {key: front.url for key, front in made.items()}
    for front in made.values():
        front.close()


def test_in_the_image_the_cas_of_its_bundle_count(secure, make_case, image, fronts):
    """Brokers, registry and object store, each over TLS: with their CA in the bundle all of them; without, none, and told why."""
    case = make_case(secure)
    root, case.program = image
    brokers = {name: value for name, value in scram(secure, case.folder).items() if not name.endswith("_FILE")}
    brokers["KAFKA__PASSWORD"] = PASSWORDS["feed-admin"]
    # As the Dockerfile sets it.
    trusting = {"_SSL_CERT_FILE": f"/{BUNDLE}"}
    bundle = root / BUNDLE
    shipped, ours = bundle.read_text(), Path(tls(secure, "ca.pem")).read_text()
    assert shipped.count("BEGIN CERTIFICATE") > 50, "the public CAs: S3, STS, brokers of MSK"
    folder_of_cas = root / "etc" / "feed-worker" / "ca"
    folder_of_cas.mkdir()
    (folder_of_cas / "ca.pem").write_text(ours)
    # As the chart sets it, for its own ConfigMap of CAs.
    beside = {"_SSL_CERT_DIR": "/etc/feed-worker/ca", "KAFKA__CA_FILE": "/etc/feed-worker/ca/ca.pem"}
    generator = generate.Generator(55, case.schemas())
    for content, more in ((shipped + ours, {}), (shipped, beside)):
        bundle.write_text(content)
        case.produce(generator.event() for _ in range(300))
        worker = case.start_ready(**brokers, **fronts, **trusting, **more)
        case.wait_drained()
        case.wait_exported()
        assert worker.stop() == 0
    case.assert_clean()

    # As it is shipped: each of the three says which CA it lacks, and where to put it.
    case.produce(generator.event() for _ in range(300))
    lacking = {
        "brokers": (brokers, "a connection to kafka was refused", "kafka.ca_file"),
        "registry": ({"REGISTRY__URL": fronts["REGISTRY__URL"]}, "the registry gave no answer", "SSL_CERT_FILE"),
        "store": ({"S3__ENDPOINT": fronts["S3__ENDPOINT"]}, "the bucket cannot be tried yet", "SSL_CERT_FILE"),
    }
    for part, (settings, what, advice) in lacking.items():
        lost = case.start(part, **settings, **trusting)

        def told(lost=lost, what=what, advice=advice):
            return [line for line in lost.log().splitlines() if what in line and advice in line]

        wait_until(told, lambda lost=lost: lost.log_tail(), timeout_s=60)
        assert lost.alive, "it waits: a server's certificate may be put right there"
        lost.kill()

    # Without any: nobody waits for that.
    bundle.unlink()
    lost = case.start("without", **brokers, **fronts, **trusting)
    assert lost.wait() == 70 and f"/{BUNDLE}" in lost.log() and "let SSL_CERT_FILE name" in lost.log(), lost.log_tail()
    assert "panicked" not in lost.log()
    for words, settings, advice in (
        (("lag",), brokers, "kafka.ca_file"),
        (("schemas", "check", "/nowhere", "--subject", "s"), fronts, "let SSL_CERT_FILE name"),
        (("exports", "verify", "--day", "2026-01-01"), fronts, "let SSL_CERT_FILE name"),
    ):
        done = case.run(*words, **settings, **trusting)
        assert done.returncode not in (0, 2, 101) and advice in done.stderr, f"{words}: {done.returncode}\n{done.stderr}"
