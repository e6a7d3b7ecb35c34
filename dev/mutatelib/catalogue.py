"""The mutations of `tests/mutations/*.toml`, and whether each still fits the sources. Standard library only: CI asks this too."""

import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("tests") / "mutations"
REQUIRED = {"id": str, "rows": list, "protects": str, "file": str, "old": str, "new": str, "test": str}
OPTIONAL = {"features": list, "also": list}
EDIT = ("file", "old", "new")


class Mismatch(Exception):
    """Something in a list that does not fit the sources; one sentence."""


@dataclass(frozen=True)
class Mutation:
    id: str
    rows: tuple
    protects: str
    file: str
    old: str
    new: str
    test: str
    source: str  # the list that it stands in
    features: tuple = field(default=())
    also: tuple = field(default=())  # of a protection that has a second one behind it: its edits, as dicts

    @property
    def edits(self):
        """Every (file, old, new)."""
        return [(self.file, self.old, self.new), *(tuple(one[key] for key in EDIT) for one in self.also)]

    @property
    def is_cargo(self):
        return self.test.startswith("cargo test ")

    @property
    def pytest_words(self):
        """`file::name[case]`, or a file and -k. A case may have spaces in its name."""
        return shlex.split(self.test) if " -k " in self.test else [self.test]

    @property
    def cargo_words(self):
        """What follows `cargo test`, as (before --, after --)."""
        words = shlex.split(self.test)[2:]
        at = words.index("--") if "--" in words else len(words)
        return words[:at], words[at + 1 :]


def load(root=ROOT):
    """Every mutation, in the order of files and lines."""
    found = []
    for path in sorted((root / FOLDER).glob("*.toml")):
        with open(path, "rb") as file:
            try:
                lists = tomllib.load(file)
            except tomllib.TOMLDecodeError as error:
                raise Mismatch(f"{path.name}: {error}") from None
        unknown = lists.keys() - {"mutation"}
        if unknown:
            raise Mismatch(f"{path.name}: unknown {', '.join(sorted(unknown))}")
        found += [_mutation(path, entry) for entry in lists.get("mutation", ())]
    return found


def _mutation(path, entry):
    name = f"{path.name}: {entry.get('id', '(no id)')}"
    for key, kind in REQUIRED.items():
        if not isinstance(entry.get(key), kind):
            raise Mismatch(f"{name}: `{key}` must be there, as {kind.__name__}")
    for key in entry.keys() - REQUIRED.keys():
        if key not in OPTIONAL or not isinstance(entry[key], OPTIONAL[key]):
            raise Mismatch(f"{name}: `{key}` is not known, or not of its type")
    if any(sorted(one) != sorted(EDIT) for one in entry.get("also", ())):
        raise Mismatch(f"{name}: an `also` is {', '.join(EDIT)}")
    lists = {key: tuple(entry.get(key, ())) for key in ("rows", "features", "also")}
    return Mutation(**{**entry, **lists}, source=path.name)


def mismatches(mutations, root=ROOT):
    """What does not fit, a sentence each."""
    found, seen = [], {}
    for one in mutations:
        if one.id in seen:
            found.append(f"{one.source}: {one.id} is also in {seen[one.id]}")
        seen[one.id] = one.source
        found += [f"{one.source}: {one.id}: {why}" for why in _reasons(one, root)]
    return found


def _reasons(one, root):
    for file, old, new in one.edits:
        path = root / file
        if not path.is_file():
            yield f"no file {file}"
            return
        times = path.read_text(encoding="utf-8").count(old)
        if times != 1:
            yield f"`old` occurs {times} times in {file}"
        if old == new:
            yield "`new` is `old`"
    why = _why_no_cargo_test(one, root) if one.is_cargo else _why_no_pytest(one, root)
    if why:
        yield why


def _why_no_pytest(one, root):
    selected = one.pytest_words
    path, _, name = selected[0].partition("::")
    function = name.partition("[")[0].rpartition("::")[2]
    if not path.startswith("tests/") or not (root / path).is_file():
        return f"no test file {path}"
    if not function:
        return None if "-k" in selected else f"a test of {path} has to be named, or chosen by -k"
    if not re.search(rf"^\s*def {re.escape(function)}\(", (root / path).read_text(encoding="utf-8"), re.M):
        return f"no test {function} in {path}"
    return None


def _why_no_cargo_test(one, root):
    target, options = one.cargo_words
    valued = {at + 1 for at, word in enumerate(target) if word in ("--test", "--features")}
    names = [word for at, word in enumerate(target) if at not in valued and not word.startswith("-")]
    names += [word for word in options if not word.startswith("-")]
    if "--test" in target:
        crate = target[target.index("--test") + 1]
        sources = [root / "tests" / f"{crate}.rs", *(root / "tests" / crate).rglob("*.rs")]
    elif names:
        sources = list((root / "src").rglob("*.rs"))
    else:
        return "a cargo test needs --test, or the test's name"
    sources = [path for path in sources if path.is_file()]
    if not sources:
        return f"no Rust test target {crate}"
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name in names:
        if not re.search(rf"\bfn \w*{re.escape(name.rpartition('::')[2])}", text):
            return f"no Rust test {name}"
    return None
