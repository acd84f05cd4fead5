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
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, NamedTuple

from c360_pipeline.core.contract.fields import EITHER, FIELDS, ITEM_PARTS, EventField, FieldType
from c360_pipeline.core.contract.layout import ADDED_TO_IDENTITY, COLUMNS, IDENTITY

MAX_LINE_BYTES = 1024 * 1024
MAX_STRING_CHARACTERS = 1024
MAX_ATTRS = 64
MAX_ITEMS = 200
MAX_AMOUNT = 10**12
"""Of pieces, or of money for one."""
CUT = "…"
"""Stands in a text that was longer than a field may be, before the first digits of its sha256."""
_DIGITS_OF_CUT = 16
OF_A_RECORD = ("tenant_id", "event_id", "anonymous_id", "user_id", "action")
"""What tells an event that a source's mapping made from another."""
MAX_TENANT_BYTES = 200
_LARGEST_INSTANT = 10**20
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
    "duplicate_id_conflict",
    "left_out",
)


KNOWN_NAMES = frozenset(field.name for field in FIELDS)
_EITHER = [field for field in FIELDS if field.column in EITHER]

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
INSTANT_WITHOUT_ZONE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,18})?)?", re.ASCII)
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
        "anyOf": [{"required": [f.name], "properties": {f.name: {"not": {"type": "null"}}}} for f in _EITHER],
        "properties": properties,
        "additionalProperties": {"description": f"kept in attrs as {EXTRA_PREFIX}<name>"},
    }


_TEXT = {"type": ["string", "number"], "maxLength": MAX_STRING_CHARACTERS, "description": "a number is its text"}
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
                "description": "objects are taken apart by path, a.b; a text that is too long is cut, with a mark"
            },
        },
        # An attribute without a value is left out, whatever its name.
        "additionalProperties": {"type": "null"},
    },
    FieldType.TEXTS: {"type": "object", "maxProperties": MAX_ATTRS},
    FieldType.ITEMS: {
        "type": "array",
        "maxItems": MAX_ITEMS,
        "items": {
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": {**_TEXT, "pattern": r"\S"}, "currency": {"anyOf": [_TEXT, {"type": "null"}]},
                **{part: {"type": ["number", "string", "null"]} for part in ("quantity", "price")},
            },
        },
    },
    FieldType.WHOLE: {"type": "integer"},
}  # fmt: skip


if TYPE_CHECKING:

    class Event(NamedTuple):
        """A line that met the contract; strings in Unicode NFC, `ts` in UTC with microseconds."""

        event_id: str
        tenant_id: str
        user_id: str | None
        session_id: str | None
        ts: datetime
        action: str
        item_id: str | None
        attrs: dict[str, str]
        anonymous_id: str | None
        items: list[dict[str, Any]] | None
        traits: dict[str, str] | None
        consent: dict[str, str] | None
        received_at: datetime | None
        source: str | None
        mapping_version: int | None
        content_hash: str
else:
    # Of the declared fields; the class above is what a type checker knows of them, and a test holds it to these.
    Event = namedtuple("Event", (*COLUMNS, "content_hash"))


class Rejected(Exception):  # noqa: N818 - an outcome of a line, not a fault of the program
    """A line that can't become an event, with its class and a reason that its producer can act on.

    `tenant_id`, `user_id`, `anonymous_id` and `session_id` are those that the line names, where they can be read.
    """

    anonymous_id: str | None = None
    session_id: str | None = None

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
    fields = load_object(line)
    try:
        return _build_event(fields, now)
    except Rejected as rejected:
        rejected.tenant_id, rejected.user_id = _readable(fields, "tenantId"), _readable(fields, "userId")
        rejected.anonymous_id, rejected.session_id = _readable(fields, "anonymousId"), _readable(fields, "sessionId")
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
    added = [
        [field.name, _canonical(values[field.column])]
        for field in ADDED_TO_IDENTITY
        if values.get(field.column) is not None
    ]
    return _hash([*form, *added])


