"""Marks and manifests."""

from . import spoil


@spoil("manifest without one file")
def manifest_file_missing(world):
    world.marks[world.days[0]]["_manifest.json"]["files"].pop()
    return {"mismatch"}


@spoil("manifest with a wrong count")
def manifest_count(world):
    world.marks[world.days[0]]["_manifest.json"]["rows"] += 1
    return {"mismatch"}


@spoil("manifest with a wrong hash")
def manifest_hash(world):
    world.marks[world.days[0]]["_manifest.json"]["files"][0]["row_hash"] = "2" * 32
    return {"mismatch"}


@spoil("manifest that leaves out a partition")
def manifest_partition(world):
    world.marks[world.days[0]]["_manifest.json"]["partitions"].pop()
    return {"mismatch"}


@spoil("manifest not canonical")
def manifest_spelling(world):
    import json

    body = world.marks[world.days[0]]["_manifest.json"]
    world.marks[world.days[0]]["_manifest.json"] = json.dumps(body, indent=1).encode()
    return {"mismatch"}


@spoil("no manifest")
def no_manifest(world):
    del world.marks[world.days[0]]["_manifest.json"]
    return {"lost"}


@spoil("no _SUCCESS")
def no_success(world):
    del world.marks[world.days[0]]["_SUCCESS"]
    return {"lost"}


@spoil("_SUCCESS of a day that is open")
def early_success(world):
    world.marks[world.days[1]] = {"_manifest.json": world.manifest(world.days[1]), "_SUCCESS": b""}
    return {"frontier-regression"}
