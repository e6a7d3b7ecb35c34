"""Faults on the wire: toxiproxy between a client and a part of the stack."""

import contextlib
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import harness

PROGRAM = harness.ROOT / "target" / "tools" / "toxiproxy"
UP, DOWN, BOTH = "up", "down", "both"
# Longer than any test: `hold` ends when it is told to.
HOLD_MS = 24 * 3600 * 1000


class Proxies:
    """A toxiproxy server of its own, and the proxies in it."""

    def __init__(self, folder):
        assert PROGRAM.exists(), "no toxiproxy: run dev/toxiproxy"
        self.port = harness.free_port()
        self.proxies = []
        with open(folder / "toxiproxy.log", "ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "-host", "127.0.0.1", "-port", str(self.port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            harness.wait_until(self._answers, "toxiproxy to serve")
        except BaseException:
            self.close()
            raise

    def _answers(self):
        assert self._process.poll() is None, "toxiproxy ended"
        with contextlib.suppress(OSError):
            return self.call("GET", "/version") is not None

    def call(self, method, path, body=None):
        """One request to toxiproxy's own interface."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"toxiproxy: {method} {path}: {error.code} {error.read().decode()}") from None
        return json.loads(text) if text else {}

    def add(self, upstream, listen=None):
        """A proxy in front of `host:port`, on a free port unless told otherwise."""
        self.proxies.append(Proxy(self, f"proxy-{len(self.proxies)}", upstream, listen or "127.0.0.1:0"))
        return self.proxies[-1]

    def kafka(self, stack):
        """A way to all brokers of the stack that does not go past the proxies."""
        pairs = [pair.split("=") for pair in stack.env["STACK_KAFKA_PROXIED"].split(",")]
        found = Group([self.add(listens, told) for listens, told in pairs])
        found.env = {"KAFKA__BOOTSTRAP_SERVERS": ",".join(proxy.address for proxy in found.proxies)}
        return found

    def postgres(self, database_url):
        found, found.url = self._of_url(database_url)
        found.env = {"_DATABASE_URL": found.url}
        return found

    def s3(self, stack):
        found, found.url = self._of_url(stack.env["FEED_WORKER_S3__ENDPOINT"])
        found.env = {"S3__ENDPOINT": found.url}
        return found

    def registry(self, stack):
        found, found.url = self._of_url(stack.env["FEED_WORKER_REGISTRY__URL"])
        found.env = {"REGISTRY__URL": found.url}
        return found

    def _of_url(self, url):
        parts = urllib.parse.urlsplit(url)
        host_port = parts.netloc.rpartition("@")[2]
        proxy = self.add(host_port)
        return proxy, url.replace(host_port, proxy.address, 1)

    def close(self):
        self._process.kill()
        self._process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Faults:
    """What can be done to the connections of one proxy, or of a group."""

    def cut(self):
        """Connections are closed, new ones refused."""
        raise NotImplementedError

    def toxic(self, kind, direction, **attributes):
        raise NotImplementedError

    def restore(self):
        """As if nothing had been. Connections that a fault has broken stay broken."""
        raise NotImplementedError

    def black_hole(self, direction=BOTH):
        """Silence: nothing arrives and nothing is closed; new connections are taken. At `restore` they are closed."""
        self.toxic("timeout", direction, timeout=0)

    def hold(self, direction=BOTH):
        """Silence too, but what was sent arrives at `restore`: late, whole and in order."""
        self.toxic("latency", direction, latency=HOLD_MS)

    def delay(self, latency_ms, jitter_ms=0, direction=DOWN):
        self.toxic("latency", direction, latency=latency_ms, jitter=jitter_ms)

    def reset(self):
        """A connection is closed as soon as anything is sent; a new one by an RST, an old one (toxiproxy cannot else) by a FIN."""
        self.toxic("reset_peer", BOTH, timeout=0)

    def limit(self, kb_per_s, direction=BOTH):
        self.toxic("bandwidth", direction, rate=kb_per_s)

    def close_after(self, bytes_count, direction=UP):
        """A connection is closed after so many bytes."""
        self.toxic("limit_data", direction, bytes=bytes_count)


class Proxy(Faults):
    def __init__(self, server, name, upstream, listen):
        self.server = server
        self.name = name
        self.upstream = upstream
        made = server.call("POST", "/proxies", {"name": name, "upstream": upstream, "listen": listen, "enabled": True})
        self.address = made["listen"]
        self._path = f"/proxies/{name}"

    def cut(self):
        self.server.call("POST", self._path, {"enabled": False})

    def toxic(self, kind, direction, **attributes):
        for stream in {UP: ["upstream"], DOWN: ["downstream"], BOTH: ["upstream", "downstream"]}[direction]:
            body = {"name": f"{kind}-{stream}", "type": kind, "stream": stream, "attributes": attributes}
            self.server.call("POST", f"{self._path}/toxics", body)

    def restore(self):
        for toxic in self.server.call("GET", f"{self._path}/toxics"):
            self.server.call("DELETE", f"{self._path}/toxics/{toxic['name']}")
        self.server.call("POST", self._path, {"enabled": True})

    def close(self):
        """Takes the proxy away; its port is free again."""
        self.server.call("DELETE", self._path)
        self.server.proxies.remove(self)


class Group(Faults):
    """Proxies that share their fate."""

    def __init__(self, proxies):
        self.proxies = proxies

    def cut(self):
        for proxy in self.proxies:
            proxy.cut()

    def toxic(self, kind, direction, **attributes):
        for proxy in self.proxies:
            proxy.toxic(kind, direction, **attributes)

    def restore(self):
        for proxy in self.proxies:
            proxy.restore()

    def close(self):
        for proxy in self.proxies:
            proxy.close()
