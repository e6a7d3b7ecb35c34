"""JSON as the feed's API emits it."""

import json
import re
from datetime import UTC, datetime, timedelta
from json.decoder import scanstring

from .bad import Bad

FIELDS = frozenset(
    """userId videoId interactionType watchTime timestamp eventId feedSessionId algorithm
    experimentVariantId recommendationScore position metadata""".split()
)
SCORE_SPELLINGS = ("recommendationScore", "recommendation_score")
NESTING_MAX = 32
EXACT_MAX = 2**53  # beyond it not every whole number is a double
_STAMP = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)?", re.ASCII
)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Number(str):
    """A number by its spelling: as metadata it is kept as it was written."""

    __slots__ = ()


class _Duplicate(Exception):
    pass


def _object(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Duplicate
    return found


def _constant(name):
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=Number, parse_float=Number, parse_constant=_constant
)


def parse(value):
    """Field name → value in the types that `event` expects; raises Bad."""
    try:
        text = value.decode("utf-8")
        tree, end = _DECODER.raw_decode(text)
        if "\\u" in text:
            refuse_lone_surrogates(tree)
        if depth(tree) > NESTING_MAX:
            raise Bad("json_malformed")
    except _Duplicate:
        raise Bad("json_duplicate_key") from None
    except (ValueError, RecursionError):
        raise Bad("json_malformed") from None
    if text[end:].strip(" \t\r\n"):
        raise Bad("json_malformed")
    return _fields(tree, text)


def refuse_lone_surrogates(value):
    """Python keeps half a surrogate pair; it cannot be written as UTF-8."""
    if isinstance(value, str):
        value.encode()  # raises UnicodeEncodeError, a ValueError
    elif isinstance(value, dict):
        for key, inner in value.items():
            key.encode()
            refuse_lone_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            refuse_lone_surrogates(inner)


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def _fields(tree, text):
    fields = {}
    for name in ("userId", "videoId", "interactionType", "eventId", "feedSessionId", "algorithm", "experimentVariantId"):
        fields[name] = _string(tree, name)
    fields["timestamp"] = _timestamp(tree.get("timestamp"))
    fields["watchTime"] = _number(tree.get("watchTime"), "watchTime")
    fields["position"] = _position(tree.get("position"))
    inner = tree.get("metadata")
    if inner is not None and not isinstance(inner, dict):
        raise Bad("wrong_type", "metadata")
    entries = {key: value for key, value in tree.items() if key not in FIELDS}
    if entries.get(SCORE_SPELLINGS[1], ...) is None:
        del entries[SCORE_SPELLINGS[1]]  # a null field is as good as none, in this spelling too
    fields["recommendationScore"] = _take_score(tree, inner or {}, entries)
    entries.update(_without_score(tree, inner or {}))
    sent = inner is not None or entries
    fields["metadata"] = _as_texts(entries, tree, text) if sent else None
    return fields


def _string(tree, name):
    value = tree.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or isinstance(value, Number):
        raise Bad("wrong_type", name)
    return value


def _number(value, name):
    if value is None:
        return None
    if not isinstance(value, Number):
        raise Bad("wrong_type", name)
    return float(value)


def _whole_number(spelled):
    """The whole number that a JSON number is, None if it is none."""
    try:
        return int(spelled)
    except ValueError:
        value = float(spelled)
        return int(value) if value.is_integer() and abs(value) <= EXACT_MAX else None


def _position(value):
    if value is None:
        return None
    if not isinstance(value, Number):
        raise Bad("wrong_type", "position")
    whole = _whole_number(value)
    if whole is None:
        raise Bad("out_of_range" if abs(float(value)) > EXACT_MAX else "wrong_type", "position")
    return whole


def _score_place(tree, inner):
    """(holder, name) of the first score that is there and not null."""
    for holder in (tree, inner):
        for name in SCORE_SPELLINGS:
            if holder.get(name) is not None:
                return holder, name
    return None, None


def _take_score(tree, inner, entries):
    """The score that counts leaves the top level's remainder; the others become, or stay, metadata."""
    holder, name = _score_place(tree, inner)
    if holder is None:
        return None
    value = holder[name]
    if holder is tree:
        entries.pop(name, None)
    elif isinstance(value, str) and not isinstance(value, Number) and _NUMBER.fullmatch(value):
        value = Number(value)  # inside metadata many write strings only
    return _number(value, "recommendationScore")


def _without_score(tree, inner):
    holder, name = _score_place(tree, inner)
    return {key: value for key, value in inner.items() if holder is not inner or key != name}


def _timestamp(value):
    if value is None:
        return None
    if isinstance(value, Number):
        whole = _whole_number(value)
        if whole is None:
            raise Bad("bad_timestamp", "timestamp")
        return whole
    if not isinstance(value, str):
        raise Bad("wrong_type", "timestamp")
    return _moment_ms(value)


def _moment_ms(spelled):
    match = _STAMP.fullmatch(spelled)
    if not match:
        raise Bad("bad_timestamp", "timestamp")
    fraction = (match[7] or "0").ljust(3, "0")[:3]
    try:
        moment = datetime(*(int(match[n] or 0) for n in range(1, 7)), tzinfo=UTC)
    except ValueError:
        raise Bad("bad_timestamp", "timestamp") from None
    ms = (moment - _EPOCH) // timedelta(milliseconds=1) + int(fraction)
    if match[8]:
        hours, minutes = int(match[9]), int(match[10] or 0)
        if hours > 23 or minutes > 59:
            raise Bad("bad_timestamp", "timestamp")
        east = (hours * 60 + minutes) * 60_000
        ms += east if match[8] == "-" else -east
    return ms


def _as_texts(entries, tree, text):
    """Values as strings; what was none keeps its spelling."""
    texts, spellings = {}, None
    for key, value in entries.items():
        if isinstance(value, str):
            texts[key] = str(value)
        elif value is True or value is False:
            texts[key] = "true" if value else "false"
        elif value is None:
            texts[key] = "null"
        else:
            if spellings is None:
                spellings = _spellings(text)
                if isinstance(tree.get("metadata"), dict):  # its entries count before those of the top level
                    spellings.update(_spellings(spellings["metadata"]))
            texts[key] = spellings[key]
    return texts


def _spellings(text):
    """Key → the value's own characters, of an object that is known to be well-formed."""
    found, at = {}, text.index("{") + 1
    while True:
        at = _skip(text, at)
        if text[at] == "}":
            return found
        key, at = scanstring(text, at + 1)
        at = _skip(text, _skip(text, at) + 1)  # over the colon
        _, end = _DECODER.raw_decode(text, at)
        found[key] = text[at:end]
        at = _skip(text, end)
        if text[at] == ",":
            at += 1


def _skip(text, at):
    while text[at] in " \t\r\n":
        at += 1
    return at


