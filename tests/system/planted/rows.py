"""Rows of the table: lost, doubled, altered, or of events that are bad."""

from world import DAY_MS

from . import PLANTED, first_row_with, spoil


@spoil("lost row")
def lost_row(world):
    world.rows.pop(100)
    return {"lost", "orphan", "mismatch"}  # the file has a row without a table row, and its hash is another


@spoil("lost row of the closed day")
def lost_row_of_closed_day(world):
    world.rows.pop(10)
    return {"lost", "orphan", "mismatch"}


@spoil("lost tail: the frontier passed records that are nowhere")
def lost_tail(world):
    last = world.objects[-1]
    kept = last.rows.pop()
    world.rows.remove(kept)
    last.next = last.rows[-1]["kafka_offset"] + 1
    last.settle(world.topic)
    world.ledgers[1]["export_frontier"] = last.next
    return {"lost"}


@spoil("skipped offset: in neither table nor file nor DLQ")
def skipped_offset(world):
    """Everything agrees with everything, and only the topic has it."""
    entry = world.objects[1]
    skipped = entry.rows.pop(3)
    world.rows.remove(skipped)
    entry.settle(world.topic)
    world.remake_manifest()
    return {"lost"}


@spoil("row twice, under two days")
def row_twice(world):
    row = first_row_with(world, "position")
    world.rows.append(row | {"recorded_ms": row["recorded_ms"] + DAY_MS})
    return {"doubled"}


@spoil("bad event in the table")
def bad_event_in_table(world):
    letter = next(letter for letter in world.dead if 0 < letter["source"][1] < 70)
    world.dead.remove(letter)
    partition, offset = letter["source"]
    row = dict(world.rows[0]) | {"kafka_partition": partition, "kafka_offset": offset, "recorded_ms": letter["timestamp"]}
    world.rows.append(row)
    of = next(entry for entry in world.objects if entry.partition == partition and entry.first <= offset < entry.next)
    of.rows.append(row)
    of.rows.sort(key=lambda row: row["kafka_offset"])
    of.settle(world.topic)
    world.remake_manifest()
    return {"mis-filed"}


@spoil("not drained")
def not_drained(world):
    world.rows = [row for row in world.rows if row["kafka_partition"] != 1 or row["kafka_offset"] < 150]
    last = world.objects[-1]
    last.rows = [row for row in last.rows if row["kafka_offset"] < 150]
    last.next = last.rows[-1]["kafka_offset"] + 1
    last.settle(world.topic)
    world.dead = [letter for letter in world.dead if letter["source"][0] != 1 or letter["source"][1] < 150]
    world.ledgers[1] |= {"persist_frontier": 150, "export_frontier": last.next}
    return {"pending"}


CHANGES = {
    "occurred_ms": lambda value: value + 1,
    "recorded_ms": lambda value: value + 1,
    "user_id": lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"),
    "video_id": lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"),
    "interaction_type": lambda value: "share" if value != "share" else "like",
    "interaction_weight": lambda value: value + 1,
    "watch_time_seconds": lambda value: value + 0.001,
    "recommendation_score": lambda value: value * 0.999,
    "position": lambda value: value + 1,
    "algorithm": lambda value: None,
    "experiment_variant_id": lambda value: value + "x",
    "feed_session_id": lambda value: value.upper(),
    "event_id": lambda value: None,
    "metadata": lambda value: value | {"device": "toaster"},
}


def changed_everywhere(column):
    """Table and file agree, so that only the topic can tell."""

    def change(world):
        row = first_row_with(world, column)
        row[column] = CHANGES[column](row[column])
        for entry in world.objects:
            for own in entry.rows:
                if (own["kafka_partition"], own["kafka_offset"]) == (row["kafka_partition"], row["kafka_offset"]):
                    own.update(row)
                    entry.settle(world.topic)
        world.remake_manifest()
        return {"mismatch"}

    return change


def changed_in_file(column):
    def change(world):
        entry = next(entry for entry in world.objects if any(row[column] is not None for row in entry.rows))
        row = next(row for row in entry.rows if row[column] is not None)
        row[column] = CHANGES[column](row[column])
        entry.render()
        return {"mismatch"}

    return change


for _column in CHANGES:
    PLANTED[f"{_column} changed in table and file"] = changed_everywhere(_column)
    PLANTED[f"{_column} changed in the file"] = changed_in_file(_column)
