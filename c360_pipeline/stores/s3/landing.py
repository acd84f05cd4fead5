"""The landing area in S3: raw files as producers delivered them, and the bytes of dead letters."""

import hashlib
import io
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import boto3
import obstore
import obstore.exceptions
import polars as pl
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from c360_pipeline.core.sources.login import BucketLogin
from c360_pipeline.core.sources.records import Framing
from c360_pipeline.core.sources.source import Source, Sources
from c360_pipeline.errors import ConflictError, ContractError, UnavailableError, UnreadableError
from c360_pipeline.stores.s3.bucket import MULTIPART_BYTES, file_sha256, s3_store
from c360_pipeline.stores.s3.records import record_pieces

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

EVENTS_PREFIX = "landing/events/"
CATALOG_PREFIX = "landing/catalog/"
DEAD_LETTERS_PREFIX = "dead-letters/"
BLANKED_FROM = "blanked-from"
"""Metadata of a file of which lines were made blank: the etag that it had."""
REQUESTS_AT_ONCE = 16
SERVER_ERRORS = 500
"""From this status on it is the server that fails, not the request."""
_OF_MESSAGES = re.compile(
    r"(?:table-events|topic-events)/.*|.*/stream-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}-[0-9]+\.jsonl"
)
_EVENT_FILE = r"\.(jsonl|ndjson|json)(\.(gz|gzip|zst|zstd|bz2|xz|lz4|zip))?|\.(gz|gzip|zst|zstd|bz2|xz|lz4|zip)"
_DATED = re.compile(
    rf"landing/events/(?:date=|dt=)?(\d{{4}}-\d\d-\d\d|\d{{4}}/\d\d/\d\d)/(?:[^/]+/)*[^/]+(?:{_EVENT_FILE})",
    re.IGNORECASE,
)
_UNFINISHED = re.compile(r"(^|/)[._][^/]*|\.(inprogress|tmp|part|crc)(\.[^/]*)?$", re.IGNORECASE)
"""What engines leave while they write, and beside what they wrote; moving it may break their recovery."""
_IN_A_FOLDER = re.compile(r".*\.(jsonl|ndjson)(\.(gz|gzip|zst|zstd|bz2|xz|lz4|zip))?|.*\.csv", re.IGNORECASE)
_LANDABLE = re.compile(rf".*(?:{_EVENT_FILE}|\.csv)", re.IGNORECASE)


def is_of_messages(key: str) -> bool:
    """Whether an object is a file that the product itself wrote, of each line a message, whatever the first is like."""
    return _OF_MESSAGES.fullmatch(key) is not None


def is_landable(path: Path, *, is_named: bool) -> bool:
    """Whether a file is one of events or a catalogue: by any ending that landing reads where it was named itself."""
    if not is_named and _UNFINISHED.search(path.name):
        return False
    return (_LANDABLE if is_named else _IN_A_FOLDER).fullmatch(path.name) is not None


def folder_for(path: Path, day: date) -> str:
    """Where in the bucket a file belongs that arrives on `day`."""
    return CATALOG_PREFIX if path.suffix.lower() == ".csv" else f"{EVENTS_PREFIX}date={day.isoformat()}/"


@dataclass(frozen=True)
class LandingFile:
    """A file in the landing area; `etag` changes with its content."""

    uri: str
    key: str
    etag: str
    bytes: int

    @property
    def bucket(self) -> str:
        """The bucket that it is in."""
        return self.uri.split("/", 3)[2]


@dataclass(frozen=True)
class EventFile(LandingFile):
    """A file of events.

    Attributes:
        landing_date: that of its folder; of a source's file, what its path says, or when it was put there.
        source: that it is of; None where it holds events in this project's own form.
    """

    landing_date: date
    source: Source | None = None


@dataclass(frozen=True)
class EventsArea:
    """What lies under the prefix of events.

    Attributes:
        files: of events.
        unrecognised: what is no event file by its folder or ending: nobody reads it.
    """

    files: list[EventFile]
    unrecognised: list[LandingFile]


def _landing_date(key: str) -> date | None:
    """The date of an event file's folder; None for anything else under the prefix."""
    match = _DATED.fullmatch(key)
    try:
        return date.fromisoformat(match[1].replace("/", "-")) if match else None
    except ValueError:
        return None


def landing_date_of(uri: str) -> date:
    """The landing date of an event file by its address."""
    found = _landing_date(uri.split("/", 3)[3])
    if found is None:
        raise ContractError(f"{uri} is not the address of an event file.")
    return found


