"""Background processes with pid files, and the ports that they listen on."""
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

# Below the kernel's range for outgoing connections (32768 and up): a port of a stopped part must still be free
# when the part is started again.
PORT_MIN, PORT_MAX = 20_000, 32_000


class StackError(Exception):
    """Something that the person at the keyboard can act on; printed without a traceback."""


def free_ports(count):
    """Ports that nobody listens on. They are all held until the last is found, so they differ."""
    held = []
    try:
        while len(held) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", random.randrange(PORT_MIN, PORT_MAX)))
            except OSError:
                candidate.close()
                continue
            held.append(candidate)
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def accepts_connections(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _stat_fields(pid):
    """The fields of /proc/PID/stat after the command name, or None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _start_ticks(pid):
    fields = _stat_fields(pid)
    return fields[19] if fields else None


class Process:
    """One background process: `run/NAME.pid` says which, `log/NAME.log` has what it printed."""

    def __init__(self, folder, name):
        self.name = name
        self.pid_file = folder / "run" / f"{name}.pid"
        self.log_file = folder / "log" / f"{name}.log"

    def pid(self):
        """The pid if the process is alive. The start time guards against a pid that was given to somebody else."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        fields = _stat_fields(pid)
        if not fields or fields[0] == "Z" or fields[19] != started:
            return None
        return int(pid)

    def spawn(self, command, env=None, user=None, cwd=None):
        """Starts it in its own session, so that Ctrl-C at the terminal does not reach it. Returns the log's length before."""
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        with open(self.log_file, "ab") as log:
            before = log.tell()
            child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                **as_user,
            )
        self.pid_file.write_text(f"{child.pid} {_start_ticks(child.pid)}\n")
        return before

    def wait_until(self, ready, deadline_s=60.0):
        """Polls `ready` until it is true. A process that died meanwhile fails at once, with the end of its log."""
        end = time.monotonic() + deadline_s
        while not ready():
            if self.pid() is None:
                raise StackError(f"{self.name} died while starting\n{self.log_tail()}")
            if time.monotonic() > end:
                raise StackError(f"{self.name} was not ready after {deadline_s:.0f} s\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self, with_signal=signal.SIGTERM, deadline_s=30.0):
        """Ends it and waits; SIGKILL after the deadline. Returns whether it was running."""
        pid = self.pid()
        if pid is not None:
            self._signal(pid, with_signal)
            if not self._gone_within(deadline_s):
                self._signal(pid, signal.SIGKILL)
                self._gone_within(10)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    @staticmethod
    def _signal(pid, number):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
        else:
            if number != signal.SIGKILL:
                # One that somebody has SIGSTOPped would not see the signal.
                os.kill(pid, signal.SIGCONT)

    def _gone_within(self, seconds):
        end = time.monotonic() + seconds
        while self.pid() is not None:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def log_since(self, offset):
        with open(self.log_file, "rb") as log:
            log.seek(offset)
            return log.read()

    def log_tail(self, lines=20):
        try:
            text = self.log_file.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(["  | " + line for line in text.splitlines()[-lines:]] + [f"  ({self.log_file})"])
