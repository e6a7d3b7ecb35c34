"""What an earlier release left behind, so that the present one can be made to take it over.

`record` runs that release's own program on a stack, kills it in the middle, and keeps its database, its objects and the
records of its topic in `tests/system/releases/NAME/`. `install` puts them into a case. Once for each release:

    target/venv/bin/python tests/system/releases.py --worker PROGRAM --name 0.1.0
"""

import argparse
import base64
import glob
import gzip
import json
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2] / "dev")]

from confluent_kafka import Consumer, TopicPartition  # noqa: E402
from confluent_kafka.admin import (  # noqa: E402
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

import generate  # noqa: E402
import harness  # noqa: E402

FOLDER = Path(__file__).resolve().parent / "releases"
TOPIC, GROUP, PREFIX = "feed.release", "release", "exports-release"
PARTITIONS = 3
CLUSTER_ID = "@CLUSTER_ID@"


def names_of(case):
    case.topic, case.dlq_topic, case.group, case.prefix = TOPIC, f"{TOPIC}.dlq", GROUP, PREFIX
    return case


def remake_topics(case, config):
    """Their names are in the objects, so they are the same in every run."""
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    there = [name for name in (case.topic, case.dlq_topic) if name in admin.list_topics(timeout=10).topics]
    for future in admin.delete_topics(there).values() if there else ():
        future.result(20)
    harness.wait_until(lambda: not {*there} & {*admin.list_topics(timeout=10).topics}, "the topics to go")
    for name in (case.topic, case.dlq_topic):
        admin.create_topics([NewTopic(name, case.partitions, -1, config=config)])[name].result(20)


def one_clock_for_new_records(case):
    """From here on the broker stamps them, as the worker demands; what is there keeps the stamps that it came with."""
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    entry = ConfigEntry("message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, case.topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(20)


def records(case):
    client = Consumer({"bootstrap.servers": case.bootstrap, "group.id": "releases", "enable.auto.commit": False})
    found, ends = [], case.end_offsets()
    client.assign([TopicPartition(case.topic, number, 0) for number in range(case.partitions)])
    while len(found) < sum(ends.values()):
        message = client.poll(10)
        found.append(
            {
                "partition": message.partition(),
                "offset": message.offset(),
                "timestamp": message.timestamp()[1],
                "key": message.key().decode(),
                "value": message.value().decode(),
            }
        )
    client.close()
    return sorted(found, key=lambda one: (one["partition"], one["offset"]))


def cluster_id(case):
    return case.query("SELECT cluster_id FROM topic_ledger")[0][0]


def record(program, name, stack, folder):
    """Runs that release, kills it, keeps what it leaves."""
    harness.WORKER = Path(program)
    case = names_of(harness.Case(stack, "release", folder, partitions=PARTITIONS))
    remake_topics(case, {"message.timestamp.type": "LogAppendTime"})
    generator = generate.Generator(1, bad_share=0, users=20, videos=20)
    case.produce(generator.event() for _ in range(150))
    worker = case.start_ready(ROLL__AGE_MS_MAX=1000)
    case.wait_drained()
    case.wait_exported()
    assert worker.stop() == 0, case.why()
    # Rows that are in no file yet; offsets that Kafka was not told.
    worker = case.start_ready(ROLL__AGE_MS_MAX=3_600_000, KAFKA__COMMIT_INTERVAL_MS=3_600_000)
    case.produce(generator.event() for _ in range(60))
    case.wait_drained()
    worker.kill()
    keep(case, FOLDER / name)


def keep(case, folder):
    folder.mkdir(parents=True, exist_ok=True)
    program = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_dump"))[-1]
    done = subprocess.run([program, "--inserts", "--no-owner", case.database_url], capture_output=True, text=True, check=True)
    # The first lines and the last carry a token of this pg_dump, and settings that a client has anyway.
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith(("--", "\\", "SET ", "SELECT pg_catalog"))]
    dump = "\n".join(lines).replace(cluster_id(case), CLUSTER_ID) + "\n"
    with gzip.GzipFile(folder / "database.sql.gz", "wb", mtime=0) as out:
        out.write(dump.encode())
    objects, client = [], case.objects
    for key in sorted(client.keys()):
        head = client.client.head_object(Bucket=client.bucket, Key=key)
        body = base64.b64encode(client.read(key)).decode()
        objects.append({"key": key, "type": head["ContentType"], "metadata": head["Metadata"], "body": body})
    (folder / "objects.json").write_text(json.dumps(objects, indent=1) + "\n")
    (folder / "records.json").write_text(json.dumps(records(case), indent=None, separators=(",", ":")) + "\n")


def install(case, name):
    """The same database, objects and records, on this case's stack."""
    folder = FOLDER / name
    names_of(case)
    remake_topics(case, {"message.timestamp.type": "CreateTime", "retention.ms": "-1"})
    producer = case.producer()
    stored = json.loads((folder / "records.json").read_text())
    for one in stored:
        producer.produce(
            TOPIC, key=one["key"], value=one["value"], partition=one["partition"], timestamp=one["timestamp"]
        )
    assert producer.flush(30) == 0
    one_clock_for_new_records(case)
    admin = AdminClient({"bootstrap.servers": case.bootstrap})
    ours = admin.describe_cluster(request_timeout=10).result(20).cluster_id
    dump = gzip.decompress((folder / "database.sql.gz").read_bytes()).decode().replace(CLUSTER_ID, ours)
    with case.connect() as connection:
        connection.execute(dump)
    client = case.objects
    for key in client.keys():
        client.delete(key)
    for one in json.loads((folder / "objects.json").read_text()):
        client.client.put_object(
            Bucket=client.bucket,
            Key=one["key"],
            Body=base64.b64decode(one["body"]),
            ContentType=one["type"],
            Metadata=one["metadata"],
        )
    return stored


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", type=Path, required=True, help="that release's program")
    parser.add_argument("--name", required=True, help="that release's version")
    arguments = parser.parse_args()
    folder = harness.ROOT / "target" / "release-fixture"
    folder.mkdir(parents=True, exist_ok=True)
    stack = harness.Stack(folder / "stack", fresh=True)
    try:
        record(arguments.worker.resolve(), arguments.name, stack, folder)
    finally:
        stack.close()


if __name__ == "__main__":
    main()
