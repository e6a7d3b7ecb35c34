"""A bad configuration ends a worker before it touches anything, with its own exit code and the key's name."""

import socket
import threading

import pytest

BAD = {
    "unknown key": ({"BATCH__ROWS": "3"}, "batch.rows"),
    "not a number": ({"BATCH__ROWS_MAX": "many"}, "batch.rows_max"),
    "zero": ({"ROLL__ROWS_MAX": "0"}, "roll.rows_max"),
    "same topic twice": ({"KAFKA__DLQ_TOPIC": "same", "KAFKA__TOPIC": "same"}, "kafka.dlq_topic"),
    "heartbeat against session": (
        {"KAFKA__SESSION_TIMEOUT_MS": "3000", "KAFKA__HEARTBEAT_INTERVAL_MS": "2000"},
        "kafka.heartbeat_interval_ms",
    ),
    "revoke against session": (
        {"KAFKA__SESSION_TIMEOUT_MS": "3000", "KAFKA__REVOKE_DEADLINE_MS": "4000"},
        "kafka.revoke_deadline_ms",
    ),
    "shutdown against grace": ({"SHUTDOWN__DEADLINE_MS": "70000"}, "shutdown.deadline_ms"),
    "weights": ({"_INTERACTION_WEIGHTS": "like:much"}, "interactions.weights"),
    "property of ours": ({"KAFKA__PROPERTIES__ENABLE_AUTO_COMMIT": "true"}, "enable.auto.commit"),
    "no broker": ({"KAFKA__BOOTSTRAP_SERVERS": ""}, "kafka.bootstrap_servers"),
}


@pytest.fixture
def listener():
    """Stands where the broker would be, and counts who knocks."""
    knocks = []
    server = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            knocks.append(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield server.getsockname()[1], knocks
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


@pytest.mark.parametrize("name", BAD)
def test_bad_configuration_is_64_and_named(case, listener, name):
    env, key = BAD[name]
    port, knocks = listener
    broker = {"KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}
    done = case.run("run", **(broker | env))
    assert done.returncode == 64, done.stderr
    assert key in done.stderr
    assert not knocks, "it touched Kafka before it refused"


def test_yaml_with_an_unknown_key(case):
    path = case.folder / "bad.yaml"
    path.write_text("kafka:\n  topics: x\n")
    done = case.run("--config", path, "run")
    assert done.returncode == 64 and "kafka.topics" in done.stderr, done.stderr


def test_layers_and_where_values_come_from(case):
    path = case.folder / "good.yaml"
    path.write_text("batch:\n  rows_max: 111\nroll:\n  rows_max: 222\n  bytes_max: 333333\n")
    done = case.run("--config", path, "--set", "roll.bytes_max=444444", "config", ROLL__ROWS_MAX=555)
    assert done.returncode == 0, done.stderr
    assert "111" in done.stdout and "good.yaml" in done.stdout
    assert "555" in done.stdout and "222" not in done.stdout and "FEED_WORKER_ROLL__ROWS_MAX" in done.stdout
    assert "444444" in done.stdout and "333333" not in done.stdout


def test_secrets_are_not_printed(case):
    secrets = {
        "_DATABASE_URL": "postgres://someone:hunter2hunter2@127.0.0.1/x",
        "REGISTRY__USERNAME": "someone",
        "REGISTRY__PASSWORD": "hunter3hunter3",
        "KAFKA__PROPERTIES__SASL_PASSWORD": "hunter4hunter4",
    }
    done = case.run("config", **secrets)
    assert done.returncode == 0, done.stderr
    assert "hunter" not in done.stdout + done.stderr


def test_help_has_the_exit_codes(case):
    done = case.run("--help")
    assert done.returncode == 0
    for code in ("2 ", "64", "65", "66", "67", "70", "75", "130"):
        assert code in done.stdout


def test_wrong_arguments_are_64(case):
    """Not 2, which says that something was compared and differs."""
    assert case.run("run", "--no-such-flag").returncode == 64
    assert case.run("topics").returncode == 64


MISSING = {  # command → each address that it cannot do without
    "lag": ("kafka.bootstrap_servers", "postgres.url"),
    "audit": ("kafka.bootstrap_servers", "postgres.url", "registry.url"),
    "audit --day 2026-01-01": ("postgres.url",),
    "migrate": ("postgres.url",),
    "maintain": ("postgres.url",),
    "ledger show": ("postgres.url",),
    "ledger accept-gap --partition 0 --to 1 --reason none": ("kafka.bootstrap_servers", "postgres.url"),
    "rejects accept --reason none": ("postgres.url",),
    "exports verify": ("postgres.url",),
    "topics plan": ("kafka.bootstrap_servers",),
    "schemas check": ("registry.url",),
    "produce --count 1": ("kafka.bootstrap_servers", "registry.url"),
    "produce --count 1 --json-share 1": ("kafka.bootstrap_servers",),
    "produce --file x --encoding avro": ("kafka.bootstrap_servers", "registry.url"),
}
VARIABLES = {
    "kafka.bootstrap_servers": "KAFKA__BOOTSTRAP_SERVERS",
    "postgres.url": "_DATABASE_URL",
    "registry.url": "REGISTRY__URL",
}


@pytest.mark.parametrize("command", MISSING)
def test_missing_address_is_64_and_named(case, command):
    for key, variable in VARIABLES.items():
        if key in MISSING[command]:
            done = case.run(*command.split(), **{variable: ""})
            assert done.returncode == 64 and key in done.stderr, done.stdout + done.stderr


AWAY = {  # nobody listens there
    "_DATABASE_URL": "postgres://nobody@127.0.0.1:1/nothing",
    "KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "REGISTRY__URL": "http://127.0.0.1:1",
    "S3__ENDPOINT": "http://127.0.0.1:1",
}


@pytest.mark.parametrize(
    ("command", "variable"),
    [
        ("migrate", "_DATABASE_URL"),
        ("maintain", "_DATABASE_URL"),
        ("ledger show", "_DATABASE_URL"),
        ("ledger reconcile --reason none", "_DATABASE_URL"),
        ("rejects accept --reason none", "_DATABASE_URL"),
        ("lag", "_DATABASE_URL"),
        ("lag", "KAFKA__BOOTSTRAP_SERVERS"),
        ("exports verify", "_DATABASE_URL"),
        ("exports verify", "S3__ENDPOINT"),
        ("produce --count 1", "REGISTRY__URL"),
    ],
)
def test_server_that_is_away_is_75(case, command, variable):
    """Nothing is to be corrected: try again later."""
    assert case.run("migrate").returncode == 0
    if command == "exports verify" and variable == "S3__ENDPOINT":
        case.query(
            "INSERT INTO topic_ledger (topic, cluster_id, group_id, closed_day, success_day)"
            " VALUES (%s, '', '', '2026-01-01', '2026-01-01') RETURNING 1",
            (case.topic,),
        )
    done = case.run(*command.split(), POSTGRES__CONNECT_TIMEOUT_MS=1000, **{variable: AWAY[variable]})
    assert done.returncode == 75, done.stdout + done.stderr


def test_flags_that_contradict_each_other_are_64(case):
    for words in ("--file x --seed 3", "--file x --warm-up 1s", "--file x --linger-ms 7", "--file x --count 3"):
        done = case.run("produce", *words.split())
        assert done.returncode == 64 and "cannot be used with" in done.stderr, done.stderr
    done = case.run("topics", "plan", "--topic-override", "feed.interactions.v1=no name")
    assert done.returncode == 64 and "no topic's name" in done.stderr, done.stderr
