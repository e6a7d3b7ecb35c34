"""A case whose partitions are on two Postgres servers, or on two databases of the stack's one server."""

import psycopg
from psycopg import sql

import harness

PLACEMENT = "3-5: 1"
ON = {0: (0, 1, 2), 1: (3, 4, 5)}


class SpreadCase(harness.Case):
    """Partitions 0 to 2 on the first server, 3 to 5 on the second."""

    def _create_database(self):
        super()._create_database()
        base = self.stack.env.get("STACK_POSTGRES_MORE_URLS") or self.stack.env["DATABASE_URL"]
        name = f"{self.database}_more"
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self.urls = [self.database_url, f"{base.rpartition('/')[0]}/{name}"]

    @property
    def env(self):
        return {
            **super().env,
            "FEED_WORKER_POSTGRES__MORE_URLS": self.urls[1],
            "FEED_WORKER_POSTGRES__PLACEMENT": PLACEMENT,
        }

    def location(self, server):
        return self.urls[server].rpartition("@")[2]

    def query_on(self, server, statement, parameters=()):
        with psycopg.connect(self.urls[server], autocommit=True, connect_timeout=5) as connection:
            return connection.execute(statement, parameters).fetchall()

    def query_all(self, statement, parameters=()):
        return [row for server in ON for row in self.query_on(server, statement, parameters)]

    def frontiers(self):
        try:
            found = self.query_all(
                "SELECT partition, persist_frontier, export_frontier, epoch FROM partition_ledger"
                " WHERE topic = %s AND stopped IS DISTINCT FROM 'elsewhere'",
                (self.topic,),
            )
        except psycopg.errors.UndefinedTable:
            return {}
        return {partition: tuple(rest) for partition, *rest in found}

    def owned(self, worker):
        found = self.query_all("SELECT partition, owner FROM partition_ledger WHERE topic = %s", (self.topic,))
        return sorted(partition for partition, owner in found if owner.rpartition("/")[2] == str(worker.pid))

    def rows(self):
        return sum(count for (count,) in self.query_all("SELECT count(*) FROM user_interactions"))

    def wait_exported(self, timeout_s=60.0):
        def exported():
            filed = self.query_all("SELECT coalesce(sum(rows), 0) FROM export_files WHERE topic = %s", (self.topic,))
            return self.rows() == sum(rows for (rows,) in filed)

        self.wait(exported, lambda: f"every row exported; ledger {self.frontiers()}", timeout_s)

    def check(self, *options, produced=True):
        return super().check("--more-database-url", self.urls[1], *options, produced=produced)

    def assert_each_on_its_server(self):
        """By the tables themselves: rows, ledger rows and files."""
        tables = {
            "user_interactions": "SELECT DISTINCT kafka_partition FROM user_interactions",
            "partition_ledger": "SELECT partition FROM partition_ledger WHERE stopped IS DISTINCT FROM 'elsewhere'",
            "export_files": "SELECT DISTINCT partition FROM export_files",
        }
        for server, partitions in ON.items():
            for name, statement in tables.items():
                found = sorted(partition for (partition,) in self.query_on(server, statement))
                assert set(found) <= set(partitions), f"{name} of server {server} has partitions {found}"
        entered = self.query_on(0, "SELECT partition, stopped_detail FROM partition_ledger WHERE stopped = 'elsewhere'")
        assert sorted(entered) == [(partition, f"1 {self.location(1)}") for partition in ON[1]]
