"""The landing area in S3: raw files as producers delivered them, and the bytes of dead letters."""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from c360_pipeline.errors import ContractError, UnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

EVENTS_PREFIX = "landing/events/"
CATALOG_PREFIX = "landing/catalog/"
DEAD_LETTERS_PREFIX = "dead-letters/"
_DATED = re.compile(r"landing/events/date=(\d{4}-\d\d-\d\d)/[^/]+\.jsonl(\.gz)?")


LANDABLE = (".jsonl", ".jsonl.gz", ".csv")
"""Endings of files that landing reads: events and catalogues."""


def folder_for(path: Path, day: date) -> str:
    """Where in the bucket a file belongs that arrives on `day`."""
    return CATALOG_PREFIX if path.suffix == ".csv" else f"{EVENTS_PREFIX}date={day.isoformat()}/"


@dataclass(frozen=True)
class LandingFile:
    """A file in the landing area; `etag` changes with its content."""

    uri: str
    key: str
    etag: str
    bytes: int


@dataclass(frozen=True)
class EventFile(LandingFile):
    """A file of events; `landing_date` is that of its folder."""

    landing_date: date


def _landing_date(key: str) -> date | None:
    """The date of an event file's folder; None for anything else under the prefix."""
    match = _DATED.fullmatch(key)
    try:
        return date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None


class Landing:
    """One bucket.

    Args:
        bucket: its name; created by `ensure_bucket`.
        endpoint_url: the S3 server, None for AWS.
        access_key_id: login.
        secret_access_key: its secret.
        region: AWS region.
    """

    def __init__(
        self, bucket: str, *, endpoint_url: str | None, access_key_id: str, secret_access_key: str, region: str
    ) -> None:
        self.bucket = bucket
        self._endpoint = endpoint_url or "AWS S3"
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint_url,
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            region_name=region,
            config=Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 4}),
        )

    def ensure_bucket(self) -> None:
        """Create the bucket where it is missing.

        Raises:
            UnavailableError: the server does not answer or refuses the login.
        """
        try:
            existing = {b["Name"] for b in self._client.list_buckets()["Buckets"]}
            if self.bucket not in existing:
                self._client.create_bucket(Bucket=self.bucket)
        except (BotoCoreError, ClientError) as error:
            raise UnavailableError(
                f"S3 at {self._endpoint} can't be used ({error}). Start the embedded one with `c360 up`."
            ) from error

    def event_files(self) -> list[EventFile]:
        """Every event file, by landing date and name; other objects under the prefix are not ours to read."""
        return [
            EventFile(**vars(file), landing_date=landing_date)
            for file in self._list(EVENTS_PREFIX)
            if (landing_date := _landing_date(file.key))
        ]

    def catalog_files(self) -> list[LandingFile]:
        """Every catalogue file, by name."""
        return [f for f in self._list(CATALOG_PREFIX) if f.key.endswith(".csv")]

    def _list(self, prefix: str) -> list[LandingFile]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        files = [
            LandingFile(f"s3://{self.bucket}/{o['Key']}", o["Key"], o["ETag"].strip('"'), o["Size"])
            for page in pages
            for o in page.get("Contents", [])
        ]
        return sorted(files, key=lambda f: f.key)

    def pieces(self, file: LandingFile, size: int) -> Iterator[bytes]:
        """The file's content in pieces of at most `size` bytes, unpacked when its name ends in .gz.

        Raises:
            ContractError: the gzip stream is broken; the message names the file.
        """
        body = self._client.get_object(Bucket=self.bucket, Key=file.key)["Body"]
        raw = io.BufferedReader(cast("io.RawIOBase", body), buffer_size=1024 * 1024)
        if not file.key.endswith(".gz"):
            while piece := raw.read(size):
                yield piece
            return
        try:
            with gzip.open(raw) as unpacked:
                while piece := unpacked.read(size):
                    yield piece
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ContractError(
                f"{file.uri} is not a whole gzip file: {error}. Ask its producer to send it again."
            ) from None

    def read(self, file: LandingFile) -> bytes:
        """The whole content of a small file."""
        return self._client.get_object(Bucket=self.bucket, Key=file.key)["Body"].read()

    def put_file(self, path: Path, folder: str) -> str:
        """Upload a file under a folder of the bucket, once.

        The same content again changes nothing; other content under a name that is taken gets a name of its own,
        for a landing file is never changed.

        Returns:
            The object's s3:// address.
        """
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        stem, dot, suffix = path.name.partition(".")
        for name in (path.name, f"{stem}-{sha256[:12]}{dot}{suffix}"):
            key = f"{folder}{name}"
            stored = self._stored_sha256(key)
            if stored is None:
                self._client.put_object(Bucket=self.bucket, Key=key, Body=content, Metadata={"sha256": sha256})
            if stored in (None, sha256):
                return f"s3://{self.bucket}/{key}"
        raise ContractError(f"{path} can't be uploaded: {folder}{stem}-{sha256[:12]} is taken by other content.")

    def _stored_sha256(self, key: str) -> str | None:
        try:
            return self._client.head_object(Bucket=self.bucket, Key=key)["Metadata"].get("sha256", "")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def put_dead_letter(self, dead_letter_id: str, raw: bytes) -> None:
        """Keep the bytes of a rejected line under their sha256."""
        key = f"{DEAD_LETTERS_PREFIX}{dead_letter_id[:2]}/{dead_letter_id}"
        self._client.put_object(Bucket=self.bucket, Key=key, Body=raw)
