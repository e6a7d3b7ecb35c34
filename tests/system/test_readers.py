"""Files of a closed day, as the libraries of the ML team open them."""

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from checker.files import TYPES

COLUMNS = list(TYPES)
TIMES = ("recorded_at", "occurred_at", "ingested_at")
NULLABLE = COLUMNS[9:]


@pytest.fixture(scope="module")
def day(crossing, exports):
    return exports / crossing.day


@pytest.fixture(scope="module")
def expected_rows(crossing):
    return crossing.busy.query("SELECT count(*) FROM user_interactions WHERE recorded_at < %s", (crossing.next_day,))[0][0]


def test_pyarrow(day, expected_rows):
    """A folder with manifest and _SUCCESS in it is a dataset as it is."""
    dataset = pyarrow.dataset.dataset(day, format="parquet")
    assert dataset.schema.names == COLUMNS
    assert [field.type for field in dataset.schema] == list(TYPES.values())
    assert [field.nullable for field in dataset.schema] == [name in NULLABLE for name in COLUMNS]
    assert dataset.count_rows() == expected_rows


def test_every_file_has_the_one_schema(exports):
    paths = sorted(exports.glob("*/*.parquet"))
    assert len(paths) > 10
    schemas = {str(pyarrow.parquet.read_schema(path).remove_metadata()) for path in paths}
    assert len(schemas) == 1
    for path in paths:
        metadata = pyarrow.parquet.read_metadata(path).metadata
        assert b"ARROW:schema" not in metadata or not any(
            pa.types.is_dictionary(field.type) for field in pyarrow.parquet.read_schema(path)
        )


def test_pandas(day, expected_rows):
    frame = pandas.read_parquet(day)
    assert list(frame.columns) == COLUMNS and len(frame) == expected_rows
    for name in TIMES:
        assert str(frame[name].dtype) == "datetime64[ms, UTC]"
    assert str(frame["interaction_weight"].dtype) == "float32"
    assert str(frame["watch_time_seconds"].dtype) == str(frame["recommendation_score"].dtype) == "float64"
    assert str(frame["kafka_offset"].dtype) == "int64"
    assert isinstance(frame["user_id"].iloc[0], str) and len(frame["user_id"].iloc[0]) == 36
    assert frame["recommendation_score"].isna().any() and frame["recommendation_score"].notna().any()


def test_polars(day, expected_rows):
    frame = polars.scan_parquet(day / "*.parquet").collect()
    assert frame.height == expected_rows
    for name in TIMES:
        assert frame.schema[name] == polars.Datetime("ms", "UTC")
    wanted = {
        "kafka_partition": polars.Int32,
        "kafka_offset": polars.Int64,
        "user_id": polars.String,
        "interaction_type": polars.String,
        "interaction_weight": polars.Float32,
        "watch_time_seconds": polars.Float64,
        "position": polars.Int32,
        "metadata": polars.String,
    }
    assert {name: frame.schema[name] for name in wanted} == wanted


def test_duckdb(day, expected_rows):
    connection = duckdb.connect()
    described = connection.execute(f"DESCRIBE SELECT * FROM read_parquet('{day}/*.parquet')").fetchall()
    types = {name: kind for name, kind, *_ in described}
    assert list(types) == COLUMNS
    assert {types[name] for name in TIMES} == {"TIMESTAMP WITH TIME ZONE"}
    assert (types["user_id"], types["interaction_weight"], types["position"]) == ("VARCHAR", "FLOAT", "INTEGER")
    statement = f"SELECT count(*), count(DISTINCT (kafka_partition, kafka_offset)) FROM '{day}/*.parquet'"
    count = connection.execute(statement).fetchall()
    assert count == [(expected_rows, expected_rows)]


def test_metadata_is_queryable_json(day):
    connection = duckdb.connect()
    statement = f"SELECT DISTINCT json_extract_string(metadata, '$.device') FROM '{day}/*.parquet' WHERE metadata IS NOT NULL"
    assert {row[0] for row in connection.execute(statement).fetchall()} == {"ios", "android"}
