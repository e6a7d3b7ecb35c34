"""The whole check: gathers the outlines, judges the partitions in parallel, then the days."""

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from . import days, dead_letters, files
from . import row as rows
from . import topic as topics
from .bucket import open_bucket
from .environment import CannotCheck
from .partition import Task, check_partition
from .report import Report
from .servers import Servers


def read_produced(path):
    """partition → offset → (kind, reason), from the producer's list."""
    if path is None:
        return None
    found = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                known = found.setdefault(entry["partition"], {})
                known[entry["offset"]] = (entry["kind"], entry.get("reason"))
    except (OSError, ValueError, KeyError) as error:
        raise CannotCheck(f"list of what was produced: {error!r}") from error
    return found


def check(settings, produced=None):
    """(report, summary); raises CannotCheck."""
    report = Report()
    bucket = open_bucket(settings)
    servers = Servers(settings, report)
    ledgers, export_files, gaps = servers.ledgers, servers.export_files, servers.gaps
    objects = bucket.list(settings.prefix + "/")
    by_partition = sort_objects(settings, objects, report)
    tasks = make_tasks(settings, servers, report, by_partition, produced)
    servers.close()
    first_days = run_tasks(tasks, report)
    day_checks = days.DayChecks(settings, bucket, report, ledgers, servers.topic_ledger, export_files, gaps)
    first_days.extend(entry.day for entry in export_files)
    closed = day_checks.run(objects, min(first_days, default=None))
    return report, summarise(report, export_files, closed)


def sort_objects(settings, objects, report):
    """partition → key → size. What is neither a Parquet file of this topic nor a mark is nobody's."""
    found = {}
    for entry in objects:
        inner = entry.key.removeprefix(settings.prefix + "/")
        if inner.rpartition("/")[2] in ("_SUCCESS", "_manifest.json") or inner.startswith("_"):
            continue
        name = files.parse_key(entry.key, settings.prefix)
        if name is None or name.topic != settings.topic:
            report.violation("orphan", f"{entry.key}: not an object of {settings.topic}")
        else:
            found.setdefault(name.partition, {})[entry.key] = entry.size
    return found


def make_tasks(settings, servers, report, by_partition, produced):
    dead = dead_letters.read(settings, report)
    numbers = topics.partitions(settings, settings.topic)
    kept = topics.watermarks(settings, settings.topic, numbers)
    committed = topics.committed(settings, settings.topic, numbers)
    ledger_of = {ledger.partition: ledger._asdict() for ledger in servers.ledgers}
    for ledger in ledger_of.values():
        ledger["closed_day_number"] = days.number(ledger["closed_day"])
    elsewhere = ledger_of.keys() | dead.keys() | by_partition.keys() | servers.with_rows
    for partition in sorted(elsewhere - set(numbers)):
        report.violation("orphan", f"{settings.topic}/{partition}: the topic has no such partition")
    return [
        Task(
            settings=settings,
            partition=number,
            first_kept=kept[number][0],
            end=kept[number][1],
            ledger=ledger_of.get(number),
            committed=committed.get(number),
            files=[entry._asdict() for entry in servers.export_files if entry.partition == number],
            objects=by_partition.get(number, {}),
            gaps=[gap._asdict() for gap in servers.gaps if gap.partition == number],
            produced=None if produced is None else produced.get(number, {}),
            dead=dead.get(number, {}),
        )
        for number in numbers
    ]


def run_tasks(tasks, report):
    """Largest first, one process per core: each has connections and memory of its own. Returns the first days met."""
    tasks = sorted(tasks, key=lambda task: task.end - task.first_kept, reverse=True)
    workers = min(len(tasks), os.cpu_count() or 1)
    first_days = []
    context = multiprocessing.get_context("spawn")
    small = sum(task.end - task.first_kept for task in tasks) < 20_000
    try:
        if workers <= 1 or small:
            found = [check_partition(task) for task in tasks]
        else:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                found = list(pool.map(check_partition, tasks))
    except BrokenProcessPool as error:
        raise CannotCheck(f"a process of the checker died: {error}") from error
    for part, first_day in found:
        report.merge(part)
        if first_day is not None:
            first_days.append(rows.day_of(first_day * rows.DAY_MS))
    return first_days


def summarise(report, export_files, closed):
    """The figures of a run, every one of them read from topics, table and bucket."""
    figures = report.figures
    by_day = {}
    for entry in export_files:
        day = by_day.setdefault(entry.day, {"files": 0, "rows": 0, "bytes": 0, "closed": False})
        day["files"] += 1
        day["rows"] += entry.rows
        day["bytes"] += entry.bytes
    for day, state in closed.items():
        by_day.setdefault(day, {"files": 0, "rows": 0, "bytes": 0})["closed"] = state["closed"]
    reasons = {name.removeprefix("reason:"): total for name, total in sorted(figures.items()) if name.startswith("reason:")}
    plain = ("produced", "persisted", "dead_lettered", "dead_letter_copies", "exported", "unexported", "files", "bytes")
    return {
        **{name: figures[name] for name in plain},
        "dead_lettered_by_reason": reasons,
        "rows_compared": figures["rows_compared"],
        "pending": figures["pending"],
        "gapped": figures["gapped"],
        "redated": figures["redated"],
        "truncated": figures["truncated"],
        "dead_letters_of_rows": figures["dead_letters_of_rows"],
        "beyond_retention": figures["beyond_retention"],
        "unadopted": figures["unadopted"],
        "partitions": figures["partitions"],
        "days": dict(sorted(by_day.items())),
    }
