"""Rows that the graph refuses: each becomes a dead letter, and what depends on it waits with it.

A row is identified by its kind's name and the text of its key, as findings of the reconciliation name it.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import DEAD_LETTERS
from c360_pipeline.core.projection.graph import Kind, RelationshipKind
from c360_pipeline.core.projection.rows import key_text

REFUSED = "refused_by_graph"
"""The class of such letters, beside those of event lines."""
ADDRESS = "graph:"
"""How the `source_uri` of such letters begins; the kind's name follows."""
SHOWN_CHARACTERS = 500


def row_keys(kind: Kind, rows: pl.DataFrame) -> pl.Series:
    """The text of each row's key."""
    return rows.select(key_text(kind.key_columns, rows.schema).alias("key")).to_series()


def end_keys(kind: RelationshipKind, rows: pl.DataFrame) -> list[tuple[str, pl.Series]]:
    """Of the nodes at both ends of relationships, the label and the text of each one's key."""
    ends = (("from_", kind.source), ("to_", kind.target))
    return [
        (end.name, rows.select(key_text(["tenant_id", *(f"{prefix}{k}" for k in end.key)], rows.schema)).to_series())
        for prefix, end in ends
    ]


def stands_on(kind: Kind, rows: pl.DataFrame, refused: Mapping[str, Collection[str]]) -> pl.Series:
    """Whether each row is one of those refused, or a relationship of such a node.

    Args:
        kind: of the rows.
        rows: with the key columns of the kind.
        refused: key texts by kind's name.
    """
    named = [(kind.name, row_keys(kind, rows))]
    if isinstance(kind, RelationshipKind):
        named += end_keys(kind, rows)
    found = pl.Series([False]).new_from_index(0, rows.height)
    for name, keys in named:
        if name in refused:
            found |= keys.is_in(list(refused[name]))
    return found


def letter(kind: Kind, row: pl.DataFrame, why: str, now: datetime, statement: str) -> pl.DataFrame:
    """A row of `DEAD_LETTERS`.

    Args:
        kind: of what could not be written.
        row: the one row, with tenant_id.
        why: the database's answer.
        now: UTC.
        statement: that was to write it, without values.
    """
    values = row.row(0, named=True)
    said = {"entity": kind.name, "key": row_keys(kind, row)[0], "row": values}
    # The row is the same whatever statement a version writes it with.
    letter_id = hashlib.sha256(_as_json(said)).hexdigest()
    raw = _as_json({**said, "statement": statement})
    found = {
        "dead_letter_id": letter_id, "source_uri": f"{ADDRESS}{kind.name}", "raw": raw,
        "error_class": REFUSED, "reason": why[:SHOWN_CHARACTERS], "tenant_id": values["tenant_id"],
        "first_seen_at": now, "status": "open",
    }  # fmt: skip
    schema = DEAD_LETTERS.empty().schema
    return pl.DataFrame([{name: found.get(name) for name in schema}], schema=schema)


def letter_keys(letters: pl.DataFrame) -> pl.DataFrame:
    """Of letters of refused rows: their columns but the bytes, and the `entity` and `key` that these name."""
    said: list[dict[str, Any]] = [json.loads(raw) for raw in letters["raw"]]
    names = {name: pl.Series([one[name] for one in said], dtype=pl.String) for name in ("entity", "key")}
    return letters.drop("raw").with_columns(**names)


def by_entity(letters: pl.DataFrame) -> dict[str, frozenset[str]]:
    """Key texts by kind's name."""
    groups = letters.group_by("entity").agg("key").iter_rows()
    return {entity: frozenset(keys) for entity, keys in groups}


def refused_statements(letters: pl.DataFrame) -> list[dict[str, Any]]:
    """By the database's code of an error: how many letters it has, and the statement of one of them.

    Args:
        letters: rows of `DEAD_LETTERS` of refused rows, with their bytes.
    """
    code = pl.col("reason").str.extract(r"^([\w.]+): ").fill_null("unknown")
    found = letters.group_by(code=code).agg(letters=pl.len(), raw=pl.col("raw").first()).sort("letters", "code")
    return [
        {"code": row["code"], "letters": row["letters"], "entity": said["entity"], "statement": said["statement"]}
        for row in found.iter_rows(named=True)
        if (said := json.loads(row["raw"])).get("statement")
    ]


def _as_json(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, default=_as_text, ensure_ascii=False, sort_keys=True).encode()


def _as_text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value.isoformat())
