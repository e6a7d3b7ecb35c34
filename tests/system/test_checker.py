"""The checker is worth something only if it catches what it is there for: faults planted one at a time."""

import argparse

import boto3
import botocore.config
import pytest
from checker import __main__ as command
from checker.environment import settings
from checker.run import check

from world import DAY_MS, World


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


@pytest.fixture
def judge(stack, world, s3):
    """Spoils a copy of the world, installs it, and returns kind → examples."""

    def verdict(spoil=lambda world: None, *options):
        spoiled = world.copy()
        spoil(spoiled)
        arguments = told(stack, spoiled, s3, *options)
        report, summary = check(settings(arguments))
        world.remove_database(arguments.database_url)
        return {kind: texts for kind, texts in report.examples.items() if texts}, summary

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


def test_exit_codes(stack, world, s3, tmp_path, capsys):
    def run(arguments):
        words = []
        for name in ("env", "topic", "dlq_topic", "prefix", "group", "database_url"):
            words += ["--" + name.replace("_", "-"), getattr(arguments, name)]
        return command.main(words)

    assert run(told(stack, world.copy(), s3)) == 0
    spoiled = world.copy()
    spoiled.rows.pop()
    bad = told(stack, spoiled, s3)
    assert run(bad) == 1
    assert "lost" in capsys.readouterr().out
    bad.database_url = "postgres://nobody@127.0.0.1:1/nothing"
    assert run(bad) == 2
    assert command.main(["--env", str(tmp_path / "absent")]) == 2


def first_row_with(world, column):
    return next(row for row in world.rows if row[column] is not None)


def spoil(name):
    def register(function):
        PLANTED[name] = function
        return function

    return register


# What is planted → a function that returns the kinds that must be reported, all of them.
PLANTED = {}


@spoil("lost row")
def lost_row(world):
    world.rows.pop(100)
    return {"lost", "orphan", "mismatch"}  # the file has a row without a table row, and its hash is another


@spoil("lost tail: the frontier passed records that are nowhere")
def lost_tail(world):
    last = world.objects[-1]
    kept = last.rows.pop()
    world.rows.remove(kept)
    last.next = last.rows[-1]["kafka_offset"] + 1
    last.settle(world.topic)
    world.ledgers[1]["export_frontier"] = last.next
    return {"lost"}


@spoil("lost dead letter")
def lost_dead_letter(world):
    world.dead.pop(3)
    return {"lost"}


@spoil("row twice, under two days")
def row_twice(world):
    row = first_row_with(world, "position")
    world.rows.append(row | {"recorded_ms": row["recorded_ms"] + DAY_MS})
    return {"doubled"}


@spoil("dead letter of a row")
def dead_letter_of_row(world):
    row, letter = world.rows[5], dict(world.dead[0])
    place = {"__connect.errors.partition": row["kafka_partition"], "__connect.errors.offset": row["kafka_offset"]}
    letter["headers"] = [(name, str(place.get(name, value.decode())).encode()) for name, value in letter["headers"]]
    letter["partition"] = row["kafka_partition"]
    world.dead.append(letter)
    return {"doubled"}


@spoil("good event dead-lettered instead")
def good_event_dead_lettered(world):
    dead_letter_of_row(world)
    row = world.rows.pop(5)
    of = next(entry for entry in world.objects if row in entry.rows)
    of.rows.remove(row)
    of.settle(world.topic)
    world.remake_manifest()
    return {"mis-filed"}


@spoil("bad event in the table")
def bad_event_in_table(world):
    letter = next(letter for letter in world.dead if 0 < letter["source"][1] < 70)
    world.dead.remove(letter)
    partition, offset = letter["source"]
    row = dict(world.rows[0]) | {"kafka_partition": partition, "kafka_offset": offset, "recorded_ms": letter["timestamp"]}
    world.rows.append(row)
    of = next(entry for entry in world.objects if entry.partition == partition and entry.first <= offset < entry.next)
    of.rows.append(row)
    of.rows.sort(key=lambda row: row["kafka_offset"])
    of.settle(world.topic)
    world.remake_manifest()
    return {"mis-filed"}


CHANGES = {
    "occurred_ms": lambda value: value + 1,
    "recorded_ms": lambda value: value + 1,
    "user_id": lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"),
    "video_id": lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"),
    "interaction_type": lambda value: "share" if value != "share" else "like",
    "interaction_weight": lambda value: value + 1,
    "watch_time_seconds": lambda value: value + 0.001,
    "recommendation_score": lambda value: value * 0.999,
    "position": lambda value: value + 1,
    "algorithm": lambda value: None,
    "experiment_variant_id": lambda value: value + "x",
    "feed_session_id": lambda value: value.upper(),
    "event_id": lambda value: None,
    "metadata": lambda value: value | {"device": "toaster"},
}


def changed_everywhere(column):
    """Table and file agree, so that only the topic can tell."""

    def change(world):
        row = first_row_with(world, column)
        row[column] = CHANGES[column](row[column])
        for entry in world.objects:
            for own in entry.rows:
                if (own["kafka_partition"], own["kafka_offset"]) == (row["kafka_partition"], row["kafka_offset"]):
                    own.update(row)
                    entry.settle(world.topic)
        world.remake_manifest()
        return {"mismatch"}

    return change


