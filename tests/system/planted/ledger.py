"""Frontiers."""

from checker import row as rows

from world import DAY_MS

from . import spoil


@spoil("export_frontier ahead without file")
def export_ahead(world):
    entry = world.objects.pop(3)
    assert entry.partition == 0
    return {"gap", "lost"}


@spoil("export_frontier behind its files")
def export_behind(world):
    world.ledgers[0]["export_frontier"] = world.objects[3].first
    return {"frontier-regression"}


@spoil("persist_frontier behind its rows")
def persist_behind(world):
    world.ledgers[0] |= {"persist_frontier": 150, "export_frontier": 150}
    return {"frontier-regression"}


@spoil("persist_frontier beyond the topic")
def persist_beyond(world):
    world.ledgers[0]["persist_frontier"] += 5
    return {"mismatch"}


@spoil("ledger row gone")
def ledger_row_gone(world):
    del world.ledgers[1]
    return {"lost", "frontier-regression"}


@spoil("export_frontier past persist_frontier")
def export_past_persist(world):
    world.statements.append("ALTER TABLE partition_ledger DROP CONSTRAINT partition_ledger_check")
    world.ledgers[0]["persist_frontier"] = world.ledgers[0]["export_frontier"] - 3
    return {"frontier-regression"}


@spoil("commit before write: Kafka's offset is ahead of the ledger")
def committed_ahead(world):
    world.ledgers[1]["persist_frontier"] -= 1
    world.rows = [row for row in world.rows if (row["kafka_partition"], row["kafka_offset"]) != (1, 159)]
    world.dead = [letter for letter in world.dead if letter["source"] != (1, 159)]
    last = world.objects[-1]
    last.rows = [row for row in last.rows if row["kafka_offset"] < 159]
    last.next = last.rows[-1]["kafka_offset"] + 1
    last.settle(world.topic)
    world.ledgers[1]["export_frontier"] = last.next
    world.committed = {1: 160}
    return {"frontier-regression", "pending"}


@spoil("day of a partition behind the topic's")
def day_behind(world):
    world.ledgers[1]["closed_day"] = rows.day_of(world.today_ms - 2 * DAY_MS)
    return {"frontier-regression"}
