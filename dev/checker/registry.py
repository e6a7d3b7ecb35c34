"""Schemas by id from a Confluent-compatible registry."""

import json
import urllib.error
import urllib.request

from .environment import CannotCheck


class Registry:
    def __init__(self, url):
        self._url = url.rstrip("/")
        self._schemas = {}

    def schema(self, schema_id):
        """The Avro schema as parsed JSON; None when the registry says that there is no such id."""
        if schema_id not in self._schemas:
            self._schemas[schema_id] = self._fetch(schema_id)
        return self._schemas[schema_id]

    def _fetch(self, schema_id):
        if not self._url:
            raise CannotCheck("an Avro record, but no FEED_WORKER_REGISTRY__URL")
        try:
            with urllib.request.urlopen(f"{self._url}/schemas/ids/{schema_id}", timeout=10) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise CannotCheck(f"registry: schema {schema_id}: {error}") from error
        except (OSError, ValueError) as error:
            raise CannotCheck(f"registry: schema {schema_id}: {error}") from error
        if body.get("schemaType", "AVRO") != "AVRO":
            return None
        return json.loads(body["schema"])
