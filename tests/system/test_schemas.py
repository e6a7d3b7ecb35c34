"""`schemas check` and `register` against a registry that is not ours, under each mode that matters."""

import json
import os
import re
import subprocess
import time

import pytest
from harness import ROOT, SCHEMA_FOLDER, WORKER
from stacklib.process import Process, free_ports
from test_registry_contract import Registry, _answers, _apicurio


def record(*fields, name="Seen"):
    return {"type": "record", "name": name, "fields": list(fields)}


def field(name, kind, **more):
    return {"name": name, "type": kind, **more}


VIDEO = field("video", "string")
RANK = field("rank", "int")
FIRST = record(VIDEO)
WITH_DEFAULT = record(VIDEO, {**RANK, "default": 0})
WITHOUT_DEFAULT = record(VIDEO, RANK)


class Pipeline:
    """What a producers' team runs."""

    def __init__(self, registry, folder, subject):
        self.registry, self.folder, self.subject = registry, folder, subject

    def run(self, *words, subject=None):
        env = {name: value for name, value in os.environ.items() if not name.startswith("FEED_WORKER_")}
        env["FEED_WORKER_REGISTRY__URL"] = self.registry.url
        done = subprocess.run(
            [WORKER, "schemas", *words, "--subject", subject or self.subject],
            env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def on(self, action, schema):
        path = self.folder / "schema.avsc"
        path.write_text(json.dumps(schema))
        return self.run(action, path)

    def mode(self, mode):
        status, answer = self.registry.call("PUT", f"/config/{self.subject}", {"compatibility": mode})
        assert status == 200, answer

    def versions(self):
        status, found = self.registry.call("GET", f"/subjects/{self.subject}/versions")
        return found if status == 200 else []


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apicurio")
    (port,) = free_ports(1)
    command, env, url = _apicurio(folder, port)
    process = Process(folder, "registry")
    process.spawn(command, env=env, cwd=ROOT / "dev")
    try:
        process.wait_until(lambda: _answers(url), deadline_s=180)
        yield Registry(url)
    finally:
        process.stop()


@pytest.fixture
def pipeline(apicurio, folder, request):
    return Pipeline(apicurio, folder, f"{request.node.originalname}-{time.time_ns()}-value")


def test_register_is_idempotent_and_prints_id_and_version(pipeline):
    found = []
    for schema in (FIRST, WITH_DEFAULT, WITH_DEFAULT, FIRST):
        code, out, err = pipeline.on("register", schema)
        assert code == 0, out + err
        version, schema_id = map(int, re.search(r"version (\d+), schema (\d+)", out).groups())
        found.append((version, schema_id))
    assert [version for version, _ in found] == [1, 2, 2, 1] and pipeline.versions() == [1, 2]
    status, body = pipeline.registry.call("GET", f"/schemas/ids/{found[1][1]}")
    assert status == 200 and json.loads(body["schema"]) == WITH_DEFAULT


# mode, what is registered, the new schema, the field that is named if it does not go
CASES = [
    ("BACKWARD", [FIRST], WITH_DEFAULT, None),
    ("BACKWARD", [FIRST], WITHOUT_DEFAULT, "rank"),
    ("BACKWARD", [WITHOUT_DEFAULT], FIRST, None),
    ("BACKWARD", [FIRST], record(field("video", "int")), "video"),
    ("FORWARD", [FIRST], WITHOUT_DEFAULT, None),
    ("FORWARD", [WITHOUT_DEFAULT], FIRST, "rank"),
    ("FULL", [FIRST], WITH_DEFAULT, None),
    ("FULL", [FIRST], WITHOUT_DEFAULT, "rank"),
    ("FULL", [WITHOUT_DEFAULT], FIRST, "rank"),
    ("NONE", [FIRST], record(field("video", "int")), None),
    # Only the latest counts, or all do: rank went from int to long to a field that has no default.
    ("BACKWARD", [record(field("rank", "string")), record(VIDEO)], record(VIDEO, field("rank", "int", default=0)), None),
    ("BACKWARD_TRANSITIVE", [record(field("rank", "string", default="")), record(VIDEO, name="Seen")],
     record(VIDEO, field("rank", "int", default=0)), "rank"),
    ("FULL_TRANSITIVE", [FIRST, WITH_DEFAULT], record(VIDEO, {**RANK, "default": 0}, field("at", ["null", "long"], default=None)), None),
    ("FULL_TRANSITIVE", [FIRST, WITH_DEFAULT], record(VIDEO, field("at", "long")), "at"),
]


@pytest.mark.parametrize(("mode", "registered", "schema", "named"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)])
def test_a_schema_is_held_to_what_the_mode_makes_count(pipeline, mode, registered, schema, named):
    pipeline.registry.register(pipeline.subject, registered[0])
    pipeline.mode("NONE")
    for one in registered[1:]:
        pipeline.registry.register(pipeline.subject, one)
    pipeline.mode(mode)
    before = pipeline.versions()
    code, out, err = pipeline.on("check", schema)
    assert f"{len(registered)} versions, {mode} (of the subject)" in out, out + err
    assert pipeline.versions() == before, "check has registered something"
    if named is None:
        assert code == 0 and "not compatible" not in out, out + err
        assert pipeline.on("register", schema)[0] == 0
        assert len(pipeline.versions()) == len(before) + 1
    else:
        assert code == 2 and "not compatible" in out, out + err
        assert re.search(rf"version \d+: {named}: ", out), out
        assert "the registry says no" in out, out
        code, out, err = pipeline.on("register", schema)
        assert code == 2 and re.search(rf"version \d+: {named}: ", out), out + err
        assert pipeline.versions() == before


