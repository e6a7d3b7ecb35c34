"""Topic, database and prefix of a run: the harness's case, with a copy of every partition on each broker."""

import json

import harness
from confluent_kafka.admin import AdminClient, NewTopic


class SoakCase(harness.Case):
    def admin(self):
        # That a broker is away is what is wanted here, and nothing to be told.
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})

    def create_topic(self, name, partitions, config):
        admin = self.admin()
        copies = int(self.stack.env["STACK_BROKERS"])
        admin.create_topics([NewTopic(name, partitions, copies, config=config)])[name].result(30)
        harness.wait_until(lambda: name in admin.list_topics(timeout=10).topics, f"topic {name}")

    def partitions_without_all_copies(self):
        """Partitions that some broker does not follow: a second broker must not go now."""
        topics = self.admin().list_topics(timeout=5).topics
        return [
            (name, number)
            for name, topic in topics.items()
            for number, found in topic.partitions.items()
            if len(found.isrs) < len(found.replicas)
        ]

    def why(self):
        """The ends of the logs: the workers of one slot share one."""
        last = {worker.log_path: worker for worker in self.workers}
        return "".join(f"\n--- {worker.name}\n{worker.log_tail(15)}" for worker in last.values())

    def load_produced(self, path):
        """Adds what `feed-worker produce --record` wrote to what the harness produced itself."""
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                self.produced.append((entry["partition"], entry["offset"], entry["kind"], entry["reason"]))
