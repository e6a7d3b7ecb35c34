"""A shifted clock for all parts: dev/clock_shift.c, compiled when a stack asks for it."""
import shutil
import subprocess
from pathlib import Path

from .process import StackError
from .settings import ROOT


def compile_library(settings):
    """Into the temporary directory: its path has no space or colon, where LD_PRELOAD would split it, and Postgres's
    user can enter it."""
    if settings.clock_offset_s != 0:
        build(settings.clock_library())


def build(library):
    """The library, at that path; a test that makes a clock jump has one of its own."""
    compiler = shutil.which("cc")
    if not compiler:
        raise StackError("a shifted clock needs a C compiler: run dev/install")
    subprocess.run(
        [compiler, "-O2", "-Wno-nonnull", "-shared", "-fPIC", "-o", library, ROOT / "dev" / "clock_shift.c"], check=True
    )
    Path(library).chmod(0o755)
