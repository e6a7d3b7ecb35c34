"""Several Postgres servers: their ledgers as one, and whether each partition is on one of them only."""

from . import table
from .environment import CannotCheck


class Servers:
    """What all servers have of a topic. The first one's row has the topic's days."""

    def __init__(self, settings, report):
        self.settings = settings
        self.report = report
        self.connections = [table.connect(settings, number) for number in range(len(settings.database_urls))]
        self.topic_ledger = table.topic_ledger(self.connections[0], settings.topic)
        self.server_of = {}
        self.ledgers = []
        self.export_files = []
        self.gaps = []
        self.places = {}
        self.with_rows = set()
        for number, connection in enumerate(self.connections):
            self._read_ledger(number, connection)
        for number, connection in enumerate(self.connections):
            self._read_rest(number, connection)
        self._check_places()

    def close(self):
        for connection in self.connections:
            connection.close()

    def _name(self, partition):
        return f"{self.settings.topic}/{partition}"

    def _read_ledger(self, number, connection):
        for row in table.partition_ledger(connection, self.settings.topic):
            if row.stopped == table.ELSEWHERE:
                self.places.setdefault(row.partition, []).append((number, row.stopped_detail))
            elif row.partition in self.server_of:
                other = self.server_of[row.partition]
                self.report.violation("doubled", f"{self._name(row.partition)}: a ledger row on server {other} and on {number}")
            else:
                self.server_of[row.partition] = number
                self.ledgers.append(row)

    def _read_rest(self, number, connection):
        """Rows, files and gaps belong where the ledger row is."""
        files = table.export_files(connection, self.settings.topic)
        gaps = table.ingest_gaps(connection, self.settings.topic)
        with_rows = set(table.partitions_with_rows(connection))
        self.export_files += files
        self.gaps += gaps
        self.with_rows |= with_rows
        if len(self.connections) == 1:
            return
        for partition in sorted(with_rows | {entry.partition for entry in [*files, *gaps]}):
            if self.server_of.get(partition) != number:
                at = self.server_of.get(partition, "none")
                self.report.violation(
                    "doubled", f"{self._name(partition)}: rows, files or gaps on server {number}, the ledger row on {at}"
                )

    def _check_places(self):
        for partition, places in self.places.items():
            for number, place in places:
                named = int(place.split(" ")[0])
                if named >= len(self.connections):
                    raise CannotCheck(f"{self._name(partition)} is on another Postgres server: {place}")
                if number != 0 or self.server_of.get(partition, named) != named:
                    self.report.violation(
                        "doubled", f"{self._name(partition)}: server {number} says that it is on {place}, it is not"
                    )
        for partition, number in self.server_of.items():
            if number and partition not in self.places:
                self.report.violation("doubled", f"{self._name(partition)}: on server {number}, which the first does not say")
