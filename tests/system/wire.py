"""A TCP proxy that understands just enough to cut a connection at a statement: after COMMIT was sent, say.

Toxiproxy is for delay and silence over time; what has to hit one message is done here.
"""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field

CHUNK = 1 << 16


@dataclass
class Rule:
    """What happens when a client's bytes hold `pattern`, on a connection that has sent `after` before."""

    pattern: bytes
    action: str  # cut-before, cut-after, freeze-before, freeze-after: the server does not see it, or does
    after: bytes = b""
    count: int = 1
    fired: threading.Event = field(default_factory=threading.Event)


class Link:
    """One client's connection and its other half."""

    def __init__(self, wire, client):
        self.wire = wire
        self.client = client
        self.server = socket.create_connection(wire.upstream, timeout=10)
        self.server.settimeout(None)
        for one in (self.client, self.server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.frozen = threading.Event()
        self.cut_at_answer = False
        self.seen = set()
        self.tail = b""
        for body in (self.to_server, self.to_client):
            threading.Thread(target=body, daemon=True).start()

    def to_server(self):
        with contextlib.suppress(OSError):
            while data := self.client.recv(CHUNK):
                rule = self.wire.matching(self, data)
                if rule and rule.action.endswith("before"):
                    self.act(rule)
                if self.frozen.is_set():
                    continue  # read and forgotten: a sender does not notice a black hole at once
                if rule and rule.action == "cut-after":
                    self.cut_at_answer = True
                if rule and rule.action == "freeze-after":
                    self.frozen.set()
                self.server.sendall(data)
                if rule and rule.action.endswith("after"):
                    rule.fired.set()
        # A frozen connection keeps its other half: nobody tells the server that the client has gone.
        if not self.frozen.is_set():
            self.close()

    def to_client(self):
        with contextlib.suppress(OSError):
            while data := self.server.recv(CHUNK):
                if self.cut_at_answer:
                    break
                if not self.frozen.is_set():
                    self.client.sendall(data)
        if not self.frozen.is_set():
            self.close()

    def act(self, rule):
        if rule.action == "cut-before":
            self.close()
        else:
            self.frozen.set()
        rule.fired.set()

    def close(self):
        for one in (self.client, self.server):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                one.close()


class Wire:
    """Listens on a port of its own and passes on to `upstream`, a (host, port)."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.accepted_at = []  # monotonic moments, refused ones too
        self.refusing = False
        self.links = []
        self.rules = []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.accepted_at.append(time.monotonic())
                if self.refusing:
                    client.close()
                    continue
                try:
                    link = Link(self, client)
                except OSError:
                    client.close()
                    continue
                with self.lock:
                    self.links.append(link)

    def on(self, pattern, action, after=b"", count=1):
        rule = Rule(pattern, action, after, count)
        with self.lock:
            self.rules.append(rule)
        return rule

    def matching(self, link, data):
        """The rule that these bytes trigger. A pattern may be cut by the reads."""
        text, before = link.tail + data, len(link.tail)
        link.tail = text[-256:]

        def came(pattern):
            return text.find(pattern, max(0, before - len(pattern) + 1)) >= 0

        with self.lock:
            for rule in self.rules:
                if rule.after and came(rule.after):
                    link.seen.add(rule.after)
                if rule.count > 0 and came(rule.pattern) and (not rule.after or rule.after in link.seen):
                    rule.count -= 1
                    return rule
        return None

    def freeze(self):
        """Every connection that there is goes silent, without an end; new ones work. How many there were."""
        with self.lock:
            for link in self.links:
                link.frozen.set()
            return len(self.links)

    def cut(self):
        with self.lock:
            for link in self.links:
                link.close()

    def accepted_since(self, moment):
        return sum(1 for at in self.accepted_at if at >= moment)

    def close(self):
        self.listener.close()
        with self.lock:
            for link in self.links:
                link.close()
