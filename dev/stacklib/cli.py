"""The command line of the local stack."""
import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

from . import clock, kafka, kafka_security, postgres, registry_process, s3
from .process import StackError
from .settings import ROOT, Settings


def _clock_at(text):
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)


def _parser():
    parser = argparse.ArgumentParser(prog="dev/stack", description="The local stack: Kafka, Postgres, S3, schema registry.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", type=Path, default=ROOT / "target" / "stack",
                        help="the stack's folder (default: target/stack); one folder, one stack")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text):
        return commands.add_parser(name, parents=[common], help=text, description=text)

    up = command("up", "start what is not running, return when all of it serves, write DIR/env")
    up.add_argument("--brokers", type=int, choices=[1, 3], help="Kafka nodes (default 1)")
    up.add_argument("--controller-apart", action="store_true", default=None,
                    help="the metadata on a node of its own, so that no broker's end is a controller's end")
    up.add_argument("--broker-session-timeout-ms", type=int, metavar="MS",
                    help="how long a broker may be silent before its partitions get other leaders (default 2000; Kafka's own 9000)")
    up.add_argument("--s3", choices=["builtin", "versitygw"], help="which S3 server (default builtin)")
    up.add_argument("--s3-dir", type=Path, help="keep the objects in this folder (default DIR/s3); `down` then leaves it")
    shift = up.add_mutually_exclusive_group()
    shift.add_argument("--clock-offset-s", type=int, metavar="N", help="run everything N seconds ahead (or behind, if negative)")
    shift.add_argument("--clock-at", type=_clock_at, metavar="'YYYY-MM-DD HH:MM:SS'", help="the same, to a UTC time")
    up.add_argument("--jvm-as-shipped", action="store_true", default=None, help="brokers with Kafka's own JVM settings: slower to start, faster after")
    up.add_argument("--postgres", type=int, choices=[1, 2, 3], metavar="N", help="Postgres servers, of which STACK_POSTGRES_MORE_URLS "
                    "names those after the first (default 1)")
    up.add_argument("--postgres-fast", action="store_true", default=None, help="no fsync: what a crash of the machine would lose")
    up.add_argument("--kafka-security", action="store_true", default=None,
                    help="two more listeners of each broker: SASL_SSL (SCRAM-SHA-512, OAUTHBEARER) and SSL (certificates)")
    command("down", "end everything and remove its data; the logs stay in DIR/log")
    command("status", "what runs, and where; exit code 1 unless everything does")
    run = command("run", "run a command with DIR/env and under the stack's clock")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")

    restart = command("restart-postgres", "stop Postgres and start it again on its data")
    start = command("start-postgres", "start Postgres on its data")
    stop = command("stop-postgres", "stop Postgres, keep its data")
    for one in (restart, stop):
        one.add_argument("--mode", choices=list(postgres.STOP_SIGNALS), default="fast", help="immediate is a crash")
    for one in (restart, stop, start):
        one.add_argument("--server", type=int, default=0, metavar="N", help="which, from 0 on (default 0)")
    for part in ("s3", "registry"):
        command(f"start-{part}", f"start the {part} server again, on its old port and data")
        command(f"stop-{part}", f"stop the {part} server, keep its data")
    for verb in ("start", "stop"):
        one = command(f"{verb}-broker", f"{verb} one Kafka node")
        one.add_argument("node", type=int, metavar="N", help="1 to the number of brokers")
        if verb == "stop":
            one.add_argument("--kill", action="store_true", help="SIGKILL instead of a graceful stop")
    return parser


