"""What the image says it is made of is what Cargo.lock gives the worker: the SBOM, and the list inside the program."""

import copy
import json
import os
import re
import shutil
import subprocess

import pytest
from rendering import ROOT, TOOLS

DOCKERFILE = (ROOT / "Dockerfile").read_text()
ENVIRONMENT = {**os.environ, "PATH": f"{TOOLS.parent / 'cargo' / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The worker's manifest and lock file with sources that do nothing, by the words of the Dockerfile's first layer."""
    folder = tmp_path_factory.mktemp("package")
    manifest = (ROOT / "Cargo.toml").read_text()
    # Names of its own, because it is built beside the real ones.
    for name in ("feed-worker", "s3"):
        assert manifest.count(f']]\nname = "{name}"\n') == 1
        manifest = manifest.replace(f']]\nname = "{name}"\n', f']]\nname = "listed-{name}"\n')
    (folder / "Cargo.toml").write_text(manifest.replace('default-run = "', 'default-run = "listed-'))
    shutil.copy(ROOT / "Cargo.lock", folder)
    (words,) = re.findall(r"^RUN (mkdir .*?) \\\n    && cargo auditable build", DOCKERFILE, re.DOTALL | re.MULTILINE)
    subprocess.run(["bash", "-euc", words], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def sbom(package):
    words = "cargo cyclonedx --format json --override-filename sbom"
    assert words in DOCKERFILE
    subprocess.run(words.split(), cwd=package, env=ENVIRONMENT, check=True)
    return json.loads((package / "sbom.json").read_text())


def check(folder, sbom, *program):
    path = folder / "checked.json"
    path.write_text(json.dumps(sbom))
    return subprocess.run([ROOT / "dev" / "sbom-check", path, *program], capture_output=True, text=True)


def test_the_sbom_lists_what_the_lock_file_gives_the_worker(sbom, tmp_path):
    ended = check(tmp_path, sbom)
    assert ended.returncode == 0, ended.stderr
    assert int(re.fullmatch(r"(\d+) packages\n", ended.stdout)[1]) > 300
    found = {component["name"] for component in sbom["components"]}
    assert {"rdkafka", "sqlx", "parquet", "aws-sdk-s3", "rustls"} <= found
    assert "s3s" not in found, "only the local stack's"


def test_what_differs_is_named(sbom, tmp_path):
    wrong = copy.deepcopy(sbom)
    gone, other, *_ = wrong["components"]
    wrong["components"].remove(gone)
    wrong["components"].append({"name": "stowaway", "version": "1.0.0"})
    other["hashes"][0]["content"] = "0" * 64
    ended = check(tmp_path, wrong)
    assert ended.returncode == 1
    assert sorted(ended.stderr.splitlines()) == sorted(
        [
            f"the SBOM lacks {gone['name']} {gone['version']}",
            "the SBOM has stowaway 1.0.0, the worker does not",
            f"the SBOM has another checksum of {other['name']} {other['version']}",
        ]
    )


def test_a_program_carries_its_list(package, sbom, tmp_path):
    """Built as the Dockerfile builds it, but with the debug profile's dependencies, which are there."""
    assert "cargo auditable build --release --locked --bin feed-worker" in DOCKERFILE
    # Selected as `make build` does: another selection would compile other features of the dependencies.
    words = ["cargo", "auditable", "build", "--locked", "--bins", "--example", "listed-s3"]
    subprocess.run([*words, "--target-dir", ROOT / "target"], cwd=package, env=ENVIRONMENT, check=True)
    ended = check(tmp_path, sbom, ROOT / "target" / "debug" / "listed-feed-worker")
    assert ended.returncode == 0, ended.stderr
    ended = check(tmp_path, sbom, TOOLS.parent / "cargo" / "bin" / "cargo-cyclonedx")
    assert ended.returncode == 1 and "it was not built by `cargo auditable`" in ended.stderr


def test_an_image_whose_lists_differ_is_not_built():
    build = DOCKERFILE.rpartition("FROM ")[0]
    shipped = "dev/sbom-check /root-of-image/usr/share/sbom/feed-worker.cdx.json /root-of-image/usr/local/bin/feed-worker"
    assert build.rstrip().endswith(f"&& {shipped}"), "the last step, on what is copied into the image"
