"""The S3 server: ours (dev/s3.rs, with fault switches) or versitygw, which is not ours and must judge the same."""
import os
import shutil
import signal
import subprocess

from .process import Process, StackError, accepts_connections
from .settings import ACCESS_KEY, BUCKET, REGION, ROOT, SECRET_KEY, TARGET, TOOLS


def process(settings):
    return Process(settings.folder, "s3")


def _builtin():
    """Compiled on demand. A binary that is newer than its source is taken as it is, so that a start needs no cargo."""
    binary = TARGET / "debug" / "examples" / "s3"
    source = ROOT / "dev" / "s3.rs"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        if not shutil.which("cargo"):
            raise StackError(f"no cargo, and no compiled S3 server in {binary}")
        done = subprocess.run(["cargo", "build", "--quiet", "--example", "s3"], cwd=ROOT, check=False)
        if done.returncode != 0:
            raise StackError("cargo build --example s3 failed")
        # cargo leaves the time of an unchanged binary alone; the next start shall not ask again.
        os.utime(binary)
    return binary


def start(settings):
    one = process(settings)
    if one.pid() is not None:
        return
    port, data = settings.ports["s3"], settings.s3_data()
    (data / BUCKET).mkdir(parents=True, exist_ok=True)
    if settings.s3 == "versitygw":
        binary = TOOLS / "versitygw"
        if not binary.exists():
            raise StackError("no versitygw: run dev/versitygw")
        # Its metadata go beside the objects, in files: not every file system has extended attributes.
        metadata = settings.folder / "versitygw-metadata"
        metadata.mkdir(parents=True, exist_ok=True)
        command = [binary, "--port", f"127.0.0.1:{port}", "--access", ACCESS_KEY, "--secret", SECRET_KEY,
                   "--region", REGION, "--quiet", "posix", "--sidecar", metadata, data]
        env = {}
    else:
        command = [_builtin(), "--port", port, "--root", data, "--bucket", BUCKET]
        env = {**settings.clock_env(), "S3_ACCESS_KEY": ACCESS_KEY, "S3_SECRET_KEY": SECRET_KEY}
    one.spawn(command, env=env)
    one.wait_until(lambda: accepts_connections(port))


def stop(settings, kill=False):
    return process(settings).stop(signal.SIGKILL if kill else signal.SIGTERM, deadline_s=5)
