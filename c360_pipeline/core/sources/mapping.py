"""The mapping of a source: one record in, one event out, or a reason why not.

A mapping is a document of values (`values`) for the fields of an event. It is compiled once; applying it is the plain
reference of what a record becomes. Source: the shapes of Segment, RudderStack, Snowplow, PostHog, GA4, Amplitude,
Mixpanel, CloudEvents, Shopify, Stripe and OTLP, of which none has the fields of this project's own events.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from c360_pipeline.core.contract.events import (
    MAX_AMOUNT,
    MAX_ATTRS,
    MAX_ITEMS,
    Rejected,
    canonical_json,
    cut,
)
from c360_pipeline.core.sources import times
from c360_pipeline.core.sources.values import (
    Place,
    Read,
    Value,
    at_path,
    compiled,
    condition,
    inside,
    leaves,
    lies_in,
    steps_of,
    text_of,
)
from c360_pipeline.errors import ConfigError

LEFT_OUT = "_left_out"
"""Attribute with the number of attributes or items that there was no room for."""
KNOWN_PATHS = 100_000
"""Of paths it is remembered whether they are read; a producer with names of its own in each record has more."""
GROUP_IS_NAMED_BY = ("id", "type")
"""What names a group; a fact of it that is called so is `group.traits.id`."""
GRANTED, DENIED = "granted", "denied"
CONSENT_WORDS = {
    **dict.fromkeys(("true", "yes", "granted", "1", "y", "opt_in", "opted_in", "subscribed"), GRANTED),
    **dict.fromkeys(("false", "no", "denied", "0", "n", "opt_out", "opted_out", "unsubscribed"), DENIED),
}
TARGETS = {
    "extends", "tenant", "user", "anonymous", "session", "time", "received", "action", "id", "on_repeat",
    "volatile",
    "items", "keys", "same_as", "traits", "group", "consent", "require", "attrs", "attrs_rest", "too_long",
    "skip", "only",
}  # fmt: skip
TARGET_OF = {
    "tenantId": "tenant", "userId": "user", "anonymousId": "anonymous", "sessionId": "session", "ts": "time",
    "receivedAt": "received", "action": "action", "eventId": "id", "items": "items",
}  # fmt: skip
"""The target of a mapping that makes a field of the contract."""
NAME_TABLES = {"map", "attrs", "keys", "consent", "item", "record"}
"""Members of a mapping whose members are names, whatever these are."""
_ITEM = ("id", "quantity", "price", "currency")


class Skipped(Exception):  # noqa: N818 - an outcome of a record, not a fault of the program
    """A record that the mapping leaves out: `skipped`, or `withheld` where its visitor refused what is required."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(frozen=True)
class Mapped:
    """What a record becomes.

    Attributes:
        fields: of the event, by their names in the contract.
        faults: what is wrong with it beside what the contract will say, by the name of the field.
        content: hash of what tells it from another under its id; None where visitor and action do.
    """

    fields: dict[str, Any]
    faults: dict[str, Rejected]
    content: str | None = None


@dataclass(frozen=True)
class _Session:
    value: Value
    is_of_visitor: bool


@dataclass(frozen=True)
class _Time:
    value: Value
    read: Callable[[Any], Any]
    paths: tuple[str, ...]


@dataclass(frozen=True)
class _Items:
    each: Value
    otherwise: Value | None
    item: Mapping[str, Value]
    of_record: Mapping[str, Value]


@dataclass(frozen=True)
class _Part:
    """Facts of a record under a condition: traits, or a group."""

    applies: Callable[[Any], bool]
    source: Value | None
    only: frozenset[str] | None
    values: Mapping[str, Value] = field(default_factory=dict)


