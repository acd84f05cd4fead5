"""The archive as files that `neo4j-admin database import full` takes: a header and the rows, for every kind.

Nodes are numbered from 0 one after the other over all labels, which are the ids that the store gives them (`actual`:
nothing has to be looked up); relationships name these numbers.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind, RelationshipKind
from c360_pipeline.core.projection.refused import stands_on
from c360_pipeline.stages.projection.refused import RefusedRows
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stores.neo4j.refusals import Refusals

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_ ]*")
_INSTANT = "%Y-%m-%dT%H:%M:%S%.6fZ"
_LOCAL_TIME = "%Y-%m-%dT%H:%M:%S%.6f"
START, END, NUMBER = ":START_ID", ":END_ID", ":ID"


@dataclass(frozen=True)
class ImportFile:
    """The rows of a kind.

    Attributes:
        name: labels joined by colons, or a type.
        header: file of one line.
        rows: CSV file without a header.
        is_node: nodes, or relationships.
    """

    name: str
    header: Path
    rows: Path
    is_node: bool

    @property
    def argument(self) -> str:
        """As the tool takes it."""
        return f"--{'nodes' if self.is_node else 'relationships'}={self.name}={self.header},{self.rows}"


@dataclass(frozen=True)
class Completion:
    """What statements do once the files are in: what these can't carry came under another name.

    Attributes:
        label: of the nodes.
        stand_in: property that the nodes have after the import.
        name: property that they should have.
        is_empty: it is to hold no bytes, where the other is true; else the value of the other.
    """

    label: str
    stand_in: str
    name: str
    is_empty: bool


@dataclass(frozen=True)
class ImportFiles:
    """Everything that the archive asks for.

    Attributes:
        files: nodes first.
        nodes: how many rows.
        relationships: how many rows.
        completions: what is left to do when they are in.
    """

    files: tuple[ImportFile, ...]
    nodes: int
    relationships: int
    completions: tuple[Completion, ...] = ()


class ImportWriter:
    """Writes such files into a folder.

    Args:
        archive: the snapshot that is written.
        folder: where to; made when it is not there.
        observe: called with each kind before it is written.
    """

    def __init__(self, archive: Archive, folder: Path, observe: Callable[[str], None] = lambda what: None) -> None:
        self._archive = archive
        self._folder = folder
        self._observe = observe
        self._refused = RefusedRows(archive.lake, Refusals()).refused
        self._numbers: dict[str, pl.DataFrame] = {}
        self._files: list[ImportFile] = []
        self._completions: list[Completion] = []
        self._nodes = self._relationships = 0

    def write(self) -> ImportFiles:
        """Write all kinds; rows that the graph refused are left out, with the relationships of such nodes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        nodes: dict[str, tuple[NodeKind, pl.DataFrame]] = {}
        owned: list[tuple[NodeKind, pl.DataFrame]] = []
        for kind, frame in self._archive.expected():
            rows = frame.drop(DAY).select(list(kind.schema))
            if self._refused:
                rows = rows.filter(~stands_on(kind, rows, self._refused))
            if isinstance(kind, RelationshipKind):
                self._write_nodes(nodes, owned)
                self._write_relationships(kind, rows)
            elif kind.is_owned:
                owned.append((kind, rows))
            else:
                nodes[kind.label] = (kind, rows)
        self._write_nodes(nodes, owned)
        return ImportFiles(tuple(self._files), self._nodes, self._relationships, tuple(self._completions))

    def _write_nodes(
        self, nodes: dict[str, tuple[NodeKind, pl.DataFrame]], owned: list[tuple[NodeKind, pl.DataFrame]]
    ) -> None:
        """Write what has gathered; the properties that other projections own stand beside the rest."""
        for kind, rows in owned:
            base, held = nodes[kind.label]
            nodes[kind.label] = (base, held.join(rows, on=kind.key_columns, how="left", maintain_order="left"))
        owned.clear()
        for kind, rows in nodes.values():
            self._observe(kind.name)
            numbered = rows.select(pl.int_range(self._nodes, self._nodes + pl.len()).alias(NUMBER), pl.all())
            self._numbers[kind.label] = numbered.select(NUMBER, *kind.key_columns)
            self._nodes += rows.height
            self._write_file(kind, ":".join((kind.label, *kind.extra_labels)), numbered)
        nodes.clear()

    def _write_relationships(self, kind: RelationshipKind, rows: pl.DataFrame) -> None:
        self._observe(kind.name)
        for prefix, end, column in (("from_", kind.source, START), ("to_", kind.target, END)):
            names = {name: f"{prefix}{name}" for name in end.key}
            numbers = self._numbers[end.label].rename({**names, NUMBER: column})
            rows = rows.join(numbers, on=["tenant_id", *names.values()], how="inner").drop(list(names.values()))
        self._relationships += rows.height
        self._write_file(kind, kind.type, rows.select(START, END, *kind.properties))

    def _write_file(self, kind: Kind, name: str, rows: pl.DataFrame) -> None:
        if isinstance(kind, NodeKind):
            rows = self._carried(kind.label, rows)
        number = len(self._files)
        header, data = self._folder / f"{number}-header.csv", self._folder / f"{number}.csv"
        header.write_text(",".join(_header(n, t) for n, t in rows.schema.items()) + "\n", encoding="utf-8")
        rows.select(list(_cells(rows.schema))).write_csv(data, include_header=False, quote_style="necessary")
        if rows.height:
            self._files.append(ImportFile(name, header, data, isinstance(kind, NodeKind)))

    def _carried(self, label: str, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows in a form that the files can carry: names of other characters, and empty bytes, have stand-ins."""
        for column, dtype in rows.schema.items():
            if isinstance(dtype, pl.Binary) and rows.select((pl.col(column).bin.size() == 0).any()).item():
                is_empty = pl.when(pl.col(column).bin.size() == 0)
                rows = rows.with_columns(
                    is_empty.then(None).otherwise(pl.col(column)).alias(column),
                    is_empty.then(pl.lit(value=True)).alias(self._stand_in(label, column, is_empty=True)),
                )
        odd = [name for name in rows.columns if not (name.startswith(":") or _PLAIN.fullmatch(name))]
        return rows.rename({name: self._stand_in(label, name, is_empty=False) for name in odd})

    def _stand_in(self, label: str, name: str, *, is_empty: bool) -> str:
        made = f"__c360_{len(self._completions)}"
        self._completions.append(Completion(label, made, name, is_empty))
        return made


def _header(name: str, dtype: pl.DataType) -> str:
    return name if name.startswith(":") else f"{name}:{_type_name(dtype)}"


def _type_name(dtype: pl.DataType) -> str:
    match dtype:
        case pl.Datetime(time_zone=str()):
            return "datetime"
        case pl.Datetime():
            return "localdatetime"
        case pl.Date():
            return "date"
        case pl.Boolean():
            return "boolean"
        case pl.Binary():
            return "byte[]"
        case pl.Float64():
            return "double"
        case pl.Int64():
            return "long"
        case _:
            return "string"


def _cells(schema: pl.Schema) -> Iterator[pl.Expr]:
    for name, dtype in schema.items():
        column = pl.col(name)
        match dtype:
            case pl.Datetime():
                yield column.dt.to_string(_INSTANT if dtype.time_zone else _LOCAL_TIME)
            case pl.Binary():
                yield column.map_elements(_signed_bytes, return_dtype=pl.String)
            case pl.Float64():
                yield (
                    pl.when(column.is_infinite())
                    .then(pl.when(column > 0).then(pl.lit("Infinity")).otherwise(pl.lit("-Infinity")))
                    .otherwise(column.cast(pl.String))
                    .alias(name)
                )
            case _:
                yield column


def _signed_bytes(value: bytes) -> str:
    return ";".join(str(byte - 256 if byte > 127 else byte) for byte in value)
