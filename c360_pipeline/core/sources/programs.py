"""Mappings as tables that the compiled scanner walks: a tree of the paths, and a program over what stands there.

The document says the same as to `mapping`, which is the reference; what has no table is left to that, and so is every
record that is not plainly good. A property in the tests holds the two together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from c360_pipeline.core.contract.events import MAX_ATTRS, MAX_STRING_CHARACTERS
from c360_pipeline.core.contract.fields import ITEM_PARTS
from c360_pipeline.core.contract.scan import Bytes, Integers, is_surely_composed
from c360_pipeline.core.kernels import event_scan as kernel
from c360_pipeline.core.kernels.event_scan import Program, Tree
from c360_pipeline.core.sources.mapping import CONSENT_WORDS, GRANTED, GROUP_IS_NAMED_BY
from c360_pipeline.core.sources.times import FORMATS
from c360_pipeline.core.sources.values import Place, steps_of, text_of
from c360_pipeline.errors import ConfigError

Steps = tuple[str | int, ...]
_ALWAYS, _NEVER = -1, -2
_TEXTS = {
    "tenant": kernel.TENANT, "user": kernel.USER, "anonymous": kernel.ANONYMOUS, "action": kernel.ACTION,
    "id": kernel.ID, "time": kernel.TIME, "received": kernel.RECEIVED,
}  # fmt: skip
_OPTIONS = ("strip", "lower", "map", "hash")
_BESIDE = {"as", "scope"}
"""What is said beside a value."""


class NoTable(Exception):  # noqa: N818 - an outcome, not a fault
    """The scanner has no table for what a mapping says."""


@dataclass(frozen=True)
class RecordProgram:
    """A mapping for the scanner.

    Attributes:
        tree: the paths that it reads.
        program: what it does with them.
        constants: its texts, one after the other.
        constant_ends: where each of them ends.
    """

    tree: Tree
    program: Program
    constants: Bytes
    constant_ends: Integers


def record_program(document: Mapping[str, Any]) -> RecordProgram | None:
    """The tables of a mapping's document, as `SourceMapping` took it; None where it says what there are none for."""
    try:
        return _Compiler(document).compiled()
    except (NoTable, ConfigError, OverflowError, UnicodeError):
        # What a document may say and the scanner can't: paths with numbers beyond all bounds, halves of characters.
        return None


@dataclass
class _Node:
    children: dict[str | int, "_Node"] = field(default_factory=dict)
    slot: int = -1
    capture: int = -1
    flags: int = 0


@dataclass
class _Capture:
    is_rest: bool = False
    is_traits: bool = False
    is_group: bool = False


class _Slots:
    """The slots of records, or of items; each path has one."""

    def __init__(self, root: _Node) -> None:
        self.root = root
        self.of: dict[Steps, int] = {}

    def at(self, steps: Steps) -> int:
        """The slot of a path."""
        if not steps:
            raise NoTable
        if steps not in self.of:
            self.of[steps] = _node(self.root, steps).slot = len(self.of)
        return self.of[steps]


def _node(root: _Node, steps: Steps) -> _Node:
    node = root
    for step in steps:
        node = node.children.setdefault(step, _Node())
    return node


def _steps(path: str) -> Steps:
    steps = steps_of(path, Place(""))
    # Whether a path is read is asked of its text: one that has another text than its steps is left.
    if "\\" in path or path != ("".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).lstrip(".") or "."):
        raise NoTable
    return steps