def test_the_committed_schemas_are_held_to_the_contract_and_to_the_worker(pipeline):
    """The event's own subject: the mode of topics.yaml counts beside the registry's, and the worker has its say."""
    subject = "feed.interactions.v1-value"
    for _ in range(2):
        code, out, err = pipeline.run("register", subject=subject)
        assert code == 0 and out.count("is version" if _ else "registered as version") == 2, out + err
    code, out, err = pipeline.run("check", subject=subject)
    # The registry holds everybody to what the contract wants, also who does not ask here.
    assert code == 0 and "it is version 2" in out and "2 versions, FULL_TRANSITIVE (of the subject)" in out, out + err
    assert pipeline.registry.call("GET", f"/config/{subject}")[1]["compatibilityLevel"] == "FULL_TRANSITIVE"
    pipeline.registry.call("PUT", f"/config/{subject}", {"compatibility": "BACKWARD"})
    code, out, err = pipeline.run("check", subject=subject)
    assert code == 0 and "topics.yaml wants FULL_TRANSITIVE" in out, out + err
    assert pipeline.registry.call("GET", f"/config/{subject}")[1]["compatibilityLevel"] == "BACKWARD", "check sets nothing"
    current = json.loads((SCHEMA_FOLDER / "interaction.avsc").read_text())
    required = {**current, "fields": current["fields"] + [field("device", "string")]}
    path = pipeline.folder / "required.avsc"
    path.write_text(json.dumps(required))
    code, out, _ = pipeline.run("check", path, subject=subject)
    assert code == 2 and "version 1: device: is not written" in out and "version 2: device: " in out, out
    # Avro calls these compatible; the worker does not read microseconds as milliseconds.
    micros = json.loads(json.dumps(current).replace("timestamp-millis", "timestamp-micros"))
    path.write_text(json.dumps(micros))
    code, out, _ = pipeline.run("check", path, subject=subject)
    assert code == 2 and "feed-worker would reject every event" in out and "timestamp" in out, out


def test_what_is_no_schema_and_what_is_no_registry(pipeline):
    code, out, _ = pipeline.on("check", {"type": "nope"})
    assert code == 2 and "no Avro schema" in out, out
    code, out, err = pipeline.on("register", {"type": "nope"})
    assert code == 65 and "no Avro schema" in err and not pipeline.versions(), out + err
    pipeline.registry = Registry("http://127.0.0.1:1")
    code, _, err = pipeline.on("check", FIRST)
    assert code == 75 and "does not answer" in err, err
