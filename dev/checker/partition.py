"""One partition: what the topic says must be, what table, dead letters and files have."""

from dataclasses import dataclass

from . import dead_letters, table
from . import row as rows
from . import topic as topics
from .bad import Bad
from .event import REASONS_NOT_IN_RECORD, Decoder
from .partition_files import FileChecks
from .registry import Registry
from .report import Report, ranges

INGESTED_BEFORE_RECORDED_MS_MAX = 3_600_000  # two clocks, one of them perhaps a little off


@dataclass
class Task:
    """Everything that one process needs for one partition; picklable."""

    settings: object
    partition: int
    first_kept: int
    end: int
    ledger: object  # partition_ledger row as a dict, None if there is none
    committed: int | None
    files: list  # export_files rows as dicts, by first offset
    objects: dict  # key → size, of this partition
    gaps: list
    produced: dict | None  # offset → (kind, reason)
    dead: dict  # offset → the copies of its dead letter


class PartitionCheck:
    def __init__(self, task):
        self.task = task
        self.settings = task.settings
        self.name = f"{task.settings.topic}/{task.partition}"
        self.report = Report()
        self.table = {}
        self.dead = task.dead
        self.days_of_rows = set()
        ledger = task.ledger or {}
        self.persist_frontier = ledger.get("persist_frontier", task.first_kept)
        self.export_frontier = ledger.get("export_frontier", self.persist_frontier)

    def run(self):
        self.read_table()
        self.check_records()
        FileChecks(self).run()
        self.check_frontiers()

    def gapped(self, offset):
        return any(gap["from_offset"] <= offset < gap["to_offset"] for gap in self.task.gaps)

    # ---- the two sinks -------------------------------------------------------------------------------------

    def read_table(self):
        # Also on the servers where it should have none: a row there is one too many.
        for server in range(len(self.settings.database_urls)):
            with table.connect(self.settings, server) as connection:
                self.read_server(connection)
        self.report.count("persisted", len(self.table))
        self.report.count("dead_lettered", len(self.dead.keys() - self.table.keys()))

    def read_server(self, connection):
        day_reached = 0
        for row in table.table_tuples(connection, self.task.partition):
            offset = rows.offset_of(row)
            if offset in self.table:
                self.report.violation("doubled", f"{self.name}@{offset}: two rows in the table")
                continue
            self.table[offset] = row
            day_reached = self.check_times(offset, row, day_reached)

    def check_times(self, offset, row, day_reached):
        recorded = rows.recorded_ms_of(row)
        ingested = rows.ingested_ms_of(row)
        day = recorded // rows.DAY_MS
        if day < day_reached:
            self.report.violation(
                "mismatch", f"{self.name}@{offset}: recorded_at {rows.day_of(recorded)} after a row of a later day"
            )
        if ingested < recorded - INGESTED_BEFORE_RECORDED_MS_MAX:
            self.report.violation("mismatch", f"{self.name}@{offset}: ingested long before it was recorded")
        self.days_of_rows.add(day)
        return max(day, day_reached)

    # ---- record by record ----------------------------------------------------------------------------------

    def check_records(self):
        task, lost, pending = self.task, [], []
        decoder = Decoder(Registry(self.settings.registry_url), self.settings.weight_of())
        seen = set()
        self.report.count("produced", task.end - task.first_kept)
        for message in topics.records(self.settings, self.settings.topic, task.partition, task.first_kept, task.end):
            offset = message.offset()
            seen.add(offset)
            row, copies = self.table.get(offset), self.dead.get(offset)
            if offset >= self.persist_frontier:
                if row is not None:
                    self.report.violation("frontier-regression", f"{self.name}@{offset}: a row at or above persist_frontier")
                elif copies is None:
                    pending.append(offset)
                    continue
            if self.gapped(offset):
                self.report.count("gapped")
                if row is not None or copies:
                    self.report.violation("mismatch", f"{self.name}@{offset}: in an accepted gap, and yet persisted")
                continue
            if row is None and copies is None:
                lost.append(offset)
            else:
                if row is not None and copies:
                    # As every reader of the DLQ counts: not at all, if the table has the record.
                    self.report.count("dead_letters_of_rows")
                    copies = None
                self.check_record(decoder, message, row, copies)
        self.check_unseen(seen, lost)
        self.say_ranges("lost", lost, "in neither table nor DLQ")
        if self.settings.allow_pending:
            self.report.count("pending", len(pending))
        else:
            self.say_ranges("pending", pending, "not yet persisted")

    def say_ranges(self, kind, offsets, text):
        for first, following in ranges(sorted(offsets)):
            self.report.violation(kind, f"{self.name}@[{first}, {following}): {text}", following - first)

    def check_unseen(self, seen, lost):
        """What stands in a sink, or on the producer's list, without a record in the topic."""
        task = self.task
        for offset in sorted((self.table.keys() | self.dead.keys()) - seen):
            if offset < task.first_kept:
                self.report.count("beyond_retention")
                if offset in self.table and offset in self.dead:
                    self.report.count("dead_letters_of_rows")
            else:
                where = "row" if offset in self.table else "dead letter"
                self.report.violation("orphan", f"{self.name}@{offset}: a {where} of a record that is not in the topic")
        for offset, (kind, reason) in (task.produced or {}).items():
            if offset >= task.end:
                self.report.violation("lost", f"{self.name}@{offset}: produced, but not in the topic")
            elif offset < task.first_kept and not self.gapped(offset):
                if offset not in self.table and offset not in self.dead:
                    lost.append(offset)
                elif (offset in self.dead) != (kind == "bad"):
                    self.report.violation("mis-filed", f"{self.name}@{offset}: produced as {kind} {reason or ''}")

    def check_record(self, decoder, message, row, copies):
        offset, kafka_ms = message.offset(), message.timestamp()[1]
        planted = self.planted(message)
        try:
            event, bad = decoder.decode(message.value(), kafka_ms), None
        except Bad as reason:
            event, bad = None, reason
        if planted and bad is None and planted not in REASONS_NOT_IN_RECORD:
            self.report.violation("mismatch", f"{self.name}@{offset}: planted as {planted}, but a good event by its value")
        if bad is not None and planted == "":
            self.report.violation("mismatch", f"{self.name}@{offset}: produced as valid, but {bad}")
        is_bad = bool(planted) or bad is not None
        if is_bad and row is not None:
            self.report.violation("mis-filed", f"{self.name}@{offset}: {planted or bad}, and yet in the table")
        elif not is_bad and copies:
            reason = topics.header(copies[0].headers, topics.REASON)
            self.report.violation("mis-filed", f"{self.name}@{offset}: a good event, dead-lettered as {reason}")
        elif is_bad:
            dead_letters.check_copies(self.report, f"{self.name}@{offset}", message, copies, planted)
        else:
            self.check_row(offset, kafka_ms, event, row)

    def planted(self, message):
        """The planted reason; '' = known to be valid; None = nothing is known."""
        offset = message.offset()
        listed = (self.task.produced or {}).get(offset)
        marked = topics.header(message.headers(), topics.PLANTED)
        if listed is not None:
            kind, reason = listed
            if marked and marked != reason:
                self.report.violation("mismatch", f"{self.name}@{offset}: listed as {reason}, marked as {marked}")
            return reason if kind == "bad" else ""
        return marked

    def check_row(self, offset, kafka_ms, event, row):
        recorded = rows.recorded_ms_of(row)
        moved_to_midnight = recorded % rows.DAY_MS == 0 and recorded > kafka_ms
        if recorded != kafka_ms:
            if moved_to_midnight:
                self.report.count("redated")
            else:
                self.report.violation(
                    "mismatch", f"{self.name}@{offset}: recorded_at {recorded} ms, Kafka's timestamp is {kafka_ms} ms"
                )
        expected = rows.encode(
            self.task.partition,
            offset,
            recorded,
            event.occurred_ms,
            rows.ingested_ms_of(row),
            event.user,
            event.video,
            event.kind,
            event.weight,
            event.watch_time,
            event.score,
            event.position,
            event.algorithm,
            event.variant,
            event.session,
            event.event,
            event.metadata,
        )
        self.report.count("rows_compared")
        if expected != row:
            self.say_differences(f"{self.name}@{offset}: event and row", expected, row)

    def say_differences(self, what, left, right):
        try:
            found = rows.differences(left, right)
        except ValueError:
            found = []
        text = "; ".join(f"{column}: {a!r} ≠ {b!r}" for column, a, b in found) or "the bytes differ"
        self.report.violation("mismatch", f"{what}: {text}")

    # ---- the ledger ----------------------------------------------------------------------------------------

    def check_frontiers(self):
        task = self.task
        if task.ledger is None:
            if self.table or self.dead or task.files:
                self.report.violation("lost", f"{self.name}: no ledger row")
            return
        ended = task.files[-1]["next_offset"] if task.files else None
        if ended is not None and self.export_frontier < ended:
            self.report.violation(
                "frontier-regression", f"{self.name}: export_frontier {self.export_frontier}, a file ends at {ended}"
            )
        if ended is not None and ended > self.persist_frontier:
            self.report.violation(
                "frontier-regression", f"{self.name}: persist_frontier {self.persist_frontier}, a file ends at {ended}"
            )
        if self.export_frontier > self.persist_frontier:
            self.report.violation(
                "frontier-regression",
                f"{self.name}: export_frontier {self.export_frontier} is past persist_frontier {self.persist_frontier}",
            )
        if self.persist_frontier > task.end:
            self.report.violation(
                "mismatch", f"{self.name}: persist_frontier {self.persist_frontier} is beyond the topic's end {task.end}"
            )
        if task.committed is not None and task.committed > self.persist_frontier:
            self.report.violation(
                "frontier-regression",
                f"{self.name}: persist_frontier {self.persist_frontier}, Kafka's committed offset {task.committed}",
            )
        beyond = [offset for offset in self.table if offset >= max(self.persist_frontier, task.end)]
        if beyond:
            self.report.violation("frontier-regression", f"{self.name}: {len(beyond)} rows above persist_frontier")


def check_partition(task):
    """(report, first day of its rows as a day number)"""
    check = PartitionCheck(task)
    check.run()
    check.report.count("partitions")
    return check.report, min(check.days_of_rows, default=None)
