"""The two checkers are worth something only if they catch what they are there for: faults planted one at a time.

`dev/check` (Python) and `feed-worker audit` (Rust) share no code; each must name every fault, and both the same.
"""

import argparse
import json
from datetime import UTC, datetime, timedelta

import boto3
import botocore.config
import psycopg
import pyarrow
import pyarrow.parquet
import pytest
from checker import __main__ as command
from checker import row as rows
from checker.environment import settings
from checker.run import check

from harness import ROOT
from judges import audit, audit_kinds
from planted import PLANTED
from planted.dead_letters import dead_letter_of_row
from planted.rows import not_drained
from world import World


@pytest.fixture(scope="module")
def world(stack):
    return World(stack)


@pytest.fixture(scope="module")
def s3(stack):
    return boto3.client(
        "s3",
        endpoint_url=stack.env["FEED_WORKER_S3__ENDPOINT"],
        region_name=stack.env["FEED_WORKER_S3__REGION"],
        aws_access_key_id=stack.env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=stack.env["AWS_SECRET_ACCESS_KEY"],
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture(scope="module")
def planted(world, tmp_path_factory):
    """What was produced, as the producer's list."""
    reasons = {letter["source"]: letter["headers"][-1][1].decode() for letter in world.dead}
    path = tmp_path_factory.mktemp("produced") / "produced.ndjson"
    with open(path, "w", encoding="utf-8") as out:
        for partition in range(2):
            for offset in range(160):
                reason = reasons.get((partition, offset))
                entry = {"partition": partition, "offset": offset, "kind": "bad" if reason else "valid", "reason": reason}
                out.write(json.dumps(entry) + "\n")
    return path


@pytest.fixture
def judge(stack, world, s3, planted):
    """Spoils a copy of the world, installs it, and returns kind → examples."""

    def verdict(spoil=lambda world: None, *options):
        spoiled = world.copy()
        spoil(spoiled)
        arguments = told(stack, spoiled, s3, *options)
        report, summary = check(settings(arguments))
        found = {kind: texts for kind, texts in report.examples.items() if texts}
        code, audited, text = audit(stack, arguments, "--produced", planted)
        world.remove_database(arguments.database_url)
        # What is above the frontiers is for an audit to come; everything else must be called the same.
        assert audit_kinds(audited) == found.keys() - {"pending"}, (found, text)
        assert code == (2 if audit_kinds(audited) else 0), text
        summary["audit"] = audited
        return found, summary

    return verdict


def told(stack, world, s3, *options):
    installed = world.install(s3, stack.env["FEED_WORKER_S3__BUCKET"])
    words = ["--env", str(stack.folder / "env"), "--topic", world.topic]
    for name in ("dlq_topic", "prefix", "group", "database_url"):
        words += ["--" + name.replace("_", "-"), installed[name]]
    return command.parse_arguments([*words, *options])


def test_consistent_world_is_clean(judge, world):
    found, summary = judge()
    assert found == {}
    assert summary["produced"] == summary["persisted"] + summary["dead_lettered"] == 320
    assert summary["exported"] == summary["persisted"] == summary["rows_compared"] == len(world.rows)
    assert sum(summary["dead_lettered_by_reason"].values()) == len(world.dead) > 5
    assert summary["days"][world.days[0]]["closed"] and not summary["days"][world.days[1]]["closed"]
    assert summary["files"] == 8
    figures = summary["audit"]["figures"]
    assert (figures["records"], figures["rows_compared"], figures["files"]) == (320, len(world.rows), 8)
    assert figures["dead_letters"] == len(world.dead) and figures["manifests"] == 1
    assert summary["audit"]["complete"]


def test_exit_codes(stack, world, s3, tmp_path, capsys):
    def run(arguments):
        words = []
        for name in ("env", "topic", "dlq_topic", "prefix", "group", "database_url"):
            words += ["--" + name.replace("_", "-"), getattr(arguments, name)]
        return command.main(words)

    def audited(arguments, *options):
        return audit(stack, arguments, "--set", "postgres.connect_timeout_ms=500", *options)[0]

    good = told(stack, world.copy(), s3)
    assert (run(good), audited(good)) == (0, 0)
    spoiled = world.copy()
    spoiled.rows.pop()
    bad = told(stack, spoiled, s3)
    assert (run(bad), audited(bad)) == (1, 2)
    assert "lost" in capsys.readouterr().out
    url = bad.database_url
    bad.database_url = "postgres://nobody@127.0.0.1:1/nothing"
    assert (run(bad), audited(bad)) == (2, 75)
    bad.database_url = url.rpartition("/")[0] + "/nothing_of_the_kind"
    assert audited(bad) == 66
    assert audited(good, "--day", world.days[1]) == 66  # not closed yet
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    assert audited(good, "--day", "yesterday") == audited(good, "--day", yesterday.isoformat())
    assert audited(good, "--day", "someday") == 64
    assert command.main(["--env", str(tmp_path / "absent")]) == 2


@pytest.mark.parametrize("name", PLANTED, ids=lambda name: name.replace(" ", "-"))
def test_planted_fault_is_caught(judge, name):
    wanted = set()
    found, _ = judge(lambda world: wanted.update(PLANTED[name](world)))
    assert wanted == found.keys(), found


def test_second_copy_of_a_dead_letter_is_no_fault(judge):
    found, summary = judge(lambda world: world.dead.append(dict(world.dead[0])))
    assert found == {}
    assert summary["dead_letter_copies"] == summary["dead_lettered"] + 1


def test_dead_letter_of_a_row_is_not_counted(judge):
    """A later release may accept what an earlier one had refused just before it died."""
    found, summary = judge(dead_letter_of_row)
    assert found == {}
    assert summary["dead_letters_of_rows"] == summary["audit"]["figures"]["dead_letters_of_rows"] == 1


def test_accepted_gap_is_no_fault(judge):
    """An operator gave up the offsets that are in neither sink."""

    def give_up(world):
        entry = world.objects[3]
        lost = {row["kafka_offset"] for row in entry.rows[-3:]}
        first = min(lost)
        entry.rows = entry.rows[:-3]
        entry.next = entry.rows[-1]["kafka_offset"] + 1
        entry.settle(world.topic)
        world.rows = [row for row in world.rows if row["kafka_partition"] != 0 or row["kafka_offset"] < first]
        world.dead = [letter for letter in world.dead if letter["source"][0] != 0 or letter["source"][1] < first]
        world.ledgers[0]["export_frontier"] = entry.next
        world.gaps.append((0, first, 160, world.days[1], "retention"))

    found, summary = judge(give_up)
    assert found == {}
    assert summary["gapped"] == summary["audit"]["figures"]["records_in_gaps"] > 0
    assert [gap["reason"] for gap in summary["audit"]["accepted_gaps"]] == ["retention"]


def test_undrained_is_allowed_when_said(judge):
    found, summary = judge(not_drained, "--allow-pending")
    assert found == {}
    assert summary["pending"] == summary["audit"]["figures"]["records_pending"] == 10


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lost row", set()),  # of the open day
        ("lost row of the closed day", {"orphan", "mismatch"}),
        ("row of the next day in a file of a closed day", {"mis-filed"}),
        ("gap of a whole file", set()),
        ("gap between two files", set()),
        ("object gone", set()),
        ("orphan object of no known name", {"orphan"}),
        ("manifest with a wrong hash", {"mismatch"}),
        ("no _SUCCESS", {"lost"}),
        ("object overwritten with the rows of another file", {"mismatch", "mis-filed", "doubled", "lost"}),
        ("file with a missing row, itself consistent", {"lost", "mismatch"}),
        ("row of a closed day in no file", {"lost"}),
    ],
)
def test_audit_of_a_day(stack, world, s3, name, wanted):
    """One closed day, without the topic: what is wrong with another day is not its business."""
    spoiled = world.copy()
    PLANTED[name](spoiled)
    arguments = told(stack, spoiled, s3)
    code, report, text = audit(stack, arguments, "--day", world.days[0])
    world.remove_database(arguments.database_url)
    assert audit_kinds(report) == wanted, text
    assert code == (2 if wanted else 0)
    assert "records" not in report["figures"]