class SourceMapping:
    """A compiled mapping.

    Args:
        document: as `event_mappings` has it, presets resolved.
        source: name of the source, for messages and for ids that are made.
        version: of the mapping.
        tenant_is_given: by the path of each file.

    Raises:
        ConfigError: the document is no mapping; the message says where.
    """

    def __init__(
        self, document: Mapping[str, Any], source: str, version: int, *, tenant_is_given: bool = False
    ) -> None:
        self.source, self.version, self.document = source, version, document
        self._read = Read()
        place = Place("")
        if unknown := sorted(set(document) - TARGETS):
            raise place.wrong(f"unknown: {', '.join(unknown)}. It can have {', '.join(sorted(TARGETS))}.")
        for name in ("time", "action") if tenant_is_given else ("tenant", "time", "action"):
            if document.get(name) is None:
                raise place.wrong(f"{name} is missing.")
        if document.get("user") is None and document.get("anonymous") is None:
            raise place.wrong("user or anonymous is missing: whose events these are.")
        for name in ("id", "received"):
            if document.get(name) == []:
                raise place.at(name).wrong("a list of values is empty.")
        self._texts = {
            name: (compiled(document[key], place.at(key), self._read), _paths_in(document[key]))
            for name, key in (
                ("tenantId", "tenant"),
                ("userId", "user"),
                ("anonymousId", "anonymous"),
                ("action", "action"),
            )
            if document.get(key) is not None
        }
        self._session = _session(document.get("session"), place.at("session"), self._read)
        self._time = _time(document["time"], place.at("time"), self._read)
        self._received = (
            _time(document["received"], place.at("received"), self._read) if document.get("received") else None
        )
        self._id = compiled(document["id"], place.at("id"), self._read) if document.get("id") else None
        self._volatile = [
            steps_of(path, place.at("volatile")) for path in _names(document.get("volatile"), place.at("volatile"))
        ]
        self._items = _items(document.get("items"), place.at("items"), self._read)
        self._attrs = _values(document.get("attrs"), place.at("attrs"), self._read)
        self._keys = _values(document.get("keys"), place.at("keys"), self._read)
        self._same_as = _part(document.get("same_as"), place.at("same_as"), self._read, ("user",))
        self._traits = _part(document.get("traits"), place.at("traits"), self._read, ())
        self._group = _part(document.get("group"), place.at("group"), self._read, ("id", "type"))
        self._consent = _values(document.get("consent"), place.at("consent"), self._read)
        self._require = _names(document.get("require"), place.at("require"))
        if unknown := [name for name in self._require if name not in self._consent]:
            raise place.at("require").wrong(f"consent does not say what {unknown[0]} is.")
        self._rest = [
            (path, self._read.steps(path, place.at("attrs_rest")))
            for path in _names(document.get("attrs_rest"), place.at("attrs_rest"))
        ]
        self._is_repeat_checked = _one_of(document, "on_repeat", ("first", "conflict"), place) == "conflict"
        self.too_long = _one_of(document, "too_long", ("cut", "dead"), place)
        self._skip = _skips(document.get("skip"), place.at("skip"), self._read)
        only = document.get("only")
        self._only = condition(only, place.at("only"), self._read) if only is not None else None
        self._paths_of = {name: paths for name, (_, paths) in self._texts.items()} | {
            field: _paths_in(_value_of(document[key]))
            for field, key in (("sessionId", "session"), ("ts", "time"), ("receivedAt", "received"), ("eventId", "id"))
            if document.get(key) is not None
        }
        self._alternatives = {
            field: [
                (_paths_in(one), compiled(one, place.at(key), Read()))
                for one in _alternatives_in(_value_of(document[key]))
            ]
            for field, key in TARGET_OF.items()
            if document.get(key) is not None and key != "items"
        }
        # What is read stands where it belongs; what lies around it is left for `attrs_rest`.
        self.paths = tuple(dict.fromkeys(self._read.paths))
        self._read_paths = [path for path in self.paths if path not in {path for path, _ in self._rest}]
        self._known_paths: dict[str, bool] = {}

    def alternatives(self, record: Any) -> Iterator[tuple[str, str | None]]:
        """Of each field of the contract, by which of the values that the mapping names for it a record has one.

        Yields:
            Name of the field, and the paths of the first that is there; None where none is.
        """
        for name, values in self._alternatives.items():
            yield name, next((paths for paths, value in values if value(record) is not None), None)

    def paths_of(self, field: str) -> str:
        """The paths that a field of the contract is read from, for messages."""
        return self._paths_of.get(field, field)

    @property
    def name(self) -> str:
        """The source and version of the mapping, for messages."""
        return f"{self.source} v{self.version}"

    def apply(self, record: dict[str, Any], given: Mapping[str, str] | None = None) -> Mapped:
        """What a record becomes.

        Args:
            record: as `contract.events.load_object` reads it.
            given: values that the place of the file gives: tenantId, receivedAt.

        Raises:
            Skipped: the mapping leaves it out, or its visitor refused what the source requires.
        """
        self._refuse_skipped(record)
        given = given or {}
        faults: dict[str, Rejected] = {}
        fields: dict[str, Any] = {"tenantId": given["tenantId"]} if "tenantId" in given else {}
        self._take_texts(record, fields, faults, given)
        self._take_times(record, fields, faults, given)
        self._take_consent(record, fields)
        self._take_facts(record, fields, faults)
        if items := self._items_of(record, fields):
            fields["items"] = items
        self._take_id(record, fields, faults)
        fields["mappingSource"], fields["mappingVersion"] = self.source, self.version
        content = hashlib.sha256(self._kept_of(record)).hexdigest() if self._is_repeat_checked else None
        return Mapped(fields, faults, content)

    def _refuse_skipped(self, record: Any) -> None:
        if self._only is not None and not self._only(record):
            raise Skipped("skipped", f"it is none of those that the mapping takes only ({self.name})")
        for applies, path in self._skip:
            if applies(record):
                raise Skipped("skipped", f"`{path}` is one that the mapping skips ({self.name})")

    def _take_texts(
        self, record: Any, fields: dict[str, Any], faults: dict[str, Rejected], given: Mapping[str, str]
    ) -> None:
        for name, (value, paths) in self._texts.items():
            found = given.get(name) or self._text(value(record), name, faults)
            if found is not None:
                fields[name] = found
            elif name in ("tenantId", "action") and name not in faults:
                faults[name] = Rejected("missing_field", f"no {name}: none of {paths} has a value ({self.name})")
        if "userId" not in fields and "anonymousId" not in fields:
            paths = ", ".join(self._texts[name][1] for name in ("userId", "anonymousId") if name in self._texts)
            faults.setdefault(
                "userId", Rejected("missing_field", f"nobody acted: none of {paths} has a value ({self.name})")
            )
        visitor = fields.get("anonymousId") or fields.get("userId")
        if self._session and (session := self._text(self._session.value(record), "sessionId", faults)):
            fields["sessionId"] = f"{visitor}/{session}" if self._session.is_of_visitor else session

    def _text(self, value: Any, name: str, faults: dict[str, Rejected]) -> str | None:
        if value is None:
            return None
        text = text_of(value)
        if text is None:
            faults[name] = Rejected(
                "wrong_type", f"{name} holds {'a list' if isinstance(value, list) else 'an object'} ({self.name})"
            )
            return None
        return self._fitting(text) if text.strip() else None

    def _take_times(
        self, record: Any, fields: dict[str, Any], faults: dict[str, Rejected], given: Mapping[str, str]
    ) -> None:
        found = self._time.value(record)
        if found is None:
            said = ", ".join(self._time.paths)
            faults["ts"] = Rejected("missing_field", f"no time: none of {said} has a value ({self.name})")
        else:
            fields["ts"] = self._time.read(found)
        received = self._received.value(record) if self._received else None
        if self._received and received is not None:
            fields["receivedAt"] = self._received.read(received)
        elif "receivedAt" in given:
            fields["receivedAt"] = given["receivedAt"]

    def _take_consent(self, record: Any, fields: dict[str, Any]) -> None:
        said = {name: _as_text(found) for name, value in self._consent.items() if (found := value(record)) is not None}
        consent = {name: CONSENT_WORDS.get(text.strip().lower(), cut(text)) for name, text in said.items() if text}
        for purpose in self._require:
            # What is none of the words for yes is no.
            if consent.get(purpose, GRANTED) != GRANTED:
                raise Skipped("withheld", f"consent to {purpose} is refused ({self.name})")
        if consent:
            fields["consent"] = consent

    def _items_of(self, record: Any, fields: dict[str, Any]) -> list[dict[str, Any]]:
        if self._items is None:
            return []
        each = inside(self._items.each(record))
        found = each if isinstance(each, list) else [each] if isinstance(each, dict) else []
        if not found and self._items.otherwise is not None:
            other = inside(self._items.otherwise(record))
            found = [other] if isinstance(other, dict) else []
        items, left = list[dict[str, Any]](), max(len(found) - MAX_ITEMS, 0)
        for one in found[:MAX_ITEMS]:
            item, unread = self._item(one, record, self._items)
            left += unread + (item is None and each is not None)
            items += [item] if item else []
        if left:
            self._leave_out(fields, left)
        return items

    def _item(self, one: Any, record: Any, items: _Items) -> tuple[dict[str, Any] | None, int]:
        """An item, None for what names none; and how many of its amounts can't be read."""
        values = {name: value(one) for name, value in items.item.items()}
        if not (text_of(values.get("id")) or "").strip():
            return None, 0
        for name, value in items.of_record.items():
            values[name] = values[name] if values.get(name) is not None else value(record)
        known = {name: text for name in _ITEM if (text := text_of(values.get(name))) is not None}
        unread = [name for name in ("quantity", "price") if name in known and not _is_amount(known[name])]
        return {name: self._fitting(text) for name, text in known.items() if name not in unread}, len(unread)

    def _leave_out(self, fields: dict[str, Any], number: int) -> None:
        attrs = fields.setdefault("attrs", {})
        attrs[LEFT_OUT] = str(int(attrs.get(LEFT_OUT, "0")) + number)

    def _fitting(self, text: str) -> str:
        """A text as long as a field may be, where the mapping says that long ones are cut."""
        return cut(text) if self.too_long == "cut" else text

    def _take_facts(self, record: Any, fields: dict[str, Any], faults: dict[str, Rejected]) -> None:
        attrs: dict[str, Any] = {name: value(record) for name, value in self._attrs.items()}
        attrs |= {f"keys.{name}": value(record) for name, value in self._keys.items()}
        if self._same_as and self._same_as.applies(record):
            attrs["same_as"] = self._same_as.values["user"](record)
        if self._group and self._group.applies(record):
            attrs |= {f"group.{name}": value(record) for name, value in self._group.values.items()}
        rest = {name: value for name, value in self._unread(record) if name not in attrs}
        if self._group and self._group.applies(record):
            rest |= {f"group.{_apart(name)}": value for name, value in _facts_of(self._group, record)}
        kept = {name: text for name, value in attrs.items() if (text := _as_text(value)) is not None}
        room = max(MAX_ATTRS - len(kept) - 1, 0)
        further = [(name, text) for name, value in rest.items() if (text := _as_text(value)) is not None]
        kept |= dict(further[:room])
        if len(further) > room:
            kept[LEFT_OUT] = str(len(further) - room)
        if kept:
            fields["attrs"] = self._bounded(kept)
        if self._traits and self._traits.applies(record):
            traits = {
                name: text for name, value in _facts_of(self._traits, record) if (text := _as_text(value)) is not None
            }
            if traits:
                fields["traits"] = self._bounded(dict(list(traits.items())[:MAX_ATTRS]))

    def _bounded(self, texts: dict[str, str]) -> dict[str, str]:
        """Long values cut where the mapping says so; otherwise the contract refuses them."""
        return {cut(name): cut(text) for name, text in texts.items()} if self.too_long == "cut" else texts

    def _unread(self, record: Any) -> list[tuple[str, Any]]:
        """What lies under the paths of `attrs_rest` and nothing else of the mapping reads."""
        found: list[tuple[str, Any]] = []
        for path, steps in self._rest:
            for name, leaf in leaves(inside(at_path(record, steps))):
                if name and not self._is_read(f"{path}.{name}"):
                    found.append((name, leaf))
        return found

    def _is_read(self, path: str) -> bool:
        """Whether a value of the mapping reads a path, or what it lies in; records have the same ones all the time."""
        known = self._known_paths.get(path)
        if known is None:
            known = lies_in(path, self._read_paths)
            if len(self._known_paths) < KNOWN_PATHS:
                self._known_paths[path] = known
        return known

    def _take_id(self, record: dict[str, Any], fields: dict[str, Any], faults: dict[str, Rejected]) -> None:
        found = self._text(self._id(record), "eventId", faults) if self._id else None
        if "eventId" not in faults:
            fields["eventId"] = found or self._hash_of(record)

    def _hash_of(self, record: dict[str, Any]) -> str:
        """An id of what was sent, and not of what it is mapped to: a better mapping alters the event and adds none."""
        return hashlib.sha256(self.source.encode() + b"\n" + self._kept_of(record)).hexdigest()

    def _kept_of(self, record: dict[str, Any]) -> bytes:
        """The record as it was sent, less what is volatile."""
        kept = record
        for steps in self._volatile:
            kept = _without(kept, steps)
        return canonical_json(kept).encode("utf-8", "surrogatepass")


