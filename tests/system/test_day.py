"""Closing a day: the manifest, then `_SUCCESS`, when no record of that day can come any more."""

import json

import jsonschema

import alerts
from closed_day import CLOSE_DELAY_MS, EVENTS, IDLE_PARTITION, MARKS
from harness import ROOT


def test_workers_ended_cleanly(crossing):
    assert crossing.codes == [0] * 6, crossing.busy.why() + crossing.quiet.why()


def test_day_closes_soon_after_the_delay(crossing):
    assert CLOSE_DELAY_MS / 1000 <= crossing.closed_after_s < CLOSE_DELAY_MS / 1000 + 40


def test_checker_agrees(crossing):
    summary = crossing.busy.assert_clean()
    assert summary["days"][crossing.day]["closed"]
    assert summary["days"][crossing.next_day] == {**summary["days"][crossing.next_day], "closed": False}
    assert summary["produced"] == EVENTS + 600
    assert summary["exported"] == summary["persisted"]


def test_manifest_lists_the_whole_day(crossing):
    manifest = json.loads(crossing.read(crossing.busy, "_manifest.json"))
    schema = json.loads((ROOT / "schemas" / "manifest.schema.json").read_text())
    jsonschema.validate(manifest, schema)
    rows = crossing.busy.query(
        "SELECT kafka_partition, count(*) FROM user_interactions WHERE recorded_at < %s GROUP BY 1", (crossing.next_day,)
    )
    assert manifest["rows"] == sum(count for _, count in rows)
    by_partition = {}
    for file in manifest["files"]:
        by_partition[file["partition"]] = by_partition.get(file["partition"], 0) + file["rows"]
    assert by_partition == dict(rows)
    assert [entry["partition"] for entry in manifest["partitions"]] == list(range(6))
    assert manifest["partitions"][IDLE_PARTITION]["next_offset"] is None
    listed = {file["key"] for file in manifest["files"]}
    folder = f"{crossing.busy.prefix}/{crossing.day}/"
    assert listed == {key for key in crossing.busy.keys() if key.startswith(folder) and key.endswith(".parquet")}


def test_midnight_rolled_the_open_files(crossing):
    """Neither rows nor age would have rolled the last file of the day."""
    assert len(set(crossing.busy.keys()) - crossing.at_midnight) > 5
    days = crossing.busy.query("SELECT count(*) FROM export_files WHERE recorded_at_min::date <> recorded_at_max::date")
    assert days[0][0] == 0


def test_idle_partition_moved_on_because_it_was_seen_empty(crossing):
    days = crossing.busy.query("SELECT persist_day::text, closed_day::text FROM partition_ledger")
    assert days == [(crossing.next_day, crossing.day)] * 6


def test_empty_day_closes_with_an_empty_manifest(crossing):
    manifest = json.loads(crossing.read(crossing.quiet, "_manifest.json"))
    assert (manifest["rows"], manifest["files"], manifest["gaps"]) == (0, [], [])
    assert manifest["partitions"] == [{"next_offset": None, "partition": number} for number in range(6)]
    assert crossing.read(crossing.quiet, "_SUCCESS") == b""
    summary = crossing.quiet.assert_clean()
    assert summary["days"][crossing.day]["closed"] and summary["persisted"] > 0


def test_open_day_is_not_marked(crossing):
    for case in (crossing.busy, crossing.quiet):
        assert not crossing.marks(case, crossing.next_day) & MARKS


def test_whoever_starts_finishes_a_closed_day(crossing):
    """`_SUCCESS` was never written, as if its writer had died between the two files."""
    case = crossing.quiet
    key = f"{case.prefix}/{crossing.day}/_SUCCESS"
    manifest = crossing.read(case, "_manifest.json")
    case.objects.delete(key)
    case.query("UPDATE topic_ledger SET success_day = closed_day - 1 RETURNING success_day")
    worker = case.start_ready()
    case.wait(lambda: key in case.keys(), "_SUCCESS written by the next worker")
    assert worker.stop() == 0, case.why()
    assert crossing.read(case, "_manifest.json") == manifest
    case.assert_clean()


def test_worker_that_cannot_finish_a_day_says_how_late_it_is(crossing):
    """Also one that was started only after something had put another manifest there: nobody else pages for it."""
    case = crossing.quiet
    manifest = f"{case.prefix}/{crossing.day}/_manifest.json"
    whole = case.objects.read(manifest)
    case.objects.delete(f"{case.prefix}/{crossing.day}/_SUCCESS")
    case.objects.delete(manifest)
    case.objects.put(manifest, b"{}")
    case.query("UPDATE topic_ledger SET success_day = closed_day - 1 RETURNING success_day")
    worker = case.start_ready()
    case.wait(lambda: "days are not finished yet" in worker.log(), "the day to be tried")
    late = lambda: [n for series, n in alerts.page(worker).items() if series.startswith("feed_worker_day_late_seconds")]  # noqa: E731
    case.wait(lambda: late() and late()[0] > 0, "the unfinished day to be told")
    case.objects.delete(manifest)
    case.objects.put(manifest, whole)
    case.wait(lambda: f"{case.prefix}/{crossing.day}/_SUCCESS" in case.keys(), "_SUCCESS")
    assert worker.stop() == 0, case.why()
    case.assert_clean()