def changed_in_file(column):
    def change(world):
        entry = next(entry for entry in world.objects if any(row[column] is not None for row in entry.rows))
        row = next(row for row in entry.rows if row[column] is not None)
        row[column] = CHANGES[column](row[column])
        entry.render()
        return {"mismatch"}

    return change


for _column in CHANGES:
    PLANTED[f"{_column} changed in table and file"] = changed_everywhere(_column)
    PLANTED[f"{_column} changed in the file"] = changed_in_file(_column)


@spoil("ingested_at of the file differs")
def ingested_in_file(world):
    world.objects[2].rows[0]["ingested_ms"] += 1
    world.objects[2].render()
    return {"mismatch"}


@spoil("file with a missing row, itself consistent")
def file_with_missing_row(world):
    entry = world.objects[1]
    entry.rows.pop(3)
    entry.settle(world.topic)
    world.remake_manifest()
    return {"lost", "mismatch"}


@spoil("overlap of two files")
def overlap(world):
    left, right = world.objects[2], world.objects[3]
    left.rows = left.rows + right.rows[:4]
    left.next = left.rows[-1]["kafka_offset"] + 1
    left.settle(world.topic)
    return {"overlap", "doubled"}


@spoil("gap between two files")
def gap(world):
    entry = world.objects[3]
    entry.first = entry.rows[2]["kafka_offset"]
    entry.rows = entry.rows[2:]
    entry.key = world.key(entry.day, entry.partition, entry.first)
    entry.settle(world.topic)
    return {"gap", "lost"}


@spoil("gap before the first file")
def gap_before_first(world):
    entry = world.objects[0]
    entry.rows = entry.rows[2:]
    entry.first = entry.rows[0]["kafka_offset"]
    entry.key = world.key(entry.day, entry.partition, entry.first)
    entry.settle(world.topic)
    world.remake_manifest()
    return {"gap", "lost"}


@spoil("gap of a whole file")
def whole_file_gone(world):
    del world.objects[2]
    return {"gap", "lost"}


@spoil("wrong day folder")
def wrong_day_folder(world):
    entry = world.objects[2]
    entry.day = world.days[0]
    entry.key = world.key(entry.day, entry.partition, entry.first)
    world.remake_manifest()
    return {"mis-filed"}


@spoil("folder and ledger of different days")
def folder_and_ledger(world):
    world.objects[2].key = world.key(world.days[0], 0, world.objects[2].first)
    return {"mis-filed"}


@spoil("key with another first offset")
def key_first_offset(world):
    entry = world.objects[3]
    entry.key = world.key(entry.day, entry.partition, entry.first + 1)
    return {"mismatch"}


@spoil("wrong hash everywhere")
def wrong_hash(world):
    entry = world.objects[0]
    entry.entry["row_hash"] = entry.said["row_hash"] = "0" * 32
    entry.render()
    world.remake_manifest()
    return {"mismatch"}


@spoil("wrong hash in the object's metadata only")
def wrong_said_hash(world):
    world.objects[3].said["row_hash"] = "1" * 32
    return {"mismatch"}


@spoil("wrong row count in the ledger")
def wrong_count(world):
    world.objects[3].entry["rows"] += 1
    return {"mismatch"}


@spoil("wrong size in the ledger")
def wrong_size(world):
    world.objects[3].entry["bytes"] += 1
    return {"mismatch"}


@spoil("object of another epoch")
def wrong_epoch(world):
    world.objects[3].said["epoch"] = str(int(world.objects[3].said["epoch"]) + 1)
    return {"mismatch"}


@spoil("truncated object")
def truncated_object(world):
    world.objects[3].content = world.objects[3].content[:-10]
    return {"mismatch", "lost"}


@spoil("object gone")
def object_gone(world):
    world.objects[3].stored = False
    return {"lost"}


@spoil("orphan object")
def orphan_object(world):
    stray = world.objects[3]
    world.objects.append(type(stray)(0, 7, 9, stray.day, world.key(stray.day, 0, 7), stray.rows, stray.entry, stray.said))
    world.objects[-1].content, world.objects[-1].entered = stray.content, False
    return {"orphan"}


@spoil("orphan object of no known name")
def orphan_name(world):
    world.marks[world.days[0]]["part-0.parquet"] = b"PAR1"
    return {"orphan"}


@spoil("dead letter that copies nothing")
def orphan_dead_letter(world):
    world.dead.append({**world.dead[0], "headers": [("feed_worker.reject.reason", b"tombstone")]})
    return {"orphan"}


@spoil("manifest without one file")
def manifest_file_missing(world):
    world.marks[world.days[0]]["_manifest.json"]["files"].pop()
    return {"mismatch"}


@spoil("manifest with a wrong count")
def manifest_count(world):
    world.marks[world.days[0]]["_manifest.json"]["rows"] += 1
    return {"mismatch"}


