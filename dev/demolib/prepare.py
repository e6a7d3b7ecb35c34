"""What must be there before anything can run. Only the standard library: the demo's own packages come with it."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main():
    started = time.time()
    try:
        prepare()
    except subprocess.CalledProcessError as error:
        print(f"demo: {' '.join(map(str, error.cmd))} failed ({error.returncode}); see above", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    python = ROOT / "target" / "venv" / "bin" / "python"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "dev"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DEMO_STARTED": repr(started),
    }
    os.execve(python, [str(python), "-m", "demolib"], environment)


def prepare():
    """Packages and jars first (the compiler needs some of them), then Python's packages beside the compile."""
    step("installing what is missing")
    subprocess.run([ROOT / "dev" / "install"], check=True)
    step("compiling feed-worker and the local S3 server")
    packages = subprocess.Popen([ROOT / "dev" / "venv", "demo"])
    try:
        subprocess.run(
            ["cargo", "build", "--quiet" if not sys.stderr.isatty() else "--color=auto",
             "--bin", "feed-worker", "--example", "s3"],
            cwd=ROOT,
            check=True,
        )
        if packages.wait() != 0:
            raise subprocess.CalledProcessError(packages.returncode, ["dev/venv", "demo"])
    finally:
        if packages.poll() is None:
            packages.send_signal(signal.SIGTERM)
            packages.wait()


def step(text):
    print(f"· {text}", flush=True)