def _without(value: Any, steps: tuple[str | int, ...]) -> Any:
    """The same without the member at a path."""
    if not steps:
        return {}
    name, *rest = steps
    if not isinstance(value, dict) or name not in value:
        return value
    others = {key: inner for key, inner in value.items() if key != name}
    return {**others, str(name): _without(value[str(name)], tuple(rest))} if rest else others


def _is_amount(text: str) -> bool:
    try:
        return abs(float(text)) <= MAX_AMOUNT
    except ValueError:
        return False


def _as_text(value: Any) -> str | None:
    """A value as an attribute: lists and objects as JSON."""
    return canonical_json(value) if type(value) in (list, dict) else text_of(value)


def _apart(name: str) -> str:
    """The name of a fact of a group, which may be called as what names the group is."""
    return f"traits.{name}" if name in GROUP_IS_NAMED_BY else name


def _facts_of(part: _Part, record: Any) -> list[tuple[str, Any]]:
    found = leaves(part.source(record)) if part.source else iter(())
    return [(name, value) for name, value in found if name and (part.only is None or name in part.only)]


def _paths_in(document: Any) -> str:
    """The paths that a value of a document reads, for a message."""
    match document:
        case str():
            return document
        case list():
            return ", ".join(_paths_in(one) for one in document)
        case {"join": parts}:
            return " with ".join(_paths_in(one) for one in parts)
        case {"path": inner} | {"find": inner} | {"split": inner}:
            return _paths_in(inner)
        case _:
            return str(document)


