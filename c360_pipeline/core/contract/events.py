"""The event contract: what a line must hold to become an event, and the identity of what it holds.

The fields are declared in `fields`. Decoding a file is `core.landing`.
Source: contracts of the project; field names follow the event of "Real-time Customer-Journey Graph with
Flink + Neo4j".
"""

import hashlib
import json
import math
import re
import unicodedata
from collections import namedtuple
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, NamedTuple

from c360_pipeline.core.contract.fields import FIELDS, FieldType
from c360_pipeline.core.contract.layout import ADDED_TO_IDENTITY, COLUMNS, IDENTITY

MAX_LINE_BYTES = 1024 * 1024
MAX_STRING_CHARACTERS = 1024
MAX_ATTRS = 64
MAX_TENANT_BYTES = 200
MOST_DIGITS = 40
"""Of a whole number that is written out; larger ones stay as they were sent."""
NO_TENANT = "__HIVE_DEFAULT_PARTITION__"
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST_AHEAD = timedelta(days=1)
EXTRA_PREFIX = "_extra."

ERROR_CLASSES = (
    "invalid_utf8",
    "invalid_json",
    "not_an_object",
    "missing_field",
    "wrong_type",
    "empty_value",
    "too_large",
    "bad_timestamp",
    "timestamp_out_of_range",
    "too_many_attrs",
    "nested_attr",
    "duplicate_id_conflict",
)


REQUIRED_TEXTS = tuple(field for field in FIELDS if field.required and field.type is FieldType.TEXT)
OPTIONAL_TEXTS = tuple(
    field for field in FIELDS if not field.required and field.type is FieldType.TEXT and field.column != "event_id"
)
KNOWN_NAMES = frozenset(field.name for field in FIELDS)

_TS = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,18})?)? ?"
    r"([Zz]|UTC|GMT|[+-][0-9]{2}(:?[0-5][0-9])?)(\[[A-Za-z0-9_+/-]{1,64}\])?"
)
TS_PATTERN = rf"^ *({_TS}|[0-9]{{12,14}}) *$"
"""RFC 3339 with an offset, forms of it that engines write, or epoch milliseconds as text, as JSON Schema says it."""

_INSTANT = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,18}))?)? ?"
    r"(?:([Zz]|UTC|GMT)|([+-])(\d\d)(?::?([0-5]\d))?)(?:\[[A-Za-z0-9_+/-]{1,64}\])?",
    re.ASCII,
)
_EPOCH_TEXT = re.compile(r"\d{12,14}", re.ASCII)
_WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,18})?)?", re.ASCII)
# All other bytes of a partition value take three characters.
_AS_IS_IN_A_FOLDER = re.compile(rb"[A-Za-z0-9_.~-]")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_EPOCH_MS = int(EARLIEST.timestamp() * 1000)
_LAST_EPOCH_MS = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp() * 1000)


def epoch_micros(at: datetime) -> int:
    """Microseconds from 1970 in UTC to a moment."""
    return (at - EPOCH) // timedelta(microseconds=1)


