"""The second checker, `feed-worker audit`, as anybody would run it."""

import json
import os
import subprocess

from harness import WORKER

# The audit's words are those of Jepsen's Kafka workload; these are `dev/check`'s.
WORDS = {
    "lost-write": "lost",
    "duplicate": "doubled",
    "mis-filed": "mis-filed",
    "gap": "gap",
    "overlap": "overlap",
    "orphan": "orphan",
    "frontier-back": "frontier-regression",
    "inconsistent": "mismatch",
}


def audit_kinds(report):
    return {WORDS[kind] for kind in report["findings"]}


def audit(stack, arguments, *options):
    """(exit code, its JSON or None, its text)"""
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FEED_WORKER_")},
        **stack.env,
        **stack.clock_env,
        "DATABASE_URL": arguments.database_url,
        "FEED_WORKER_KAFKA__TOPIC": arguments.topic,
        "FEED_WORKER_KAFKA__DLQ_TOPIC": arguments.dlq_topic,
        "FEED_WORKER_KAFKA__GROUP_ID": arguments.group,
        "FEED_WORKER_S3__PREFIX": arguments.prefix,
        "RUST_BACKTRACE": "1",
    }
    words = [WORKER, "audit", "--json", *options]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout) if done.stdout else None
    return done.returncode, report, done.stdout + done.stderr