def _client(
    endpoint_url: str | None, access_key_id: str, secret_access_key: str, region: str, *, is_foreign: bool = False
) -> "S3Client":
    # Whoever listens and says nothing must not keep a sensor from the files of others.
    connect, read, tries = (3, 10, 1) if is_foreign else (5, 60, 4)
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        region_name=region,
        config=Config(
            connect_timeout=connect, read_timeout=read, retries={"mode": "standard", "total_max_attempts": tries}
        ),
    )


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
        self._endpoint_url, self._region = endpoint_url, region
        self._client = _client(endpoint_url, access_key_id, secret_access_key, region)
        self._clients_of: dict[BucketLogin, S3Client] = {}
        # Thousands of small objects: boto3 is busy with itself for a millisecond each.
        self._objects = s3_store(
            bucket, endpoint_url=endpoint_url, access_key_id=access_key_id, secret_access_key=secret_access_key,
            region=region,
        )  # fmt: skip

    def _client_for(self, source: Source | None) -> "S3Client":
        """Who reads the files of a source: its own login, or the product's."""
        login = source.login if source else None
        if login is None:
            return self._client
        if login not in self._clients_of:
            self._clients_of[login] = _client(
                login.endpoint_url or self._endpoint_url, login.access_key_id,
                login.secret_access_key.get_secret_value(), login.region or self._region, is_foreign=True,
            )  # fmt: skip
        return self._clients_of[login]

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
        """Every event file of the landing area, by landing date and name."""
        return self.events_area().files

    def events_area(self) -> "EventsArea":
        """What lies under the prefix of events."""
        area = EventsArea([], [])
        for file, _ in self._list(EVENTS_PREFIX):
            if _UNFINISHED.search(file.key.removeprefix(EVENTS_PREFIX)):
                continue
            if landing_date := _landing_date(file.key):
                area.files.append(EventFile(**vars(file), landing_date=landing_date))
            elif not file.key.endswith("/"):
                area.unrecognised.append(file)
        return area

    def source_files(self, source: Source, sources: Sources | None = None) -> list[EventFile]:
        """The files of a source, by name.

        Args:
            source: whose.
            sources: where a file lies at the places of several of these, it is of the nearest alone.

        Raises:
            UnreadableError: its bucket is not there, or the login may not list it.
        """
        found = []
        with self._listing(source) as client:
            for file, put_at in self._list(source.location.prefix, source.location.bucket, client):
                said = source.location.match(file.uri)
                if said is None or not file.bytes or _UNFINISHED.search(file.key.rpartition("/")[2]):
                    continue
                if sources is None or sources.of(file.uri) is source:
                    day = said.landing_date or put_at.astimezone(UTC).date()
                    found.append(EventFile(**vars(file), landing_date=day, source=source))
        return found

    def look_at(self, source: Source) -> None:
        """Whether the files of a source can be listed, by asking for one.

        Raises:
            UnreadableError: as `source_files`.
        """
        with self._listing(source) as client:
            client.list_objects_v2(Bucket=source.location.bucket, Prefix=source.location.prefix, MaxKeys=1)

    @contextmanager
    def _listing(self, source: Source) -> Iterator["S3Client"]:
        """Who lists the files of a source; what goes wrong is the source's."""
        try:
            yield self._client_for(source)
        except ClientError as error:
            said_by_s3 = error.response.get("Error", {})
            raise UnreadableError(
                f"source {source.name}: {source.location.text} can't be listed ({said_by_s3.get('Code', '')}: "
                f"{said_by_s3.get('Message', '')}). Give the login access, or correct `location` of event_sources."
            ) from None
        except (BotoCoreError, ValueError) as error:
            # An endpoint that is no address is a ValueError of boto3.
            raise UnreadableError(
                f"source {source.name}: {source.location.text} can't be listed ({error}). Its files wait until its "
                "server answers, or its login names another."
            ) from None

    def catalog_files(self) -> list[LandingFile]:
        """Every catalogue file, by name."""
        return [f for f, _ in self._list(CATALOG_PREFIX) if f.key.endswith(".csv")]

    def files_under(self, prefix: str) -> list[LandingFile]:
        """The objects below a prefix of the bucket, by name."""
        return [file for file, _ in self._list(prefix)]

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix of the bucket, those that were put first before the others."""
        return [file.key for file, _ in sorted(self._list(prefix), key=lambda found: (found[1], found[0].key))]

    def _list(
        self, prefix: str, bucket: str | None = None, client: "S3Client | None" = None
    ) -> list[tuple[LandingFile, datetime]]:
        """Objects by name, and when each was put."""
        bucket = bucket or self.bucket
        pages = (client or self._client).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        files = [
            (LandingFile(f"s3://{bucket}/{o['Key']}", o["Key"], o["ETag"].strip('"'), o["Size"]), o["LastModified"])
            for page in pages
            for o in page.get("Contents", [])
        ]
        return sorted(files, key=lambda found: found[0].key)

    def pieces(self, file: LandingFile, size: int) -> Iterator[bytes]:
        """The file's content in pieces of about `size` bytes, as JSON lines in UTF-8, whatever its name says.

        Raises:
            ConflictError: the file is gone, or has other content than when it was listed.
            ContractError: it is damaged, or no text; the message names the file.
            UnreadableError: the store has it and does not hand it out.
            UnavailableError: the store does not answer.
        """
        source = file.source if isinstance(file, EventFile) else None
        client, is_foreign = self._client_for(source), source is not None and source.login is not None
        try:
            body = client.get_object(Bucket=file.bucket, Key=file.key, IfMatch=f'"{file.etag}"')["Body"]
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (404, 412):
                raise ConflictError(f"{file.uri} was changed or removed since it was listed.") from None
            if status < SERVER_ERRORS or is_foreign:
                said = error.response.get("Error", {})
                raise UnreadableError(
                    f"{file.uri} can't be read: S3 answers {status} {said.get('Code', '')} "
                    f"({said.get('Message', '')}). Restore it if it was archived, or give the login access; it lands "
                    "with the next run then."
                ) from None
            raise UnavailableError(f"S3 at {self._endpoint} does not hand out {file.uri}: {error}") from None
        except BotoCoreError as error:
            if is_foreign:
                raise UnreadableError(f"{file.uri} can't be read: its server does not answer ({error}).") from None
            raise UnavailableError(f"S3 at {self._endpoint} does not answer ({error}).") from None
        try:
            framing = source.framing if source else Framing(is_of_messages=is_of_messages(file.key))
            yield from record_pieces(cast("io.IOBase", body), framing, size, file.uri)
        except BotoCoreError as error:
            failed = UnreadableError if is_foreign else UnavailableError
            raise failed(f"Reading {file.uri} broke off: {error}. Run again.") from None

    def read(self, file: LandingFile) -> bytes:
        """The whole content of a small file."""
        return self._client.get_object(Bucket=self.bucket, Key=file.key)["Body"].read()

    def put_file(self, path: Path, folder: str, *, overwrite: bool = False) -> str:
        """Upload a file under a folder of the bucket, once.

        The same content again changes nothing; other content under a name that is taken gets a name of its own,
        for a landing file is never changed, unless it is said that this one stands in for it.

        Args:
            path: the file.
            folder: key of the folder, with a slash at its end.
            overwrite: other content under the name is replaced.

        Returns:
            The object's s3:// address.
        """
        sha256 = file_sha256(path)
        if overwrite and self.stored_sha256(f"{folder}{path.name}") not in (None, sha256):
            named = {"Metadata": {"sha256": sha256}}
            self._client.upload_file(str(path), self.bucket, f"{folder}{path.name}", ExtraArgs=named)
        stem, dot, suffix = path.name.partition(".")
        for name in (path.name, f"{stem}-{sha256[:12]}{dot}{suffix}"):
            key = f"{folder}{name}"
            if (self.stored_sha256(key) or self._put_new(path, key, sha256)) == sha256:
                return f"s3://{self.bucket}/{key}"
        raise ContractError(f"{path} can't be uploaded: {folder}{stem}-{sha256[:12]} is taken by other content.")

    def put_events(self, lines: bytes, name: str, day: date) -> str:
        """Put lines as a new event file of a landing date; returns its s3:// address.

        Raises:
            UnavailableError: S3 does not take it.
        """
        key = f"{EVENTS_PREFIX}date={day}/{name}"
        try:
            obstore.put(self._objects, key, lines, mode="create")
        except (obstore.exceptions.BaseError, OSError) as error:
            raise UnavailableError(f"S3 at {self._endpoint} does not take {key}: {error}") from error
        return f"s3://{self.bucket}/{key}"

    def _put_new(self, path: Path, key: str, sha256: str) -> str | None:
        """Upload under a name that is free; returns the sha256 of what is there now, which another may have put."""
        if path.stat().st_size > MULTIPART_BYTES:
            self._client.upload_file(str(path), self.bucket, key, ExtraArgs={"Metadata": {"sha256": sha256}})
            return sha256
        try:
            self._client.put_object(
                Bucket=self.bucket, Key=key, Body=path.read_bytes(), Metadata={"sha256": sha256}, IfNoneMatch="*"
            )
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
                raise
            return self.stored_sha256(key)
        return sha256

    def replace(self, file: LandingFile, content: Path, metadata: dict[str, str]) -> str:
        """Put other content in the place of a file, unless somebody changed it since; returns the new etag.

        Raises:
            ConflictError: it was changed or removed.
            UnreadableError: the store does not take it.
        """
        changed = ConflictError(f"{file.uri} was changed or removed since it was listed.")
        try:
            if content.stat().st_size <= MULTIPART_BYTES:
                with content.open("rb") as body:
                    put = self._client.put_object(
                        Bucket=self.bucket, Key=file.key, Body=body, Metadata=metadata, IfMatch=f'"{file.etag}"'
                    )
                # What is there by now may be of somebody else.
                return put["ETag"].strip('"')
            # S3 has no such condition for what goes up in parts by this client: it is looked at before and after.
            before = self._head(file.key)
            if before is None or before["ETag"].strip('"') != file.etag:
                raise changed
            self._client.upload_file(str(content), self.bucket, file.key, ExtraArgs={"Metadata": metadata})
            after = self._head(file.key)
        except (ClientError, S3UploadFailedError) as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else None
            if status in (404, 409, 412):
                raise changed from None
            raise UnreadableError(f"S3 does not take {file.uri} again: {error}") from None
        if after is None or after["Metadata"] != metadata:
            raise changed
        return after["ETag"].strip('"')

    def _head(self, key: str) -> "HeadObjectOutputTypeDef | None":
        """What S3 says of an object; None when it is not there."""
        try:
            return self._client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def metadata(self, key: str) -> dict[str, str]:
        """What an object was put with; empty when it is not there."""
        found = self._head(key)
        return {} if found is None else dict(found["Metadata"])

    def first_bytes(self, file: LandingFile) -> bytes:
        """The first bytes of a file as it is stored; empty where it is."""
        if not file.bytes:
            return b""
        return self._client.get_object(Bucket=self.bucket, Key=file.key, Range="bytes=0-15")["Body"].read()

    def stored_sha256(self, key: str) -> str | None:
        """The sha256 that an object was put with; None when it is not there."""
        found = self._head(key)
        return None if found is None else found["Metadata"].get("sha256", "unknown")

    def named(self, uri: str) -> LandingFile:
        """An object of this bucket by its address, as it is now.

        Raises:
            FileNotFoundError: it is gone.
        """
        key = uri.removeprefix(f"s3://{self.bucket}/")
        found = self._head(key)
        if found is None:
            raise FileNotFoundError(uri)
        return LandingFile(uri, key, found["ETag"].strip('"'), found["ContentLength"])

    def sha256_of(self, uri: str) -> str | None:
        """The sha256 of an object of this bucket; None when it is not there."""
        key = uri.removeprefix(f"s3://{self.bucket}/")
        try:
            body = self._client.get_object(Bucket=self.bucket, Key=key)["Body"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        digest = hashlib.sha256()
        for chunk in body.iter_chunks(1024 * 1024):
            digest.update(chunk)
        return digest.hexdigest()

    def put_dead_letters(self, letters: pl.DataFrame) -> None:
        """Keep the bytes of rejected lines under their sha256.

        Args:
            letters: dead_letter_id and raw; rows whose raw is null are there already.
        """
        distinct = letters.drop_nulls("raw").unique("dead_letter_id", maintain_order=True)
        slices = [distinct.gather_every(REQUESTS_AT_ONCE, start) for start in range(REQUESTS_AT_ONCE)]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(self._put_each, slices))

    def _put_each(self, letters: pl.DataFrame) -> None:
        for letter_id, raw in letters.select("dead_letter_id", "raw").iter_rows():
            self.put_dead_letter(letter_id, raw)

    def put_dead_letter(self, letter_id: str, raw: bytes) -> None:
        """Keep the bytes of a rejected line under their sha256."""
        obstore.put(self._objects, dead_letter_key(letter_id), raw, use_multipart=False)

    def put_long_dead_letter(self, pieces: Iterable[bytes]) -> tuple[str, int]:
        """Keep the bytes of a line that does not fit into memory; returns their sha256 and how many they are."""
        digest, size = hashlib.sha256(), 0
        with tempfile.TemporaryFile() as spool:
            for piece in pieces:
                digest.update(piece)
                size += spool.write(piece)
            spool.seek(0)
            key = dead_letter_key(digest.hexdigest())
            self._client.upload_fileobj(spool, self.bucket, key, Config=TransferConfig(max_concurrency=2))
        return digest.hexdigest(), size

    def read_dead_letter(self, dead_letter_id: str) -> bytes:
        """The bytes of a rejected line."""
        key = dead_letter_key(dead_letter_id)
        return self._client.get_object(Bucket=self.bucket, Key=key)["Body"].read()


def dead_letter_key(dead_letter_id: str) -> str:
    """Where the bytes of a rejected line are."""
    return f"{DEAD_LETTERS_PREFIX}{dead_letter_id[:2]}/{dead_letter_id}"