@spoil("manifest with a wrong hash")
def manifest_hash(world):
    world.marks[world.days[0]]["_manifest.json"]["files"][0]["row_hash"] = "2" * 32
    return {"mismatch"}


@spoil("manifest that leaves out a partition")
def manifest_partition(world):
    world.marks[world.days[0]]["_manifest.json"]["partitions"].pop()
    return {"mismatch"}


@spoil("manifest not canonical")
def manifest_spelling(world):
    import json

    body = world.marks[world.days[0]]["_manifest.json"]
    world.marks[world.days[0]]["_manifest.json"] = json.dumps(body, indent=1).encode()
    return {"mismatch"}


@spoil("no manifest")
def no_manifest(world):
    del world.marks[world.days[0]]["_manifest.json"]
    return {"lost"}


@spoil("no _SUCCESS")
def no_success(world):
    del world.marks[world.days[0]]["_SUCCESS"]
    return {"lost"}


@spoil("_SUCCESS of a day that is open")
def early_success(world):
    world.marks[world.days[1]] = {"_manifest.json": world.manifest(world.days[1]), "_SUCCESS": b""}
    return {"frontier-regression"}


@spoil("row of a closed day in no file")
def closed_day_row_unfiled(world):
    entry = world.objects[1]
    del world.objects[1:4]
    world.ledgers[0]["export_frontier"] = entry.first
    world.remake_manifest()
    return {"lost", "pending"}  # of the closed day lost, of the open day only not yet done


@spoil("dead letter with changed value")
def dead_letter_value(world):
    letter = next(letter for letter in world.dead if letter["value"])
    letter["value"] = letter["value"][:-1] + b"?"
    return {"mismatch"}


@spoil("dead letter of a tombstone with an empty value")
def dead_letter_null(world):
    letter = next(letter for letter in world.dead if letter["value"] is None)
    letter["value"] = b""
    return {"mismatch"}


@spoil("dead letter with another key")
def dead_letter_key(world):
    world.dead[1]["key"] = b"someone"
    return {"mismatch"}


@spoil("dead letter without an original header")
def dead_letter_header(world):
    world.dead[1]["headers"] = world.dead[1]["headers"][1:]
    return {"mismatch"}


@spoil("dead letter with another timestamp")
def dead_letter_time(world):
    world.dead[1]["timestamp"] += 1
    return {"mismatch"}


@spoil("dead letter with another reason")
def dead_letter_reason(world):
    headers = world.dead[1]["headers"]
    old = headers[-1][1]
    headers[-1] = (headers[-1][0], b"bad_uuid" if old != b"bad_uuid" else b"tombstone")
    return {"mismatch"}


@spoil("dead letter in another partition")
def dead_letter_partition(world):
    world.dead[1]["partition"] = 1 - world.dead[1]["partition"]
    return {"mis-filed"}


@spoil("export_frontier ahead without file")
def export_ahead(world):
    entry = world.objects.pop(3)
    assert entry.partition == 0
    return {"gap", "lost"}


@spoil("export_frontier behind its files")
def export_behind(world):
    world.ledgers[0]["export_frontier"] = world.objects[3].first
    return {"frontier-regression"}


@spoil("persist_frontier behind its rows")
def persist_behind(world):
    world.ledgers[0] |= {"persist_frontier": 150, "export_frontier": 150}
    return {"frontier-regression"}


@spoil("persist_frontier beyond the topic")
def persist_beyond(world):
    world.ledgers[0]["persist_frontier"] += 5
    return {"mismatch"}


@spoil("not drained")
def not_drained(world):
    world.rows = [row for row in world.rows if row["kafka_partition"] != 1 or row["kafka_offset"] < 150]
    last = world.objects[-1]
    last.rows = [row for row in last.rows if row["kafka_offset"] < 150]
    last.next = last.rows[-1]["kafka_offset"] + 1
    last.settle(world.topic)
    world.dead = [letter for letter in world.dead if letter["source"][0] != 1 or letter["source"][1] < 150]
    world.ledgers[1] |= {"persist_frontier": 150, "export_frontier": last.next}
    return {"pending"}


@spoil("ledger row gone")
def ledger_row_gone(world):
    del world.ledgers[1]
    return {"lost", "frontier-regression"}




@pytest.mark.parametrize("name", PLANTED, ids=lambda name: name.replace(" ", "-"))
def test_planted_fault_is_caught(judge, name):
    wanted = set()
    found, _ = judge(lambda world: wanted.update(PLANTED[name](world)))
    assert wanted == found.keys(), found


def test_second_copy_of_a_dead_letter_is_no_fault(judge):
    found, summary = judge(lambda world: world.dead.append(dict(world.dead[0])))
    assert found == {}
    assert summary["dead_letter_copies"] == summary["dead_lettered"] + 1


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
    assert summary["gapped"] > 0


def test_undrained_is_allowed_when_said(judge):
    found, summary = judge(not_drained, "--allow-pending")
    assert found == {}
    assert summary["pending"] == 10


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
