"""Where things are, and how the demo's workers differ from the defaults."""
import os
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target").resolve()
WORKER = TARGET / "debug" / "feed-worker"
DEMO = ROOT / "target" / "demo"
STACK = DEMO / "stack"
LOGS = DEMO / "log"
FILES = DEMO / "s3"
DLQ = DEMO / "dlq.ndjson"
SUMMARY = DEMO / "summary.json"
PRODUCED = DEMO / "produced.ndjson"
PRODUCE_REPORT = DEMO / "produce.json"
CHECK_REPORT = DEMO / "check.json"
FIGURES = DEMO / "figures.json"

TOPIC = "feed.interactions.v1"
DLQ_TOPIC = "feed.interactions.v1.dlq"
PREFIX = "exports"

EVENTS = 204_000
BAD_SHARE = 0.01
SEED = 20

# Short enough to be seen in half a minute; everything else is as in production.
WORKER_ENV = {
    "FEED_WORKER_KAFKA__SESSION_TIMEOUT_MS": "2000",
    "FEED_WORKER_REGISTRY__MISSING_AFTER_MS": "500",
    "FEED_WORKER_ROLL__ROWS_MAX": "15000",
    "FEED_WORKER_ROLL__AGE_MS_MAX": "3000",
    "FEED_WORKER_EXPORT__SETTLE_MS": "500",
    "FEED_WORKER_EXPORT__SHUTDOWN_ROWS_MIN": "1",
    "FEED_WORKER_DAY__CLOSE_DELAY_MS": "2000",
    "FEED_WORKER_STATSD__ENABLED": "false",
}

PROFILE = "dev profile, opt-level 1"


def stack_exports():
    """The lines of the stack's env file."""
    values = {}
    for line in (STACK / "env").read_text(encoding="utf-8").splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        values[name] = shlex.split(value)[0] if value else ""
    return values


def clean_environment():
    """Ours, without what would configure a worker for some other place."""
    foreign = ("FEED_WORKER_", "AWS_", "STACK_")
    names = {"DATABASE_URL", "INTERACTION_WEIGHTS", "RUST_LOG"}
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign) and name not in names}


def stack_environment():
    """For a process that works with the stack, under its clock."""
    exports = stack_exports()
    clock = {}
    if "STACK_LD_PRELOAD" in exports:
        clock = {"LD_PRELOAD": exports["STACK_LD_PRELOAD"], "FAKETIME": exports["STACK_FAKETIME"]}
    return {**clean_environment(), **exports, **clock}