@contextlib.contextmanager
def _locked(folder):
    """One command at a time for one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parts(settings):
    """Name, process, address of every part."""
    ports = settings.ports
    parts = [(f"kafka-{n}", kafka.process(settings, n), kafka.address_port(settings, n)) for n in settings.kafka_nodes()]
    for server in range(settings.postgres):
        name = settings.postgres_name(server)
        parts.append((name, postgres.process(settings, server), ports[name]))
    parts.append(("s3", s3.process(settings), ports["s3"]))
    parts.append(("registry", registry_process.process(settings), ports["registry"]))
    return parts


def _existing(folder):
    settings = Settings.load(folder)
    if settings is None:
        raise StackError(f"no stack in {folder}: dev/stack up")
    return settings


def _chosen(arguments):
    """What was asked for on the command line; nothing for what was left out."""
    offset_s = arguments.clock_offset_s
    if arguments.clock_at is not None:
        offset_s = round((arguments.clock_at - datetime.now(timezone.utc)).total_seconds())
    asked = {
        "brokers": arguments.brokers,
        "controller_apart": arguments.controller_apart,
        "broker_session_timeout_ms": arguments.broker_session_timeout_ms,
        "s3": arguments.s3,
        "s3_folder": str(arguments.s3_dir.resolve()) if arguments.s3_dir else None,
        "clock_offset_s": offset_s,
        "postgres": arguments.postgres,
        "postgres_fast": arguments.postgres_fast,
        "jvm_as_shipped": arguments.jvm_as_shipped,
        "kafka_security": arguments.kafka_security,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _settings_for_up(arguments):
    asked = _chosen(arguments)
    settings = Settings.load(arguments.dir)
    if settings is not None:
        different = {name: value for name, value in asked.items() if getattr(settings, name) != value}
        if not different and settings.has_this_layout():
            return settings
        if any(one.pid() for _, one, _ in _parts(settings)):
            words = ", ".join(f"{name}={getattr(settings, name)}" for name in different) or "an older layout"
            raise StackError(f"the stack in {arguments.dir} runs with {words}: dev/stack down first, or take another --dir")
        _down(settings)
    settings = Settings(folder=arguments.dir, **asked)
    if settings.s3 == "versitygw" and settings.clock_offset_s:
        raise StackError("versitygw is a static binary, so its clock cannot be shifted: use --s3 builtin")
    settings.choose_ports()
    postgres.make_temporary_folder(settings)
    settings.save()
    clock.compile_library(settings)
    if settings.kafka_security:
        kafka_security.make_certificates(settings)
    return settings


def _up(arguments):
    began = time.monotonic()
    settings = _settings_for_up(arguments)
    fresh = not (settings.folder / "env").exists()
    steps = [lambda n=n: kafka.start(settings, n) for n in settings.kafka_nodes()]
    steps += [lambda n=n: postgres.start(settings, n) for n in range(settings.postgres)]
    steps += [lambda: s3.start(settings), lambda: registry_process.start(settings)]
    try:
        with ThreadPoolExecutor(max_workers=len(steps)) as pool:
            for done in [pool.submit(step) for step in steps]:
                done.result()
        settings.write_env()
    except BaseException:
        # A stack that never came up is not left lying about half-started; one that did keeps its data.
        if fresh:
            _down(settings)
        raise
    print(f"stack up in {time.monotonic() - began:.1f} s: {settings.folder}/env")


def _down(settings):
    """The data go too, so nothing needs a graceful end, except that Postgres must let go of its shared memory."""
    for node in settings.kafka_nodes():
        kafka.stop(settings, node, kill=True)
    s3.stop(settings, kill=True)
    registry_process.stop(settings)
    for server in range(settings.postgres):
        postgres.stop(settings, "immediate", server)
    postgres.remove_temporary_folder(settings)
    for name in ("kafka", "s3", "tls", "versitygw-metadata", "run"):
        shutil.rmtree(settings.folder / name, ignore_errors=True)
    for name in ("registry.json", "env", "state.json"):
        (settings.folder / name).unlink(missing_ok=True)


def _status(settings):
    all_up = True
    for name, one, port in _parts(settings):
        pid = one.pid()
        all_up = all_up and pid is not None
        print(f"{name:<10} {'pid ' + str(pid) if pid else 'down':<12} 127.0.0.1:{port}")
    if settings.clock_offset_s:
        print(f"clock      {settings.clock_offset_s:+d} s")
    return 0 if all_up else 1


def _run(settings, argv):
    argv = argv[1:] if argv[:1] == ["--"] else argv
    if not argv:
        raise StackError("dev/stack run -- COMMAND ...")
    os.execvpe(argv[0], argv, {**os.environ, **settings.exports(), **settings.clock_env()})


def _one_part(settings, arguments):
    """start-… and stop-… of one part."""
    verb, _, part = arguments.command.partition("-")
    if part == "broker":
        if arguments.node not in settings.nodes():
            raise StackError(f"there is no broker {arguments.node}: this stack has {settings.brokers}")
        if verb == "start":
            kafka.start(settings, arguments.node)
        else:
            kafka.stop(settings, arguments.node, arguments.kill)
    elif part == "postgres":
        if arguments.server not in range(settings.postgres):
            raise StackError(f"there is no Postgres server {arguments.server}: this stack has {settings.postgres}")
        if verb in ("stop", "restart"):
            postgres.stop(settings, arguments.mode, arguments.server)
        if verb in ("start", "restart"):
            postgres.start(settings, arguments.server)
    else:
        module = {"s3": s3, "registry": registry_process}[part]
        (module.start if verb == "start" else module.stop)(settings)


def _dispatch(arguments):
    if arguments.command == "run":
        # Not under the lock: the command may last as long as it likes.
        return _run(_existing(arguments.dir), arguments.argv)
    with _locked(arguments.dir):
        if arguments.command == "up":
            return _up(arguments)
        if arguments.command == "down":
            settings = Settings.load(arguments.dir)
            return _down(settings) if settings else None
        settings = _existing(arguments.dir)
        if arguments.command == "status":
            return _status(settings)
        return _one_part(settings, arguments)


def main():
    arguments = _parser().parse_args()
    arguments.dir = arguments.dir.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return _dispatch(arguments) or 0
    except StackError as error:
        print(f"dev/stack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
