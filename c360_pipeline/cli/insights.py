"""`c360 insights`: what the nightly features found."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.settings import load_settings

LONGEST = 240
"""Characters of a text that are shown."""


class Which(StrEnum):
    """Kinds of insight, as `reads.insights` names them."""

    NOW = "now"
    ANOMALIES = "anomalies"
    DROP_OFFS = "drop-offs"
    BEFORE_TICKETS = "before-tickets"
    CHURN = "churn"
    LEAVING = "leaving"
    VALUES = "values"
    RECOMMENDED = "recommended"
    MODELS = "models"


def show_insights(
    which: Annotated[Which | None, typer.Argument(help="one kind; all where it is left out")] = None,
    tenant: Annotated[str, typer.Option(help="whose customers")] = "",
    limit: Annotated[int, typer.Option(min=1, help="rows of each kind at most")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show odd sessions, broken funnels, what comes before tickets, who may leave, and who brings most."""
    from c360_pipeline.cli.query import only_tenant
    from c360_pipeline.connections import open_control, open_graph, open_lake
    from c360_pipeline.core.catalog.tables import EVENTS
    from c360_pipeline.reads.insights import NOW, Found, all_insights, insights, surprising_now

    settings = load_settings()
    lake = open_lake(settings)
    whose = tenant or only_tenant(lake.count_by(EVENTS, "tenant_id")["tenant_id"].to_list())

    def read(name: str) -> Found:
        if name != NOW.name:
            return insights(lake, whose, name, limit)
        with open_graph(settings) as graph:
            return surprising_now(lake, graph.read_only, whose, limit, open_control(settings).privacy.purposes())

    found = [read(which.value)] if which else all_insights(read)
    if as_json:
        print_json({one.kind.name: {"changed_at": one.changed_at, "total": one.total, "rows": one.rows,
                                    "none": None if one.rows else one.why_none} for one in found})  # fmt: skip
        return
    for one in found:
        if not one.rows:
            err.print(f"{one.kind.title}: {one.why_none}")
            continue
        title = f"{one.kind.title}, {len(one.rows)} of {one.total:,}"
        table = Table(*one.kind.columns.values(), title=title, title_justify="left")
        for row in one.rows:
            table.add_row(*(_shown(row[column]) for column in one.kind.columns))
        out.print(table)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:LONGEST]
