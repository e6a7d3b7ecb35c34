"""The image without a container engine: its Dockerfile is linted, and its root, made by the same script, is changed into."""

import os
import shutil
import subprocess

import pytest
from rendering import ROOT, TOOLS

WORKER = ROOT / "target" / "debug" / "feed-worker"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BUNDLE = "etc/ssl/certs/ca-certificates.crt"


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("image") / "root"
    subprocess.run([ROOT / "dev" / "image-root", WORKER, root], check=True)
    return root


@pytest.fixture
def root(whole, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "root"
    shutil.copytree(whole, copy, symlinks=True)
    return copy


def inside(root, *arguments, **variables):
    """As the image's user, with the image's variables, in its root and no other."""
    environment = {"SSL_CERT_FILE": f"/{BUNDLE}", "PATH": "/usr/local/bin", **variables}
    chroot = shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin")
    command = [chroot, "--userspec=65532:65532", root, "/usr/local/bin/feed-worker", *arguments]
    if os.geteuid() != 0:
        command = ["unshare", "--map-root-user", "--root", root, "/usr/local/bin/feed-worker", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_dockerfile_is_linted():
    ended = subprocess.run([TOOLS / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_image_is_what_is_tested_here():
    last = DOCKERFILE.rpartition("FROM ")[2]
    assert last.startswith("scratch\n") and last.count("COPY") == 1
    assert "USER 65532:65532" in last and f"SSL_CERT_FILE=/{BUNDLE}" in last
    assert "dev/image-root target/release/feed-worker /root-of-image" in DOCKERFILE
    assert "COPY --from=build /root-of-image/ /" in last


def test_the_program_starts_in_its_root(root):
    ended = inside(root, "--version")
    assert ended.returncode == 0 and ended.stdout.startswith("feed-worker "), ended.stderr
    ended = inside(root, "config", DATABASE_URL="postgres://u:p@h/d", FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS="b:1", FEED_WORKER_REGISTRY__URL="http://r")
    assert ended.returncode == 0, ended.stderr
    assert (root / "etc/feed-worker/topics.yaml").read_text() == (ROOT / "topics.yaml").read_text()
    assert not (root / "bin/sh").exists()


def test_a_missing_library_is_noticed(root):
    libraries = [path for path in root.rglob("*.so*") if "ld-linux" not in path.name]
    assert libraries
    for library in libraries:
        library.rename(library.with_suffix(".gone"))
        ended = inside(root, "--version")
        library.with_suffix(".gone").rename(library)
        assert ended.returncode != 0, library
