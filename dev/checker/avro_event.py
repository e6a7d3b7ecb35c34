"""Avro in the Confluent wire format, read by fastavro and held to the last byte."""

import io
import json
import uuid

from fastavro import parse_schema, schemaless_reader, schemaless_writer
from fastavro.schema import SchemaParseException, UnknownType

from .bad import Bad

_OPTIONAL = {"watchTime": "double", "recommendationScore": "double", "position": "int"}
_OPTIONAL |= dict.fromkeys(("eventId", "feedSessionId", "algorithm", "experimentVariantId"), "string")
_ALIASES = {"recommendationScore": ["recommendation_score"]}

# What the worker wants to know of an event. Logical types are left out: only their base types matter here.
READER = parse_schema(
    {
        "type": "record",
        "name": "FeedInteraction",
        "fields": [
            {"name": "userId", "type": "string"},
            {"name": "videoId", "type": "string"},
            {"name": "interactionType", "type": "string"},
            {"name": "timestamp", "type": "long"},
            *(
                {"name": name, "type": ["null", kind], "default": None, "aliases": _ALIASES.get(name, [])}
                for name, kind in _OPTIONAL.items()
            ),
            {"name": "metadata", "type": ["null", {"type": "map", "values": "string"}], "default": None},
        ],
    }
)
NAMES = frozenset(field["name"] for field in READER["fields"])


class AvroDecoder:
    def __init__(self, registry):
        self._registry = registry
        self._writers = {}
        self._bridges = {}  # of writers that send a uuid as fixed(16): the same schema with strings

    def parse(self, value):
        """Field name → value; raises Bad."""
        if len(value) < 5:
            raise Bad("bad_framing")
        schema_id = int.from_bytes(value[1:5], "big")
        if schema_id not in self._writers:
            self._writers[schema_id] = self._writer(schema_id)
        writer = self._writers[schema_id]
        if isinstance(writer, Bad):
            raise Bad(writer.reason, writer.field)
        body = value[5:]
        written = read_exactly(body, writer)
        if schema_id in self._bridges:
            writer = self._bridges[schema_id]
            body = with_uuid_texts(written, writer)
        try:
            fields = schemaless_reader(io.BytesIO(body), writer, reader_for(writer))
        except Exception as error:  # fastavro says "does not resolve" in several ways
            raise Bad("schema_incompatible") from error
        for name in ("watchTime", "recommendationScore"):
            if fields[name] is not None:
                fields[name] = float(fields[name])
        return fields

    def _writer(self, schema_id):
        schema = self._registry.schema(schema_id)
        if schema is None:
            return Bad("schema_not_found")
        try:
            parsed = parse_schema(without_logical_types(schema))
            bridged = with_strings_for_uuids(schema)
            if bridged != schema:
                self._bridges[schema_id] = parse_schema(without_logical_types(bridged))
        except (SchemaParseException, UnknownType, KeyError, TypeError):
            return Bad("schema_incompatible")
        if not isinstance(parsed, dict) or parsed.get("type") != "record":
            return Bad("schema_incompatible")
        return parsed


def reader_for(writer):
    """The reader schema under the writer's name: Avro resolves records by name, and names are not ours to judge."""
    return {**READER, "name": writer["name"]}


def read_exactly(body, writer):
    """The value as written. A body that fastavro reads too kindly is caught by writing it again."""
    stream = io.BytesIO(body)
    try:
        value = schemaless_reader(stream, writer)
    except Exception as error:  # truncated, bad index, bad UTF-8: whatever it is called
        raise Bad("avro_malformed") from error
    if stream.tell() != len(body):
        raise Bad("avro_malformed")
    again = io.BytesIO()
    try:
        schemaless_writer(again, writer, value)
    except Exception as error:
        raise Bad("avro_malformed") from error
    if again.getvalue() != body and not walks(body, writer):
        raise Bad("avro_malformed")
    return value


def without_logical_types(schema):
    if isinstance(schema, dict):
        return {
            key: without_logical_types(value)
            for key, value in schema.items()
            if key not in ("logicalType", "doc")
        }
    if isinstance(schema, list):
        return [without_logical_types(item) for item in schema]
    return schema


def with_strings_for_uuids(schema):
    if isinstance(schema, dict):
        if schema.get("type") == "fixed" and schema.get("logicalType") == "uuid" and schema.get("size") == 16:
            return "string"
        return {key: with_strings_for_uuids(value) for key, value in schema.items()}
    if isinstance(schema, list):
        return [with_strings_for_uuids(item) for item in schema]
    return schema


def with_uuid_texts(written, bridge):
    """The body as a writer of the bridged schema would have sent it."""
    texts = {
        name: str(uuid.UUID(bytes=value)) if isinstance(value, bytes) and len(value) == 16 else value
        for name, value in written.items()
    }
    out = io.BytesIO()
    schemaless_writer(out, bridge, texts)
    return out.getvalue()


class _Walk:
    """Steps over a body by the letter of the specification; only used where the bytes look unusual."""

    def __init__(self, body):
        self.body = body
        self.at = 0

    def take(self, size):
        if size < 0 or self.at + size > len(self.body):
            raise EOFError
        self.at += size
        return self.body[self.at - size : self.at]

    def long(self):
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if shift and not byte:
                    raise ValueError  # longer than it must be
                break
            shift += 7
            if shift > 63:
                raise ValueError
        return (value >> 1) ^ -(value & 1)

    def blocks(self, each):
        while count := self.long():
            if count < 0:
                count = -count
                end = self.long() + self.at
                for _ in range(count):
                    each()
                if self.at != end:
                    raise ValueError
            else:
                for _ in range(count):
                    each()

    def value(self, schema, names):
        if isinstance(schema, list):
            index = self.long()
            if not 0 <= index < len(schema):
                raise ValueError
            return self.value(schema[index], names)
        if isinstance(schema, str) and schema in names:
            schema = names[schema]
        kind = schema["type"] if isinstance(schema, dict) else schema
        if isinstance(kind, (dict, list)):
            return self.value(kind, names)
        return self._typed(kind, schema, names)

    def _typed(self, kind, schema, names):
        if kind == "record":
            names[schema["name"]] = schema
            for field in schema["fields"]:
                self.value(field["type"], names)
        elif kind == "map":
            self.blocks(lambda: (self.take(self.long()).decode(), self.value(schema["values"], names)))
        elif kind == "array":
            self.blocks(lambda: self.value(schema["items"], names))
        elif kind == "string":
            self.take(self.long()).decode()
        elif kind == "bytes":
            self.take(self.long())
        elif kind in ("int", "long"):
            self.long()
        elif kind == "enum":
            names[schema["name"]] = schema
            if not 0 <= self.long() < len(schema["symbols"]):
                raise ValueError
        elif kind == "fixed":
            names[schema["name"]] = schema
            self.take(schema["size"])
        elif kind == "boolean":
            if self.take(1) not in (b"\0", b"\1"):
                raise ValueError
        else:
            self.take({"null": 0, "float": 4, "double": 8}[kind])
        return None


def walks(body, writer):
    walk = _Walk(body)
    try:
        walk.value(json.loads(json.dumps(writer)), {})
    except (EOFError, ValueError, KeyError):
        return False
    return walk.at == len(body)
