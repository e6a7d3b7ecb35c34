"""The lists of mutations fit the sources, so that `dev/mutate` can run them any day."""

import dataclasses

import pytest
from mutatelib import catalogue


def test_every_mutation_fits_the_sources():
    mutations = catalogue.load()
    assert mutations, "no list in tests/mutations"
    assert catalogue.mismatches(mutations) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"old": "never to be found in any source"}, "occurs 0 times"),
        ({"old": "\n"}, "times in"),
        ({"file": "src/no_such_file.rs"}, "no file"),
        ({"also": ({"file": "src/lib.rs", "old": "never to be found", "new": ""},)}, "occurs 0 times in src/lib.rs"),
        ({"test": "tests/system/test_zombie.py::test_no_such"}, "no test test_no_such"),
        ({"test": "tests/system/no_such.py::test_it"}, "no test file"),
        ({"test": "tests/system/test_zombie.py"}, "has to be named"),
        ({"test": "cargo test --test decode -- no_such_test"}, "no Rust test"),
        ({"test": "cargo test --test no_such_target"}, "no Rust test target"),
        ({"test": "cargo test --locked"}, "needs --test"),
    ],
)
def test_what_does_not_fit_is_told(change, said):
    found = catalogue.mismatches([dataclasses.replace(catalogue.load()[0], **change)])
    assert any(said in text for text in found), found
    assert catalogue.mismatches([catalogue.load()[0]] * 2), "the same id twice"
