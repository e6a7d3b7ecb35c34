"""What an event must be, told a second time: the checker's own reading of the contract.

`decode` turns a record into the table row it must become, or into the reason for which it must be dead-lettered.
"""

import math
import struct
from dataclasses import dataclass

from . import avro_event, json_event
from .bad import Bad
from .row import DAY_MS, canonical_json

REASONS = frozenset(
    """empty_value tombstone bad_framing schema_not_found schema_incompatible avro_malformed json_malformed
    json_duplicate_key missing_field wrong_type bad_uuid unknown_interaction_type bad_timestamp out_of_range
    bad_string metadata_too_large value_too_large refused_by_postgres""".split()
)
# What cannot be seen in the record itself: only whoever planted it knows.
REASONS_NOT_IN_RECORD = frozenset({"refused_by_postgres"})

VALUE_BYTES_MAX = 1 << 20
EARLIEST_MS = 946_684_800_000  # 2000-01-01 UTC
STRING_BYTES_MAX = 256
METADATA_KEYS_MAX = 64
METADATA_BYTES_MAX = 16 * 1024
POSITION_MAX = 2**31 - 1


@dataclass(slots=True)
class Interaction:
    """The columns that come from the event, encoded as `row.encode` wants them."""

    occurred_ms: int
    user: bytes
    video: bytes
    kind: bytes
    weight: float
    watch_time: float | None
    score: float | None
    position: int | None
    algorithm: bytes | None
    variant: bytes | None
    session: bytes | None
    event: bytes | None
    metadata: bytes | None


class Decoder:
    """Decodes records of one topic; keeps the schemas it has met."""

    def __init__(self, registry, weights):
        self._avro = avro_event.AvroDecoder(registry)
        self._weights = weights

    def decode(self, value, kafka_ms):
        """The Interaction that a value holds; raises Bad."""
        if value is None:
            raise Bad("tombstone")
        if len(value) > VALUE_BYTES_MAX:
            raise Bad("value_too_large")
        if not value:
            raise Bad("empty_value")
        if value[0] == 0x7B:
            fields = json_event.parse(value)
        elif value[0] == 0x00:
            fields = self._avro.parse(value)
        else:
            raise Bad("bad_framing")
        return self._interaction(fields, kafka_ms)

    def _interaction(self, fields, kafka_ms):
        kind = required(fields, "interactionType", str).lower()
        weight = self._weights.get(kind)
        if weight is None:
            raise Bad("unknown_interaction_type", "interactionType")
        occurred = fields.get("timestamp")
        if occurred is None:
            raise Bad("missing_field", "timestamp")
        if not EARLIEST_MS <= occurred <= kafka_ms + DAY_MS:
            raise Bad("bad_timestamp", "timestamp")
        return Interaction(
            occurred_ms=occurred,
            user=uuid_bytes(required(fields, "userId", str), "userId"),
            video=uuid_bytes(required(fields, "videoId", str), "videoId"),
            kind=kind.encode(),
            weight=weight,
            watch_time=number(fields, "watchTime", low=0.0),
            score=number(fields, "recommendationScore"),
            position=position(fields),
            algorithm=text(fields, "algorithm"),
            variant=text(fields, "experimentVariantId"),
            session=text(fields, "feedSessionId"),
            event=optional_uuid(fields, "eventId"),
            metadata=metadata(fields),
        )


def required(fields, name, kind):
    value = fields.get(name)
    if value is None:
        raise Bad("missing_field", name)
    if not isinstance(value, kind):
        raise Bad("wrong_type", name)
    return value


def uuid_bytes(spelled, name):
    """Hyphenated, either case. Anything else that some library would take for a UUID is not one here."""
    if len(spelled) != 36 or not (spelled[8] == spelled[13] == spelled[18] == spelled[23] == "-"):
        raise Bad("bad_uuid", name)
    digits = spelled.replace("-", "")
    if len(digits) != 32 or not digits.isascii() or not digits.isalnum():
        raise Bad("bad_uuid", name)
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise Bad("bad_uuid", name) from None


def optional_uuid(fields, name):
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Bad("wrong_type", name)
    return uuid_bytes(value, name)


def number(fields, name, low=None):
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, float):
        raise Bad("wrong_type", name)
    if not math.isfinite(value) or (low is not None and value < low):
        raise Bad("out_of_range", name)
    return value


def position(fields):
    value = fields.get("position")
    if value is None:
        return None
    if not isinstance(value, int):
        raise Bad("wrong_type", "position")
    if not 0 <= value <= POSITION_MAX:
        raise Bad("out_of_range", "position")
    return value


def text(fields, name):
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise Bad("wrong_type", name)
    encoded = value.encode()
    if not 1 <= len(encoded) <= STRING_BYTES_MAX or b"\0" in encoded:
        raise Bad("bad_string", name)
    return encoded


def metadata(fields):
    entries = fields.get("metadata")
    if entries is None:
        return None
    for key, value in entries.items():
        if "\0" in key or "\0" in value:
            raise Bad("bad_string", "metadata")
    if len(entries) > METADATA_KEYS_MAX:
        raise Bad("metadata_too_large", "metadata")
    canonical = canonical_json(entries)
    if len(canonical) > METADATA_BYTES_MAX:
        raise Bad("metadata_too_large", "metadata")
    return canonical


def float4(value):
    """A weight as the table's float4 holds it."""
    return struct.unpack(">f", struct.pack(">f", value))[0]
