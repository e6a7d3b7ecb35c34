"""Starts and stops the schema registry of registry.py."""
import sys
from pathlib import Path

from .process import Process, accepts_connections


def process(settings):
    return Process(settings.folder, "registry")


def start(settings):
    one = process(settings)
    if one.pid() is not None:
        return
    port = settings.ports["registry"]
    one.spawn(
        [sys.executable, "-m", "stacklib.registry", "--port", port, "--file", settings.folder / "registry.json"],
        env=settings.clock_env(),
        cwd=Path(__file__).resolve().parents[1],
    )
    one.wait_until(lambda: accepts_connections(port))


def stop(settings):
    return process(settings).stop()
