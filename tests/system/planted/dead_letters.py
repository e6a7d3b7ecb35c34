"""The DLQ: letters that are missing, are not what they copy, or copy what is good."""

from . import spoil


@spoil("lost dead letter")
def lost_dead_letter(world):
    world.dead.pop(3)
    return {"lost"}


def dead_letter_of_row(world):
    """Not a fault."""
    row, letter = world.rows[5], dict(world.dead[0])
    place = {"__connect.errors.partition": row["kafka_partition"], "__connect.errors.offset": row["kafka_offset"]}
    letter["headers"] = [(name, str(place.get(name, value.decode())).encode()) for name, value in letter["headers"]]
    letter["partition"] = row["kafka_partition"]
    world.dead.append(letter)


@spoil("good event dead-lettered instead")
def good_event_dead_lettered(world):
    dead_letter_of_row(world)
    row = world.rows.pop(5)
    of = next(entry for entry in world.objects if row in entry.rows)
    of.rows.remove(row)
    of.settle(world.topic)
    world.remake_manifest()
    return {"mis-filed"}


@spoil("dead letter that copies nothing")
def orphan_dead_letter(world):
    world.dead.append({**world.dead[0], "headers": [("feed_worker.reject.reason", b"tombstone")]})
    return {"orphan"}


@spoil("dead letter with changed value")
def dead_letter_value(world):
    letter = next(letter for letter in world.dead if letter["value"])
    letter["value"] = letter["value"][:-1] + b"?"
    return {"mismatch"}


@spoil("dead letter of a tombstone with an empty value")
def dead_letter_null(world):
    letter = next(letter for letter in world.dead if letter["value"] is None)
    letter["value"] = b""
    return {"mismatch"}


@spoil("dead letter with another key")
def dead_letter_key(world):
    world.dead[1]["key"] = b"someone"
    return {"mismatch"}


@spoil("dead letter without an original header")
def dead_letter_header(world):
    world.dead[1]["headers"] = world.dead[1]["headers"][1:]
    return {"mismatch"}


@spoil("dead letter with another timestamp")
def dead_letter_time(world):
    world.dead[1]["timestamp"] += 1
    return {"mismatch"}


@spoil("dead letter with another reason")
def dead_letter_reason(world):
    headers = world.dead[1]["headers"]
    old = headers[-1][1]
    headers[-1] = (headers[-1][0], b"bad_uuid" if old != b"bad_uuid" else b"tombstone")
    return {"mismatch"}


@spoil("dead letter in another partition")
def dead_letter_partition(world):
    world.dead[1]["partition"] = 1 - world.dead[1]["partition"]
    return {"mis-filed"}
