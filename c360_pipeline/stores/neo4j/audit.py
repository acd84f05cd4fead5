"""Reads back what the graph holds, with what is strange about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import neo4j
import neo4j.time
import polars as pl

from c360_pipeline.core.projection.graph import DAY, Kind, NodeKind, RelationshipKind
from c360_pipeline.core.reconciliation.compare import strange
from c360_pipeline.stores.neo4j import cypher
from c360_pipeline.stores.neo4j.client import BATCH_ROWS, Client
from c360_pipeline.stores.neo4j.counts import Counts
from c360_pipeline.stores.neo4j.driver_values import plain

PAGE_NODES = 20_000
"""Nodes, or nodes whose relationships, are read by one statement."""
LEAST: dict[type[pl.DataType], Any] = {pl.String: "", pl.Int64: -(2**63), pl.Date: date(1, 1, 1)}
"""Of each type by which pages are distinguished, a value that none is less than."""


@dataclass(frozen=True)
class Orphan:
    """A node or relationship that belongs nowhere.

    Attributes:
        element_id: as the database calls it.
        text: what it is.
    """

    element_id: str
    text: str


class Audit:
    """Reads rows of kinds, and finds what belongs nowhere.

    Args:
        client: of the database.
        counts: of its labels and types.
    """

    def __init__(self, client: Client, counts: Counts) -> None:
        self._client = client
        self._counts = counts

    def rows(self, kind: Kind, tenant_id: str) -> pl.DataFrame:
        """All rows of a kind of a tenant; a value of another type than the kind's reads as null."""
        return self._read(kind, tenant_id, audited=False).select(list(kind.schema))

    def named_rows(self, kind: Kind, tenant_id: str, names: Sequence[Any]) -> pl.DataFrame:
        """Rows of a kind whose node, or source, has one of some ids."""
        return self._named(kind, tenant_id, names, audited=False).select(list(kind.schema))

    def audited_named_rows(self, kind: Kind, tenant_id: str, names: Sequence[Any]) -> pl.DataFrame:
        """The same as `audited_rows` gives them."""
        return self._named(kind, tenant_id, names, audited=True)

    def _named(self, kind: Kind, tenant_id: str, names: Sequence[Any], *, audited: bool) -> pl.DataFrame:
        statement = cypher.read_statement(kind, audited=audited, pages=cypher.Pages.NAMED)
        found = [pl.DataFrame(_read_columns(kind, [], audited=audited))]
        with self._client.session(fetch_size=10, default_access_mode=neo4j.READ_ACCESS) as session:
            for start in range(0, len(names), PAGE_NODES):
                some = list(names[start : start + PAGE_NODES])
                read = session.run(statement, tenant_id=tenant_id, batch_rows=BATCH_ROWS, named=some)
                found += [pl.DataFrame(_read_columns(kind, rows, audited=audited)) for (rows,) in read]
        rows = pl.concat(found, how="diagonal")
        return rows.select(pl.lit(tenant_id).alias("tenant_id"), pl.all())

    def audited_rows(
        self, kind: Kind, tenant_id: str, start: str | None = None, end: str | None = None
    ) -> pl.DataFrame:
        """All rows of a kind of a tenant with `DAY`, and with what is strange about them.

        Args:
            kind: of the rows.
            tenant_id: whose.
            start: the node, or the source, has an id from here on; from the first on where nothing is said.
            end: and before this; to the last, and those whose id is no text, where nothing is said.

        Returns:
            The columns of the kind, `DAY`, and for each column with values of another type than the kind's one more,
            `strange(name)`: such a value as text, null where there is none. Of a node without one of its extra labels
            this is said under the label's name.
        """
        return self._read(kind, tenant_id, audited=True, first=start, end=end)

    def _read(
        self, kind: Kind, tenant_id: str, *, audited: bool, first: str | None = None, end: str | None = None
    ) -> pl.DataFrame:
        """Page by page, so that neither side holds more than some thousands of rows as single values."""

        def frame(rows: list[list[Any]]) -> pl.DataFrame:
            return pl.DataFrame(_read_columns(kind, rows, audited=audited))

        with self._client.session(fetch_size=10) as session:

            def read(pages: cypher.Pages, **bounds: Any) -> list[pl.DataFrame]:
                statement = cypher.read_statement(kind, audited=audited, pages=pages)
                found = session.run(statement, tenant_id=tenant_id, batch_rows=BATCH_ROWS, **bounds)
                return [frame(rows) for (rows,) in found]

            if not cypher.is_paged(kind):
                frames = read(cypher.Pages.ALL)
            else:
                frames, dtype = [], cypher.paged_by(kind)[1]
                start, is_last = LEAST[type(dtype)] if first is None else first, False
                while not is_last:
                    ends = session.run(
                        cypher.page_end_statement(kind),
                        {"tenant_id": tenant_id, "from": start, "page_nodes": PAGE_NODES},
                    ).values()
                    to = ends[0][0] if ends else None
                    if end is not None and (to is None or not to < end):
                        to, is_last = end, True
                    is_last |= to is None
                    pages = cypher.Pages.FROM if to is None else cypher.Pages.BETWEEN
                    frames += read(pages, **{"from": start, **({} if to is None else {"to": to})})
                    start = to
                if end is None:
                    frames += read(cypher.Pages.OTHERS)
        return pl.concat([frame([]), *frames], how="diagonal").select(pl.lit(tenant_id).alias("tenant_id"), pl.all())

    def orphan_nodes(self, kind: NodeKind, tenants: Sequence[str]) -> list["Orphan"]:
        """Nodes of a label that have no tenant of these, or no key, or an extra label only."""
        return [Orphan(**row) for row in self._client.query(cypher.orphan_nodes_statement(kind), tenants=list(tenants))]

    def orphan_relationships(self, kinds: Sequence[RelationshipKind], tenants: Sequence[str]) -> list["Orphan"]:
        """Relationships of one type that lead between other labels than these kinds say, or from tenant to tenant."""
        statement = cypher.orphan_relationships_statement(tuple(kinds))
        return [Orphan(**row) for row in self._client.query(statement, tenants=list(tenants))]

    def all_texts(self) -> Iterator[tuple[str, list[str]]]:
        """By label or type, the properties of some nodes or relationships as texts, of all tenants."""
        with self._client.session(default_access_mode=neo4j.READ_ACCESS) as session:
            for label in self._counts.label_counts():
                for (texts,) in session.run(cypher.node_texts_statement(label)):
                    yield label, texts
            for name in self._counts.type_counts():
                for (texts,) in session.run(cypher.relationship_texts_statement(name)):
                    yield name, texts


