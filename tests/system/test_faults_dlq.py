"""What can never be a row, and a dead-letter topic that does not take it: one letter each, and nothing is passed over."""

import base64
import json

from checker import topic as topics
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

import generate
from test_dlq import dead_letters
from test_faults_postgres import finish, hold_ledger_row, session

MIB = 1 << 20


def headers(letter):
    return dict(letter.headers())


def where(letter):
    found = headers(letter)
    return int(found["__connect.errors.partition"]), int(found["__connect.errors.offset"])


def varint(number):
    """Avro's zig-zag long."""
    number = (number << 1) ^ (number >> 63)
    out = b""
    while True:
        number, low = number >> 7, number & 0x7F
        out += bytes([low | (0x80 if number else 0)])
        if not number:
            return out


def corpus(generator, schemas):
    """name → (value, reason)."""
    schema_id, schema = schemas.versions[-1]
    head = b"\x00" + schema_id.to_bytes(4, "big")

    def avro(**changed):
        return generate.framed(schema_id, schema, generator.fields(None) | changed)

    def text(**changed):
        return json.dumps(generator.fields(None) | changed).encode()

    whole = avro(metadata={"a": "b"})
    body = generator.fields(None)
    required = b"".join(varint(36) + body[name].encode() for name in ("userId", "videoId"))
    return {
        "tombstone": (None, "tombstone"),
        "empty": (b"", "empty_value"),
        "bad magic byte": (b"\x01" + whole[1:], "bad_framing"),
        "no framing at all": (b"hello", "bad_framing"),
        "half a schema id": (whole[:3], "bad_framing"),
        "a frame without a body": (whole[:5], "avro_malformed"),
        "truncated": (whole[:-3], "avro_malformed"),
        "one byte too many": (whole + b"\x00", "avro_malformed"),
        "another schema": (b"\x00" + schemas.foreign_id.to_bytes(4, "big") + b"\x02", "schema_incompatible"),
        "a string of 2^40 bytes": (head + varint(1 << 40) + b"abc", "avro_malformed"),
        "a string of -1 bytes": (head + varint(-1) + b"abc", "avro_malformed"),
        "a varint without end": (head + b"\xff" * 64, "avro_malformed"),
        "not UTF-8": (head + required + varint(2) + b"\xff\xfe" + b"\x00" * 30, "avro_malformed"),
        "NaN": (avro(watchTime=float("nan")), "out_of_range"),
        "infinite": (avro(recommendationScore=float("inf")), "out_of_range"),
        "NaN as JSON does not know it": (text(watchTime=float("nan")), "json_malformed"),
        "a key twice": (b'{"userId":"a",' + text()[1:], "json_duplicate_key"),
        "truncated JSON": (text()[:-1], "json_malformed"),
        "nested a hundred thousand deep": (b'{"userId":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_malformed"),
        "objects nested as deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "json_malformed"),
        "a million spaces": (b"{" + b" " * 1_000_000 + b"}", "missing_field"),
        "two megabytes of nothing, some bytes on the wire": (b"{" + b" " * 1_900_000 + b"}", "value_too_large"),
        "not a uuid": (text(userId="x"), "bad_uuid"),
        "0 bytes in a text": (text(algorithm="a\0b"), "bad_string"),
        "a metadata map of too many": (avro(metadata={f"k{n}": "v" for n in range(65)}), "metadata_too_large"),
    }


def test_each_kind_of_poison_is_one_letter(case):
    """Row 31: bytes untouched, with topic, partition, offset, class, reason and schema id; and the next event is a row."""
    schemas = case.schemas()
    generator = generate.Generator(401, schemas)
    worker = case.start_ready(REJECTS__RATIO_MAX=1)
    poison = corpus(generator, schemas)
    expected = {}
    for name, (value, reason) in poison.items():
        case.produce([generate.Event(b"poison", value, reason), generator.valid()], partition=2)
        expected[case.produced[-2][:2]] = (name, value, reason)
    summary = finish(case, worker)
    assert summary["persisted"] == summary["dead_lettered"] == len(poison)
    letters = dead_letters(case)
    assert sorted(where(letter) for letter in letters) == sorted(expected), "one letter each"
    for letter in letters:
        name, value, reason = expected[where(letter)]
        found = headers(letter)
        assert found["feed_worker.reject.reason"] == reason.encode(), (name, found)
        assert found["__connect.errors.topic"] == case.topic.encode()
        assert found["__connect.errors.exception.class.name"] == b"feed_worker.Reject"
        assert letter.key() == b"poison" and letter.value() == value, name
        is_framed = value is not None and len(value) >= 5 and value[0] == 0
        schema_id = str(int.from_bytes(value[1:5], "big")).encode() if is_framed else None
        assert found.get("feed_worker.schema.id") == schema_id, name
    assert "panicked" not in worker.log()


def too_large(generator):
    """Copies that no broker with default limits takes, each for another part of the record."""

    def filler():
        return base64.b64encode(generator.rng.randbytes(1_100_000)).decode()

    def event(reason, key, value):
        return generate.Event(key, value, reason)

    large = json.dumps({"userId": "nobody", "filler": filler()}).encode()
    return {
        "value": event("value_too_large", b"k", large),
        "key": event("bad_framing", filler().encode(), b"hello"),
        "key and value": event("json_malformed", large[:600_000], large[:700_000]),
    }


class WithHeaders(generate.Event):
    """An event with headers of its own."""

    own = ()

    @property
    def headers(self):
        return [*super().headers, *self.own]


def test_copy_that_is_too_large_is_cut_until_it_fits(case):
    """Row 33: whatever part of the record is too large for the DLQ, its partition does not stand still."""
    generator = generate.Generator(402)
    events = too_large(generator)
    events["headers"] = WithHeaders(b"k", b"hello", "bad_framing")
    events["headers"].own = [("large", generator.rng.randbytes(1_300_000))]
    worker = case.start_ready(REJECTS__RATIO_MAX=1)
    offsets = {}
    for name, event in events.items():
        case.produce([event, generator.valid()], partition=3)
        offsets[case.produced[-2][:2]] = name
    case.wait_drained()
    letters = {offsets[where(letter)]: letter for letter in dead_letters(case)}
    assert set(letters) == set(events) and len(dead_letters(case)) == len(events)
    for name, letter in letters.items():
        size = len(letter.key() or b"") + len(letter.value() or b"") + sum(len(v or b"") for _, v in letter.headers())
        assert size < 1_048_588, name
        event = events[name]
        assert event.value.startswith(letter.value()) and event.key.startswith(letter.key()), name
        if len(letter.value()) < len(event.value):
            assert topics.header(letter.headers(), topics.LENGTH["value"]) == str(len(event.value))
    # Whoever needs the rest finds the record by its coordinates; what is small is whole.
    assert letters["headers"].value() == b"hello" and letters["headers"].key() == b"k"
    finish(case, worker)


def test_dlq_with_a_tiny_limit_takes_what_fits(case):
    """Row 33: a DLQ that takes less than our usual cut."""
    generator = generate.Generator(403)
    alter(case, case.dlq_topic, "max.message.bytes", "20000")
    value = b"not an event: " + base64.b64encode(generator.rng.randbytes(300_000))
    worker = case.start_ready()
    case.produce([generate.Event(b"k", value, "bad_framing"), generator.valid()], partition=3)
    case.wait_drained()
    (letter,) = dead_letters(case)
    assert value.startswith(letter.value()) and 5000 < len(letter.value()) < 20_000
    finish(case, worker)


def test_letters_that_fit_alone_are_not_cut_for_their_batch(case):
    """Row 33: the limit is that of a batch. What is refused together goes one by one, and whole."""
    generator = generate.Generator(406)
    alter(case, case.dlq_topic, "max.message.bytes", "20000")
    bad = [
        generate.Event(b"k", b"not an event: " + base64.b64encode(generator.rng.randbytes(3000)), "bad_framing")
        for _ in range(60)
    ]
    case.produce([*bad, generator.valid()], partition=3)
    worker = case.start_ready(REJECTS__RATIO_MAX=1)
    case.wait_drained()
    letters = sorted(dead_letters(case), key=where)
    assert [letter.value() for letter in letters] == [event.value for event in bad]
    assert [name for letter in letters for name in headers(letter) if "truncated" in name] == []
    finish(case, worker)


def alter(case, topic, name, value):
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(20)


def test_dlq_that_takes_nothing_holds_only_what_needs_it(case):
    """Row 34: the broker refuses every letter: no frontier passes, the others go on; then all is sent."""
    generator = generate.Generator(404)
    worker = case.start_ready()
    case.produce(generator.valid() for _ in range(60))
    case.wait_drained()
    before = case.frontiers()[0][0]
    alter(case, case.dlq_topic, "max.message.bytes", "60")
    case.produce([generator.valid(), generate.Event(b"k", b"hello", "bad_framing"), generator.valid()], partition=0)
    for partition in range(1, case.partitions):
        case.produce((generator.valid() for _ in range(300)), partition=partition)
    ends = case.end_offsets()
    case.wait(lambda: all(case.frontiers()[n][0] == ends[n] for n in range(1, 6)), "the other partitions drained")
    case.wait(lambda: worker.log().count("a dead letter was not acknowledged") > 3, "attempts to fail")
    assert case.frontiers()[0][0] <= before + 1, "a frontier passed a record that is nowhere"
    assert dead_letters(case) == []
    assert worker.alive and worker.health("/health/live")[0] == 200
    alter(case, case.dlq_topic, "max.message.bytes", "1000000")
    finish(case, worker)
    assert [(where(letter), letter.value()) for letter in dead_letters(case)] == [((0, before + 1), b"hello")]


def test_killed_between_the_letter_and_the_frontier(case):
    """Row 35: the letter is there, the frontier is not: it may be there twice, under the same coordinates, and counts once."""
    generator = generate.Generator(405)
    worker = case.start_ready()
    case.produce([generator.valid()], partition=0)
    case.wait_drained()
    case.wait_exported()
    with session(case) as other:
        hold_ledger_row(other)
        case.produce([generator.bad("bad_uuid"), generator.valid(), generator.bad("tombstone")], partition=0)
        case.wait(lambda: len(dead_letters(case)) == 2, "both letters")
        assert case.frontiers()[0][0] == 1
        worker.kill()
        other.rollback()
    heir = case.start_ready("heir")
    summary = finish(case, heir)
    letters = dead_letters(case)
    assert {where(letter) for letter in letters} == {(0, 1), (0, 3)}
    assert len(letters) <= 4 and summary["dead_lettered"] == 2
