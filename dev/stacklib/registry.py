"""A small schema registry that speaks Confluent's API: what the worker and its tools use of it, Avro only.

    python3 -m stacklib.registry --port PORT --file registry.json

Ids are global, count up from 1, and are the same for the same schema in every subject. Everything is kept in one JSON
file, written before a request is answered, so that a restart keeps the ids. Compatibility is checked for nothing but
the form of the schema: levels are stored and given back, and the compatibility endpoint answers true.
"""
import argparse
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
LEVELS = ["NONE"] + [kind + suffix for kind in ("BACKWARD", "FORWARD", "FULL") for suffix in ("", "_TRANSITIVE")]
PRIMITIVES = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


class ApiError(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message

    def status(self):
        """40401 is a 404, and so on."""
        return self.code if self.code < 1000 else self.code // 100


def check_avro(schema, known=None, namespace=""):
    """Raises ValueError unless it is well-formed Avro as far as this registry looks: shapes, names, references."""
    known = set() if known is None else known
    if isinstance(schema, str):
        full = schema if "." in schema or not namespace else f"{namespace}.{schema}"
        if schema not in PRIMITIVES and full not in known and schema not in known:
            raise ValueError(f"unknown type {schema!r}")
    elif isinstance(schema, list):
        for branch in schema:
            check_avro(branch, known, namespace)
    elif isinstance(schema, dict) and "type" in schema:
        _check_complex(schema, known, namespace)
    else:
        raise ValueError("no type")


def _check_complex(schema, known, namespace):
    kind = schema["type"]
    if kind in ("record", "error", "enum", "fixed"):
        name = schema.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"bad name {name!r}")
        if "." in name:
            namespace = name.rpartition(".")[0]
        else:
            namespace = schema.get("namespace") or namespace
            name = f"{namespace}.{name}" if namespace else name
        known.add(name)
    if kind in ("record", "error"):
        if not isinstance(schema.get("fields"), list):
            raise ValueError("a record without fields")
        for one in schema["fields"]:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str) or "type" not in one:
                raise ValueError("a field without name or type")
            check_avro(one["type"], known, namespace)
    elif kind == "enum":
        if not schema.get("symbols"):
            raise ValueError("an enum without symbols")
    elif kind == "fixed":
        if not isinstance(schema.get("size"), int):
            raise ValueError("a fixed without size")
    elif kind == "array":
        check_avro(schema.get("items", {}), known, namespace)
    elif kind == "map":
        check_avro(schema.get("values", {}), known, namespace)
    else:
        check_avro(kind, known, namespace)


