"""The stack, the workers and the producer as processes that never outlive the demo."""
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from . import settings


class DemoError(Exception):
    """One clear sentence for the person at the keyboard."""


def run(*command, environment=None, log=None):
    """Runs to the end; what it printed goes to its log, and to the person if it failed."""
    child = subprocess.Popen(
        [str(word) for word in command],
        cwd=settings.ROOT,
        env=environment or settings.clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = child.communicate()
    except BaseException:
        # Asked politely: a stack that is half-way up takes itself down.
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
        raise
    if log:
        (settings.LOGS / f"{log}.log").write_text(said, encoding="utf-8")
    if child.returncode != 0:
        name = " ".join(str(word) for word in command[:3])
        raise DemoError(f"{name} … ended with code {child.returncode}:\n{tail(said)}")
    return said


def tail(text, lines=15):
    return "\n".join("  | " + line for line in text.splitlines()[-lines:])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Background:
    """A process in its own session: Ctrl-C at the terminal reaches the demo, which then ends it properly."""

    def __init__(self, name, command, environment):
        self.name = name
        self.log_file = settings.LOGS / f"{name}.log"
        with open(self.log_file, "wb") as log:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                cwd=settings.ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log_tail(self):
        return tail(self.log_file.read_text(encoding="utf-8", errors="replace")) + f"\n  ({self.log_file})"

    def require_alive(self):
        if self.child.poll() is not None:
            raise DemoError(f"{self.name} ended with code {self.child.returncode}:\n{self.log_tail()}")

    def is_done(self):
        """True once it ended well."""
        if self.child.poll() is None:
            return False
        if self.child.returncode != 0:
            raise DemoError(f"{self.name} ended with code {self.child.returncode}:\n{self.log_tail()}")
        return True

    def terminate(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()

    def wait_done(self, seconds, what):
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} did not {what} in {seconds} s:\n{self.log_tail()}") from None
        self.is_done()


class Worker(Background):
    def __init__(self, number):
        self.address = f"127.0.0.1:{free_port()}"
        environment = {
            **settings.stack_environment(),
            **settings.WORKER_ENV,
            "FEED_WORKER_HEALTH__ADDR": self.address,
        }
        super().__init__(f"worker-{number}", [settings.WORKER, "run", "--migrate"], environment)

    def wait_ready(self, seconds=30):
        end = time.monotonic() + seconds
        while not self.is_ready():
            self.require_alive()
            if time.monotonic() > end:
                raise DemoError(f"{self.name} was not ready after {seconds} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"http://{self.address}/health/ready", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def stack(*arguments):
    return run(settings.ROOT / "dev" / "stack", *arguments, "--dir", settings.STACK)