def _value_of(document: Any) -> Any:
    """A target's value without what is said of it beside."""
    return _less(document, "as", "scope")


def _less(document: Any, *names: str) -> Any:
    return {k: v for k, v in document.items() if k not in names} if isinstance(document, dict) else document


def _alternatives_in(document: Any) -> list[Any]:
    """The values of which the first that is there is taken."""
    if isinstance(document, list):
        return document
    if isinstance(document, dict) and isinstance(document.get("path"), list):
        rest = {key: value for key, value in document.items() if key != "path"}
        return [{**rest, "path": one} for one in document["path"]]
    return [document]


def _one_of(document: Mapping[str, Any], name: str, allowed: tuple[str, ...], place: Place) -> str:
    found = document.get(name, allowed[0])
    if found not in allowed:
        raise place.at(name).wrong(f"{found!r} is not one of {', '.join(allowed)}.")
    return str(found)


def _names(document: Any, place: Place) -> list[str]:
    found = [document] if isinstance(document, str) else document or []
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise place.wrong("a list of names is right.")
    return found


def _values(document: Any, place: Place, read: Read) -> dict[str, Value]:
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise place.wrong("an object is right: a name, and the value that it gets.")
    return {name: compiled(value, place.at(name), read) for name, value in document.items()}


def _session(document: Any, place: Place, read: Read) -> _Session | None:
    if document is None:
        return None
    scope = document.get("scope") if isinstance(document, dict) else None
    if scope not in (None, "anonymous", "global"):
        raise place.at("scope").wrong(f"{scope!r} is not one of anonymous, global.")
    return _Session(compiled(_less(document, "scope"), place, read), scope == "anonymous")


