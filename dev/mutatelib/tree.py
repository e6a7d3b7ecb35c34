"""The copy of the repository in which mutations are applied: `target/mutate/tree`, with a target folder of its own.

Nothing outside the copy is ever written. Compiled dependencies are shared by hard links where cargo never writes in place.
"""

import os
import shutil
import subprocess
from pathlib import Path

from .catalogue import ROOT

TREE = ROOT / "target" / "mutate" / "tree"
# What is ours is compiled anew in the copy: its path is part of the compiled names.
OURS = ("feed_worker-", "libfeed_worker-", "feed-worker-", "s3-")


def refresh():
    """Makes the copy equal to the working tree. A file that did not change keeps its time, so cargo builds little."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    wanted = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    for name in sorted(wanted):
        _copy_if_changed(ROOT / name, TREE / name)
    for path in _files(TREE):
        if str(path.relative_to(TREE)) not in wanted:
            path.unlink()
    _target()


def _files(folder):
    for entry in sorted(folder.iterdir()):
        if entry == TREE / "target" or entry.name == "__pycache__":
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _copy_if_changed(source, copy):
    data = source.read_bytes()
    if not copy.is_file() or copy.read_bytes() != data:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    copy.chmod(source.stat().st_mode)


def _target():
    target = TREE / "target"
    target.mkdir(exist_ok=True)
    for name in ("kafka", "tools", "venv"):
        link = target / name
        if not link.is_symlink():
            link.symlink_to((ROOT / "target" / name).resolve())
    compiled = ROOT / "target" / "debug"
    if compiled.is_dir() and not (target / "debug").exists():
        _share_dependencies(compiled, target / "debug.new")
        (target / "debug.new").rename(target / "debug")


def _share_dependencies(compiled, copy):
    shutil.rmtree(copy, ignore_errors=True)
    for folder, share in (("deps", os.link), ("build", os.link), (".fingerprint", shutil.copy2)):
        for path, folders, names in os.walk(compiled / folder):
            folders[:] = [name for name in folders if not name.startswith(OURS)]
            to = copy / Path(path).relative_to(compiled)
            to.mkdir(parents=True, exist_ok=True)
            for name in names:
                if not name.startswith(OURS):
                    share(Path(path) / name, to / name)


def apply(mutation):
    for file, old, new in mutation.edits:
        path = TREE / file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(old, new), encoding="utf-8")


def take_back(mutation):
    for file, _, _ in mutation.edits:
        shutil.copyfile(ROOT / file, TREE / file)
