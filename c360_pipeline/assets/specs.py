"""What every asset shows in the UI: description, owners, kinds, group, columns, rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS
from c360_pipeline.core.projection.graph import Kind
from c360_pipeline.settings import runbook_entry
from c360_pipeline.stores.neo4j.refusals import Refusals

OWNERS = ["team:customer-data"]
NEO4J_WRITES = "neo4j_writes"
"""The pool of what writes to the graph; its limit is the number of runs that do so at once."""

WHY = "why"
"""Metadata of a check that says, by name, why something was left as it is; `c360 run` prints it."""
SUMMARY = "summary"
"""Metadata of an asset that says in a line what it did; `c360 run` prints it."""
ASSET_OF = {EVENTS.name: "landed_events", CATALOG.name: "product_catalog"}
"""Assets whose tables have another name."""


def column_schema(table: Table) -> dg.TableSchema:
    """The table's columns and what they mean, as Dagster shows them; key columns are required."""
    return _schema(table.columns, table.key, table.meanings)


def kind_schema(kind: Kind) -> dg.TableSchema:
    """The properties of a kind of node or relationship as Dagster shows them; key columns are required."""
    return _schema(kind.schema, kind.key_columns)


def _schema(
    types: Mapping[str, object], key: Sequence[str], meanings: Mapping[str, str] | None = None
) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name,
                str(dtype),
                description=(meanings or {}).get(name),
                constraints=dg.TableColumnConstraints(nullable=name not in key),
            )
            for name, dtype in types.items()
        ]
    )


def described_columns(meanings: Mapping[str, str]) -> dg.TableSchema:
    """Columns that only a run knows in full, by name and meaning."""
    return dg.TableSchema(columns=[dg.TableColumn(name, description=text) for name, text in meanings.items()])


def table_spec(name: str, table: Table, group: str, deps: Sequence[str] = ()) -> dg.AssetSpec:
    """The spec of an asset that is a Delta table."""
    return dg.AssetSpec(
        name,
        deps=list(deps),
        description=table.description,
        owners=OWNERS,
        group_name=group,
        kinds={"deltalake", "s3"},
        metadata={"dagster/column_schema": column_schema(table), "lake_table": table.name},
    )


def check_spec(name: str, *, asset: str, description: str, blocking: bool = False) -> dg.AssetCheckSpec:
    """The spec of a check that an asset evaluates itself, with its entry in the runbook."""
    return dg.AssetCheckSpec(
        name, asset=asset, description=description, blocking=blocking, metadata={"runbook": runbook_entry(name)}
    )


def asset_check(
    *, asset: str | dg.AssetsDefinition, description: str, blocking: bool = False
) -> Callable[[Callable[..., dg.AssetCheckResult]], dg.AssetChecksDefinition]:
    """A check of its own, named like its function, with its entry in the runbook."""

    def decorate(evaluate: Callable[..., dg.AssetCheckResult]) -> dg.AssetChecksDefinition:
        said = {"runbook": runbook_entry(evaluate.__name__)}
        return dg.asset_check(asset=asset, description=description, blocking=blocking, metadata=said)(evaluate)

    return decorate


def all_went(left: Mapping[str, str], check: str, *, asset: str) -> dg.AssetCheckResult:
    """A check that fails when something was left as it is, and says of each why and what to do."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=check,
        passed=not left,
        metadata={WHY: dg.MetadataValue.json(dict(left)), "left": len(left)},
    )


def lineage(table: Table) -> dict[str, dg.TableColumnLineage]:
    """Metadata of what each column of a derived table is made of; nothing where the events are not its source."""
    found = {
        column: [dg.TableColumnDep(dg.AssetKey(ASSET_OF[source]), name) for source, name in sources]
        for column, sources in table.origins.items()
    }
    return {"dagster/column_lineage": dg.TableColumnLineage(found)} if found else {}


def rows(count: int, **more: Any) -> dict[str, Any]:
    """Metadata with the row count under the key that Dagster plots."""
    return {"dagster/row_count": count, **more}


def refused_rows(refusals: Refusals) -> dict[str, dg.JsonMetadataValue]:
    """Rows that the graph refused in this run, with a statement for each of its errors; nothing when there are none."""
    if not refusals.letters:
        return {}
    said = {"rows": len(refusals.letters), "statements": refusals.samples}
    return {"refused_by_graph": dg.MetadataValue.json(said)}


def found_none(asset: str, check: str, **wrong: pl.DataFrame) -> dg.AssetCheckResult:
    """A check that passes when there are no wrong rows; of those that there are, it shows the first and how many."""
    return dg.AssetCheckResult(
        asset_key=asset,
        check_name=check,
        passed=all(frame.is_empty() for frame in wrong.values()),
        metadata={
            **{name: preview(frame) for name, frame in wrong.items()},
            "rows": sum(frame.height for frame in wrong.values()),
        },
    )


def preview(frame: pl.DataFrame, limit: int = 20) -> dg.MarkdownMetadataValue:
    """The first rows as a Markdown table."""
    return dg.MetadataValue.md(markdown_table(frame.head(limit)))


def markdown_table(frame: pl.DataFrame) -> str:
    """A Markdown table with thousands separators; text cells escape the bar."""
    if frame.is_empty():
        return "no rows"
    cells = [[_cell(value) for value in record] for record in frame.iter_rows()]
    lines = [frame.columns, ["---"] * frame.width, *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if value is None or value != value:
        return ""
    return str(value).replace("|", "\\|").replace("\n", " ")


def counts_table(counts: Mapping[str, int], name: str) -> dg.MarkdownMetadataValue:
    """Names with numbers as a Markdown table."""
    return dg.MetadataValue.md(markdown_table(pl.DataFrame(sorted(counts.items()), [name, "rows"], orient="row")))
