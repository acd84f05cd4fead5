"""Values of a mapping: where in a record a value stands, and what is done with it before it is used.

A value is a path (`context.ip`, `products[0].sku`), a list (the first that is there), or an object with one of `path`,
`const`, `join`, `find`, `split`. An absent member, null and an empty text are no value. A text that holds JSON is
looked into where a path goes on, for tables keep objects as text. There is no language: a value can't compute, loop or
fail.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from c360_pipeline.core.contract.events import Number
from c360_pipeline.errors import ConfigError

Value = Callable[[Any], Any]
"""From a record to a value, None where there is none."""
_STEP = re.compile(r"((?:[^.\[\]\\]|\\.)+)|\[(\d+)\]")
_OPTIONS = {"when", "map", "else", "strip", "lower", "hash"}
_KINDS = {
    "path": {"path"}, "const": {"const"}, "join": {"join", "with"},
    "find": {"find", "by", "key", "starts", "take", "all"}, "split": {"split", "by", "parts", "first_of"},
}  # fmt: skip


class Place:
    """Where in a mapping's document something stands, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name

    def at(self, name: str | int) -> "Place":
        """A member or element of what stands here."""
        return Place(f"{self.name}[{name}]" if isinstance(name, int) else f"{self.name}.{name}" if self.name else name)

    def wrong(self, said: str) -> ConfigError:
        """What is wrong here."""
        return ConfigError(f"mapping, at {self.name or 'its top'}: {said}")


class Read:
    """The paths that a mapping reads, as they are written."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def steps(self, text: str, place: Place) -> tuple[str | int, ...]:
        """A path in its steps; it is noted as read."""
        found = steps_of(text, place)
        self.paths.append(text)
        return found


def steps_of(text: str, place: Place) -> tuple[str | int, ...]:
    """A path in its steps: names between dots, `[0]` for an element; a backslash before a dot that is in a name.

    A dot alone is the record itself.

    Raises:
        ConfigError: it is no path.
    """
    steps: list[str | int] = []
    if text == ".":
        return ()
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise place.wrong(f"{text!r} is no path: write names with dots between them, and [0] for an element.")
        steps.append(re.sub(r"\\(.)", r"\1", match[1]) if match[1] is not None else int(match[2]))
        at = match.end()
        if at < len(text) and text[at] == ".":
            at += 1
            if at == len(text):
                raise place.wrong(f"{text!r} ends with a dot.")
    if not steps:
        raise place.wrong("a path is empty.")
    return tuple(steps)


def inside(value: Any) -> Any:
    """What a text holds where it is JSON of an object or a list; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def at_path(record: Any, steps: tuple[str | int, ...]) -> Any:
    """The value at a path; None where there is none."""
    value = record
    for step in steps:
        if type(value) is str:
            value = inside(value)
        if type(value) is dict:
            value = value.get(step)
        elif type(value) is list:
            value = value[step] if type(step) is int and step < len(value) else None
        else:
            return None
    return None if value == "" else value


def text_of(value: Any) -> str | None:
    """A value as text: numbers as they were sent, whole ones without a point; None for lists and objects."""
    if value is None or type(value) is str:
        return value
    match value:
        case list() | dict():
            return None
        case bool():
            return "true" if value else "false"
        case Number():
            return value.text
        case float() if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        case _:
            return str(value)


def compiled(document: Any, place: Place, read: Read) -> Value:
    """A value of a mapping as a function.

    Raises:
        ConfigError: it is none; the message says where.
    """
    match document:
        case str():
            steps = read.steps(document, place)
            return lambda record: at_path(record, steps)
        case list() if document:
            return _first([compiled(one, place.at(n), read) for n, one in enumerate(document)])
        case dict():
            return _object(document, place, read)
        case _:
            raise place.wrong(
                f"{document!r} is no value: a path, a list, or an object with one of {', '.join(_KINDS)}."
            )


def _first(values: list[Value]) -> Value:
    def first(record: Any) -> Any:
        for value in values:
            found = value(record)
            if found is not None:
                return found
        return None

    return first


def _object(document: Mapping[str, Any], place: Place, read: Read) -> Value:
    kinds = [kind for kind in _KINDS if kind in document]
    if len(kinds) != 1:
        raise place.wrong(f"an object has one of {', '.join(_KINDS)}.")
    kind = kinds[0]
    if unknown := sorted(set(document) - _KINDS[kind] - _OPTIONS):
        raise place.wrong(f"unknown: {', '.join(unknown)}.")
    value = _MADE[kind](document, place, read)
    return _with_options(value, document, place, read)


def _const(document: Mapping[str, Any], place: Place, read: Read) -> Value:
    constant = document["const"]
    if isinstance(constant, dict | list) or constant in (None, ""):
        raise place.at("const").wrong("a constant is a text, a number, true or false.")
    return lambda record: constant


def _path(document: Mapping[str, Any], place: Place, read: Read) -> Value:
    return compiled(document["path"], place.at("path"), read)


def _join(document: Mapping[str, Any], place: Place, read: Read) -> Value:
    parts, between = document["join"], document.get("with", "")
    if not isinstance(parts, list) or not parts or not isinstance(between, str):
        raise place.wrong("join is a list of values, with a text.")
    values = [compiled(one, place.at("join").at(n), read) for n, one in enumerate(parts)]

    def joined(record: Any) -> str | None:
        texts = [text_of(value(record)) for value in values]
        return None if None in texts else between.join(t for t in texts if t is not None)

    return joined