def test_dropped_day_is_not_called_well(stack, s3):
    """The table's retention took the closed day: its files are held against the ledger only, and that is said."""

    world = World(stack, age_days=5)

    def verdict(spoil, *options):
        spoiled = world.copy()
        spoiled.rows = [row for row in spoiled.rows if rows.day_of(row["recorded_ms"]) != world.days[0]]
        spoil(spoiled)
        arguments = told(stack, spoiled, s3)
        found = audit(stack, arguments, "--set", "day.retention_days=2", *options)
        world.remove_database(arguments.database_url)
        return found

    for options in ([], ["--day", world.days[0]]):
        code, report, text = verdict(lambda world: None, *options)
        assert (code, report["verdict"], report["complete"]) == (0, "clean", False), text
        assert any(world.days[0] in line for line in report["not_checked"]), text
    code, report, text = verdict(PLANTED["wrong hash in the object's metadata only"])
    assert (code, audit_kinds(report)) == (2, {"mismatch"}), text


READER = "audit_reader_of_tests"


def test_whoever_may_only_read_can_audit_what_was_dropped(stack, s3):
    """The rights of docs/policies: the tables, and not the partitions under them."""
    world = World(stack, age_days=5)
    world.rows = [row for row in world.rows if rows.day_of(row["recorded_ms"]) != world.days[0]]
    arguments = told(stack, world, s3)
    url = arguments.database_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP ROLE IF EXISTS {READER}")
        connection.execute(f"CREATE ROLE {READER} LOGIN PASSWORD 'reader'")
        connection.execute(f"GRANT USAGE ON SCHEMA public TO {READER}")
        grants = (ROOT / "docs/policies/postgres-grants.sql").read_text()
        (grant,) = (line for line in grants.splitlines() if line.endswith("TO feed_reader;"))
        connection.execute(grant.replace("feed_reader", READER))
    host = url.rpartition("@")[2]
    arguments.database_url = f"postgres://{READER}:reader@{host}"
    try:
        code, report, text = audit(stack, arguments, "--set", "day.retention_days=2")
        assert (code, report["findings"], report["complete"]) == (0, {}, False), text
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {READER}")
            connection.execute(f"DROP ROLE {READER}")
        world.remove_database(url)


