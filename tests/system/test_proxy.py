"""The fault proxy does to a connection what its wrapper says, so that a case that uses it tests what it means to."""

import contextlib
import socket
import socketserver
import threading
import time

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

SILENCE_S = 0.3


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


@pytest.fixture
def echo():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def connection(proxy):
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer(client, data, timeout_s=10.0):
    """What comes back; None for silence."""
    client.settimeout(timeout_s)
    client.sendall(data)
    with contextlib.suppress(TimeoutError):
        return client.recv(65536)


def test_each_fault_is_what_it_says(proxies, echo):
    proxy = proxies.add(echo)
    with connection(proxy) as client:
        assert answer(client, b"one") == b"one"
        proxy.hold("down")
        assert answer(client, b"two", SILENCE_S) is None
        proxy.restore()
        client.settimeout(10)
        assert client.recv(10) == b"two", "what was held back arrives"
        proxy.delay(300)
        started = time.monotonic()
        assert answer(client, b"three") == b"three"
        assert time.monotonic() - started >= 0.3
        proxy.restore()
        proxy.black_hole()
        assert answer(client, b"four", SILENCE_S) is None
        with connection(proxy) as another:
            assert answer(another, b"five", SILENCE_S) is None, "a new connection is taken, and silent"
        proxy.restore()
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b"", "the silent connection is closed"
    with connection(proxy) as client:
        assert answer(client, b"six") == b"six"
        proxy.reset()
        assert answer(client, b"seven") == b"", "an old connection is closed"
        with connection(proxy) as another, pytest.raises(ConnectionResetError):
            answer(another, b"eight")
        proxy.restore()
    with connection(proxy) as client:
        assert answer(client, b"nine") == b"nine"
        proxy.cut()
        client.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            connection(proxy)
        proxy.restore()
        with connection(proxy) as another:
            assert answer(another, b"ten") == b"ten"
    proxy.close()
    with pytest.raises(ConnectionRefusedError):
        connection(proxy)


def test_kafka_is_reached_only_through_the_proxies(proxies, stack, case):
    kafka = proxies.kafka(stack)
    client = AdminClient({"bootstrap.servers": kafka.env["KAFKA__BOOTSTRAP_SERVERS"]})
    brokers = client.list_topics(timeout=20).brokers.values()
    assert {f"{one.host}:{one.port}" for one in brokers} == {proxy.address for proxy in kafka.proxies}
    direct = AdminClient({"bootstrap.servers": case.bootstrap})
    kafka.cut()
    with pytest.raises(KafkaException):
        client.list_topics(case.topic, timeout=1)
    assert case.topic in direct.list_topics(case.topic, timeout=20).topics
    kafka.restore()
    assert case.topic in client.list_topics(case.topic, timeout=20).topics
