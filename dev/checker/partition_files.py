"""The files of one partition against the table, the ledger and themselves."""

from bisect import bisect_left

from . import files
from . import row as rows
from .bucket import open_bucket


class FileChecks:
    """Continues a PartitionCheck that has read the table; adds to its report."""

    def __init__(self, check):
        self.check = check
        self.task = check.task
        self.report = check.report
        self.name = check.name
        self.bucket = open_bucket(check.settings)
        self.filed = set()
        self.offsets = sorted(check.table)

    def run(self):
        self.check_objects()
        self.check_tiling()
        for entry in self.task.files:
            if entry["object_key"] in self.task.objects:
                self.check_file(entry)
            else:
                self.report.violation("lost", f"{entry['object_key']}: in the ledger, not in the bucket", 1)
        self.check_unfiled()

    def check_objects(self):
        known = {entry["object_key"] for entry in self.task.files}
        for key in sorted(self.task.objects.keys() - known):
            name = files.parse_key(key, self.check.settings.prefix)
            unadopted = name.first_offset == self.check.export_frontier
            if unadopted and self.check.settings.allow_unexported:
                self.report.count("unadopted")
            else:
                self.report.violation("orphan", f"{key}: not in the ledger")

    def check_tiling(self):
        """Files in the ledger's order: each begins where the one before ended, except after an accepted gap."""
        position, started = None, None
        for entry in self.task.files:
            first, following = entry["first_offset"], entry["next_offset"]
            if position is not None and first > position and not self.explained(position, first):
                self.report.violation("gap", f"{self.name}: no file for [{position}, {first})")
            if position is not None and first < position:
                self.report.violation("overlap", f"{self.name}: two files for [{first}, {min(position, following)})")
            started = first if started is None else started
            position = max(position or 0, following)
        frontier = self.check.export_frontier
        if position is not None and frontier > position and not self.explained(position, frontier):
            self.report.violation("gap", f"{self.name}: export_frontier {frontier}, but the last file ends at {position}")
        before = [offset for offset in self.offsets if offset < (frontier if started is None else started)]
        if before:
            self.report.violation(
                "gap", f"{self.name}: no file for [{before[0]}, {before[-1] + 1}), below the first file", len(before)
            )

    def explained(self, first, following):
        """Whether accepted gaps cover the range and it has no rows."""
        if any(first <= offset < following for offset in self.offsets):
            return False
        return any(gap["from_offset"] < following and gap["to_offset"] > first for gap in self.task.gaps)

    def check_file(self, entry):
        key = entry["object_key"]
        content, said = self.bucket.get(key)
        self.report.count("files")
        self.report.count("bytes", len(content))
        if len(content) != entry["bytes"]:
            self.report.violation("mismatch", f"{key}: {len(content)} bytes, {entry['bytes']} in the ledger")
        self.check_name(entry)
        try:
            file = files.File(content)
            for text in file.form_errors():
                self.report.violation("mismatch", f"{key}: {text}")
            tuples = list(file.tuples())
        except (files.Unreadable, KeyError, ValueError, TypeError, AttributeError) as error:
            self.report.violation("mismatch", f"{key}: {error}")
            return
        self.check_said(entry, file.pairs, said)
        self.check_rows(entry, tuples)

    def check_name(self, entry):
        key = entry["object_key"]
        name = files.parse_key(key, self.check.settings.prefix)
        if name is None:
            self.report.violation("mismatch", f"{key}: not a key of the agreed form")
            return
        if (name.topic, name.partition) != (self.check.settings.topic, self.task.partition):
            self.report.violation("mis-filed", f"{key}: in the ledger as {self.name}")
        if name.first_offset != entry["first_offset"]:
            self.report.violation("mismatch", f"{key}: first offset {entry['first_offset']} in the ledger")
        if name.day != entry["day"]:
            self.report.violation("mis-filed", f"{key}: day {entry['day']} in the ledger")

    def check_said(self, entry, pairs, said):
        """Object metadata, Parquet key-value metadata and ledger say the same."""
        key = entry["object_key"]
        expected = {
            "topic": self.check.settings.topic,
            "partition": str(self.task.partition),
            "first_offset": str(entry["first_offset"]),
            "next_offset": str(entry["next_offset"]),
            "last_offset": str(entry["next_offset"] - 1),
            "rows": str(entry["rows"]),
            "row_hash": entry["row_hash"],
        }
        places = [("Parquet", pairs)]
        if said is not None:
            places.append(("object", {name.replace("-", "_"): value for name, value in said.items()}))
        for place, found in places:
            for name, value in expected.items():
                if found.get(name) != value:
                    self.report.violation(
                        "mismatch", f"{key}: {place} metadata {name} {found.get(name)!r}, ledger {value!r}"
                    )
            if not found.get("schema_version"):
                self.report.violation("mismatch", f"{key}: {place} metadata without schema_version")
        bounds = {"recorded_at_min_ms": entry["recorded_min_ms"], "recorded_at_max_ms": entry["recorded_max_ms"]}
        for name, value in bounds.items():
            if pairs.get(name) != str(value):
                self.report.violation("mismatch", f"{key}: Parquet metadata {name} {pairs.get(name)!r}, ledger {value}")
        epochs = {place: found.get("epoch") for place, found in places}
        if len(set(epochs.values())) != 1 or epochs["Parquet"] != str(entry["epoch"]):
            self.report.violation("mismatch", f"{key}: epoch {epochs}, ledger {entry['epoch']}")
        if self.task.ledger and entry["epoch"] > self.task.ledger["epoch"]:
            self.report.violation(
                "frontier-regression", f"{key}: epoch {entry['epoch']}, the partition's is {self.task.ledger['epoch']}"
            )

    def check_rows(self, entry, tuples):
        key, table_rows = entry["object_key"], self.check.table
        first, following = entry["first_offset"], entry["next_offset"]
        previous, recorded = first - 1, []
        for row in tuples:
            offset = rows.offset_of(row)
            recorded.append(rows.recorded_ms_of(row))
            if offset <= previous:
                self.report.violation("mismatch", f"{key}: offset {offset} after {previous}")
            if not first <= offset < following:
                self.report.violation("mis-filed", f"{key}: offset {offset} outside [{first}, {following})")
            previous = offset
            if offset in self.filed:
                self.report.violation("doubled", f"{key}: offset {offset} is in another file or twice in this one")
            self.filed.add(offset)
            ours = table_rows.get(offset)
            if ours is None:
                self.report.violation("orphan", f"{key}: offset {offset} has no row in the table")
            elif ours != row:
                self.check.say_differences(f"{key}@{offset}: table and file", ours, row)
        self.report.count("exported", len(tuples))
        self.check_totals(entry, tuples, recorded, previous)

    def check_totals(self, entry, tuples, recorded, last):
        key = entry["object_key"]
        if len(tuples) != entry["rows"]:
            self.report.violation("mismatch", f"{key}: {len(tuples)} rows, {entry['rows']} in the ledger")
        if tuples and last != entry["next_offset"] - 1:
            self.report.violation("mismatch", f"{key}: last row at {last}, next offset {entry['next_offset']}")
        said = (entry["recorded_min_ms"], entry["recorded_max_ms"])
        found = (min(recorded, default=0), max(recorded, default=0))
        days = {rows.day_of(moment) for moment in found}
        if tuples and days != {entry["day"]}:
            self.report.violation("mis-filed", f"{key}: holds rows of {sorted(days)}")
        if tuples and found != said:
            self.report.violation("mismatch", f"{key}: recorded_at bounds {said} in the ledger, {found} in the rows")
        ours = [self.check.table[offset] for offset in self.within(entry["first_offset"], entry["next_offset"])]
        for place, hashed in (("table", rows.row_hash(ours)), ("file", rows.row_hash(tuples))):
            if hashed != entry["row_hash"]:
                self.report.violation("mismatch", f"{key}: row hash of the {place}'s rows {hashed}, ledger {entry['row_hash']}")

    def within(self, first, following):
        return self.offsets[bisect_left(self.offsets, first) : bisect_left(self.offsets, following)]

    def check_unfiled(self):
        below, above = [], []
        for offset in self.offsets:
            if offset not in self.filed:
                (below if offset < self.check.export_frontier else above).append(offset)
        self.check.say_ranges("lost", below, "below export_frontier, and in no file")
        self.report.count("unexported", len(above))
        closed = self.task.ledger["closed_day_number"] if self.task.ledger else None
        late = [offset for offset in above if closed is not None and self.day_number(offset) <= closed]
        self.check.say_ranges("lost", late, "of a closed day, and in no file")
        if not self.check.settings.allow_unexported:
            self.check.say_ranges("pending", sorted(set(above) - set(late)), "not yet in a file")

    def day_number(self, offset):
        return rows.recorded_ms_of(self.check.table[offset]) // rows.DAY_MS
