"""One row of `user_interactions` as the bytes of its Postgres COPY-binary tuple.

Every source of rows (the decoded event, the table, a Parquet file) is brought into this one form.
Two rows are equal when their bytes are, and the row hash is a hash of exactly these bytes.
"""

import json
import struct
import uuid
from datetime import UTC, datetime, timedelta

import xxhash

COLUMNS = (
    "kafka_partition",
    "kafka_offset",
    "recorded_at",
    "occurred_at",
    "ingested_at",
    "user_id",
    "video_id",
    "interaction_type",
    "interaction_weight",
    "watch_time_seconds",
    "recommendation_score",
    "position",
    "algorithm",
    "experiment_variant_id",
    "feed_session_id",
    "event_id",
    "metadata",
)
FIELD_COUNT = len(COLUMNS)
POSTGRES_EPOCH_MS = 946_684_800_000  # 2000-01-01 UTC, in Unix milliseconds
DAY_MS = 86_400_000
NULL = b"\xff\xff\xff\xff"

# The fixed head: field count, then partition, offset, three timestamps and two UUIDs with their lengths.
_HEAD = struct.Struct(">hiiiqiqiqiqi16si16s")
_LENGTH = struct.Struct(">i")
_FLOAT4 = struct.Struct(">if")
_FLOAT8 = struct.Struct(">id")
_INT4 = struct.Struct(">ii")
_INT8 = struct.Struct(">q")
_UUID = struct.Struct(">i16s")
_HEAD_SIZE = _HEAD.size
_RECORDED_AT = slice(26, 34)
_INGESTED_AT = slice(50, 58)
_OFFSET = slice(14, 22)


def timestamp_bytes_us(unix_ms):
    """Unix milliseconds as Postgres counts: microseconds since 2000-01-01."""
    return (unix_ms - POSTGRES_EPOCH_MS) * 1000


def encode(
    partition,
    offset,
    recorded_ms,
    occurred_ms,
    ingested_ms,
    user,
    video,
    kind,
    weight,
    watch_time,
    score,
    position,
    algorithm,
    variant,
    session,
    event,
    metadata,
):
    """The COPY-binary tuple. UUIDs are 16 bytes, texts UTF-8 bytes, times Unix ms, metadata canonical JSON."""
    parts = [
        _HEAD.pack(
            FIELD_COUNT,
            4,
            partition,
            8,
            offset,
            8,
            timestamp_bytes_us(recorded_ms),
            8,
            timestamp_bytes_us(occurred_ms),
            8,
            timestamp_bytes_us(ingested_ms),
            16,
            user,
            16,
            video,
        ),
        _LENGTH.pack(len(kind)),
        kind,
        _FLOAT4.pack(4, weight),
        NULL if watch_time is None else _FLOAT8.pack(8, watch_time),
        NULL if score is None else _FLOAT8.pack(8, score),
        NULL if position is None else _INT4.pack(4, position),
    ]
    for text in (algorithm, variant, session):
        if text is None:
            parts.append(NULL)
        else:
            parts.append(_LENGTH.pack(len(text)))
            parts.append(text)
    parts.append(NULL if event is None else _UUID.pack(16, event))
    if metadata is None:
        parts.append(NULL)
    else:
        parts.append(_LENGTH.pack(len(metadata) + 1))
        parts.append(b"\x01")
        parts.append(metadata)
    return b"".join(parts)


def offset_of(row):
    return _INT8.unpack(row[_OFFSET])[0]


def recorded_ms_of(row):
    return _INT8.unpack(row[_RECORDED_AT])[0] // 1000 + POSTGRES_EPOCH_MS


def ingested_ms_of(row):
    return _INT8.unpack(row[_INGESTED_AT])[0] // 1000 + POSTGRES_EPOCH_MS


def fields(row):
    """The tuple's fields as bytes, None for null."""
    (count,) = struct.unpack_from(">h", row, 0)
    at, values = 2, []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(row, at)
        at += 4
        if length < 0:
            values.append(None)
        else:
            values.append(row[at : at + length])
            at += length
    if at != len(row):
        raise ValueError(f"tuple of {len(row)} bytes ends at {at}")
    return values


def metadata_start(row):
    """Where the last field's length stands."""
    at = _HEAD_SIZE
    for _ in range(FIELD_COUNT - 8):
        (length,) = _LENGTH.unpack_from(row, at)
        at += 4 + max(length, 0)
    return at


class Canonical:
    """Metadata as RFC 8785 text, from whatever spelling it comes in. Remembers what it has seen."""

    def __init__(self, entries_max=50_000):
        self._seen = {}
        self._entries_max = entries_max

    def text(self, spelled):
        known = self._seen.get(spelled)
        if known is None:
            known = canonical_json(json.loads(spelled))
            if len(self._seen) < self._entries_max:
                self._seen[spelled] = known
        return known

    def row(self, row):
        """A tuple read from Postgres, its jsonb in Postgres's spelling, with canonical metadata."""
        if row.endswith(NULL):
            return row
        at = metadata_start(row)
        text = self.text(row[at + 5 :])
        return b"".join((row[:at], _LENGTH.pack(len(text) + 1), b"\x01", text))


def canonical_json(value):
    """RFC 8785 for what metadata and manifests hold: objects, arrays, strings, booleans, null, whole numbers."""
    return _canonical(value).encode()


def _canonical(value):
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{_canonical(key)}:{_canonical(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, float):
        raise ValueError("a fractional number has no place in metadata or manifest")
    return json.dumps(value, ensure_ascii=False)


def row_hash(rows):
    """XXH3-128 of the tuples in the order given, as the 32 hex digits that files and manifests carry."""
    digest = xxhash.xxh3_128(seed=0)
    for row in rows:
        digest.update(row)
    return digest.hexdigest()


def differences(left, right, ignore=()):
    """The columns in which two tuples differ, as (column, left, right) in readable form."""
    found = []
    for column, a, b in zip(COLUMNS, fields(left), fields(right), strict=True):
        if a != b and column not in ignore:
            found.append((column, readable(column, a), readable(column, b)))
    return found


def readable(column, value):
    if value is None:
        return None
    if column in ("user_id", "video_id", "event_id") and len(value) == 16:
        return str(uuid.UUID(bytes=value))
    if column.endswith("_at"):
        moment = datetime(2000, 1, 1, tzinfo=UTC)
        return (moment + timedelta(microseconds=_INT8.unpack(value)[0])).isoformat()
    unpack = {
        "kafka_partition": ">i",
        "kafka_offset": ">q",
        "interaction_weight": ">f",
        "watch_time_seconds": ">d",
        "recommendation_score": ">d",
        "position": ">i",
    }.get(column)
    if unpack:
        return struct.unpack(unpack, value)[0]
    if column == "metadata":
        value = value[1:]
    return value.decode("utf-8", "replace")


def day_of(unix_ms):
    """The UTC date, as folders spell it."""
    return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime("%Y-%m-%d")