def _hash(form: list[Any]) -> str:
    text = json.dumps(form, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, datetime):
        return epoch_micros(value)
    if isinstance(value, list):
        return [[item[part] for part in ITEM_PARTS] for item in value]
    return sorted(value.items()) if isinstance(value, dict) else value


def load_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; numbers with a point keep the digits that were sent.

    Raises:
        Rejected: it is none.
    """
    if len(line) > MAX_LINE_BYTES:
        raise Rejected("too_large", f"the line has {len(line):,} bytes, the limit is {MAX_LINE_BYTES:,}")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Rejected("invalid_utf8", f"byte 0x{line[error.start]:02x} at offset {error.start} is not UTF-8") from None
    try:
        value = json.loads(
            text, parse_constant=refuse_constant, parse_float=Number, object_pairs_hook=unique_names
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


class Number(float):
    """A number with a point or an exponent, with its text: a float may hold fewer digits than were sent."""

    __slots__ = ("sent",)
    sent: str

    def __new__(cls, sent: str) -> "Number":
        """Of its text."""
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


def refuse_constant(name: str) -> None:
    """For a reader of JSON: NaN and Infinity are none."""
    raise ValueError(f"{name} is not JSON")


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For a reader of JSON: an object of whose members each name occurs once."""
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
    values, faults = checked(fields, now)
    if faults:
        raise together(list(faults.values()))
    return event_of(values)


def together(faults: list[Rejected]) -> Rejected:
    """One rejection of the class of the first fault, with all of them in its reason."""
    return Rejected(faults[0].error_class, "; ".join(fault.reason for fault in faults))


def event_of(values: Mapping[str, Any], content: str | None = None) -> Event:
    """The event of values that met the contract.

    An event that a source's mapping made is told from another by its id, who acted and what was done: a retry of a
    collector has other times, and a better mapping other attributes.

    Args:
        values: by column, as `checked` gives them.
        content: hash of what tells it from another under its id, where its mapping says more than that.
    """
    is_mapped = bool(values["source"] and values["mapping_version"] is not None and values["event_id"])
    content_hash = content or (_hash([values[name] for name in OF_A_RECORD]) if is_mapped else canonical_hash(values))
    given = {name: value for name, value in values.items() if name != "event_id"}
    return Event(**given, event_id=values.get("event_id") or content_hash, content_hash=content_hash)


def checked(fields: Mapping[str, Any], now: datetime) -> tuple[dict[str, Any], dict[str, Rejected]]:
    """Hold an object against the contract.

    Args:
        fields: by the names of the contract; others become attributes.
        now: the moment of landing.

    Returns:
        The values by column, and what is wrong by name of the field, in the order of the contract.
    """
    faults: dict[str, Rejected] = {}
    values: dict[str, Any] = {}
    for field in FIELDS:
        try:
            values[field.column] = _READERS[field.type](fields, field, now)
        except Rejected as fault:
            faults[field.name] = fault
    if isinstance(tenant := values.get("tenant_id"), str):
        try:
            _checked_tenant(tenant)
        except Rejected as fault:
            faults["tenantId"] = fault
    if not any(values.get(field.column) for field in _EITHER) and not any(field.name in faults for field in _EITHER):
        named = " or ".join(f"`{field.name}`" for field in _EITHER)
        faults[_EITHER[0].name] = Rejected("missing_field", f"field {named} is required")
    return values, {field.name: faults[field.name] for field in FIELDS if field.name in faults} if faults else faults


def _text(fields: Mapping[str, Any], field: EventField, now: datetime) -> str | None:
    value = fields.get(field.name)
    if value is None:
        if field.required:
            raise Rejected("missing_field", f"field `{field.name}` is required")
        return None
    text = _string(value, field.name)
    if field.may_not_be_blank and not text.strip():
        more = "; leave it out or give every event its own" if field.column == "event_id" else ""
        raise Rejected("empty_value", f"field `{field.name}` is empty{more}")
    return text or None


def _instant(fields: Mapping[str, Any], field: EventField, now: datetime) -> datetime | None:
    if fields.get(field.name) is None and not field.required:
        return None
    return _timestamp(fields, field.name, now)


