"""The record of a run: what it was, where, and what came of it."""

import json
import os
import platform
import re
import subprocess
from pathlib import Path

from mutatelib.record import commit
from stacklib.settings import KAFKA_LIBS, ROOT, TOOLS

FOLDER = ROOT / "docs" / "records"


def entry(plan, began, binary, outcome, code):
    return {
        "seed": plan.seed,
        "began": began.isoformat(timespec="seconds"),
        "commit": commit(),
        "build": Path(binary).parent.name,
        "machine": _machine(),
        "versions": _versions(binary),
        "plan": {
            "minutes": plan.minutes,
            "events": plan.events,
            "partitions": plan.partitions,
            "workers": list(plan.workers),
            "brokers": plan.brokers,
            "seconds_between_faults": list(plan.gap_s),
        },
        "figures": outcome.figures,
        "failures": outcome.failures,
        "exit": code,
    }


def write(found, began, seed):
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"soak-{began:%Y-%m-%d}-{seed}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _machine():
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.M)
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()).group(1))
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def _versions(binary):
    def said(*command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        return done.stdout.strip() or "?"

    kafka = sorted(KAFKA_LIBS.glob("kafka_*.jar"))
    postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return {
        "worker": said(binary, "--version"),
        "kafka": kafka[-1].stem.partition("-")[2] if kafka else "?",
        "postgres": said(postgres[-1], "--version").rpartition(") ")[2].split(" ")[0] if postgres else "?",
        "toxiproxy": (TOOLS / ".toxiproxy").read_text().strip(),
        "python": platform.python_version(),
    }
