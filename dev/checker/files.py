"""A Parquet object as tuples in file order, with what it says of itself."""

import io
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from . import row as rows

_KEY = re.compile(r"(?P<day>\d{4}-\d\d-\d\d)/(?P<topic>.+)\+(?P<partition>\d+)\+(?P<first>\d{20})\.parquet")

STAMP = pa.timestamp("ms", tz="UTC")
TYPES = {
    "kafka_partition": pa.int32(),
    "kafka_offset": pa.int64(),
    "recorded_at": STAMP,
    "occurred_at": STAMP,
    "ingested_at": STAMP,
    "user_id": pa.string(),
    "video_id": pa.string(),
    "interaction_type": pa.string(),
    "interaction_weight": pa.float32(),
    "watch_time_seconds": pa.float64(),
    "recommendation_score": pa.float64(),
    "position": pa.int32(),
    "algorithm": pa.string(),
    "experiment_variant_id": pa.string(),
    "feed_session_id": pa.string(),
    "event_id": pa.string(),
    "metadata": pa.string(),
}
REQUIRED = rows.COLUMNS[:9]


@dataclass(frozen=True)
class Name:
    """What an object's key says."""

    day: str
    topic: str
    partition: int
    first_offset: int


def parse_key(key, prefix):
    match = _KEY.fullmatch(key.removeprefix(prefix + "/"))
    if not match:
        return None
    return Name(match["day"], match["topic"], int(match["partition"]), int(match["first"]))


class Unreadable(Exception):
    """Not a Parquet file of the agreed form."""


class File:
    def __init__(self, content):
        try:
            self._parquet = pq.ParquetFile(io.BytesIO(content))
        except (pa.ArrowException, OSError) as error:
            raise Unreadable(f"no Parquet: {error}") from error
        self.schema = self._parquet.schema_arrow
        pairs = self._parquet.metadata.metadata or {}
        self.pairs = {
            key.decode().removeprefix("feed_worker."): value.decode()
            for key, value in pairs.items()
            if key.startswith(b"feed_worker.")
        }

    def form_errors(self):
        """How the columns differ from the agreed ones."""
        if self.schema.names != list(rows.COLUMNS):
            return [f"columns {self.schema.names}"]
        found = []
        for field in self.schema:
            if field.type != TYPES[field.name]:
                found.append(f"{field.name} is {field.type}, not {TYPES[field.name]}")
            if field.nullable == (field.name in REQUIRED):
                found.append(f"{field.name} is {'nullable' if field.nullable else 'required'}")
        codecs = {
            self._parquet.metadata.row_group(group).column(column).compression
            for group in range(self._parquet.metadata.num_row_groups)
            for column in range(self._parquet.metadata.num_columns)
        }
        if codecs - {"ZSTD"}:
            found.append(f"compression {sorted(codecs)}")
        return found

    def tuples(self):
        """Every row as a tuple. Metadata is taken as it stands: in a file it has to be canonical already."""
        for batch in self._parquet.iter_batches(batch_size=16_384):
            yield from _batch_tuples(batch)


def _batch_tuples(batch):
    columns = []
    for name in rows.COLUMNS:
        column = batch.column(name)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = column.cast(pa.binary())
        values = column.to_pylist()
        if name in ("user_id", "video_id", "event_id"):
            values = [None if value is None else _uuid(value) for value in values]
        columns.append(values)
    for values in zip(*columns, strict=True):
        yield rows.encode(*values)


def _uuid(spelled):
    if len(spelled) != 36 or spelled != spelled.lower():
        raise Unreadable(f"uuid {spelled!r} is not lower case with hyphens")
    return bytes.fromhex(spelled.replace(b"-", b"").decode())
