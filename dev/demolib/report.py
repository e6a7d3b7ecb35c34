"""The table at the end, the summary for programs, and what does not add up."""
import json

from . import settings


def faults(figures):
    """One clause for each figure that contradicts another; empty if all is well."""
    topic, table, bucket = figures["topic"], figures["table"], figures["bucket"]
    dead, produce, check = figures["dead_letters"], figures["produce"], figures["check"]
    found = []

    def require(holds, sentence):
        if not holds:
            found.append(sentence)

    require(
        topic["records"] == produce["delivered"],
        f"{produce['delivered']:,} records were acknowledged, the topic holds {topic['records']:,}",
    )
    require(
        topic["records"] == table["rows"] + dead["records"],
        f"{topic['records']:,} produced, but {table['rows']:,} persisted + {dead['records']:,} dead-lettered",
    )
    require(
        bucket["rows"] == table["rows"],
        f"{table['rows']:,} rows in the table, {bucket['rows']:,} in the files",
    )
    require(
        dead["by_reason"] == produce["planted_by_reason"],
        f"planted {produce['planted_by_reason']}, dead-lettered {dead['by_reason']}",
    )
    require(
        {day: rows for day, rows in table["by_day"].items() if rows}
        == {day: state["rows"] for day, state in bucket["days"].items() if state["rows"]},
        "table and bucket have different rows per day",
    )
    closed = {day: state for day, state in bucket["days"].items() if state["closed"]}
    require(any(state["rows"] for state in closed.values()), "no day with rows was closed")
    for day, state in closed.items():
        require(
            state["manifest_rows"] == state["rows"],
            f"the manifest of {day} says {state['manifest_rows']} rows, its files have {state['rows']}",
        )
    require(
        check["verdict"] == "all well",
        f"dev/check found violations, see {relative(settings.CHECK_REPORT)} ({figures['check_said']})",
    )
    return found


def write(figures, found):
    body = {"ok": not found, "faults": found, **figures}
    settings.SUMMARY.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def text(figures):
    topic, table, bucket, dead = (figures[name] for name in ("topic", "table", "bucket", "dead_letters"))
    produce = figures["produce"]
    lines = [
        "",
        heading("Where every event went"),
        row("produced", topic["records"], "records in the topic's 6 partitions"),
        row("= persisted", table["rows"], "rows in user_interactions"),
        row("+ dead-lettered", dead["records"], f"records in the DLQ ({dead['copies'] - dead['records']} of them there twice)"),
        row("exported", bucket["rows"], f"rows in {len(bucket['files'])} Parquet files, {megabytes(bucket['bytes'])}"),
        row("", None, f"of {table['users']:,} users and {table['videos']:,} videos"),
        row("", None, by_type(table)),
        "",
        heading("Days"),
        *days(bucket),
        "",
        heading("Files"),
        *files(bucket),
        "",
        heading("Dead letters by reason, each as it was planted"),
        *reasons(dead["by_reason"]),
        "",
        heading(f"Pace ({figures['profile']}; all parts on this one machine)"),
        row("produced", round(produce["events_per_second"]), "events/s, as the schedule wanted"),
        row("persisted", table["rows_in_busiest_second"], "rows in the busiest second"),
        "",
        heading("Latency in ms"),
        f"  {'':<36}{'p50':>9}{'p95':>9}{'p99':>9}{'p99.9':>9}{'max':>9}",
        latency("produce: intended send → acknowledged", produce["latency_ms"]),
        latency("Kafka → committed, undisturbed", table["kafka_to_commit_ms"]["undisturbed"]),
        latency("Kafka → committed, with start and kill", table["kafka_to_commit_ms"]["whole_run"]),
        "",
        heading("Verdict of dev/check, which shares no code with the worker"),
        f"  {figures['check_said']}",
        "",
        f"  seconds: {phases(figures['seconds'])}",
        "",
        one_liners(),
    ]
    return "\n".join(lines)


def heading(title):
    return f"{title}\n{'─' * len(title)}"


def row(name, number, what):
    return f"  {name:<16}{'' if number is None else format(number, ',') :>10}  {what}"


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


def by_type(table):
    return ", ".join(f"{name} {count:,}" for name, count in table["by_type"].items())


def days(bucket):
    for day, state in bucket["days"].items():
        closed = f"closed, manifest says {state['manifest_rows']:,} rows" if state["closed"] else "open"
        size = megabytes(state["bytes"])
        yield f"  {day}  {state['files']:>3} files {state['rows']:>9,} rows {size:>9}  {closed}"


FILES_SHOWN = 8


def files(bucket):
    found = sorted(bucket["files"], key=lambda file: file["key"])
    for file in found[:FILES_SHOWN]:
        yield f"  {file['key']:<76}{file['rows']:>8,} rows {file['bytes']:>10,} bytes"
    if len(found) > FILES_SHOWN:
        rest = found[FILES_SHOWN:]
        yield (
            f"  … and {len(rest)} more with {sum(file['rows'] for file in rest):,} rows,"
            f" {sum(file['bytes'] for file in rest):,} bytes"
        )


def reasons(counts):
    cells = [f"{name:<26}{count:>6,}" for name, count in counts.items()]
    for first in range(0, len(cells), 3):
        yield "  " + "   ".join(cells[first : first + 3])


def latency(name, values):
    cells = "".join(f"{values.get(quantile, float('nan')):>9,.1f}" for quantile in ("p50", "p95", "p99", "p99_9", "max"))
    return f"  {name:<36}{cells}"


def phases(seconds):
    return ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())


def relative(path):
    """As one would type it in the repository."""
    return path.relative_to(settings.ROOT) if path.is_relative_to(settings.ROOT) else path


def one_liners():
    folder = relative(settings.FILES)
    query = f"SELECT interaction_type, count(*) FROM '{folder}/exports/*/*.parquet' GROUP BY 1"
    return "\n".join(
        [
            "Look at it yourself:",
            f'  dev/venv test && target/venv/bin/python -c "import duckdb; duckdb.sql(\\"{query}\\").show()"',
            f"  head -1 {relative(settings.DLQ)}",
            f"  {relative(settings.SUMMARY)} has everything above for programs;"
            " make demo KEEP=1 leaves the stack up for psql",
        ]
    )


def looking_around():
    folder = relative(settings.STACK)
    return "\n".join(
        [
            "",
            f"The stack is still up. Its addresses: {folder}/env",
            f"  . {folder}/env && psql \"$DATABASE_URL\" -c 'SELECT * FROM partition_ledger'",
            f"  dev/stack run --dir {folder} -- {relative(settings.WORKER)} ledger show",
            f"End it with: dev/stack down --dir {folder}",
        ]
    )
