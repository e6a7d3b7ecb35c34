"""The local stack's schema registry, held to one that is not ours: the same assertions against both."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dev"))

from stacklib.process import Process, free_ports  # noqa: E402

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
FIRST = {"type": "record", "name": "Seen", "fields": [{"name": "video", "type": "string"}]}
SECOND = {"type": "record", "name": "Seen", "fields": FIRST["fields"] + [{"name": "rank", "type": "int", "default": 0}]}
OTHER = {"type": "record", "name": "Other", "namespace": "x.y", "fields": []}


class Registry:
    """A client of the few calls that matter. Every call gives status and parsed body."""

    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def register(self, subject, schema):
        status, body = self.call("POST", f"/subjects/{subject}/versions", {"schema": json.dumps(schema)})
        assert status == 200, body
        return body["id"]

    def look_up(self, subject, schema):
        return self.call("POST", f"/subjects/{subject}", {"schema": json.dumps(schema)})


def _answers(url):
    try:
        with urllib.request.urlopen(url + "/subjects", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _ours(folder, port):
    command = [sys.executable, "-m", "stacklib.registry", "--port", port, "--file", folder / "registry.json"]
    return command, {}, f"http://127.0.0.1:{port}"


def _apicurio(folder, port):
    subprocess.run([ROOT / "dev" / "apicurio"], check=True)
    (jar,) = (ROOT / "target" / "tools" / "apicurio").glob("apicurio-registry-app-*-runner.jar")
    command = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar", jar]
    env = {"QUARKUS_HTTP_HOST": "127.0.0.1", "QUARKUS_HTTP_PORT": str(port)}
    return command, env, f"http://127.0.0.1:{port}/apis/ccompat/v7"


@pytest.fixture(scope="module", params=[_ours, _apicurio], ids=["ours", "apicurio"])
def registry(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    (port,) = free_ports(1)
    command, env, url = request.param(folder, port)
    process = Process(folder, "registry")
    process.spawn(command, env=env, cwd=ROOT / "dev")
    try:
        process.wait_until(lambda: _answers(url), deadline_s=120)
        yield Registry(url)
    finally:
        process.stop()


@pytest.fixture
def subject(request):
    return f"{request.node.originalname}-{time.time_ns()}"


def test_a_schema_has_one_id_wherever_it_is_registered(registry, subject):
    first = registry.register(subject, FIRST)
    assert registry.register(subject, FIRST) == first
    assert registry.register(f"{subject}-value", FIRST) == first
    assert registry.register(subject, SECOND) != first
    assert registry.call("GET", f"/subjects/{subject}/versions") == (200, [1, 2])
    assert registry.call("GET", f"/subjects/{subject}-value/versions") == (200, [1])
    status, subjects = registry.call("GET", "/subjects")
    assert status == 200 and {subject, f"{subject}-value"} <= set(subjects)


def test_a_schema_is_read_back_by_its_id(registry, subject):
    schema_id = registry.register(subject, OTHER)
    status, body = registry.call("GET", f"/schemas/ids/{schema_id}")
    assert status == 200
    assert json.loads(body["schema"]) == OTHER
    # Without a type it is Avro, so both forms are right.
    assert body.get("schemaType", "AVRO") == "AVRO"


def test_versions_are_read_back(registry, subject):
    ids = [registry.register(subject, FIRST), registry.register(subject, SECOND)]
    for path, version, schema in [("1", 1, FIRST), ("2", 2, SECOND), ("latest", 2, SECOND)]:
        status, body = registry.call("GET", f"/subjects/{subject}/versions/{path}")
        assert status == 200
        assert (body["subject"], body["version"], body["id"]) == (subject, version, ids[version - 1])
        assert json.loads(body["schema"]) == schema
    assert registry.call("GET", f"/subjects/{subject}/versions/1/schema") == (200, FIRST)


def test_a_schema_is_looked_up_without_registering_it(registry, subject):
    schema_id = registry.register(subject, FIRST)
    status, body = registry.look_up(subject, FIRST)
    assert status == 200
    assert (body["subject"], body["version"], body["id"]) == (subject, 1, schema_id)
    assert json.loads(body["schema"]) == FIRST
    status, body = registry.look_up(subject, SECOND)
    assert (status, body["error_code"]) == (404, 40403)
    assert registry.call("GET", f"/subjects/{subject}/versions") == (200, [1])


def test_what_is_not_there_says_what_is_missing(registry, subject):
    registry.register(subject, FIRST)
    for method, path, body, error_code in [
        ("GET", f"/subjects/{subject}-none/versions", None, 40401),
        ("GET", f"/subjects/{subject}-none/versions/1", None, 40401),
        ("GET", f"/subjects/{subject}-none/versions/latest", None, 40401),
        ("POST", f"/subjects/{subject}-none", {"schema": json.dumps(FIRST)}, 40401),
        ("GET", f"/subjects/{subject}/versions/9", None, 40402),
        ("GET", "/schemas/ids/999999", None, 40403),
    ]:
        status, answer = registry.call(method, path, body)
        assert (status, answer["error_code"]) == (404, error_code), path
        assert answer["message"]


def test_what_is_no_schema_is_refused(registry, subject):
    for text in ['{"type": "nope"}', "no json"]:
        status, body = registry.call("POST", f"/subjects/{subject}/versions", {"schema": text})
        assert (status, body["error_code"]) == (422, 42201), text
    status, body = registry.call("GET", f"/subjects/{subject}/versions")
    assert (status, body["error_code"]) == (404, 40401)


def test_compatibility_levels_are_kept(registry, subject):
    registry.register(subject, FIRST)
    status, _ = registry.call("PUT", f"/config/{subject}", {"compatibility": "BACKWARD_TRANSITIVE"})
    assert status == 200
    assert registry.call("GET", f"/config/{subject}") == (200, {"compatibilityLevel": "BACKWARD_TRANSITIVE"})
    status, level = registry.call("GET", "/config")
    assert status == 200 and level["compatibilityLevel"]
    status, body = registry.call(
        "POST", f"/compatibility/subjects/{subject}/versions/latest", {"schema": json.dumps(SECOND)}
    )
    assert status == 200 and body["is_compatible"] is True


def test_ours_keeps_ids_over_a_restart(tmp_path):
    """Not asked of Apicurio, which keeps everything in memory here."""
    (port,) = free_ports(1)
    command, env, url = _ours(tmp_path, port)
    registry, process = Registry(url), Process(tmp_path, "registry")
    try:
        process.spawn(command, env=env, cwd=ROOT / "dev")
        process.wait_until(lambda: _answers(url))
        ids = [registry.register("a", FIRST), registry.register("b", SECOND)]
        process.stop()
        process.spawn(command, env=env, cwd=ROOT / "dev")
        process.wait_until(lambda: _answers(url))
        assert [registry.register("a", FIRST), registry.register("b", SECOND)] == ids
        assert registry.register("b", OTHER) not in ids
    finally:
        process.stop()
