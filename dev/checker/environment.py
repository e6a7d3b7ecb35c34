"""Where the stack is: a file of `export NAME=value` lines, else the process's own environment."""

import os
import re
import shlex
from dataclasses import dataclass


class CannotCheck(Exception):
    """Something that the checker needs could not be reached or read: no verdict."""


DEFAULT_WEIGHTS = "complete:5,share:4,comment:4,like:3,follow:3,view:1,skip:-1"


@dataclass(frozen=True)
class Settings:
    """Picklable, so that each process opens connections of its own."""

    database_urls: tuple  # the first has the topic's days
    bootstrap_servers: str
    registry_url: str
    topic: str
    dlq_topic: str
    prefix: str
    bucket: str
    s3_endpoint: str | None
    s3_region: str
    s3_folder: str | None
    access_key: str | None
    secret_key: str | None
    group_id: str | None
    weights: tuple
    allow_pending: bool
    allow_unexported: bool

    def weight_of(self):
        return dict(self.weights)


def read_env_file(path):
    values = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                match = re.match(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$", line)
                if match:
                    words = shlex.split(match[2], comments=True)
                    values[match[1]] = words[0] if words else ""
    except OSError as error:
        raise CannotCheck(f"environment file: {error}") from error
    return values


def more_urls(found):
    return [url for url in re.split(r"[\s,]+", found.get("FEED_WORKER_POSTGRES__MORE_URLS", "")) if url]


def database_urls(arguments, found, need):
    if arguments.database_url:
        return (arguments.database_url, *arguments.more_database_url)
    return (need("DATABASE_URL"), *more_urls(found), *arguments.more_database_url)


def parse_weights(text):
    pairs = []
    for item in text.split(","):
        name, _, value = item.partition(":")
        pairs.append((name.strip().lower(), float(value)))
    return tuple(pairs)


def settings(arguments):
    """Flags win over the process's environment for what a test sets per case; the file has the addresses."""
    found = {}
    if arguments.env:
        found.update(read_env_file(arguments.env))
    for name, value in os.environ.items():
        found.setdefault(name, value)

    def need(name):
        if not found.get(name):
            raise CannotCheck(f"{name} is not set (give --env target/stack/env)")
        return found[name]

    topic = arguments.topic or found.get("FEED_WORKER_KAFKA__TOPIC") or "feed.interactions.v1"
    dlq = arguments.dlq_topic or found.get("FEED_WORKER_KAFKA__DLQ_TOPIC") or f"{topic}.dlq"
    prefix = arguments.prefix or found.get("FEED_WORKER_S3__PREFIX") or "exports"
    folder = arguments.s3_folder
    return Settings(
        database_urls=database_urls(arguments, found, need),
        bootstrap_servers=need("FEED_WORKER_KAFKA__BOOTSTRAP_SERVERS"),
        registry_url=found.get("FEED_WORKER_REGISTRY__URL", ""),
        topic=topic,
        dlq_topic=dlq,
        prefix=prefix.strip("/"),
        bucket=found.get("FEED_WORKER_S3__BUCKET") or "video-window-interactions",
        s3_endpoint=None if folder else found.get("FEED_WORKER_S3__ENDPOINT"),
        s3_region=found.get("FEED_WORKER_S3__REGION") or "us-east-1",
        s3_folder=folder,
        access_key=found.get("AWS_ACCESS_KEY_ID"),
        secret_key=found.get("AWS_SECRET_ACCESS_KEY"),
        group_id=arguments.group or found.get("FEED_WORKER_KAFKA__GROUP_ID") or "feed-worker",
        weights=parse_weights(arguments.weights or found.get("INTERACTION_WEIGHTS") or DEFAULT_WEIGHTS),
        allow_pending=arguments.allow_pending,
        allow_unexported=arguments.allow_unexported or arguments.allow_pending,
    )
