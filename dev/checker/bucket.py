"""The bucket, over the S3 API or as the folder that a local server keeps."""

import os
from dataclasses import dataclass

import boto3
import botocore.config
import botocore.exceptions
from botocore import handlers

from .environment import CannotCheck


@dataclass(frozen=True)
class Object:
    key: str
    size: int


class S3Bucket:
    def __init__(self, settings):
        self._name = settings.bucket
        self._client = boto3.client(
            "s3",
            endpoint_url=settings.s3_endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}, connect_timeout=5),
        )

        # Our keys are plain ASCII, and not every server encodes them when it is asked to: take them as they are.
        events = self._client.meta.events
        events.unregister("before-parameter-build.s3.ListObjectsV2", handlers.set_list_objects_encoding_type_url)
        events.unregister("after-call.s3.ListObjectsV2", handlers.decode_list_object_v2)

    def list(self, prefix):
        found = []
        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix):
                found.extend(Object(entry["Key"], entry["Size"]) for entry in page.get("Contents", ()))
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise CannotCheck(f"bucket {self._name}: {error}") from error
        return [entry for entry in found if not entry.key.endswith("/")]

    def get(self, key):
        """The bytes and the user metadata (None where the store keeps none)."""
        try:
            answer = self._client.get_object(Bucket=self._name, Key=key)
            return answer["Body"].read(), dict(answer["Metadata"])
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise CannotCheck(f"object {key}: {error}") from error


class FolderBucket:
    """Objects as plain files. A folder keeps no object metadata, so that comparison is left out."""

    def __init__(self, folder):
        self._folder = folder
        if not os.path.isdir(folder):
            raise CannotCheck(f"no such folder: {folder}")

    def list(self, prefix):
        found = []
        for parent, folders, names in os.walk(self._folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = os.path.join(parent, name)
                key = os.path.relpath(path, self._folder)
                if key.startswith(prefix) and not name.startswith("."):
                    found.append(Object(key, os.path.getsize(path)))
        return found

    def get(self, key):
        with open(os.path.join(self._folder, key), "rb") as stream:
            return stream.read(), None


def open_bucket(settings):
    return FolderBucket(settings.s3_folder) if settings.s3_folder else S3Bucket(settings)