def _find(document: Mapping[str, Any], place: Place, read: Read) -> Value:
    """Of a list of objects the one whose `by` (key, if not said) is `key`, or starts with `starts`; `all` of them."""
    within = compiled(document["find"], place.at("find"), read)
    by, key, starts = document.get("by", "key"), document.get("key"), document.get("starts")
    if not isinstance(by, str) or isinstance(key, str) is isinstance(starts, str):
        raise place.wrong("find needs key or starts, a text; by is the name that it is compared with.")
    taken = compiled(document["take"], place.at("take"), Read()) if "take" in document else None
    wants_all = document.get("all", False)

    def fits(one: Any) -> bool:
        said = one.get(by) if isinstance(one, dict) else None
        return isinstance(said, str) and (said == key if starts is None else said.startswith(starts))

    def found(record: Any) -> Any:
        elements = inside(within(record))
        fitting = [one for one in elements if fits(one)] if isinstance(elements, list) else []
        values = [taken(one) if taken else one for one in fitting]
        values = [one for one in values if one is not None]
        if wants_all:
            return values or None
        return values[0] if values else None

    return found


def _split(document: Mapping[str, Any], place: Place, read: Read) -> Value:
    """A text taken apart at `by`: its pieces, of these the `first_of` some, or each taken apart at `parts`."""
    within = compiled(document["split"], place.at("split"), read)
    by, parts, wanted = document.get("by", ","), document.get("parts"), document.get("first_of")
    if not isinstance(by, str) or not by or not (parts is None or (isinstance(parts, str) and parts)):
        raise place.wrong("split needs by, a text between pieces; parts is one between the parts of each.")
    is_list = isinstance(wanted, list) and wanted and all(isinstance(one, str) for one in wanted)
    if wanted is not None and (parts is not None or not is_list):
        raise place.at("first_of").wrong("a list of texts is right, without parts: the first that is a piece is taken.")

    def pieces(record: Any) -> Any:
        text = text_of(within(record))
        found = [piece.strip() for piece in (text or "").split(by)]
        if wanted is not None:
            return next((one for one in wanted if one in found), None)
        return [one.split(parts) if parts else one for one in found if one] or None

    return pieces


_MADE = {"const": _const, "path": _path, "join": _join, "find": _find, "split": _split}


def _with_options(value: Value, document: Mapping[str, Any], place: Place, read: Read) -> Value:
    steps = [made(document, place) for name, made in _STEPS.items() if document.get(name) not in (None, False)]
    applies = condition(document["when"], place.at("when"), read) if "when" in document else None
    if not steps and applies is None:
        return value

    def used(record: Any) -> Any:
        found = value(record) if applies is None or applies(record) else None
        for step in steps:
            found = None if found is None else step(found)
        return found

    return used


def _stripped(document: Mapping[str, Any], place: Place) -> Callable[[Any], Any]:
    prefix = document["strip"]
    if not isinstance(prefix, str):
        raise place.at("strip").wrong("a text is right, which is taken away where a value begins with it.")
    return lambda found: found.removeprefix(prefix) or None if isinstance(found, str) else found


def _lowered(document: Mapping[str, Any], place: Place) -> Callable[[Any], Any]:
    return lambda found: found.lower() if isinstance(found, str) else found


def _hashed(document: Mapping[str, Any], place: Place) -> Callable[[Any], Any]:
    if document["hash"] != "sha256_lower":
        raise place.at("hash").wrong("sha256_lower is the one there is: of the text without blanks, in small letters.")
    return _sha256_lower


def _mapped(document: Mapping[str, Any], place: Place) -> Callable[[Any], Any]:
    table, otherwise = document["map"], document.get("else")
    if not isinstance(table, dict) or not all(isinstance(to, str) for to in table.values()):
        raise place.at("map").wrong("an object of texts is right: what was sent, and what it becomes.")
    if otherwise not in (None, "drop"):
        raise place.at("else").wrong("only drop is known: values that the map does not name are none.")

    def mapped(found: Any) -> Any:
        text = text_of(found)
        return table.get(text or "", None if otherwise else found)

    return mapped


def _sha256_lower(found: Any) -> str | None:
    text = text_of(found)
    return (
        hashlib.sha256(text.strip().lower().encode("utf-8", "surrogatepass")).hexdigest()
        if text and text.strip()
        else None
    )


_STEPS: dict[str, Callable[[Mapping[str, Any], Place], Callable[[Any], Any]]] = {
    "strip": _stripped, "lower": _lowered, "map": _mapped, "hash": _hashed,
}  # fmt: skip
"""What is done with a value, in this order."""


def condition(document: Any, place: Place, read: Read) -> Callable[[Any], bool]:
    """Whether a record has certain values at certain paths: each path has the value, or one of the list.

    Raises:
        ConfigError: it is no condition.
    """
    if not isinstance(document, dict) or not document:
        raise place.wrong("a condition is an object: a path and the value, or a list of values, that it must have.")
    wanted = []
    for path, values in document.items():
        texts = {text_of(one) for one in (values if isinstance(values, list) else [values])}
        if None in texts:
            raise place.at(path).wrong("a value is a text, a number, true or false.")
        wanted.append((read.steps(path, place), texts))
    return lambda record: all(text_of(at_path(record, steps)) in texts for steps, texts in wanted)


def lies_in(path: str, others: Iterable[str]) -> bool:
    """Whether a path is one of these, or that of a member or element of what stands there."""
    return any(path == one or path.startswith((f"{one}.", f"{one}[")) for one in others)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The members of an object by path, those of objects in it included; a list is one value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
