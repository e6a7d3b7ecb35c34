"""Faults of the schema registry: what needs it waits, the rest goes on, and only a lasting "there is no such id" is believed."""

import json
import time
import urllib.request

import pytest
from fastavro import parse_schema

import faulty
import generate
import harness
from test_dlq import dead_letters
from test_faults_postgres import finish


@pytest.fixture
def registry(stack):
    found = faulty.Switch(stack.env["STACK_REGISTRY_FAULT_URL"])
    found.off()
    yield found
    found.off()


def events(generator, count, avro):
    found = (generator.valid() for _ in range(100_000))
    picked = []
    while len(picked) < count:
        event = next(found)
        if (event.value[0] == 0) == avro:
            picked.append(event)
    return picked


def frontier(case, partition):
    return case.frontiers()[partition][0]


def test_no_outage_is_taken_for_a_missing_schema(stack, case, registry):
    """Rows 28, 30: whatever the registry answers but "not found" in its own words, the partition that needs it waits."""
    case.start_ready().stop()  # the ledger
    generator = generate.Generator(301)
    first, second = (path.read_text() for path in harness.avro_schema_paths())
    worker = None
    for number, fault in enumerate(("down", "500", "503", "429", "401", "page", "slow&delay_ms=30000")):
        # An id that this worker has not seen.
        text = json.loads(first if number % 2 else second) | {"doc": f"{case.topic} {fault}"}
        schema_id = case.register(f"{case.topic}-{number}-value", json.dumps(text))
        known = generate.Schemas([(schema_id, parse_schema(text))], 0)
        generator.schemas = known
        avro = events(generator, 20, avro=True)
        generator.schemas = None
        plain = [generator.valid() for _ in range(20)]
        if fault == "down":
            stack.command("stop-registry")
            worker = case.start_ready(REGISTRY__TIMEOUT_MS=1500)  # away at the start too
        else:
            registry.set(f"mode={fault}")
        before = case.frontiers()
        try:
            case.produce(avro, partition=1)
            case.produce(plain, partition=4)
            case.produce(plain, partition=5)
            if fault != "down":
                case.wait(lambda: registry.state()["fired"] > 0, f"{fault} to be met")
            # Well beyond registry.missing_after_ms, which is a second here.
            case.wait(lambda: frontier(case, 4) == before[4][0] + 20 == before[5][0] + 20, "the others to go on")
            time.sleep(2.5)
            assert frontier(case, 1) == before[1][0]
        finally:
            stack.command("start-registry")
            registry.off()
        case.wait(lambda: frontier(case, 1) == before[1][0] + 20, f"what waited under {fault}", 20)
    assert not dead_letters(case)
    finish(case, worker)


def test_one_question_at_a_time_for_an_id(case, registry):
    """Row 30: six partitions wait for the same id, and one asks."""
    generator = generate.Generator(302, case.schemas())
    generator.schemas.versions = generator.schemas.versions[:1]
    worker = case.start_ready(REGISTRY__TIMEOUT_MS=2000)
    registry.set("mode=slow&delay_ms=1500&count=1")
    for partition in range(case.partitions):
        case.produce(events(generator, 50, avro=True), partition=partition)
    case.wait_drained()
    asked = registry.state()
    assert asked["requests"] == {f"/schemas/ids/{generator.schemas.versions[0][0]}": 1}, asked
    # Known from now on, whatever the registry does.
    registry.set("mode=500")
    case.produce(events(generator, 300, avro=True))
    case.wait_drained()
    assert registry.state()["requests"] == {}
    registry.off()
    finish(case, worker)


def test_unknown_id_is_asked_for_seldom(case, registry):
    """Row 29: a lasting 404 is a dead letter with its reason, and the answer is kept: no look-up per event."""
    generator = generate.Generator(303, case.schemas())
    worker = case.start_ready(REGISTRY__MISSING_AFTER_MS=1500, REJECTS__RATIO_MAX=1)
    path = f"/schemas/ids/{generate.NO_SUCH_SCHEMA_ID}"
    for partition in range(case.partitions):
        case.produce([generator.bad("schema_not_found"), *events(generator, 50, avro=True)], partition=partition)
    case.wait_drained()
    asked = registry.state()["requests"][path]
    started = time.monotonic()
    for _ in range(5):
        case.produce([generator.bad("schema_not_found") for _ in range(60)])
        case.wait_drained()
    took_s = time.monotonic() - started
    assert registry.state()["requests"][path] == asked
    assert asked <= 8 and took_s < 30
    summary = finish(case, worker)
    assert summary["dead_lettered_by_reason"] == {"schema_not_found": 306}
    letters = dead_letters(case)
    assert len({(dict(l.headers())["__connect.errors.partition"], dict(l.headers())["__connect.errors.offset"]) for l in letters}) == 306


