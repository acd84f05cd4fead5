"""Writes docs/reference.md and docs/event.schema.json from the declarations in the code: `make docs`.

A test holds both to them.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import typer

from c360_pipeline.cli import app
from c360_pipeline.core.catalog.tables import TABLES
from c360_pipeline.core.contract.events import (
    EARLIEST,
    ERROR_CLASSES,
    MAX_ATTRS,
    MAX_LINE_BYTES,
    MAX_STRING_CHARACTERS,
    json_schema,
)
from c360_pipeline.core.contract.fields import FIELDS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import NodeKind
from c360_pipeline.stores.s3.landing import CATALOG_PREFIX, DEAD_LETTERS_PREFIX, EVENTS_PREFIX

PAGE = Path(__file__).parent / "reference.md"
SCHEMA = Path(__file__).parent / "event.schema.json"
KINDS = [
    *(p.kind for p in model.EVENT_PROJECTIONS), model.PRODUCT, model.CATEGORY, model.IN_CATEGORY, model.CORRELATION,
    model.JOURNEY, model.HAS_KEY, model.PART_OF, model.EVENT_STATUS, model.USER_COMMUNITY, model.SIMILAR_TO,
    model.ALSO_VIEWED, model.LEADS_TO, model.AUDIENCE, model.IN_AUDIENCE,
]  # fmt: skip


def table(*header: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def reference() -> str:
    """The page."""
    return (
        "\n\n".join(
            [
                "# Reference",
                "Made from the code by `make docs`.",
                *commands(),
                *contract(),
                *tables(),
                *graph(),
                *control(),
            ]
        )
        + "\n"
    )


def commands() -> list[str]:
    """Commands and exit codes."""
    rows = []
    for name, command in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]  # a group
        leaves = getattr(command, "commands", None)
        named = [(f"{name} {n}", c) for n, c in leaves.items()] if leaves else [(name, command)]
        rows += [(f"`c360 {path}`", (leaf.help or "").split("\n")[0]) for path, leaf in named]
    codes = "Exit codes: 0 done; 1 the work found something wrong; 2 bad usage or input; 3 a service can't be reached."
    return ["## Commands", table("Command", "Does", rows=rows), codes]


def contract() -> list[str]:
    """The event contract."""
    rows = [(f"`{f.name}`", f"`{f.column}`", "yes" if f.required else "", f.meaning) for f in FIELDS]
    limits = (
        f"One JSON object a line, at most {MAX_LINE_BYTES:,} bytes; strings at most {MAX_STRING_CHARACTERS:,} "
        f"characters; at most {MAX_ATTRS} attributes; `ts` from {EARLIEST.date()} to one day from now. Other names are "
        "kept in `attrs` as `_extra.<name>`. Numbers and booleans in `attrs` become strings. As JSON Schema: "
        "[event.schema.json](event.schema.json)."
    )
    places = (
        f"Files: `{EVENTS_PREFIX}date=YYYY-MM-DD/*.jsonl[.gz]`, catalogues `{CATALOG_PREFIX}*.csv` (tenant_id, id, "
        f"name, category, price). Rejected bytes: `{DEAD_LETTERS_PREFIX}<first 2 hex>/<sha256>`."
    )
    classes = "Error classes of dead letters: " + ", ".join(f"`{name}`" for name in ERROR_CLASSES) + "."
    return ["## Events", table("Field", "In the lake", "Required", "Meaning", rows=rows), limits, classes, places]


def tables() -> list[str]:
    """The Delta tables."""
    rows = [
        (f"`{t.name}`", t.description, ", ".join(t.key), ", ".join(c for c in t.columns if c not in t.key))
        for t in TABLES.values()
    ]
    silos = (
        "`silos/<database>/<table>`: the source's columns less the excluded ones, and tenant_id, extracted_at, run_id."
    )
    return ["## Delta tables", table("Table", "Holds", "Key", "Other columns", rows=rows), silos]


def graph() -> list[str]:
    """Labels and relationship types."""
    nodes, relationships = [], []
    for kind in KINDS:
        properties = ", ".join(p for p in kind.properties if not isinstance(kind, NodeKind) or p not in kind.key)
        if isinstance(kind, NodeKind):
            labels = ":".join((kind.label, *kind.extra_labels))
            nodes.append((f"`{labels}`", ", ".join(kind.key_columns), properties))
        else:
            relationships.append((f"`{kind.name}`", properties))
    note = (
        "Silo tables add a label per `node_label_mappings` row, keyed by tenant_id and the table's key columns, and a "
        "type per `relationship_mappings` row."
    )
    return [
        "## Graph", table("Node", "Key", "Other properties", rows=nodes),
        table("Relationship", "Properties", rows=relationships), note,
    ]  # fmt: skip


def control() -> list[str]:
    """The control database."""
    return [
        "## Control database",
        "What to write for databases of your own: see `data/silos/control_rows.sql`, and the comments in "
        "`c360_pipeline/ddl/control.sql`. A join condition is made of equations of `alias.column`, or of "
        "toString, lower, trim or normalForm of it, joined by AND and OR; the aliases stand for from_label, via_label "
        "and to_label in the order in which they appear. A password is a reference, `env:C360_SOURCE_NAME` or "
        "`file:/path`: see docs/security.md.",
    ]


def schema() -> str:
    """The event contract as JSON Schema."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