def _time(document: Any, place: Place, read: Read) -> _Time:
    said = document.get("as", "rfc3339") if isinstance(document, dict) else "rfc3339"
    if said not in times.FORMATS:
        raise place.at("as").wrong(f"{said!r} is not one of {', '.join(times.FORMATS)}.")
    value = _less(document, "as")
    return _Time(compiled(value, place, read), times.reader(said), tuple(_paths_in(value).split(", ")))


def _items(document: Any, place: Place, read: Read) -> _Items | None:
    if document is None:
        return None
    if not isinstance(document, dict) or "each" not in document or "id" not in (document.get("item") or {}):
        raise place.wrong("each says where the list is, and item.id what names one of it.")
    if unknown := sorted(set(document) - {"each", "or", "item", "record"}):
        raise place.wrong(f"unknown: {', '.join(unknown)}.")
    for part in ("item", "record"):
        if unknown := sorted(set(document.get(part) or {}) - set(_ITEM)):
            raise place.at(part).wrong(f"unknown: {', '.join(unknown)}. It can have {', '.join(_ITEM)}.")
    inner = Read()
    item = _values(document["item"], place.at("item"), inner)
    otherwise = compiled(document["or"], place.at("or"), Read()) if "or" in document else None
    if isinstance(document.get("or"), str):
        read.paths += [f"{document['or']}.{path}" for path in inner.paths]
    return _Items(
        compiled(document["each"], place.at("each"), read), otherwise, item,
        _values(document.get("record"), place.at("record"), read),
    )  # fmt: skip


