"""Postgres as the checker reads it: rows as COPY-binary tuples, and the ledgers."""

import struct

import psycopg
from psycopg.rows import namedtuple_row

from . import row as rows
from .environment import CannotCheck

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"


ELSEWHERE = "elsewhere"  # a ledger row that only says on which server the partition is


def connect(settings, server=0):
    try:
        connection = psycopg.connect(settings.database_urls[server], connect_timeout=10, row_factory=namedtuple_row)
    except psycopg.Error as error:
        raise CannotCheck(f"Postgres: {error}") from error
    connection.execute("SET TIME ZONE 'UTC'")
    return connection


def query(connection, statement, parameters=()):
    try:
        return connection.execute(statement, parameters).fetchall()
    except psycopg.Error as error:
        raise CannotCheck(f"Postgres: {error}") from error


def table_tuples(connection, partition):
    """Every row of a partition in offset order, as tuples with canonical metadata."""
    canonical = rows.Canonical()
    statement = (
        f"COPY (SELECT {', '.join(rows.COLUMNS)} FROM user_interactions"
        f" WHERE kafka_partition = {int(partition)} ORDER BY kafka_offset, recorded_at) TO STDOUT (FORMAT binary)"
    )
    try:
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in _tuples(copy):
                yield canonical.row(row)
    except psycopg.Error as error:
        raise CannotCheck(f"Postgres: {error}") from error


def _tuples(messages):
    """One tuple per protocol message, which is how Postgres sends them; anything else is no basis for a verdict."""
    first = True
    for message in messages:
        data = bytes(message)
        if first:
            if not data.startswith(_SIGNATURE):
                raise CannotCheck("Postgres: not a binary COPY stream")
            (extension,) = struct.unpack_from(">i", data, 15)
            data = data[19 + extension :]
            first = False
        if not data:
            continue
        (count,) = struct.unpack_from(">h", data, 0)
        if count == -1:
            continue  # the trailer; the stream still has to be read to its end
        if count != rows.FIELD_COUNT:
            raise CannotCheck(f"user_interactions: {count} columns, expected {rows.FIELD_COUNT}")
        yield data


def partition_ledger(connection, topic):
    return query(connection, "SELECT * FROM partition_ledger WHERE topic = %s ORDER BY partition", (topic,))


def topic_ledger(connection, topic):
    found = query(connection, "SELECT * FROM topic_ledger WHERE topic = %s", (topic,))
    return found[0] if found else None


def export_files(connection, topic):
    return query(
        connection,
        """SELECT partition, first_offset, next_offset, day::text AS day, object_key, rows, bytes, row_hash, epoch,
                  (extract(epoch FROM recorded_at_min) * 1000)::bigint AS recorded_min_ms,
                  (extract(epoch FROM recorded_at_max) * 1000)::bigint AS recorded_max_ms
           FROM export_files WHERE topic = %s ORDER BY partition, first_offset""",
        (topic,),
    )


def ingest_gaps(connection, topic):
    return query(
        connection,
        """SELECT partition, from_offset, to_offset, day::text AS day, reason FROM ingest_gaps
           WHERE topic = %s ORDER BY partition, from_offset""",
        (topic,),
    )


def partitions_with_rows(connection):
    return [found.kafka_partition for found in query(connection, "SELECT DISTINCT kafka_partition FROM user_interactions")]
