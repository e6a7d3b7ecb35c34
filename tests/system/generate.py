"""Events as the feed produces them, each with what must become of it.

Seeded: the same seed gives the same events. Users have a taste (a group of videos that they like), so that a
recommender has something to find; users and videos are drawn by a Zipf-like law.
"""

import base64
import io
import json
import random
import uuid
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate

from fastavro import parse_schema, schemaless_writer

WEIGHTS = {"complete": 5.0, "share": 4.0, "comment": 4.0, "like": 3.0, "follow": 3.0, "view": 1.0, "skip": -1.0}
ALGORITHMS = ("two-tower", "trending", "following", "lightfm")
NO_SUCH_SCHEMA_ID = 2_000_000_000
# Bad by their bytes alone. `schema_not_found` is apart: the worker waits a minute before it believes a 404.
PLANTABLE = (
    "empty_value",
    "tombstone",
    "bad_framing",
    "schema_incompatible",
    "avro_malformed",
    "json_malformed",
    "json_duplicate_key",
    "missing_field",
    "wrong_type",
    "bad_uuid",
    "unknown_interaction_type",
    "bad_timestamp",
    "out_of_range",
    "bad_string",
    "metadata_too_large",
)


@dataclass
class Schemas:
    """Avro schemas by their registry ids: [(id, parsed schema)], and one that is no interaction."""

    versions: list
    foreign_id: int


@dataclass
class Event:
    key: bytes
    value: bytes | None
    reason: str | None = None  # None = valid
    columns: dict | None = None  # what the row must hold, of a valid one

    @property
    def headers(self):
        return [("x-planted-reason", self.reason.encode())] if self.reason else [("trace", b"\x00\x01")]


class Zipf:
    def __init__(self, count, exponent):
        self.sums = list(accumulate(1 / rank**exponent for rank in range(1, count + 1)))

    def draw(self, rng):
        return bisect_left(self.sums, rng.random() * self.sums[-1])