def _read_columns(kind: Kind, rows: list[list[Any]], *, audited: bool) -> Iterator[pl.Series]:
    """The columns of a kind but tenant_id, and where values of another type are, these as text.

    For an audit, `DAY` and what lacks of labels too.
    """
    names = [name for name in kind.schema if name != "tenant_id"]
    labels = cypher.extra_labels(kind)
    columns = list(zip(*rows, strict=True)) or [()] * (len(names) + 1 + len(labels))
    for name, values in zip(names, columns, strict=False):
        yield from _read_series(name, values, kind)
    if audited:
        yield pl.Series(DAY, columns[len(names)], dtype=pl.Int32).cast(pl.Date)
        for label, has in zip(labels, columns[len(names) + 1 :], strict=True):
            if not all(has):
                yield pl.Series(strange(f":{label}"), [None if it else "not there" for it in has], dtype=pl.String)


def _read_series(name: str, values: Sequence[Any], kind: Kind) -> Iterator[pl.Series]:
    """A column as its kind has it, and where values of another type were written behind our back, what they are."""
    dtype = kind.schema[name]
    expected, wire_type = _wire_types(dtype)
    if set(map(type, values)) - {type(None), expected}:
        is_right = [v is None or type(v) is expected for v in values]
        yield pl.Series(
            strange(name), [None if ok else _typed_text(v, dtype) for v, ok in zip(values, is_right, strict=True)],
            dtype=pl.String,
        )  # fmt: skip
        values = [v if ok else None for v, ok in zip(values, is_right, strict=True)]
    if expected in (neo4j.time.Date, neo4j.time.DateTime):
        values = [None if v is None else v.to_native() for v in values]
    yield pl.Series(name, values, dtype=wire_type).cast(dtype)


def _typed_text(value: Any, dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone and isinstance(value, list):
        (value,) = value  # `cypher.read_statement` wraps what should be an instant and is not
    return f"{plain(value)!r} ({type(value).__name__})"


def _wire_types(dtype: pl.DataType) -> tuple[type, pl.DataType]:
    """The Python type in which the driver delivers values of a column, and the polars type to take them up as."""
    match dtype:
        case pl.Datetime(time_zone=str()):
            return int, pl.Int64()  # `cypher.read_statement` asks for microseconds
        case pl.Datetime():
            return neo4j.time.DateTime, dtype
        case pl.Date():
            return neo4j.time.Date, dtype
        case pl.Boolean():
            return bool, dtype
        case pl.Binary():
            return bytes, dtype
        case pl.Float64():
            return float, dtype
        case pl.Int64():
            return int, dtype
        case _:
            return str, dtype