def _part(document: Any, place: Place, read: Read, named: tuple[str, ...]) -> _Part | None:
    if document is None:
        return None
    allowed = {"when", "of", "from", "only", *named}
    if not isinstance(document, dict) or set(document) - allowed:
        raise place.wrong(f"an object is right that can have {', '.join(sorted(allowed))}.")
    applies = condition(document["when"], place.at("when"), read) if "when" in document else lambda record: True
    if not named and "from" not in document:
        raise place.wrong("from is missing: where the facts are.")
    if named and named[0] not in document:
        raise place.wrong(f"{named[0]} is missing.")
    source = compiled(document["from"], place.at("from"), read) if "from" in document else None
    only = frozenset(_names(document["only"], place.at("only"))) if "only" in document else None
    return _Part(applies, source, only, _values({n: document[n] for n in named if n in document}, place, read))


def _skips(document: Any, place: Place, read: Read) -> list[tuple[Callable[[Any], bool], str]]:
    rules = document if isinstance(document, list) else [document] if document else []
    found = []
    for rule in rules:
        if not isinstance(rule, dict) or set(rule) != {"path", "values"}:
            raise place.wrong("path and values are right: records that have one of the values there are left out.")
        found.append((condition({rule["path"]: rule["values"]}, place, read), str(rule["path"])))
    return found


def resolved(document: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A document with the preset that it extends under it.

    A value of its own stands in for the preset's; an object that is no value (a map, attrs, traits) is laid over it,
    name by name, and null takes a name away.

    Raises:
        ConfigError: there is no such preset.
    """
    name = document.get("extends")
    if name is None:
        return dict(document)
    if name not in presets:
        raise ConfigError(f"mapping, at extends: there is no preset {name!r}. There are {', '.join(sorted(presets))}.")
    own = {key: value for key, value in document.items() if key != "extends"}
    merged = _laid_over(resolved(presets[name], presets), own)
    return merged if isinstance(merged, dict) else {}


def _laid_over(below: Any, own: Any, is_table: bool = False) -> Any:
    is_value = (
        isinstance(own, dict) and not is_table and own.keys() & {"path", "const", "join", "find", "split", "each"}
    )
    if not isinstance(below, dict) or not isinstance(own, dict) or is_value:
        return own
    merged = dict(below)
    for name, value in own.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _laid_over(below.get(name), value, name in NAME_TABLES and not is_table)
    return merged