class Generator:
    def __init__(self, seed, schemas=None, users=2000, videos=500, groups=10, bad_share=0.01, reasons=PLANTABLE):
        self.rng = random.Random(seed)
        self.schemas = schemas
        self.bad_share = bad_share
        self.reasons = [
            reason for reason in reasons if schemas or reason not in ("schema_incompatible", "avro_malformed")
        ]
        self.groups = groups
        self.users = [str(uuid.UUID(int=self.rng.getrandbits(128), version=4)) for _ in range(users)]
        self.videos = [str(uuid.UUID(int=self.rng.getrandbits(128), version=4)) for _ in range(videos)]
        self.user_law, self.video_law = Zipf(users, 0.8), Zipf(videos, 0.9)

    def event(self, now_ms=None):
        if self.rng.random() < self.bad_share:
            return self.bad(self.rng.choice(self.reasons), now_ms)
        return self.valid(now_ms)

    def pick(self):
        """A user, a video, and whether it is to this user's taste."""
        user, video = self.user_law.draw(self.rng), self.video_law.draw(self.rng)
        if self.rng.random() < 0.7:  # mostly shown what is of one's own group
            video = (video // self.groups) * self.groups + user % self.groups
            video = min(video, len(self.videos) - 1)
        return user, video, user % self.groups == video % self.groups

    def fields(self, now_ms):
        """Field name of the event → value; the optional ones are there about half of the time."""
        rng = self.rng
        user, video, liked = self.pick()
        kinds = ("complete", "like", "share", "view", "comment", "follow") if liked else ("view", "skip", "skip", "view", "like")
        occurred = (now_ms or int(datetime.now(UTC).timestamp() * 1000)) - rng.randrange(60_000)
        fields = {
            "userId": self.users[user],
            "videoId": self.videos[video],
            "interactionType": rng.choice(kinds),
            "timestamp": occurred,
        }
        if rng.random() < 0.8:
            fields["watchTime"] = rng.randrange(0, 600_000) / 1000
        if rng.random() < 0.5:
            fields["eventId"] = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        if rng.random() < 0.5:
            fields["feedSessionId"] = f"session-{rng.randrange(10_000)}"
        if rng.random() < 0.6:
            fields["algorithm"] = rng.choice(ALGORITHMS)
            fields["recommendationScore"] = rng.random()
            fields["position"] = rng.randrange(50)
        if rng.random() < 0.3:
            fields["experimentVariantId"] = rng.choice(("a", "b", "größer"))
        if rng.random() < 0.3:
            fields["metadata"] = {"device": rng.choice(("ios", "android")), "ünï": 'quo"te\n', "€": "😀"}
        return fields

    def valid(self, now_ms=None):
        fields = self.fields(now_ms)
        if self.schemas and self.rng.random() < 0.7:
            value, fields = self.avro(fields)
        else:
            value = self.json(fields)
        return Event(fields["userId"].encode(), value, None, columns(fields))

    def avro(self, fields):
        """Confluent framing. A field that this version does not know does not arrive."""
        schema_id, schema = self.rng.choice(self.schemas.versions)
        known = {field["name"] for field in schema["fields"]}
        fields = {name: value for name, value in fields.items() if name in known}
        return framed(schema_id, schema, fields), fields

    def json(self, fields):
        """The API's spelling: upper or lower case, ISO or epoch, metadata inside or at the top level."""
        rng, out = self.rng, dict(fields)
        if rng.random() < 0.3:
            out["userId"] = out["userId"].upper()
            out["interactionType"] = out["interactionType"].upper()
        if rng.random() < 0.5:
            moment = datetime.fromtimestamp(out["timestamp"] / 1000, UTC)
            out["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", rng.choice(("Z", "+00:00")))
        if "metadata" in out and rng.random() < 0.5:
            out.update(out.pop("metadata"))
        if "recommendationScore" in out and rng.random() < 0.5:
            out["recommendation_score"] = out.pop("recommendationScore")
        if "eventId" not in out and rng.random() < 0.2:
            out["eventId"] = None
        return json.dumps(out, ensure_ascii=rng.random() < 0.5).encode()

    # ---- bad ones ------------------------------------------------------------------------------------------

    def bad(self, reason, now_ms=None):
        fields = self.fields(now_ms)
        key = fields["userId"].encode()
        return Event(key, self.bad_value(reason, fields), reason)

    def bad_value(self, reason, fields):
        rng = self.rng
        if reason == "tombstone":
            return None
        if reason == "empty_value":
            return b""
        if reason == "bad_framing":
            return rng.choice((b"\x01\x00\x00\x00\x01abc", b"hello", b"\x00\x00\x01", b"[1]"))
        if reason == "schema_not_found":
            return b"\x00" + NO_SUCH_SCHEMA_ID.to_bytes(4, "big") + b"\x02a"
        if reason == "value_too_large":
            # Not compressible, so that it is too large for a broker's default limit in every form.
            filler = base64.b64encode(rng.randbytes(1_150_000)).decode()
            return json.dumps(fields | {"filler": filler}).encode()
        if reason == "schema_incompatible":
            return b"\x00" + self.schemas.foreign_id.to_bytes(4, "big") + b"\x02"
        if reason == "avro_malformed":
            whole = self.avro(fields)[0]
            return rng.choice((whole[: rng.randrange(6, len(whole))], whole + b"\x00"))
        if reason == "json_malformed":
            whole = json.dumps(fields).encode()
            return rng.choice((whole[:-1], whole + b"x", b'{"userId": nonsense}', b'{"a":"\xff"}'))
        if reason == "json_duplicate_key":
            return b'{"userId":"a",' + json.dumps(fields).encode()[1:]
        return json.dumps(self.spoiled(reason, fields)).encode()

    def spoiled(self, reason, fields):
        """A JSON event with one fault."""
        rng = self.rng
        choices = {
            "missing_field": [("userId", ...), ("videoId", ...), ("interactionType", ...), ("timestamp", ...)],
            "wrong_type": [("position", "third"), ("watchTime", "12"), ("algorithm", 7), ("metadata", [])],
            "bad_uuid": [("userId", "nobody"), ("videoId", "123"), ("eventId", fields["userId"][:-1] + "g")],
            "unknown_interaction_type": [("interactionType", "stare"), ("interactionType", "")],
            "bad_timestamp": [("timestamp", "yesterday"), ("timestamp", 1), ("timestamp", "1999-12-31T23:59:59Z")],
            "out_of_range": [("position", -1), ("watchTime", -0.5), ("position", 2**31)],
            "bad_string": [("algorithm", ""), ("feedSessionId", "x" * 257), ("algorithm", "a\0b")],
            "metadata_too_large": [
                ("metadata", {f"key{n}": "v" for n in range(65)}),
                ("metadata", {"long": "x" * 17_000}),
            ],
        }
        name, value = rng.choice(choices[reason])
        if value is ...:
            del fields[name]
        else:
            fields[name] = value
        return fields


def framed(schema_id, schema, fields):
    body = io.BytesIO()
    schemaless_writer(body, schema, fields)
    return b"\x00" + schema_id.to_bytes(4, "big") + body.getvalue()


def parsed(path):
    with open(path, encoding="utf-8") as stream:
        return parse_schema(json.load(stream))


def columns(fields):
    """The row, as far as the event decides it."""
    return {
        "occurred_ms": fields["timestamp"],
        "user_id": fields["userId"],
        "video_id": fields["videoId"],
        "interaction_type": fields["interactionType"],
        "interaction_weight": WEIGHTS[fields["interactionType"]],
        "watch_time_seconds": fields.get("watchTime"),
        "recommendation_score": fields.get("recommendationScore"),
        "position": fields.get("position"),
        "algorithm": fields.get("algorithm"),
        "experiment_variant_id": fields.get("experimentVariantId"),
        "feed_session_id": fields.get("feedSessionId"),
        "event_id": fields.get("eventId"),
        "metadata": fields.get("metadata"),
    }