class _Compiler:
    """Writes the tables of one mapping."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._root, self._item_root = _Node(), _Node()
        self._record, self._item = _Slots(self._root), _Slots(self._item_root)
        self._constants: dict[str, int] = {}
        self._captures: dict[Steps, _Capture] = {}
        self._conditions: list[list[tuple[int, list[int]]]] = []
        self._maps: list[dict[str, str]] = []
        self._read: list[Steps] = []

    def compiled(self) -> RecordProgram:
        """All tables.

        Raises:
            NoTable: there are none for something that the mapping says.
        """
        said = self._document
        if said.get("on_repeat") == "conflict":
            raise NoTable
        code = _Code(self, self._record)
        if said.get("only") is not None:
            code.add(kernel.SKIP_UNLESS, self.condition(said["only"], self._record))
        for rule in _listed(said.get("skip")):
            code.add(kernel.SKIP_IF, self.condition({rule["path"]: rule["values"]}, self._record))
        for target, result in _TEXTS.items():
            if said.get(target):
                code.value(_bare(said[target]))
                code.store(result)
        self._session(code, said.get("session"))
        attributes, conditional = self._attributes(code)
        consents = sorted(said.get("consent") or {})
        if max(len(consents), len(attributes)) > MAX_ATTRS:
            raise NoTable
        for number, name in enumerate(consents):
            code.value(said["consent"][name])
            code.add(kernel.LOWER)
            code.map(CONSENT_WORDS, kernel.OR_LEFT)
            code.store(kernel.FIRST_ATTRIBUTE + len(attributes) + number)
        item_code = self._items(code, said.get("items"), kernel.FIRST_ATTRIBUTE + len(attributes) + len(consents))
        traits_when, traits_only = self._facts(said.get("traits"), "is_traits", kernel.OF_TRAITS)
        group_when, group_only = self._facts(said.get("group"), "is_group", kernel.OF_GROUP)
        self._rest(said.get("attrs_rest"))
        required = _listed(said.get("require"))
        map_names = [(n, self.constant(to)) for table in self._maps for n, to in sorted(table.items(), key=_by_bytes)]
        terms = [(slot, texts) for condition in self._conditions for slot, texts in condition]
        ends = np.cumsum([0, *(len(texts) for _, texts in terms)])
        program = Program(
            code=code.table(),
            item_code=item_code.table(),
            conditions=_starts(self._conditions),
            terms=np.array([(slot, ends[n], ends[n + 1]) for n, (slot, _) in enumerate(terms)], np.int64).reshape(
                -1, 3
            ),
            condition_texts=np.array([text for _, texts in terms for text in texts], np.int64),
            maps=_starts(self._maps),
            map_names=np.array([self.constant(name) for name, _ in map_names], np.int64),
            map_values=np.array([value for _, value in map_names], np.int64),
            attributes=np.array([self.constant(name) for name in attributes], np.int64),
            conditional=np.array(conditional, np.bool_),
            traits_when=traits_when,
            group_when=group_when,
            traits_only=traits_only,
            group_only=group_only,
            consents=np.array([self.constant(name) for name in consents], np.int64),
            granted=self.constant(GRANTED),
            required=np.array([name in required for name in consents], np.bool_),
            time_format=_format(said["time"]),
            received_format=_format(said["received"]) if said.get("received") else -1,
            group_prefix=self.constant("group."),
            group_named=np.array([self.constant(name) for name in GROUP_IS_NAMED_BY], np.int64),
        )
        tree = self._tree()
        texts = [text.encode() for text in self._constants]
        constants = np.frombuffer(b"".join(texts), np.uint8)
        return RecordProgram(tree, program, constants, np.cumsum([len(text) for text in texts]).astype(np.int64))

    def constant(self, text: str) -> int:
        """The number of a text.

        Raises:
            NoTable: the contract would change it.
        """
        if len(text) > MAX_STRING_CHARACTERS or not is_surely_composed(text):
            raise NoTable
        return self._constants.setdefault(text, len(self._constants))

    def slot(self, path: str, slots: _Slots) -> int:
        """The slot of a path, which is noted as read."""
        steps = _steps(path)
        if slots is self._record:
            self._read.append(steps)
        return slots.at(steps)

    def condition(self, document: Mapping[str, Any], slots: _Slots) -> int:
        """The number of a condition."""
        terms = []
        for path, values in document.items():
            texts = [text_of(one) for one in (values if isinstance(values, list) else [values])]
            terms.append((self.slot(path, slots), [self.constant(text) for text in texts if text]))
        self._conditions.append(terms)
        return len(self._conditions) - 1

    def map(self, table: dict[str, str]) -> int:
        """The number of a map."""
        if "" in table or not all(to.strip() for to in table.values()):
            raise NoTable
        self._maps.append(table)
        return len(self._maps) - 1

    def _session(self, code: "_Code", document: Any) -> None:
        if document is None:
            return
        code.value(_bare(document))
        if isinstance(document, dict) and document.get("scope") == "anonymous":
            code.store(kernel.SESSION)
            code.add(kernel.RESULT, kernel.ANONYMOUS)
            found = code.jump(kernel.JUMP_IF_FOUND)
            code.add(kernel.RESULT, kernel.USER)
            code.land(found)
            code.add(kernel.JOIN)
            ends = [code.jump(kernel.JOIN_FOUND)]
            code.joins("/")
            code.add(kernel.RESULT, kernel.SESSION)
            ends.append(code.jump(kernel.JOIN_FOUND))
            code.add(kernel.JOINED)
            for end in ends:
                code.land(end)
        code.store(kernel.SESSION)

    def _attributes(self, code: "_Code") -> tuple[list[str], list[bool]]:
        """Write what the named attributes are; their names, and whether each is only named under a condition."""
        said = self._document
        named: list[tuple[str, Any, Any]] = [(name, value, None) for name, value in (said.get("attrs") or {}).items()]
        named += [(f"keys.{name}", value, None) for name, value in (said.get("keys") or {}).items()]
        if same_as := said.get("same_as"):
            named.append(("same_as", same_as["user"], same_as.get("when")))
        if group := said.get("group"):
            named += [(f"group.{name}", group[name], group.get("when")) for name in ("id", "type") if name in group]
        if len({name for name, _, _ in named}) != len(named):
            raise NoTable
        for number, (_, value, when) in enumerate(named):
            unless = code.jump(kernel.UNLESS, self.condition(when, self._record)) if when is not None else None
            code.value(value)
            if unless is not None:
                code.land(unless)
            code.store(kernel.FIRST_ATTRIBUTE + number)
        return [name for name, _, _ in named], [when is not None for _, _, when in named]

    def _items(self, code: "_Code", document: Any, first_result: int) -> "_Code":
        """Write what the items are; the program of one."""
        item = _Code(self, self._item)
        if document is None:
            return item
        each, otherwise = document["each"], document.get("or")
        if not isinstance(each, str) or not isinstance(otherwise, str | None) or otherwise == ".":
            raise NoTable
        steps = _steps(each)
        self._read.append(steps)
        _node(self._root, steps).flags |= kernel.IS_EACH
        for number, part in enumerate(ITEM_PARTS):
            if part in document["item"]:
                item.value(document["item"][part])
                item.store(number)
            if part in (document.get("record") or {}):
                code.value(document["record"][part])
                code.store(first_result + number)
            if otherwise is not None and part in document["item"]:
                code.value(_below(otherwise, document["item"][part]))
                code.store(first_result + len(ITEM_PARTS) + number)
        if otherwise is not None:
            # What the scanner holds to be inside of it must be read as such.
            _node(self._root, _steps(otherwise))
        return item

    def _facts(self, document: Any, name: str, flag: int) -> tuple[int, bool]:
        """Note where traits or facts of a group are; under which condition they count, and whether only some."""
        if document is None:
            return _NEVER, False
        when = self.condition(document["when"], self._record) if "when" in document else _ALWAYS
        if "from" not in document:
            return _NEVER, False
        if not isinstance(document["from"], str):
            raise NoTable
        steps = _steps(document["from"])
        self._read.append(steps)
        setattr(self._capture(steps), name, True)
        for one in _listed(document.get("only")):
            if set(one) & set("[]\\") or not all(one.split(".")):
                raise NoTable
            _node(self._root, (*steps, *one.split("."))).flags |= flag
        return when, "only" in document

    def _rest(self, document: Any) -> None:
        paths = [_steps(path) for path in _listed(document)]
        for steps in paths:
            self._capture(steps).is_rest = True
        for steps in self._read:
            if steps not in paths:
                _node(self._root, steps).flags |= kernel.IS_READ
        for steps, capture in self._captures.items():
            for inner in self._captures:
                # What lies in the rest and is read is none of it.
                # Deeper down it would begin its own path in the middle of another's.
                is_child = len(inner) == len(steps) + 1
                is_apart = capture == _Capture(is_rest=True) and inner in self._read and inner not in paths and is_child
                if inner != steps and inner[: len(steps)] == steps and not is_apart:
                    raise NoTable

    def _capture(self, steps: Steps) -> _Capture:
        if not steps:
            raise NoTable
        if steps not in self._captures:
            _node(self._root, steps).capture = len(self._captures)
            self._captures[steps] = _Capture()
        return self._captures[steps]

    def _tree(self) -> Tree:
        nodes, places = [self._root, self._item_root], {id(self._root): 0, id(self._item_root): 1}
        for node in nodes:
            for child in node.children.values():
                places[id(child)] = len(nodes)
                nodes.append(child)
        if any(node.flags & kernel.IS_EACH and node.children for node in nodes):
            # An element of the list of items is read as an item, and not by a path of the record as well.
            raise NoTable
        names = [name for node in nodes for name in node.children]
        captures = list(self._captures.values())
        return Tree(
            children=_starts([node.children for node in nodes]),
            child_hashes=np.array([_hash(name) for name in names], np.uint64),
            child_names=np.array([self.constant(n) if isinstance(n, str) else -1 for n in names], np.int64),
            child_nodes=np.array([places[id(c)] for node in nodes for c in node.children.values()], np.int64),
            slots=np.array([node.slot for node in nodes], np.int64),
            captures=np.array([node.capture for node in nodes], np.int64),
            flags=np.array([node.flags for node in nodes], np.int64),
            item_root=1,
            captures_rest=np.array([capture.is_rest for capture in captures], np.bool_),
            captures_traits=np.array([capture.is_traits for capture in captures], np.bool_),
            captures_group=np.array([capture.is_group for capture in captures], np.bool_),
        )


class _Code:
    """A program in the making."""

    def __init__(self, compiler: _Compiler, slots: _Slots) -> None:
        self._compiler, self._slots = compiler, slots
        self._steps: list[list[int]] = []

    def add(self, operation: int, operand: int = 0, other: int = 0) -> None:
        """A step."""
        self._steps.append([operation, operand, other])

    def jump(self, operation: int, other: int = 0) -> int:
        """A step that goes on elsewhere, to be said by `land`."""
        self.add(operation, -1, other)
        return len(self._steps) - 1

    def land(self, jump: int) -> None:
        """A jump goes on here."""
        self._steps[jump][1] = len(self._steps)

    def store(self, result: int) -> None:
        """What was found is this result."""
        self.add(kernel.STORE, result)

    def joins(self, text: str) -> None:
        """Put a text behind what is joined."""
        if text:
            self.add(kernel.JOIN_TEXT, self._compiler.constant(text))

    def map(self, table: dict[str, str], otherwise: int) -> None:
        """Map what was found."""
        self.add(kernel.MAP, self._compiler.map(table), otherwise)

    def value(self, document: Any, *, is_joined: bool = False) -> None:
        """Find a value of the mapping.

        Args:
            document: the value.
            is_joined: it is put behind others, so that nothing may be written.
        """
        if isinstance(document, str):
            self.add(kernel.LOAD, self._compiler.slot(document, self._slots))
        elif isinstance(document, list):
            self._first(document, is_joined=is_joined)
        else:
            when = document.get("when")
            unless = self.jump(kernel.UNLESS, self._compiler.condition(when, self._slots)) if when is not None else None
            self._made(document, is_joined=is_joined)
            self._options(document, is_joined=is_joined)
            if unless is not None:
                self.land(unless)

    def _first(self, values: list[Any], *, is_joined: bool) -> None:
        found = []
        for number, one in enumerate(values):
            self.value(one, is_joined=is_joined)
            if number < len(values) - 1:
                found.append(self.jump(kernel.JUMP_IF_FOUND))
        for jump in found:
            self.land(jump)

    def _options(self, document: Mapping[str, Any], *, is_joined: bool) -> None:
        said = {name: document[name] for name in _OPTIONS if document.get(name) not in (None, False)}
        if is_joined and said.keys() & {"lower", "hash"}:
            raise NoTable
        if "strip" in said:
            self.add(kernel.STRIP, self._compiler.constant(said["strip"]))
        if "lower" in said:
            self.add(kernel.LOWER)
        if "map" in said:
            self.map(said["map"], kernel.OR_NONE if document.get("else") else kernel.OR_AS_IT_IS)
        if "hash" in said:
            self.add(kernel.HASH)

    def _made(self, document: Mapping[str, Any], *, is_joined: bool) -> None:
        if "path" in document:
            self.value(document["path"], is_joined=is_joined)
        elif "const" in document:
            text = text_of(document["const"]) or ""
            if not text.strip():
                raise NoTable
            is_text = isinstance(document["const"], str)
            self.add(kernel.CONSTANT, self._compiler.constant(text), kernel.TEXT if is_text else kernel.OTHER)
        elif "join" in document and not is_joined:
            self._join(document["join"], document.get("with", ""))
        else:
            raise NoTable

    def _join(self, parts: list[Any], between: str) -> None:
        self.add(kernel.JOIN)
        ends = []
        for number, part in enumerate(parts):
            if number:
                self.joins(between)
            self.value(part, is_joined=True)
            ends.append(self.jump(kernel.JOIN_FOUND))
        self.add(kernel.JOINED)
        for end in ends:
            self.land(end)

    def table(self) -> Integers:
        """The program."""
        return np.array(self._steps, np.int64).reshape(-1, 3)


def _listed(document: Any) -> list[Any]:
    """What may stand alone, as a list."""
    return document if isinstance(document, list) else [document] if document else []


def _bare(document: Any) -> Any:
    """A value without what is said beside it."""
    return {k: v for k, v in document.items() if k not in _BESIDE} if isinstance(document, dict) else document


def _format(document: Any) -> int:
    return FORMATS.index(document.get("as", FORMATS[0]) if isinstance(document, dict) else FORMATS[0])


def _below(path: str, value: Any) -> Any:
    """A value of an item as one of the record that the item lies in."""
    match value:
        case str() if not value.startswith(("[", ".")):
            return f"{path}.{value}"
        case list():
            return [_below(path, one) for one in value]
        case {"path": inner, **others} if "when" not in others:
            return {**others, "path": _below(path, inner)}
        case _:
            raise NoTable


def _by_bytes(pair: tuple[str, str]) -> bytes:
    return pair[0].encode()


def _starts(groups: list[Any]) -> Integers:
    return np.cumsum([0, *map(len, groups)]).astype(np.int64)


def _hash(name: str | int) -> int:
    if isinstance(name, int):
        return name
    raw = np.frombuffer(name.encode(), np.uint8)
    return int(kernel.name_hash(raw, 0, len(raw)))
