"""The DLQ: whose copies lie there, and whether they are the record they copy."""

import hashlib
from dataclasses import dataclass

from . import topic as topics
from .event import REASONS

OWN_HEADER_PREFIXES = ("__connect.errors.", "feed_worker.")


@dataclass(frozen=True)
class DeadLetter:
    key: bytes | None
    value: bytes | None
    headers: tuple
    timestamp_ms: int


def read(settings, report):
    """source partition → offset → copies, of the topic that is being checked."""
    found = {}
    numbers = topics.partitions(settings, settings.dlq_topic)
    kept = topics.watermarks(settings, settings.dlq_topic, numbers)
    for number in numbers:
        for message in topics.records(settings, settings.dlq_topic, number, *kept[number]):
            place = f"{settings.dlq_topic}/{number}@{message.offset()}"
            headers = message.headers()
            if topics.header(headers, topics.ERRORS + "topic") not in (None, settings.topic):
                report.count("dead_letters_of_other_topics")
                continue
            try:
                partition = int(topics.header(headers, topics.ERRORS + "partition"))
                offset = int(topics.header(headers, topics.ERRORS + "offset"))
            except (TypeError, ValueError):
                report.violation("orphan", f"{place}: does not say which record it copies")
                continue
            if number != partition % len(numbers):
                report.violation("mis-filed", f"{place}: a copy from partition {partition}")
            report.count("dead_letter_copies")
            copy = DeadLetter(message.key(), message.value(), tuple(headers or ()), message.timestamp()[1])
            found.setdefault(partition, {}).setdefault(offset, []).append(copy)
    return found


def reason_of(copy):
    return topics.header(copy.headers, topics.REASON)


def check_copies(report, where, message, copies, planted):
    """All copies of one record: counted once, each of them true."""
    reasons = {str(reason_of(copy)) for copy in copies}
    if len(reasons) > 1:
        report.violation("mismatch", f"{where}: copies of one dead letter give reasons {sorted(reasons)}")
    reason = reason_of(copies[0])
    if reason not in REASONS:
        report.violation("mismatch", f"{where}: unknown reason {reason!r}")
    if planted and reason != planted:
        report.violation("mismatch", f"{where}: planted as {planted}, dead-lettered as {reason}")
    report.count(f"reason:{reason}")
    for copy in copies:
        _check_copy(report, f"{where}: dead letter", message, copy)


def _check_copy(report, where, message, copy):
    if copy.timestamp_ms != message.timestamp()[1]:
        report.violation("mismatch", f"{where}: timestamp {copy.timestamp_ms}, not {message.timestamp()[1]}")
    original = tuple(message.headers() or ())
    if original and topics.header(copy.headers, topics.HEADERS_DROPPED) == str(len(original)):
        original = ()
        report.count("truncated")
    if copy.headers[: len(original)] != original:
        report.violation("mismatch", f"{where}: other headers")
    added = copy.headers[len(original) :]
    foreign = [name for name, _ in added if not name.startswith(OWN_HEADER_PREFIXES)]
    if foreign:
        report.violation("mismatch", f"{where}: headers that are nobody's: {foreign}")
    for name in ("exception.class.name", "exception.message"):
        if not topics.header(added, topics.ERRORS + name):
            report.violation("mismatch", f"{where}: header {topics.ERRORS}{name} is missing")
    for what, whole, kept in (("value", message.value(), copy.value), ("key", message.key(), copy.key)):
        if topics.header(added, topics.TRUNCATED[what]) is not None:
            _check_truncated(report, f"{where}: {what}", what, whole or b"", kept or b"", added)
        elif kept != whole:
            report.violation("mismatch", f"{where}: another {what}")


def _check_truncated(report, where, what, whole, kept, added):
    report.count("truncated")
    if not whole.startswith(kept) or len(kept) >= len(whole):
        report.violation("mismatch", f"{where}: truncated to something that is no beginning of the whole")
    if topics.header(added, topics.LENGTH[what]) != str(len(whole)):
        report.violation("mismatch", f"{where}: wrong length of the whole")
    if topics.header(added, topics.SHA256[what]) != hashlib.sha256(whole).hexdigest():
        report.violation("mismatch", f"{where}: wrong hash of the whole")
