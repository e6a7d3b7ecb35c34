"""Closed days: the manifest says what the ledger says, and `_SUCCESS` stands exactly where it may."""

import json
import re
from datetime import UTC, date, datetime, timedelta

from . import row as rows

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
EPOCH_DAY = date(1970, 1, 1)


def number(day):
    return (day - EPOCH_DAY).days


class DayChecks:
    def __init__(self, settings, bucket, report, ledgers, topic_ledger, export_files, gaps):
        self.settings = settings
        self.bucket = bucket
        self.report = report
        self.ledgers = ledgers
        self.topic_ledger = topic_ledger
        self.export_files = export_files
        self.gaps = gaps

    def run(self, objects, first_day):
        """`first_day`: of the earliest row or file; a day before it may be closed, but need not be marked."""
        marks = self.folder_files(objects)
        closed = self.topic_ledger.closed_day if self.topic_ledger else date.min
        success = self.topic_ledger.success_day if self.topic_ledger else date.min
        days = {date.fromisoformat(day) for day in marks}
        if first_day:
            day = date.fromisoformat(first_day)
            while day <= success:
                days.add(day)
                day += timedelta(days=1)
        summary = {}
        for day in sorted(days):
            present = marks.get(str(day), set())
            self.check_day(day, present, closed, success)
            summary[str(day)] = {"closed": "_SUCCESS" in present}
        if self.topic_ledger and any(ledger.closed_day < closed for ledger in self.ledgers):
            self.report.violation("frontier-regression", f"closed_day {closed} of the topic is past a partition's")
        return summary

    def folder_files(self, objects):
        """day → the files beside the Parquet files in its folder."""
        found = {}
        for entry in objects:
            day, _, name = entry.key.removeprefix(self.settings.prefix + "/").partition("/")
            if _DAY.fullmatch(day) and name in ("_SUCCESS", "_manifest.json"):
                found.setdefault(day, set()).add(name)
        return found

    def check_day(self, day, present, closed, success):
        folder = f"{self.settings.prefix}/{day}"
        if day <= success and "_SUCCESS" not in present:
            self.report.violation("lost", f"{folder}/_SUCCESS: the ledger says that it was written")
        if "_SUCCESS" in present and "_manifest.json" not in present:
            self.report.violation("lost", f"{folder}/_manifest.json: there is a _SUCCESS")
        if present and day > closed:
            self.report.violation("frontier-regression", f"{folder}: {sorted(present)}, but closed_day is {closed}")
        if "_SUCCESS" in present and self.bucket.get(f"{folder}/_SUCCESS")[0]:
            self.report.violation("mismatch", f"{folder}/_SUCCESS: not empty")
        if "_manifest.json" in present:
            self.check_manifest(str(day), f"{folder}/_manifest.json")

    def check_manifest(self, day, key):
        content = self.bucket.get(key)[0]
        try:
            manifest = json.loads(content)
        except ValueError as error:
            self.report.violation("mismatch", f"{key}: {error}")
            return
        for text in sorted(differences(self.expected(day, manifest.get("schema_version")), manifest)):
            self.report.violation("mismatch", f"{key}: {text}")
        if not manifest.get("schema_version"):
            self.report.violation("mismatch", f"{key}: no schema_version")
        if rows.canonical_json(manifest) != content:
            self.report.violation("mismatch", f"{key}: not in canonical form")
        self.report.count("days_closed")

    def expected(self, day, schema_version):
        """The manifest as the ledger has it."""
        entries = [entry for entry in self.export_files if entry.day == day]
        ends = {ledger.partition: None for ledger in self.ledgers}
        for entry in entries:
            ends[entry.partition] = entry.next_offset
        return {
            "version": 1,
            "topic": self.settings.topic,
            "day": day,
            "schema_version": schema_version,
            "rows": sum(entry.rows for entry in entries),
            "partitions": [{"partition": partition, "next_offset": end} for partition, end in sorted(ends.items())],
            "files": [
                {
                    "key": entry.object_key,
                    "partition": entry.partition,
                    "first_offset": entry.first_offset,
                    "last_offset": entry.next_offset - 1,
                    "rows": entry.rows,
                    "bytes": entry.bytes,
                    "row_hash": entry.row_hash,
                    "recorded_at_min": entry.recorded_min_ms,
                    "recorded_at_max": entry.recorded_max_ms,
                }
                for entry in entries
            ],
            "gaps": [
                {
                    "partition": gap.partition,
                    "from_offset": gap.from_offset,
                    "to_offset": gap.to_offset,
                    "reason": gap.reason,
                }
                for gap in self.gaps
                if gap.day == day
            ],
        }


def differences(expected, found, path=""):
    """Where two JSON values differ; a moment may be spelled as milliseconds or as ISO-8601."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in expected.keys() | found.keys():
            if name not in found:
                yield f"{path}.{name} is missing"
            elif name not in expected:
                yield f"{path}.{name} is nobody's"
            else:
                yield from differences(expected[name], found[name], f"{path}.{name}")
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{path} has {len(found)} entries, the ledger {len(expected)}"
        for index, (left, right) in enumerate(zip(expected, found, strict=False)):
            yield from differences(left, right, f"{path}[{index}]")
    elif path.rpartition(".")[2].startswith("recorded_at_") and moment_ms(found) == expected:
        return
    elif expected != found or type(expected) is not type(found):
        yield f"{path} is {found!r}, the ledger has {expected!r}"


def moment_ms(value):
    if not isinstance(value, str):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) if moment.tzinfo else None
