"""Where the files of a source lie: an address with places for what the path says.

`s3://bucket/segment-logs/{any}/{received:epoch_ms}/*.gz`. A file is read where it is; nothing has to be moved or named
as this project would. `*` and `{any}` stand for a part of a name, `**` for folders, `{tenant}` for the tenant,
`{date}` (2026-11-20, 20261120 or 2026/11/20), `{hour}` and `{received:FORMAT}` for when its records came.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property

from c360_pipeline.errors import ConfigError

_TOKEN = re.compile(r"\{([^{}]*)\}|\*\*/|\*\*|\*|\?")
_ADDRESS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLACES = {
    "any": r"[^/]+", "tenant": r"(?P<tenant>[^/]+)", "date": r"(?P<date>\d{4}-\d\d-\d\d|\d{8}|\d{4}/\d\d/\d\d)",
    "hour": r"(?P<hour>\d\d?)", "received:epoch_s": r"(?P<seconds>\d{9,11})",
    "received:epoch_ms": r"(?P<millis>\d{12,14})",
}  # fmt: skip


@dataclass(frozen=True)
class InPath:
    """What the path of a file says.

    Attributes:
        tenant_id: whose it is; None where the path does not say.
        landing_date: the day that it came; None where the path does not say.
    """

    tenant_id: str | None
    landing_date: date | None


@dataclass(frozen=True)
class Location:
    """An address with places.

    Raises:
        ConfigError: it is none.
    """

    text: str

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.text):
            raise ConfigError(f"location {self.text!r} is no address: s3://bucket/folder/*.gz is right.")
        for found in _TOKEN.finditer(self.text):
            if found[1] is not None and found[1] not in _PLACES:
                raise ConfigError(f"location: {{{found[1]}}} is not one of {', '.join(f'{{{n}}}' for n in _PLACES)}.")
        for name in _PLACES:
            if name != "any" and self.text.count(f"{{{name}}}") > 1:
                raise ConfigError(f"location: {{{name}}} occurs twice.")

    @property
    def bucket(self) -> str:
        """Its bucket."""
        return self.text.split("/", 3)[2]

    @property
    def prefix(self) -> str:
        """What the keys of all files begin with."""
        key = self.text.split("/", 3)[3]
        first = _TOKEN.search(key)
        return key[: first.start()] if first else key

    @property
    def says_tenant(self) -> bool:
        """Whether the path says whose events these are."""
        return "{tenant}" in self.text

    @property
    def beginning(self) -> str:
        """What the addresses of all files begin with."""
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def pattern(self) -> str:
        """Regular expression of the keys of its files, with a group for each place."""
        return self._pattern.pattern

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        key, at, parts = self.text.split("/", 3)[3], 0, list[str]()
        for found in _TOKEN.finditer(key):
            parts.append(re.escape(key[at : found.start()]))
            at = found.end()
            parts.append(_PLACES[found[1]] if found[1] is not None else _WILD[found[0]])
        return re.compile("".join([*parts, re.escape(key[at:])]))

    def match(self, uri: str) -> InPath | None:
        """What the path of a file says; None where the address is not one of this location."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        found = self._pattern.fullmatch(key) if bucket == self.bucket else None
        if found is None:
            return None
        said = found.groupdict()
        try:
            return InPath(said.get("tenant"), _day(said))
        except (ValueError, OverflowError):
            return None

    def folder_for(self, name: str, at: datetime, tenant_id: str | None = None) -> str:
        """The key of a folder in which a file of this name is one of this location.

        Args:
            name: of the file.
            at: when it arrives, UTC.
            tenant_id: whose it is, where the path says that.

        Raises:
            ConfigError: no file of this name can be one of it, or the path says whose it is and nobody said it.
        """
        said = {
            "any": "uploaded", "tenant": tenant_id, "date": at.date().isoformat(), "hour": f"{at.hour:02}",
            "received:epoch_s": f"{at.timestamp():.0f}", "received:epoch_ms": f"{at.timestamp() * 1000:.0f}",
        }  # fmt: skip
        if tenant_id is None and "{tenant}" in self.text:
            raise ConfigError(f"location {self.text} says in its path whose events these are: say --tenant.")
        folder = self.text.split("/", 3)[3].rpartition("/")[0]
        filled = _TOKEN.sub(lambda found: "" if found[0] == "**/" else str(said.get(found[1] or "any")), folder)
        if self.match(f"s3://{self.bucket}/{filled}/{name}") is None:
            raise ConfigError(f"a file {name} is none of location {self.text}: give it a name that is.")
        return f"{filled}/"


_WILD = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


def _day(said: dict[str, str | None]) -> date | None:
    if text := said.get("date"):
        return datetime.strptime(re.sub(r"[/-]", "", text), "%Y%m%d").replace(tzinfo=UTC).date()
    for name, unit in (("seconds", timedelta(seconds=1)), ("millis", timedelta(milliseconds=1))):
        if text := said.get(name):
            return (_EPOCH + int(text) * unit).date()
    return None
