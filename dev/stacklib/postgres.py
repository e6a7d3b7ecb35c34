"""Postgres from the system's packages, on a private directory and port, never the system's own cluster."""
import glob
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from .process import Process, StackError
from .settings import DATABASE

SYSTEM_USER = "postgres"
# "immediate" ends it like a crash: the next start replays the log.
STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def process(settings, server=0):
    return Process(settings.folder, settings.postgres_name(server))


def _program(name):
    def version(path):
        return [int(number) for number in re.findall(r"\d+", path)]

    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=version)
    path = found[-1] if found else shutil.which(name)
    if not path:
        raise StackError(f"no Postgres program {name}: run dev/install")
    return path


def _user():
    """Postgres refuses to run as root."""
    return SYSTEM_USER if os.geteuid() == 0 else None


def _run(settings, *command):
    user = _user()
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **settings.clock_env()},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        **as_user,
    )
    if done.returncode != 0:
        raise StackError(f"{Path(command[0]).name} failed\n{done.stdout}{done.stderr}")
    return done.stdout


def _port(settings, server):
    return settings.ports[settings.postgres_name(server)]


def _configuration(settings, server):
    values = {
        "listen_addresses": "'127.0.0.1'",
        "port": _port(settings, server),
        "unix_socket_directories": "''",
        "max_connections": 200,
        # Tests ask when a row was committed.
        "track_commit_timestamp": "on",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
        "log_line_prefix": "'%m [%p] %a %d '",
    }
    if settings.postgres_fast:
        values |= {"fsync": "off", "full_page_writes": "off"}
    return "".join(f"{key} = {value}\n" for key, value in values.items())


def make_temporary_folder(settings):
    """Made before anything is started, so that `down` knows of it whatever happens next."""
    settings.temporary = tempfile.mkdtemp(prefix="feed-worker-stack-")
    if _user():
        try:
            entry = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            raise StackError(f"no user {SYSTEM_USER}, whom the package postgresql brings: run dev/install") from None
        os.chown(settings.temporary, entry.pw_uid, entry.pw_gid)


def remove_temporary_folder(settings):
    if settings.temporary:
        shutil.rmtree(settings.temporary, ignore_errors=True)


def start(settings, server=0):
    one = process(settings, server)
    if one.pid() is not None:
        return
    data = settings.postgres_data(server)
    fresh = not (data / "PG_VERSION").exists()
    if fresh:
        # Without --no-sync initdb flushes some thousand small files that nobody would miss after a crash of the machine.
        _run(settings, _program("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
             "--locale=C.UTF-8", "--no-sync", "--no-instructions")
        with open(data / "postgresql.conf", "a", encoding="utf-8") as file:
            file.write(_configuration(settings, server))
    else:
        # After a kill -9 the old pid file may name a process that now is somebody else's.
        (data / "postmaster.pid").unlink(missing_ok=True)
    one.spawn([_program("postgres"), "-D", data], env=settings.clock_env(), user=_user(), cwd="/")
    one.wait_until(lambda: _accepts(settings, server))
    if fresh:
        _run(settings, _program("psql"), "-XqAt", "-h", "127.0.0.1", "-p", _port(settings, server), "-U", "postgres",
             "-c", f"CREATE DATABASE {DATABASE}", "postgres")


def _accepts(settings, server):
    """Real readiness: the port opens before crash recovery is over."""
    return subprocess.run(
        [_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(_port(settings, server)),
         "-U", "postgres", "-d", "postgres"],
        check=False,
    ).returncode == 0


def stop(settings, mode="fast", server=0):
    return process(settings, server).stop(STOP_SIGNALS[mode])
