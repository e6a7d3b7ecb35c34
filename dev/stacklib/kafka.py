"""Apache Kafka in KRaft mode, one or three brokers: each a controller too, or beside one controller that is none of them."""
import shutil
import signal
import subprocess

from . import kafka_security
from .process import Process, StackError, accepts_connections
from .settings import KAFKA_LIBS

# A small heap and the cheapest compiler: a test broker lives for seconds to minutes.
JVM = ["-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.timezone=UTC"]
# What Kafka's own start script gives a broker, for benchmarks (bin/kafka-run-class.sh, 4.3.1).
JVM_AS_SHIPPED = [
    "-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true", "-Duser.timezone=UTC",
]
STARTED = b"Kafka Server started"


def process(settings, node):
    return Process(settings.folder, f"kafka-{node}")


def address_port(settings, node):
    """Where a node serves: a broker its clients, a controller apart its brokers."""
    return settings.ports[f"{'broker' if node in settings.nodes() else 'controller'}-{node}"]


def _java(jvm, main_class, *arguments):
    if not any(KAFKA_LIBS.glob("kafka_*.jar")):
        raise StackError(f"no Kafka in {KAFKA_LIBS}: run dev/install")
    java = shutil.which("java")
    if not java:
        raise StackError("no java: run dev/install")
    return [java, *jvm, "-cp", f"{KAFKA_LIBS}/*", main_class, *arguments]


def _properties(settings, node):
    """`server.properties` of one node, by its part in the cluster."""
    is_broker, is_controller = node in settings.nodes(), node in settings.controllers()
    roles = [role for role, has_it in (("broker", is_broker), ("controller", is_controller)) if has_it]
    listeners = [f"CONTROLLER://127.0.0.1:{settings.ports[f'controller-{node}']}"] if is_controller else []
    broker = _broker_properties(settings, node) if is_broker else {}
    return {
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT",
        **broker,
        "process.roles": ",".join(roles),
        "node.id": node,
        "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{settings.ports[f'controller-{n}']}" for n in settings.controllers()),
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join([*([broker["listeners"]] if is_broker else []), *listeners]),
        "log.dirs": _data(settings, node),
        # What follows only makes rebalances and elections fast.
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "broker.heartbeat.interval.ms": settings.broker_session_timeout_ms // 5,
        "broker.session.timeout.ms": settings.broker_session_timeout_ms,
        "controller.quorum.election.timeout.ms": 1000,
    }


def _broker_properties(settings, node):
    ports, copies = settings.ports, len(settings.nodes())
    in_sync = 2 if copies >= 3 else 1
    client = f"PLAINTEXT://127.0.0.1:{ports[f'broker-{node}']}"
    # Brokers tell their clients where to connect next, so a fault proxy needs a listener that tells the proxy's address.
    proxied, proxy = (f"PROXIED://{address}" for address in settings.proxied_broker(node))
    further = kafka_security.listeners(settings, node) if settings.kafka_security else {}
    names = "".join(f",{name}://{address}" for name, (_, address) in further.items())
    protocols = "".join(f",{name}:{protocol}" for name, (protocol, _) in further.items())
    return {
        **(kafka_security.properties(settings, node) if settings.kafka_security else {}),
        "listeners": f"{client},{proxied}{names}",
        "advertised.listeners": f"{client},{proxy}{names}",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": f"PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}",
        "num.network.threads": 2,
        "num.io.threads": 4,
        "auto.create.topics.enable": "false",
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.num.partitions": 4,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 1,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _folder(settings, node):
    return settings.folder / "kafka" / str(node)


def _data(settings, node):
    return _folder(settings, node) / "data"


def start(settings, node):
    """Formats the node's folder if it is new, starts the node and waits until it serves."""
    one = process(settings, node)
    if one.pid() is not None:
        return
    folder = _folder(settings, node)
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "server.properties"
    configuration.write_text("".join(f"{key}={value}\n" for key, value in _properties(settings, node).items()))
    if not (_data(settings, node) / "meta.properties").exists():
        _format(settings, node, configuration)
    before = one.spawn(
        _java(JVM_AS_SHIPPED if settings.jvm_as_shipped else JVM, "kafka.Kafka", configuration), env={**settings.clock_env(), "LOG_DIR": str(folder)}, cwd=folder
    )
    one.wait_until(lambda: STARTED in one.log_since(before), deadline_s=90)
    one.wait_until(lambda: accepts_connections(address_port(settings, node)))


def _format(settings, node, configuration):
    options = kafka_security.format_options() if settings.kafka_security else []
    done = subprocess.run(
        _java(JVM, "kafka.tools.StorageTool", "format", "-t", settings.cluster_id, "-c", str(configuration), *options),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StackError(f"formatting Kafka node {node} failed\n{done.stdout}{done.stderr}")


def stop(settings, node, kill=False):
    """A graceful stop hands leaderships over first and takes about two seconds; a kill is what a crash looks like."""
    return process(settings, node).stop(signal.SIGKILL if kill else signal.SIGTERM)
