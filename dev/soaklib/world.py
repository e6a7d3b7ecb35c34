"""What the faults are done to: brokers, Postgres, the S3 server, the registry, the DLQ, and the wire."""

import contextlib
import json
import time
import urllib.request

import psycopg
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from stacklib import kafka, postgres, registry_process, s3
from stacklib.settings import Settings

# More copies than there are brokers: the broker answers NOT_ENOUGH_REPLICAS, for as long as it stands.
IN_SYNC_TOO_MANY = "9"


class World:
    def __init__(self, case, proxies):
        self.case = case
        # In this process, not through `dev/stack`: a restart of Postgres shall not wait until a broker is up.
        self.settings = Settings.load(case.stack.folder)
        self.wires = {
            "kafka": proxies.kafka(case.stack),
            "postgres": proxies.postgres(case.database_url),
            "s3": proxies.s3(case.stack),
        }
        self.s3_faults_fired = {}

    @property
    def veteran_env(self):
        return {name: value for wire in self.wires.values() for name, value in wire.env.items()}

    # ---- Kafka ----------------------------------------------------------------------------------------------

    def stop_broker(self, node, kill):
        kafka.stop(self.settings, node, kill=kill)

    def start_broker(self, node):
        kafka.start(self.settings, node)

    def wait_for_all_copies(self, timeout_s=120.0):
        """Until every broker follows every partition: only one broker is away at a time, and its absence is over then."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # a broker that is just coming
                if not self.case.partitions_without_all_copies():
                    return
            time.sleep(0.5)
        raise RuntimeError(f"not every broker follows: {self.case.partitions_without_all_copies()}")

    def set_dlq_writable(self, writable):
        entry = ConfigEntry(
            "min.insync.replicas",
            None if writable else IN_SYNC_TOO_MANY,
            incremental_operation=AlterConfigOpType.DELETE if writable else AlterConfigOpType.SET,
        )
        resource = ConfigResource(ResourceType.TOPIC, self.case.dlq_topic, incremental_configs=[entry])
        admin = self.case.admin()  # it has to outlive its futures
        for future in admin.incremental_alter_configs([resource], request_timeout=20).values():
            future.result(30)

    # ---- Postgres -------------------------------------------------------------------------------------------

    def stop_postgres(self, mode):
        postgres.stop(self.settings, mode)

    def start_postgres(self):
        postgres.start(self.settings)

    def _ask_postgres(self, *statements):
        url = self.case.stack.env["DATABASE_URL"]
        with psycopg.connect(url, autocommit=True, connect_timeout=10, application_name="soak") as connection:
            for statement in statements:
                connection.execute(statement)

    def terminate_sessions(self):
        self._ask_postgres(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> 'soak' AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )

    def set_postgres_read_only(self, read_only):
        """What a fail-over looks like to who is still connected to the former primary."""
        change = "SET default_transaction_read_only = on" if read_only else "RESET default_transaction_read_only"
        self._ask_postgres(f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()")
        self.terminate_sessions()

    # ---- S3 and registry --------------------------------------------------------------------------------------

    def set_s3_fault(self, query):
        """Sets a fault of the builtin server; how often the last one was met."""
        url = self.case.stack.env["STACK_S3_FAULT_URL"]
        with urllib.request.urlopen(url, timeout=10) as answer:
            fired = json.load(answer)["fired"]
        urllib.request.urlopen(urllib.request.Request(f"{url}?{query}", method="POST"), timeout=10).close()
        return fired

    def stop_s3(self):
        s3.stop(self.settings, kill=True)

    def start_s3(self):
        s3.start(self.settings)

    def stop_registry(self):
        registry_process.stop(self.settings)

    def start_registry(self):
        registry_process.start(self.settings)

    # ---- the end ----------------------------------------------------------------------------------------------

    def restore_all(self):
        """Whatever a fault may have left behind, also one that failed half-way."""
        for node in self.settings.nodes():
            self.start_broker(node)
        self.start_postgres()
        self._ask_postgres("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
        self.start_s3()
        self.set_s3_fault("mode=off")
        self.start_registry()
        for wire in self.wires.values():
            wire.restore()
        self.wait_for_all_copies()
        self.set_dlq_writable(True)
