"""Every kind of fault: what it takes hold of, how long it lasts, how it begins and how it ends.

A fault is a generator: up to its `yield` it begins, after it, it ends. It yields what it was done to. A fault that finds
nothing to be done (the worker is just starting) returns without a yield and is not counted.
"""

import contextlib
import json
import signal
from dataclasses import dataclass

import generate
import harness

from . import plan


@dataclass(frozen=True)
class Kind:
    name: str
    # Two faults that take hold of the same thing never overlap.
    resource: str
    weight: float
    seconds: tuple
    act: object

    @property
    def on_worker(self):
        return self.resource == "slot"


def kinds(brokers):
    """All of them. Weights are how often they are drawn, against each other."""
    found = [
        Kind("worker-kill", "slot", 6, (0, 0), worker_kill),
        Kind("worker-stop-past-session", "slot", 3, (plan.SESSION_S * 1.3, plan.SESSION_S * 2.5), worker_stop),
        Kind("worker-pause", "slot", 2, (0.2, 1.5), worker_stop),
        Kind("worker-restart", "slot", 2, (0, 0), worker_restart),
        Kind("postgres-restart-fast", "postgres", 1, (0, 3), stopped_postgres("fast")),
        Kind("postgres-restart-immediate", "postgres", 1, (0, 3), stopped_postgres("immediate")),
        Kind("postgres-sessions-ended", "postgres", 1, (0, 0), postgres_sessions_ended),
        Kind("postgres-read-only", "postgres", 1.5, (1, 6), postgres_read_only),
        Kind("s3-away", "s3", 1, (1, 6), s3_away),
        Kind("registry-away", "registry", 1.5, (2, 8), registry_away),
        Kind("schema-registered", "schema", 0.3, (0, 0), schema_registered),
        Kind("dlq-unwritable", "dlq", 1.5, (2, 7), dlq_unwritable),
    ]
    for mode in ("500", "503", "403"):
        found.append(Kind(f"s3-{mode}", "s3", 1, (1, 6), s3_fault(f"mode={mode}")))
    found.append(Kind("s3-409", "s3", 1, (1, 6), s3_fault("mode=409&op=put")))
    found.append(Kind("s3-delay", "s3", 0.5, (1, 5), s3_fault("mode=delay&delay_ms=1500")))
    found.append(Kind("s3-timeout-after-apply", "s3", 2, (4, 7), s3_fault("mode=hang-after-apply&op=put")))
    found.append(Kind("s3-timeout-before-apply", "s3", 1, (4, 7), s3_fault("mode=hang-before-apply&op=put")))
    if brokers > 1:
        found.append(Kind("broker-kill", "broker", 1, (1, 6), broker_away(kill=True)))
        found.append(Kind("broker-stop", "broker", 1, (1, 6), broker_away(kill=False)))
    for part in ("kafka", "postgres", "s3"):
        wire = f"wire-{part}"
        found.append(Kind(f"{wire}-cut", wire, 1, (1, 8), on_wire(part, "cut")))
        found.append(Kind(f"{wire}-silent", wire, 1, (2, 10), on_wire(part, "black_hole")))
        found.append(Kind(f"{wire}-answers-lost", wire, 1, (2, 8), on_wire(part, "black_hole", "down")))
        found.append(Kind(f"{wire}-held-and-late", wire, 1, (2, 10), on_wire(part, "hold")))
        found.append(Kind(f"{wire}-slow", wire, 0.5, (2, 8), on_wire(part, "delay", 400, 200)))
    return found


# ---- workers ----------------------------------------------------------------------------------------------------


def worker_kill(nemesis, slot):
    if slot.number and nemesis.fleet.kill(slot):
        yield f"worker-{slot.number}"


def worker_restart(nemesis, slot):
    if slot.number and nemesis.fleet.restart(slot):
        yield f"worker-{slot.number}"


def worker_stop(nemesis, slot):
    worker = nemesis.fleet.freeze(slot)
    if worker:
        try:
            yield f"worker-{slot.number}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.signal(signal.SIGCONT)


# ---- Kafka ------------------------------------------------------------------------------------------------------


def broker_away(kill):
    def act(nemesis, _):
        node = nemesis.rng.choice(list(nemesis.world.settings.nodes()))
        nemesis.world.stop_broker(node, kill)
        try:
            yield f"broker-{node}"
        finally:
            nemesis.world.start_broker(node)
            nemesis.world.wait_for_all_copies()

    return act


def dlq_unwritable(nemesis, _):
    nemesis.retried(lambda: nemesis.world.set_dlq_writable(False))
    try:
        yield "dlq"
    finally:
        nemesis.retried(lambda: nemesis.world.set_dlq_writable(True))


# ---- Postgres ---------------------------------------------------------------------------------------------------


def stopped_postgres(mode):
    def act(nemesis, _):
        nemesis.world.stop_postgres(mode)
        try:
            yield "postgres"
        finally:
            nemesis.world.start_postgres()

    return act


def postgres_sessions_ended(nemesis, _):
    nemesis.world.terminate_sessions()
    yield "postgres"


def postgres_read_only(nemesis, _):
    nemesis.world.set_postgres_read_only(True)
    try:
        yield "postgres"
    finally:
        nemesis.world.set_postgres_read_only(False)


# ---- S3 and registry ----------------------------------------------------------------------------------------------


def s3_fault(query):
    def act(nemesis, _):
        nemesis.world.set_s3_fault(query)
        try:
            yield query
        finally:
            nemesis.s3_requests_met[query] += nemesis.world.set_s3_fault("mode=off")

    return act


def s3_away(nemesis, _):
    nemesis.world.stop_s3()
    try:
        yield "s3"
    finally:
        nemesis.world.start_s3()


def registry_away(nemesis, _):
    nemesis.world.stop_registry()
    try:
        yield "registry"
    finally:
        nemesis.world.start_registry()


def schema_registered(nemesis, _):
    """A producer that knows one field more: a schema that no worker has seen, and events written with it."""
    number = nemesis.count_of("schema-registered")
    schema = json.loads(harness.avro_schema_paths()[-1].read_text())
    schema["fields"].append({"name": f"soakField{number}", "type": ["null", "string"], "default": None})
    case = nemesis.fleet.case
    try:
        schema_id = case.register(f"{case.topic}-value", json.dumps(schema))
    except OSError:  # the registry is away: another fault has it
        return
    generator = generate.Generator(nemesis.seed + number, generate.Schemas([(schema_id, generate.parse_schema(schema))], 0))
    case.produce([generator.valid() for _ in range(200)])
    yield f"schema {schema_id}"


# ---- the wire of the veteran ----------------------------------------------------------------------------------------


def on_wire(part, verb, *words):
    def act(nemesis, _):
        wire = nemesis.world.wires[part]
        getattr(wire, verb)(*words)
        try:
            yield f"{part} of worker-0"
        finally:
            wire.restore()

    return act