class Store:
    """Schemas by id, versions by subject, levels by subject; None is the global level."""

    def __init__(self, path):
        self.path = path
        self.lock = threading.Lock()
        self.schemas, self.subjects, self.levels, self.level = [], {}, {}, "BACKWARD"
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                kept = json.load(file)
            self.schemas, self.subjects = kept["schemas"], kept["subjects"]
            self.levels, self.level = kept["levels"], kept["level"]

    def save(self):
        values = {"schemas": self.schemas, "subjects": self.subjects, "levels": self.levels, "level": self.level}
        temporary = f"{self.path}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
        os.replace(temporary, self.path)

    @staticmethod
    def canonical(body):
        """Schemas are the same when they differ in white space only."""
        if not isinstance(body, dict) or not isinstance(body.get("schema"), str):
            raise ApiError(42201, "Empty schema")
        if body.get("schemaType", "AVRO") != "AVRO":
            raise ApiError(42201, f"Invalid schema type {body['schemaType']}: this registry knows AVRO only")
        try:
            parsed = json.loads(body["schema"])
            check_avro(parsed)
        except ValueError as error:
            raise ApiError(42201, f"Invalid schema {body['schema']}: {error}") from None
        return json.dumps(parsed, separators=(",", ":"), ensure_ascii=False)

    def versions(self, subject):
        if subject not in self.subjects:
            raise ApiError(40401, f"Subject '{subject}' not found.")
        return self.subjects[subject]

    def describe(self, subject, version):
        schema_id = self.versions(subject)[version - 1]
        return {"subject": subject, "version": version, "id": schema_id, "schema": self.schemas[schema_id - 1]}

    def register(self, subject, body):
        schema = self.canonical(body)
        if schema not in self.schemas:
            self.schemas.append(schema)
        schema_id = self.schemas.index(schema) + 1
        ids = self.subjects.setdefault(subject, [])
        if schema_id not in ids:
            ids.append(schema_id)
            self.save()
        return {"id": schema_id}

    def look_up(self, subject, body):
        ids = self.versions(subject)
        schema = self.canonical(body)
        for version, schema_id in enumerate(ids, start=1):
            if self.schemas[schema_id - 1] == schema:
                return self.describe(subject, version)
        raise ApiError(40403, "Schema not found")

    def version(self, subject, text):
        ids = self.versions(subject)
        if text in ("latest", "-1"):
            return self.describe(subject, len(ids))
        if not text.isdigit() or int(text) == 0:
            raise ApiError(42202, f"The specified version '{text}' is not a valid version id.")
        if int(text) > len(ids):
            raise ApiError(40402, f"Version {text} not found.")
        return self.describe(subject, int(text))

    def by_id(self, text):
        if not text.isdigit() or not 0 < int(text) <= len(self.schemas):
            raise ApiError(40403, f"Schema {text} not found")
        return {"schema": self.schemas[int(text) - 1]}

    def versions_of_id(self, text):
        self.by_id(text)
        return [
            {"subject": subject, "version": ids.index(int(text)) + 1}
            for subject, ids in sorted(self.subjects.items())
            if int(text) in ids
        ]

    def get_level(self, subject=None):
        if subject is None:
            return {"compatibilityLevel": self.level}
        if subject not in self.levels:
            raise ApiError(40408, f"Subject '{subject}' does not have subject-level compatibility configured")
        return {"compatibilityLevel": self.levels[subject]}

    def set_level(self, body, subject=None):
        level = body.get("compatibility") if isinstance(body, dict) else None
        if level not in LEVELS:
            raise ApiError(42203, "Invalid compatibility level. Valid values are " + ", ".join(LEVELS))
        if subject is None:
            self.level = level
        else:
            self.levels[subject] = level
        self.save()
        return {"compatibility": level}

    def compatible(self, subject, text, body):
        """A proper answer is the business of `feed-worker schemas check`; only the errors are real here."""
        self.version(subject, text)
        self.canonical(body)
        return {"is_compatible": True}


# Method, path, what answers. The groups of the path, unquoted, are given in order; `body` is the parsed request.
ROUTES = [
    ("GET", r"/subjects", lambda store, body: sorted(store.subjects)),
    ("POST", r"/subjects/([^/]+)", lambda store, body, subject: store.look_up(subject, body)),
    ("GET", r"/subjects/([^/]+)/versions",
     lambda store, body, subject: list(range(1, len(store.versions(subject)) + 1))),
    ("POST", r"/subjects/([^/]+)/versions", lambda store, body, subject: store.register(subject, body)),
    ("GET", r"/subjects/([^/]+)/versions/([^/]+)",
     lambda store, body, subject, version: store.version(subject, version)),
    ("GET", r"/subjects/([^/]+)/versions/([^/]+)/schema",
     lambda store, body, subject, version: json.loads(store.version(subject, version)["schema"])),
    ("GET", r"/schemas/types", lambda store, body: ["AVRO"]),
    ("GET", r"/schemas/ids/([^/]+)", lambda store, body, schema_id: store.by_id(schema_id)),
    ("GET", r"/schemas/ids/([^/]+)/versions", lambda store, body, schema_id: store.versions_of_id(schema_id)),
    ("GET", r"/config", lambda store, body: store.get_level()),
    ("PUT", r"/config", lambda store, body: store.set_level(body)),
    ("GET", r"/config/([^/]+)", lambda store, body, subject: store.get_level(subject)),
    ("PUT", r"/config/([^/]+)", lambda store, body, subject: store.set_level(body, subject)),
    ("POST", r"/compatibility/subjects/([^/]+)/versions/([^/]+)",
     lambda store, body, subject, version: store.compatible(subject, version, body)),
]
ROUTES = [(method, re.compile(pattern), answer) for method, pattern, answer in ROUTES]