def json_schema() -> dict[str, Any]:
    """The contract as JSON Schema 2020-12.

    A schema can't say everything: names that occur twice, half surrogate pairs, the length of a line, dates that do not
    exist, times out of range and ids that are taken are looked at when a line lands.
    """
    properties = {
        f.name: {"description": f.meaning, **_SCHEMAS[f.type]} | ({"pattern": r"\S"} if f.may_not_be_blank else {})
        for f in FIELDS
    }
    for field in FIELDS:
        if not field.required:
            properties[field.name] = {"anyOf": [properties[field.name], {"type": "null"}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Event",
        "description": f"One customer event, one JSON object a line of at most {MAX_LINE_BYTES:,} bytes.",
        "type": "object",
        "required": [f.name for f in FIELDS if f.required],
        "properties": properties,
        "additionalProperties": {"description": f"kept in attrs as {EXTRA_PREFIX}<name>"},
    }


_TEXT = {"type": "string", "maxLength": MAX_STRING_CHARACTERS}
_SCHEMAS: dict[FieldType, dict[str, Any]] = {
    FieldType.TEXT: _TEXT,
    FieldType.INSTANT: {
        "anyOf": [
            {"type": "string", "pattern": TS_PATTERN},
            {
                "type": "integer",
                "minimum": _FIRST_EPOCH_MS,
                "description": f"epoch milliseconds, from {EARLIEST.date()}",
            },
        ]
    },
    FieldType.ATTRIBUTES: {
        "type": "object",
        "maxProperties": MAX_ATTRS,
        "patternProperties": {
            rf"^[\s\S]{{0,{MAX_STRING_CHARACTERS}}}(?![\s\S])": {
                "anyOf": [_TEXT, {"type": ["number", "boolean", "null"]}]
            },
        },
        # An attribute without a value is left out, whatever its name.
        "additionalProperties": {"type": "null"},
    },
}


if TYPE_CHECKING:

    class Event(NamedTuple):
        """A line that met the contract; strings in Unicode NFC, `ts` in UTC with microseconds."""

        event_id: str
        tenant_id: str
        user_id: str
        session_id: str
        ts: datetime
        action: str
        item_id: str | None
        attrs: dict[str, str]
        content_hash: str
else:
    # Of the declared fields; the class above is what a type checker knows of them, and a test holds it to these.
    Event = namedtuple("Event", (*COLUMNS, "content_hash"))


class Rejected(Exception):  # noqa: N818 - an outcome of a line, not a fault of the program
    """A line that can't become an event, with its class and a reason that its producer can act on.

    `tenant_id` and `user_id` are those that the line names, where they can be read.
    """

    def __init__(self, error_class: str, reason: str, tenant_id: str | None = None, user_id: str | None = None) -> None:
        # A reason quotes what it found, and that may hold halves of surrogate pairs, which no file can keep.
        self.reason = reason.encode("utf-8", "backslashreplace").decode()
        super().__init__(self.reason)
        self.error_class = error_class
        self.tenant_id = tenant_id
        self.user_id = user_id


def parse_event(line: bytes, now: datetime) -> Event:
    """Read one line.

    Args:
        line: the bytes between two newlines.
        now: the moment of landing; events more than one day ahead of it are out of range.

    Raises:
        Rejected: the line breaks the contract.
    """
    fields = _load_object(line)
    try:
        return _build_event(fields, now)
    except Rejected as rejected:
        rejected.tenant_id, rejected.user_id = _readable(fields, "tenantId"), _readable(fields, "userId")
        raise


def _readable(fields: dict[str, Any], name: str) -> str | None:
    """A string of a line that was rejected, where it can be told; as it would have been in the event."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip() or not _encodes(value):
        return None
    return unicodedata.normalize("NFC", value)


def canonical_hash(values: Mapping[str, Any]) -> str:
    """sha256 of the event's canonical form, in hex: key order, Unicode form, time zone and number form don't matter.

    Args:
        values: by column.
    """
    form = [_canonical(values[field.column]) for field in IDENTITY]
    added = [[field.name, values[field.column]] for field in ADDED_TO_IDENTITY if values.get(field.column) is not None]
    text = json.dumps([*form, *added], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, datetime):
        return epoch_micros(value)
    return sorted(value.items()) if isinstance(value, dict) else value


def _load_object(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise Rejected("too_large", f"the line has {len(line):,} bytes, the limit is {MAX_LINE_BYTES:,}")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("invalid_utf8", f"byte 0x{line[error.start]:02x} at offset {error.start} is not UTF-8") from None
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_Number, object_pairs_hook=_unique_names
        )  # fmt: skip
    except json.JSONDecodeError as error:
        raise Rejected("invalid_json", f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise Rejected("invalid_json", "values are nested too deep to be read") from None
    except ValueError as error:
        raise Rejected("invalid_json", str(error)) from None
    if not isinstance(value, dict):
        raise Rejected("not_an_object", f"the line holds {_type_name(value)}, an event is a JSON object")
    return value


class _Number(float):
    """A number with a point or an exponent, with its text: a float may hold fewer digits than were sent."""

    __slots__ = ("sent",)
    sent: str

    def __new__(cls, sent: str) -> "_Number":
        made = super().__new__(cls, sent)
        made.sent = sent
        return made

    @property
    def text(self) -> str:
        """The shortest text of its value, or where a float does not hold that, the digits as they were sent."""
        short = (str(int(self)) if self.is_integer() else float.__repr__(self)) if math.isfinite(self) else "inf"
        try:
            exact = Decimal(self.sent)
        except InvalidOperation:  # an exponent beyond all bounds
            return self.sent.lower()
        if exact == Decimal(short):
            return short
        is_whole = exact.adjusted() < MOST_DIGITS and exact == exact.to_integral_value()
        return str(int(exact)) if is_whole else self.sent.lower()

    @property
    def nested_text(self) -> str:
        """The same inside of a value that is kept as JSON, where a whole number keeps its point."""
        usual = float.__repr__(self)
        return usual if math.isfinite(self) and Decimal(usual) == Decimal(self.sent) else self.text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} occurs twice in one object")
    return fields


def _build_event(fields: dict[str, Any], now: datetime) -> Event:
    """The event that a line's fields make.

    Raises:
        Rejected: with the class of the first fault, and all of them in its reason.
    """
    faults: list[Rejected] = []
    values: dict[str, Any] = {}

    def take(column: str, read: Callable[..., Any], *args: Any) -> None:
        try:
            values[column] = read(*args)
        except Rejected as fault:
            faults.append(fault)

    for field in REQUIRED_TEXTS:
        take(field.column, _required_string, fields, field.name)
    if "tenant_id" in values:
        take("tenant_id", _checked_tenant, values["tenant_id"])
    take("ts", _timestamp, fields, now)
    for field in OPTIONAL_TEXTS:
        take(field.column, _optional_string, fields, field.name)
    take("event_id", _given_id, fields)
    take("attrs", _attrs, fields)
    if faults:
        raise Rejected(faults[0].error_class, "; ".join(fault.reason for fault in faults))
    given_id = values.pop("event_id")
    content_hash = canonical_hash(values)
    return Event(**values, event_id=given_id or content_hash, content_hash=content_hash)


def _given_id(fields: dict[str, Any]) -> str | None:
    given_id = _optional_string(fields, "eventId")
    if fields.get("eventId") is not None and not (given_id or "").strip():
        raise Rejected("empty_value", "field `eventId` is empty; leave it out or give every event its own")
    return given_id


def _required_string(fields: dict[str, Any], name: str) -> str:
    if fields.get(name) is None:
        raise Rejected("missing_field", f"field `{name}` is required")
    text = _string(fields[name], name)
    if not text.strip():
        raise Rejected("empty_value", f"field `{name}` is empty")
    return text


def _optional_string(fields: dict[str, Any], name: str) -> str | None:
    if fields.get(name) is None:
        return None
    return _string(fields[name], name) or None


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"field `{name}` holds {_type_name(value)}, a string is right")
    return _bounded(value, name)


def _bounded(text: str, name: str) -> str:
    if not text.isascii():
        if not _encodes(text):
            raise Rejected("invalid_utf8", f"field `{name}` holds half of a surrogate pair")
        text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_STRING_CHARACTERS:
        raise Rejected(
            "too_large", f"field `{name}` has {len(text):,} characters, the limit is {MAX_STRING_CHARACTERS:,}"
        )
    return text


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _checked_tenant(tenant_id: str) -> str:
    """A tenant is a folder of the archive too: its name must fit, and not be the one that stands for none."""
    folder = tenant_id.encode()
    length = 3 * len(folder) - 2 * len(_AS_IS_IN_A_FOLDER.findall(folder))
    if length > MAX_TENANT_BYTES:
        raise Rejected(
            "too_large", f"field `tenantId` has {length} bytes as a folder name, the limit is {MAX_TENANT_BYTES}"
        )
    if tenant_id == NO_TENANT:
        raise Rejected("empty_value", f"field `tenantId`: {NO_TENANT} stands for no tenant")
    return tenant_id


def _attrs(fields: dict[str, Any]) -> dict[str, str]:
    given = fields.get("attrs")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Rejected("wrong_type", f"field `attrs` holds {_type_name(given)}, an object is right")
    attrs: dict[str, str] = {}
    for name, value in given.items():
        if isinstance(value, dict | list):
            raise Rejected("nested_attr", f"field `attrs.{name}` holds {_type_name(value)}, a string is right")
        if value is not None:
            _keep(attrs, _bounded(name, "attrs"), _as_text(value, f"attrs.{name}"))
    for name in fields.keys() - KNOWN_NAMES:
        _keep(attrs, _bounded(EXTRA_PREFIX + name, name), _as_text(fields[name], name))
    if len(attrs) > MAX_ATTRS:
        raise Rejected("too_many_attrs", f"the event has {len(attrs)} attributes, the limit is {MAX_ATTRS}")
    return dict(sorted(attrs.items()))


def _keep(attrs: dict[str, str], name: str, text: str) -> None:
    # Two spellings of one name in Unicode, or an attribute that is named as an unknown field is kept.
    if name in attrs:
        raise Rejected("invalid_json", f"the attribute {name!r} occurs twice")
    attrs[name] = text


def _as_text(value: object, name: str) -> str:
    """A JSON value as text; numbers that are equal get the same text (1, 1.0 and 1e0)."""
    match value:
        case str():
            text = value
        case bool() | None | dict() | list():
            text = _json_text(value, name)
        case _Number():
            text = value.text
        case _:
            text = str(value)
    return _bounded(text, name)


def _json_text(value: object, name: str) -> str:
    try:
        return _compact(value)
    except RecursionError:
        raise Rejected("invalid_json", f"field `{name}`: values are nested too deep to be read") from None


def _compact(value: object) -> str:
    """Canonical JSON whose numbers keep their digits, which the standard library's would not."""
    match value:
        case dict():
            pairs = (f"{_compact(name)}:{_compact(value[name])}" for name in sorted(value))
            return f"{{{','.join(pairs)}}}"
        case list():
            return f"[{','.join(map(_compact, value))}]"
        case _Number():
            return value.nested_text
        case _:
            return json.dumps(value, ensure_ascii=False)


def _timestamp(fields: dict[str, Any], now: datetime) -> datetime:
    value = fields.get("ts")
    match value:
        case None:
            raise Rejected("missing_field", "field `ts` is required")
        case str():
            ts = _from_text(value.strip(" "))
        case int() if not isinstance(value, bool):
            ts = _from_epoch_ms(value)
        case float() if value.is_integer():
            ts = _from_epoch_ms(int(value))
        case _:
            raise Rejected("bad_timestamp", f"field `ts`: {_shown(value)} is not RFC 3339 or epoch milliseconds")
    if not EARLIEST <= ts <= now + LATEST_AHEAD:
        raise Rejected(
            "timestamp_out_of_range",
            f"field `ts`: {ts.isoformat()} is not between {EARLIEST.date()} and one day from now{_unit_hint(value)}",
        )
    return ts


def _unit_hint(value: object) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return ""
    for unit, in_ms in (("seconds", 1e3), ("microseconds", 1e-3), ("nanoseconds", 1e-6)):
        if _FIRST_EPOCH_MS <= value * in_ms < _LAST_EPOCH_MS:
            return f"; it looks like epoch {unit}, send milliseconds"
    return ""


def _from_text(text: str) -> datetime:
    if _EPOCH_TEXT.fullmatch(text):
        return _from_epoch_ms(int(text))
    match = _INSTANT.fullmatch(text)
    if not match:
        hint = "; it has no time zone, add Z or an offset" if _WITHOUT_ZONE.fullmatch(text) else ""
        raise Rejected("bad_timestamp", f"field `ts`: {_shown(text)} is not RFC 3339 or epoch milliseconds{hint}")
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    micros = int((match[7] or "0")[:6].ljust(6, "0"))
    offset = timedelta(0)
    if match[9]:
        offset = timedelta(hours=int(match[10]), minutes=int(match[11] or 0)) * (1 if match[9] == "+" else -1)
    # A leap second has no number of its own in UTC microseconds: it counts as the second after it.
    leap = second == 60
    try:
        # timezone refuses an offset of a day or more.
        ts = datetime(year, month, day, hour, minute, 59 if leap else second, micros, timezone(offset))
        ts = ts.astimezone(UTC)
        return ts + timedelta(seconds=1) if leap else ts
    except (ValueError, OverflowError):
        raise Rejected("bad_timestamp", f"field `ts`: {_shown(text)} is not a date and time that exists") from None


def _from_epoch_ms(value: int) -> datetime:
    try:
        return EPOCH + timedelta(milliseconds=value)
    except OverflowError:
        said = f"field `ts`: {_shown(value)} ms is outside the calendar{_unit_hint(value)}"
        raise Rejected("timestamp_out_of_range", said) from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _type_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
