"""The demo itself: stack, two workers, load, a kill, a midnight, the check, the figures."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

from . import report, settings
from .processes import Background, DemoError, Worker, run, stack
from .watch import Progress, Watch

# From the stack's start to midnight by its clock. Stack and workers need about half of the first; a machine that was
# too slow for it gets the next.
LEADS_S = (18, 50, 120)
# The load begins so long before midnight, at least and at most, and goes on so long after it.
BEFORE_S_MIN, BEFORE_S_MAX, AFTER_S = 4, 9, 5
# Taking over from a killed worker, exporting the rest, closing the day.
DRAIN_S = 60


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    keep = os.environ.get("KEEP", "") not in ("", "0")
    started = float(os.environ.get("DEMO_STARTED") or time.time())
    demo = Demo()
    try:
        demo.run(started)
        code = 0
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        code = 130
    finally:
        # A second Ctrl-C must not stop this half-way.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        demo.end(keep)
    return code


class Phases:
    """How long each part took, from the moment at which the demo was called."""

    def __init__(self, started):
        self.began = self.last = started
        self.found = {}

    def end(self, name):
        now = time.time()
        self.found[name] = round(now - self.last, 1)
        self.last = now

    def seconds(self):
        return {"total": round(self.last - self.began, 1), **self.found}


class Demo:
    def __init__(self):
        self.background = []
        self.watch = None

    def run(self, started):
        phases = Phases(started)
        self.clear()
        phases.end("prepare")
        workers, midnight = self.start_in_time()
        before_midnight = midnight - self.watch.clock()
        phases.end("start")
        progress = Progress(settings.EVENTS)
        progress.say(
            f"two workers, {settings.EVENTS:,} events; midnight by the stack's clock in {before_midnight:.0f} s"
        )
        kill_clock = self.load(progress, workers, before_midnight + AFTER_S)
        phases.end("load")
        self.drain(progress, workers, midnight)
        phases.end("drain")
        self.shut_down(progress, workers)
        phases.end("shutdown")
        progress.say("checking table, DLQ and files against the topic, by other code")
        figures = self.judge(kill_clock)
        phases.end("check")
        figures["seconds"] = phases.seconds()
        faults = report.faults(figures)
        report.write(figures, faults)
        print(report.text(figures))
        if faults:
            raise DemoError("the figures do not add up: " + "; ".join(faults))

    def start_in_time(self):
        """Stack and two ready workers, some seconds before midnight. Returns the workers and midnight."""
        for lead_s in LEADS_S:
            exports, midnight = self.start_stack(lead_s)
            workers = [self.start(Worker(number)) for number in (1, 2)]
            for worker in workers:
                worker.wait_ready()
            self.watch = Watch(exports)
            left_s = midnight - self.watch.clock()
            if left_s >= BEFORE_S_MIN:
                time.sleep(max(left_s - BEFORE_S_MAX, 0))
                return workers, midnight
            print("· the machine is slow just now: once more, further from midnight", flush=True)
            self.end(keep=False)
        raise DemoError(f"stack and workers took more than {LEADS_S[-1] - BEFORE_S_MIN} s to start")

    def start(self, process):
        self.background.append(process)
        return process

    def clear(self):
        """What an earlier run left, its stack too."""
        if (settings.STACK / "state.json").exists():
            stack("down")
        shutil.rmtree(settings.DEMO, ignore_errors=True)
        settings.LOGS.mkdir(parents=True)

    def start_stack(self, lead_s):
        now = datetime.now(timezone.utc)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        if midnight - now < timedelta(seconds=lead_s):
            midnight += timedelta(days=1)
        clock = midnight - timedelta(seconds=lead_s)
        print(f"· starting Kafka, Postgres, S3 and a registry, where it is {clock:%Y-%m-%d %H:%M:%S} UTC", flush=True)
        stack("up", "--s3", "builtin", "--clock-at", f"{clock:%Y-%m-%d %H:%M:%S}")
        environment = settings.stack_environment()
        with ThreadPoolExecutor() as pool:
            steps = [
                pool.submit(run, settings.WORKER, "topics", "apply", "--environment", "local",
                            environment=environment, log="topics"),
                pool.submit(run, settings.WORKER, "schemas", "register", environment=environment, log="schemas"),
            ]
            for step in steps:
                step.result()
        return settings.stack_exports(), midnight.timestamp()

    def load(self, progress, workers, seconds):
        """Produces over midnight, and kills a worker half-way. Returns the stack's time of the kill."""
        rate = math.ceil(settings.EVENTS / seconds)
        producer = self.start(
            Background(
                "produce",
                [settings.WORKER, "produce", "--count", settings.EVENTS, "--rate", rate, "--warm-up", "2s",
                 "--seed", settings.SEED, "--bad-share", settings.BAD_SHARE, "--quiet",
                 "--record", settings.PRODUCED, "--report", settings.PRODUCE_REPORT],
                settings.stack_environment(),
            )
        )
        kill_clock = None
        while not producer.is_done():
            produced = self.look(progress, workers)
            if kill_clock is None and produced >= settings.EVENTS / 2:
                kill_clock = self.watch.clock()
                workers[0].kill()
                progress.say("kill -9 of worker 1; worker 3 starts in its place")
                workers[0] = self.start(Worker(3))
            time.sleep(0.2)
        if kill_clock is None:
            raise DemoError("the producer was done before a worker could be killed half-way")
        return kill_clock

    def look(self, progress, workers):
        """One look at everything. Returns what was produced so far."""
        for worker in workers:
            worker.require_alive()
        stopped = self.watch.stopped()
        if stopped:
            partition, why, detail = stopped[0]
            raise DemoError(f"partition {partition} waits for an operator: {why} ({detail})")
        produced = self.watch.produced()
        persisted, exported = self.watch.frontiers()
        clock = datetime.fromtimestamp(self.watch.clock(), timezone.utc)
        progress.show(f"{clock:%H:%M:%S}", produced, persisted, exported)
        return produced

    def drain(self, progress, workers, midnight):
        """Until every record is in table or DLQ, every row in a file, and the day that ended is closed."""
        ended_day = datetime.fromtimestamp(midnight - 1, timezone.utc).date().isoformat()
        produced = self.watch.produced()
        is_closed = False
        end = time.monotonic() + DRAIN_S
        while True:
            self.look(progress, workers)
            if not is_closed and (self.watch.success_day() or "") >= ended_day:
                is_closed = True
                progress.say(f"{ended_day} is closed: its _manifest.json and _SUCCESS are there")
            persisted, _ = self.watch.frontiers()
            if is_closed and persisted == produced and self.watch.unexported() == 0:
                return
            if time.monotonic() > end:
                raise DemoError(
                    f"not done {DRAIN_S} s after the last event: {produced - persisted} records not persisted,"
                    f" {self.watch.unexported()} rows not exported, {ended_day} {'' if is_closed else 'not '}closed;"
                    f" the workers' logs are in {settings.LOGS}"
                )
            time.sleep(0.2)

    def shut_down(self, progress, workers):
        progress.say("SIGTERM to both workers")
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait_done(30, "shut down")
        progress.end()

    def judge(self, kill_clock):
        """The checker and the figures, side by side: two processes, under the stack's clock."""
        environment = settings.stack_environment()
        check = subprocess.Popen(
            [settings.ROOT / "dev" / "check", "--produced", settings.PRODUCED, "--json", settings.CHECK_REPORT],
            cwd=settings.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        try:
            run(sys.executable, "-m", "demolib.figures", repr(kill_clock), environment=environment, log="figures")
            said, _ = check.communicate(timeout=120)
        finally:
            if check.poll() is None:
                check.kill()
                check.wait()
        (settings.LOGS / "check.log").write_text(said, encoding="utf-8")
        if check.returncode == 2:
            raise DemoError(f"dev/check could not check:\n{said}")
        figures = json.loads(settings.FIGURES.read_text(encoding="utf-8"))
        figures["check"] = json.loads(settings.CHECK_REPORT.read_text(encoding="utf-8"))
        figures["check_said"] = said.strip().splitlines()[-1] if said.strip() else ""
        figures["produce"] = json.loads(settings.PRODUCE_REPORT.read_text(encoding="utf-8"))
        return figures

    def end(self, keep):
        """Nothing of the demo runs on."""
        for process in self.background:
            process.terminate()
        deadline = time.monotonic() + 5
        for process in self.background:
            try:
                process.child.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
        self.background.clear()
        if self.watch:
            self.watch.close()
            self.watch = None
        if keep and (settings.STACK / "env").exists():
            print(report.looking_around())
        elif (settings.STACK / "state.json").exists():
            stack("down")
