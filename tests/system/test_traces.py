"""Traces by OTLP: a receiver of our own reads what a real worker sends, protobuf over HTTP."""

import http.server
import threading
from collections import namedtuple

import generate
from test_secrets import found_in

Span = namedtuple("Span", "trace id parent name start_ns end_ns attributes links service")


def fields(data):
    """Protobuf's wire format: (number of the field, value) of a message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, data[at : at + size]
        at += size
    assert at == len(data), "a message is cut off"


def every(data, number):
    return [value for found, value in fields(data) if found == number]


def attributes(entries):
    found = {}
    for entry in entries:
        (key,), (value,) = every(entry, 1), every(entry, 2)
        ((kind, inner),) = fields(value)
        found[key.decode()] = inner.decode() if kind == 1 else inner
    return found


def spans(body):
    for resource_spans in every(body, 1):
        (resource,) = every(resource_spans, 1)
        service = attributes(every(resource, 1))["service.name"]
        for scope_spans in every(resource_spans, 2):
            for span in every(scope_spans, 2):
                one = dict(fields(span))
                yield Span(
                    one[1].hex(),
                    one[2].hex(),
                    one.get(4, b"").hex(),
                    one[5].decode(),
                    int.from_bytes(one[7], "little"),
                    int.from_bytes(one[8], "little"),
                    attributes(every(span, 9)),
                    [(every(link, 1)[0].hex(), attributes(every(link, 4))) for link in every(span, 13)],
                    service,
                )


class Receiver(http.server.ThreadingHTTPServer):
    """A collector that keeps everything; `status` is what it answers."""

    def __init__(self):
        self.bodies, self.heads, self.status = [], [], 200
        super().__init__(("127.0.0.1", 0), Handler)
        self.env = {"TRACES__ENDPOINT": f"http://127.0.0.1:{self.server_port}/v1/traces"}

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def spans(self):
        return [span for body in list(self.bodies) for span in spans(body)]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heads.append((self.path, dict(self.headers)))
        if self.server.status == 200:
            self.server.bodies.append(body)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_span_for_each_batch_with_its_stages_and_ranges(case):
    generator = generate.Generator(951, case.schemas(), users=40)
    with Receiver() as receiver:
        worker = case.start_ready(**receiver.env, _OTEL_EXPORTER_OTLP_HEADERS="api-key=of-the-test", _DD_SERVICE="feed")
        for _ in range(5):
            case.produce(generator.event() for _ in range(200))
            case.wait_drained()
        assert worker.stop() == 0, case.why()
        found = receiver.spans()
        # What was left at the end is sent before the process ends.
        assert {path for path, _ in receiver.heads} == {"/v1/traces"}
        for _, head in receiver.heads:
            lower = {name.lower(): value for name, value in head.items()}
            assert lower["content-type"] == "application/x-protobuf" and lower["api-key"] == "of-the-test"
    batches = [span for span in found if span.name == "batch"]
    assert len(batches) >= 5 and {span.service for span in found} == {"feed"}
    # The links tile each partition's offsets: every record is in the span of exactly one batch.
    covered = {}
    for span in batches:
        for _, link in span.links:
            assert link["topic"] == case.topic
            covered.setdefault(link["partition"], []).append((link["first_offset"], link["next_offset"]))
    for partition, end in case.end_offsets().items():
        ranges = sorted(covered[partition])
        assert [first for first, _ in ranges] == [0, *(next_offset for _, next_offset in ranges[:-1])]
        assert ranges[-1][1] == end
    assert sum(span.attributes["rows"] for span in batches) == case.rows()
    assert sum(span.attributes["rejects"] for span in batches) == 1000 - case.rows()
    # A link is made of what it stands for: a partition has one.
    traces = {
        link["partition"]: {trace for span in batches for trace, other in span.links if other["partition"] == link["partition"]}
        for span in batches
        for _, link in span.links
    }
    assert all(len(one) == 1 for one in traces.values()) and len(set.union(*traces.values())) == case.partitions
    for span in batches:
        stages = {one.name: one for one in found if one.parent == span.id}
        assert set(stages) == {"decode", "wait", "transaction", "append"}
        assert {one.trace for one in stages.values()} == {span.trace}
        assert stages["wait"].start_ns == span.start_ns and stages["append"].end_ns == span.end_ns
        assert stages["wait"].end_ns <= stages["transaction"].end_ns <= span.end_ns
        # Ten seconds are more than a batch takes on any machine; a wrong clock would be far off.
        assert all(0 <= one.end_ns - one.start_ns < 60e9 for one in (span, *stages.values()))
    said = b"".join(receiver.bodies).decode(errors="replace")
    assert case.topic in said and found_in(said, set(generator.users)) == []
    case.assert_clean()


def test_a_collector_that_is_away_or_refuses_costs_nothing(case):
    generator = generate.Generator(952, case.schemas())
    with Receiver() as receiver:
        receiver.status = 500
        worker = case.start_ready("refused", **receiver.env)
        case.produce(generator.event() for _ in range(500))
        case.wait_drained()
        assert worker.stop() == 0, case.why()
        assert receiver.heads and receiver.bodies == []
        assert "the collector takes no traces" in worker.log()
    # Nobody listens there any more.
    worker = case.start_ready("alone", **receiver.env)
    case.produce(generator.event() for _ in range(500))
    case.wait_drained()
    assert worker.stop() == 0, case.why()
    assert "the collector of traces does not answer" in worker.log()
    case.wait_exported()
    case.assert_clean()