def test_nothing_to_audit_is_not_well(case):
    """Tables that were just made, a topic with records, nobody has run: there is no verdict to give."""
    assert case.run("migrate").returncode == 0
    done = case.run("audit")
    assert done.returncode == 66 and "the ledger has no topic" in done.stderr, done.stdout + done.stderr


def test_user_ids_are_not_told(stack, world, s3, tmp_path):
    """A file that spells a user's id otherwise is a finding; the id itself stands in no report."""
    arguments = told(stack, world.copy(), s3)
    bucket = stack.env["FEED_WORKER_S3__BUCKET"]
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=arguments.prefix + "/")["Contents"]
    key = next(entry["Key"] for entry in listed if entry["Key"].endswith(".parquet"))
    found = s3.get_object(Bucket=bucket, Key=key)
    path = tmp_path / "file.parquet"
    path.write_bytes(found["Body"].read())
    table = pyarrow.parquet.read_table(path)
    shouted = [value.upper() for value in table.column("user_id").to_pylist()]
    at = table.schema.get_field_index("user_id")
    table = table.set_column(at, table.schema.field(at), pyarrow.array(shouted))
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)
    s3.delete_object(Bucket=bucket, Key=key)
    s3.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), Metadata=found["Metadata"])
    code, report, text = audit(stack, arguments)
    world.remove_database(arguments.database_url)
    assert code == 2 and "user_id at offset" in json.dumps(report), text
    told_of = [value for value in shouted if value in text or value.lower() in text]
    assert not told_of, text


def test_produced_list_is_held_against_the_topic(stack, world, s3):
    arguments = told(stack, world.copy(), s3)
    bad = {letter["source"] for letter in world.dead}
    listed = {
        partition: {offset: ("bad" if (partition, offset) in bad else "valid", None) for offset in range(160)}
        for partition in range(2)
    }
    for partition, offset in bad:
        reason = next(d for d in world.dead if d["source"] == (partition, offset))["headers"][-1][1].decode()
        listed[partition][offset] = ("bad", reason)
    assert check(settings(arguments), listed)[0].clean
    listed[0][160] = ("valid", None)
    assert check(settings(arguments), listed)[0].examples["lost"]
    del listed[0][160]
    partition, offset = next(iter(bad))
    listed[partition][offset] = ("valid", None)
    assert check(settings(arguments), listed)[0].examples["mismatch"]


def test_arguments_name_what_they_need(monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert isinstance(command.parse_arguments([]), argparse.Namespace)
    assert command.main([]) == 2