def _texts(fields: Mapping[str, Any], field: EventField, now: datetime) -> dict[str, str] | None:
    texts = _members(fields, field)
    if len(texts) > MAX_ATTRS:
        raise Rejected("too_many_attrs", f"field `{field.name}` has {len(texts)} members, the limit is {MAX_ATTRS}")
    return dict(sorted(texts.items())) or None


def _members(fields: Mapping[str, Any], field: EventField) -> dict[str, str]:
    """The texts of an object by path; none where there is no object."""
    given = fields.get(field.name)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Rejected("wrong_type", f"field `{field.name}` holds {_type_name(given)}, an object is right")
    texts: dict[str, str] = {}
    for name, value in _leaves(given):
        _keep(texts, _bounded(name, field.name), _bounded(cut(_nfc(_as_text(value))), f"{field.name}.{name}"))
    return texts


def _items(fields: Mapping[str, Any], field: EventField, now: datetime) -> list[dict[str, Any]] | None:
    given = fields.get(field.name)
    if given is None:
        return None
    if not isinstance(given, list):
        raise Rejected("wrong_type", f"field `{field.name}` holds {_type_name(given)}, an array is right")
    if len(given) > MAX_ITEMS:
        raise Rejected("too_large", f"field `{field.name}` has {len(given)} items, the limit is {MAX_ITEMS}")
    return [_item(one, f"{field.name}[{number}]") for number, one in enumerate(given)] or None