def test_schema_that_comes_late_costs_no_event(case, registry):
    """Row 29: a producer is faster than the registry's replica: 404 some times, then it is there."""
    generator = generate.Generator(304, case.schemas())
    worker = case.start_ready(REGISTRY__MISSING_AFTER_MS=10_000)
    registry.set("mode=404&count=5")
    case.produce(events(generator, 100, avro=True))
    case.wait_drained()
    assert registry.state()["fired"] == 5
    assert not dead_letters(case)
    finish(case, worker)


def registered(case, name, change):
    """Registers the newest schema, changed; (id, parsed)."""
    schema = json.loads(harness.avro_schema_paths()[-1].read_text())
    schema["fields"] = change([dict(field) for field in schema["fields"]])
    return case.register(f"{case.topic}-{name}-value", json.dumps(schema)), parse_schema(schema)


def without(*names):
    return lambda fields: [field for field in fields if field["name"] not in names]


def retyped(name, to):
    return lambda fields: [field | {"type": to, "default": None} if field["name"] == name and "default" in field
                           else field | {"type": to} if field["name"] == name else field for field in fields]


def with_field(field):
    return lambda fields: [*fields, field]


def renamed(name, to):
    return lambda fields: [field | {"name": to} if field["name"] == name else field for field in fields]


# What a producer may do to the schema, and what becomes of its events.
EVOLUTION = {
    "reordered": (lambda fields: fields[::-1], True),
    "optional field removed": (without("position", "metadata", "eventId"), True),
    "field added": (with_field({"name": "isLive", "type": "boolean", "default": False}), True),
    "field added without default": (with_field({"name": "tags", "type": {"type": "array", "items": "string"}}), True),
    "narrower number": (retyped("watchTime", ["null", "float"]), True),
    "int for a double": (retyped("watchTime", ["null", "int"]), True),
    "required field removed": (without("userId"), False),
    "timestamp removed": (without("timestamp"), False),
    "required field renamed": (renamed("videoId", "video"), False),
    "other type": (retyped("interactionType", "long"), False),
    "other type of an optional field": (retyped("position", ["null", "string"]), False),
}


def test_schema_evolution(case, registry):
    """Row 32: what resolves to the reader's schema is a row, what does not is one dead letter; said once per schema."""
    generator = generate.Generator(305)
    worker = case.start_ready(REJECTS__RATIO_MAX=1)
    expected, bad = {}, []
    for name, (change, fits) in EVOLUTION.items():
        schema_id, schema = registered(case, name.replace(" ", "-"), change)
        for _ in range(10):
            fields = generator.fields(None) | {"watchTime": 12.5, "position": 3}
            value = fields | {"isLive": True, "tags": ["a"], "video": fields["videoId"]}
            if name == "int for a double":
                value["watchTime"] = 12
            if name == "other type":
                value["interactionType"] = 7
            if name == "other type of an optional field":
                value["position"] = "third"
            known = {field["name"] for field in schema["fields"]}
            body = generate.framed(schema_id, schema, {key: v for key, v in value.items() if key in known})
            event = generate.Event(fields["userId"].encode(), body, None if fits else "schema_incompatible")
            case.produce([event], partition=0)
            offset = case.produced[-1][1]
            if fits:
                expected[offset] = (
                    fields["userId"],
                    float(value["watchTime"]),
                    None if "position" not in known else 3,
                )
            else:
                bad.append((offset, schema_id))
    summary = finish(case, worker)
    assert summary["dead_lettered_by_reason"] == {"schema_incompatible": len(bad)}
    found = case.query("SELECT kafka_offset, user_id::text, watch_time_seconds, position FROM user_interactions")
    assert {row[0]: row[1:] for row in found} == expected
    letters = {int(dict(l.headers())["__connect.errors.offset"]): dict(l.headers()) for l in dead_letters(case)}
    for offset, schema_id in bad:
        assert letters[offset]["feed_worker.schema.id"] == str(schema_id).encode()
    # An alert once per schema, not per event.
    assert worker.log().count("a writer schema cannot be honoured") == sum(1 for _, fits in EVOLUTION.values() if not fits)


def test_registry_forgets_nothing_of_the_faults(registry, stack):
    """The switch itself: set, counted, cleared."""
    registry.set("mode=503&count=1")
    url = stack.env["FEED_WORKER_REGISTRY__URL"] + "/schemas/ids/1"
    for status in (503, None):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            assert status is None
        except urllib.error.HTTPError as error:
            assert error.code == (status or 404)
    assert registry.state() == {"mode": "503", "fired": 1, "requests": {"/schemas/ids/1": 2}, "together": {"/schemas/ids/1": 1}}