class Faults:
    """The fault that is set, and what was asked since."""

    def __init__(self):
        self.lock = threading.Lock()
        self.set({})

    def set(self, values):
        with self.lock:
            self.mode = values.get("mode", "off")
            self.left = int(values.get("count", -1))
            self.delay_s = int(values.get("delay_ms", 1000)) / 1000
            self.fired, self.requests, self.present, self.together = 0, {}, {}, {}

    def enter(self, path):
        """Counts a request, and says what shall happen to it."""
        with self.lock:
            self.requests[path] = self.requests.get(path, 0) + 1
            self.present[path] = self.present.get(path, 0) + 1
            self.together[path] = max(self.together.get(path, 0), self.present[path])
            if self.mode == "off" or self.left == 0:
                return "off"
            self.left -= 1
            self.fired += 1
            return self.mode

    def leave(self, path):
        with self.lock:
            self.present[path] = self.present.get(path, 1) - 1

    def state(self):
        with self.lock:
            return {"mode": self.mode, "fired": self.fired, "requests": self.requests, "together": self.together}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes; without this the second waits for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    store = None
    faults = Faults()

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        parts = urlsplit(self.path)
        if parts.path == "/_fault":
            if self.command == "POST":
                self.faults.set(dict(parse_qsl(parts.query)))
            return self.send(200, self.faults.state())
        if self.command != "GET" or not parts.path.startswith("/schemas/ids/"):
            return self.send(*self.truth(raw))
        mode = self.faults.enter(parts.path)
        try:
            if mode == "page":
                self.send(404, None, b"<html><body>404 Not Found</body></html>", "text/html")
            elif mode == "404":
                self.send(404, {"error_code": 40403, "message": "Schema not found"})
            elif mode.isdigit():
                self.send(int(mode), {"error_code": int(mode) * 100 + 1, "message": "a fault was asked for"})
            else:
                if mode == "slow":
                    time.sleep(self.faults.delay_s)
                self.send(*self.truth(raw))
        finally:
            self.faults.leave(parts.path)

    def truth(self, raw):
        try:
            return 200, self.route(raw)
        except ApiError as error:
            return error.status(), {"error_code": error.code, "message": error.message}

    def send(self, status, value, payload=None, content_type=CONTENT_TYPE):
        if payload is None:
            payload = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def route(self, raw):
        path = urlsplit(self.path).path
        path = path.rstrip("/") or "/"
        if path == "/":
            return {}
        found = [(method, match, answer) for method, pattern, answer in ROUTES if (match := pattern.fullmatch(path))]
        if not found:
            raise ApiError(404, "HTTP 404 Not Found")
        for method, match, answer in found:
            if method == self.command:
                try:
                    body = json.loads(raw) if raw else None
                except ValueError:
                    raise ApiError(400, "Unable to process JSON") from None
                with self.store.lock:
                    return answer(self.store, body, *map(unquote, match.groups()))
        raise ApiError(405, "HTTP 405 Method Not Allowed")

    do_GET = do_POST = do_PUT = answer

    def log_message(self, format, *args):  # the name is the base class's
        if not str(args[1:2]).startswith("('2"):
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    parser = argparse.ArgumentParser(description="A small Confluent-compatible schema registry.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--file", required=True)
    arguments = parser.parse_args()
    Handler.store = Store(arguments.file)
    Server(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
