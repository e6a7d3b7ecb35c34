"""Objects and their entries in the ledger."""

from . import spoil


@spoil("ingested_at of the file differs")
def ingested_in_file(world):
    world.objects[2].rows[0]["ingested_ms"] += 1
    world.objects[2].render()
    return {"mismatch"}


@spoil("file with a missing row, itself consistent")
def file_with_missing_row(world):
    entry = world.objects[1]
    entry.rows.pop(3)
    entry.settle(world.topic)
    world.remake_manifest()
    return {"lost", "mismatch"}


@spoil("overlap of two files")
def overlap(world):
    left, right = world.objects[2], world.objects[3]
    left.rows = left.rows + right.rows[:4]
    left.next = left.rows[-1]["kafka_offset"] + 1
    left.settle(world.topic)
    return {"overlap", "doubled"}


@spoil("gap between two files")
def gap(world):
    entry = world.objects[3]
    entry.first = entry.rows[2]["kafka_offset"]
    entry.rows = entry.rows[2:]
    entry.key = world.key(entry.day, entry.partition, entry.first)
    entry.settle(world.topic)
    return {"gap", "lost"}


@spoil("gap before the first file")
def gap_before_first(world):
    entry = world.objects[0]
    entry.rows = entry.rows[2:]
    entry.first = entry.rows[0]["kafka_offset"]
    entry.key = world.key(entry.day, entry.partition, entry.first)
    entry.settle(world.topic)
    world.remake_manifest()
    return {"gap", "lost"}


@spoil("gap of a whole file")
def whole_file_gone(world):
    del world.objects[2]
    return {"gap", "lost"}


@spoil("wrong day folder")
def wrong_day_folder(world):
    entry = world.objects[2]
    entry.day = world.days[0]
    entry.key = world.key(entry.day, entry.partition, entry.first)
    world.remake_manifest()
    return {"mis-filed"}


@spoil("folder and ledger of different days")
def folder_and_ledger(world):
    world.objects[2].key = world.key(world.days[0], 0, world.objects[2].first)
    return {"mis-filed"}


@spoil("key with another first offset")
def key_first_offset(world):
    entry = world.objects[3]
    entry.key = world.key(entry.day, entry.partition, entry.first + 1)
    return {"mismatch"}


@spoil("wrong hash everywhere")
def wrong_hash(world):
    entry = world.objects[0]
    entry.entry["row_hash"] = entry.said["row_hash"] = "0" * 32
    entry.render()
    world.remake_manifest()
    return {"mismatch"}


@spoil("wrong hash in the object's metadata only")
def wrong_said_hash(world):
    world.objects[3].said["row_hash"] = "1" * 32
    return {"mismatch"}


@spoil("wrong row count in the ledger")
def wrong_count(world):
    world.objects[3].entry["rows"] += 1
    return {"mismatch"}


@spoil("wrong size in the ledger")
def wrong_size(world):
    world.objects[3].entry["bytes"] += 1
    return {"mismatch"}


@spoil("object of another epoch")
def wrong_epoch(world):
    world.objects[3].said["epoch"] = str(int(world.objects[3].said["epoch"]) + 1)
    return {"mismatch"}


@spoil("truncated object")
def truncated_object(world):
    world.objects[3].content = world.objects[3].content[:-10]
    return {"mismatch", "lost"}


@spoil("object gone")
def object_gone(world):
    world.objects[3].stored = False
    return {"lost"}


@spoil("orphan object")
def orphan_object(world):
    stray = world.objects[3]
    world.objects.append(type(stray)(0, 7, 9, stray.day, world.key(stray.day, 0, 7), stray.rows, stray.entry, stray.said))
    world.objects[-1].content, world.objects[-1].entered = stray.content, False
    return {"orphan"}


@spoil("orphan object of no known name")
def orphan_name(world):
    world.marks[world.days[0]]["part-0.parquet"] = b"PAR1"
    return {"orphan"}


@spoil("row of a closed day in no file")
def closed_day_row_unfiled(world):
    entry = world.objects[1]
    del world.objects[1:4]
    world.ledgers[0]["export_frontier"] = entry.first
    world.remake_manifest()
    return {"lost", "pending"}  # of the closed day lost, of the open day only not yet done


@spoil("object overwritten with the rows of another file")
def overwritten(world):
    world.objects[1].content = world.objects[0].content
    return {"mismatch", "mis-filed", "doubled", "lost"}


@spoil("file of other rows adopted: ledger, manifest and object agree")
def other_rows_adopted(world):
    entry = world.objects[0]
    entry.rows = [row | {"video_id": row["user_id"]} for row in entry.rows]
    entry.settle(world.topic)
    world.remake_manifest()
    return {"mismatch"}


@spoil("row in two files")
def row_in_two_files(world):
    left, right = world.objects[2], world.objects[3]
    right.rows = [left.rows[-1], *right.rows]
    right.settle(world.topic)
    return {"doubled", "mis-filed", "mismatch"}


@spoil("object of another topic in the folder")
def foreign_object(world):
    world.marks[world.days[0]]["other.topic+0+00000000000000000000.parquet"] = b"PAR1"
    return {"orphan"}


@spoil("row of the next day in a file of a closed day")
def row_of_another_day(world):
    left, right = world.objects[1], world.objects[2]
    moved = right.rows.pop(0)
    left.rows.append(moved)
    left.next = moved["kafka_offset"] + 1
    left.settle(world.topic)
    right.first = left.next
    right.key = world.key(right.day, right.partition, right.first)
    right.settle(world.topic)
    world.remake_manifest()
    return {"mis-filed"}
