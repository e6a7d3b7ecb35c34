"""docs/records/mutations.json: what came of each mutation when it was last run. One line each, so that merges are easy."""

import json
import subprocess

from .catalogue import ROOT

PATH = ROOT / "docs" / "records" / "mutations.json"


def commit():
    """The commit that the working tree is, with `+` if it has changes."""
    name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    # The record itself does not count.
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", ".", ":!docs/records"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return name.stdout.strip() + ("+" if changed.stdout else "")


def merge(entries, known_ids):
    """Replaces what is known of these ids, and forgets ids that no list has any more."""
    kept = {}
    if PATH.exists():
        kept = {entry["id"]: entry for entry in json.loads(PATH.read_text(encoding="utf-8"))}
    kept |= {entry["id"]: entry for entry in entries}
    lines = [json.dumps(kept[name], ensure_ascii=False) for name in sorted(kept) if name in known_ids]
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