def _item(given: object, name: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise Rejected("wrong_type", f"field `{name}` holds {_type_name(given)}, an object is right")
    if given.get("id") is None:
        raise Rejected("missing_field", f"field `{name}.id` is required")
    item: dict[str, Any] = {"id": _string(given["id"], f"{name}.id"), "currency": None}
    if not item["id"].strip():
        raise Rejected("empty_value", f"field `{name}.id` is empty")
    if given.get("currency") is not None:
        item["currency"] = _string(given["currency"], f"{name}.currency") or None
    for part in ("quantity", "price"):
        item[part] = _real(given.get(part), f"{name}.{part}")
    return {part: item[part] for part in ITEM_PARTS}


def _real(value: object, name: str) -> float | None:
    """A number, or its text."""
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool) or not isinstance(value, str | int | float) else float(value)
    except (ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= MAX_AMOUNT:
        raise Rejected("wrong_type", f"field `{name}` holds {_shown(value)}, a number up to {MAX_AMOUNT:,} is right")
    return float(found)


def _whole(fields: Mapping[str, Any], field: EventField, now: datetime) -> int | None:
    value = fields.get(field.name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise Rejected("wrong_type", f"field `{field.name}` holds {_shown(value)}, a whole number is right")
    return value


def _string(value: object, name: str) -> str:
    """A text; a number is its text, for ids are numbers to many producers."""
    if isinstance(value, str):
        return _bounded(value, name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = _as_text(value)
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"field `{name}` holds {_type_name(value)}, a string is right")
    return _bounded(value, name)


def cut(text: str) -> str:
    """A text that is too long, cut: two that differ behind the cut differ in their sha256."""
    if len(text) <= MAX_STRING_CHARACTERS or not _encodes(text):
        return text
    digits = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS_OF_CUT]
    return f"{text[: MAX_STRING_CHARACTERS - len(digits) - len(CUT)]}{CUT}{digits}"


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


def _attrs(fields: Mapping[str, Any], field: EventField, now: datetime) -> dict[str, str]:
    attrs = _members(fields, field)
    for name in fields.keys() - KNOWN_NAMES:
        _keep(attrs, _bounded(EXTRA_PREFIX + name, name), _bounded(cut(_nfc(_as_text(fields[name]))), name))
    if len(attrs) > MAX_ATTRS:
        raise Rejected("too_many_attrs", f"the event has {len(attrs)} attributes, the limit is {MAX_ATTRS}")
    return dict(sorted(attrs.items()))


def _nfc(text: str) -> str:
    return text if text.isascii() or not _encodes(text) else unicodedata.normalize("NFC", text)


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The members that have a value; those of objects by path. A list is one value.

    Raises:
        Rejected: objects are nested too deep to be read.
    """
    try:
        for name, inner in value.items():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(inner, dict) and inner:
                yield from _leaves(inner, path)
            elif inner is not None:
                yield path, inner
    except RecursionError:
        raise Rejected("invalid_json", f"field `{prefix.partition('.')[0]}`: nested too deep to be read") from None


def _keep(attrs: dict[str, str], name: str, text: str) -> None:
    # Two spellings of one name in Unicode, or an attribute that is named as an unknown field is kept.
    if name in attrs:
        raise Rejected("invalid_json", f"the attribute {name!r} occurs twice")
    attrs[name] = text


def _as_text(value: object) -> str:
    """A JSON value as text; numbers that are equal get the same text (1, 1.0 and 1e0)."""
    if isinstance(value, str):
        return value
    match value:
        case bool() | None | dict() | list():
            return _json_text(value)
        case Number():
            return value.text
        case float() if value.is_integer():
            return str(int(value))
        case _:
            return str(value)


def _json_text(value: object) -> str:
    try:
        return canonical_json(value)
    except RecursionError:
        raise Rejected("invalid_json", "values are nested too deep to be read") from None


def canonical_json(value: object) -> str:
    """Canonical JSON whose numbers keep their digits, which the standard library's would not."""
    match value:
        case dict():
            pairs = (f"{canonical_json(name)}:{canonical_json(value[name])}" for name in sorted(value))
            return f"{{{','.join(pairs)}}}"
        case list():
            return f"[{','.join(map(canonical_json, value))}]"
        case Number():
            return value.nested_text
        case _:
            return json.dumps(value, ensure_ascii=False)


def _timestamp(fields: Mapping[str, Any], name: str, now: datetime) -> datetime:
    value = fields.get(name)
    match value:
        case None:
            raise Rejected("missing_field", f"field `{name}` is required")
        case str():
            ts = _from_text(value.strip(" "), name)
        case int() if not isinstance(value, bool):
            ts = _from_epoch_ms(value, name)
        case float() if value.is_integer():
            ts = _from_epoch_ms(int(value), name)
        case _:
            raise Rejected("bad_timestamp", f"field `{name}`: {_shown(value)} is not RFC 3339 or epoch milliseconds")
    if not EARLIEST <= ts <= now + LATEST_AHEAD:
        raise Rejected(
            "timestamp_out_of_range",
            f"field `{name}`: {ts.isoformat()} is not between {EARLIEST.date()} and one day from now"
            f"{_unit_hint(value)}",
        )
    return ts


def _unit_hint(value: object) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _LARGEST_INSTANT:
        return ""
    for unit, in_ms in (("seconds", 1e3), ("microseconds", 1e-3), ("nanoseconds", 1e-6)):
        if _FIRST_EPOCH_MS <= value * in_ms < _LAST_EPOCH_MS:
            return f"; it looks like epoch {unit}, send milliseconds"
    return ""


def _from_text(text: str, name: str) -> datetime:
    if _EPOCH_TEXT.fullmatch(text):
        return _from_epoch_ms(int(text), name)
    match = _INSTANT.fullmatch(text)
    if not match:
        hint = "; it has no time zone, add Z or an offset" if INSTANT_WITHOUT_ZONE.fullmatch(text) else ""
        raise Rejected("bad_timestamp", f"field `{name}`: {_shown(text)} is not RFC 3339 or epoch milliseconds{hint}")
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
        raise Rejected("bad_timestamp", f"field `{name}`: {_shown(text)} is not a date and time that exists") from None


def _from_epoch_ms(value: int, name: str) -> datetime:
    try:
        return EPOCH + timedelta(milliseconds=value)
    except OverflowError:
        said = f"field `{name}`: {_shown(value)} ms is outside the calendar{_unit_hint(value)}"
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


_READERS: dict[FieldType, Callable[[Mapping[str, Any], EventField, datetime], Any]] = {
    FieldType.TEXT: _text, FieldType.INSTANT: _instant, FieldType.ATTRIBUTES: _attrs, FieldType.TEXTS: _texts,
    FieldType.ITEMS: _items, FieldType.WHOLE: _whole,
}  # fmt: skip
