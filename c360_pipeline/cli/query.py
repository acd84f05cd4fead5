"""`c360 query`: the business queries."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings


def query(
    name: Annotated[str | None, typer.Argument(help="of a query, as --list shows them")] = None,
    tenant: Annotated[str | None, typer.Option(help="whose customers; may be left out when there is one")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="name=value of a parameter, such as limit=50")] = None,
    list_: Annotated[bool, typer.Option("--list", help="show which queries there are")] = False,
    show: Annotated[bool, typer.Option("--show", help="print the Cypher instead of running it")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a business question from the graph."""
    from c360_pipeline.connections import open_graph
    from c360_pipeline.queries import find_query
    from c360_pipeline.reads.accounts import newest_of

    if list_ or name is None:
        _list(as_json=as_json)
        return
    wanted = find_query(name)
    if show:
        out.print(wanted.statement, highlight=False, markup=False, soft_wrap=True, end="")
        return
    given = _given(set_ or [])
    wanted.values(given, datetime.now(UTC))  # what is no value is said before the graph is asked
    with open_graph(load_settings()) as graph:
        whose = tenant or only_tenant(graph.counts.tenants_with_data())
        newest = newest_of(graph.run, whose) if wanted.needs_now(given) else None
        values = wanted.values(given, newest or datetime.now(UTC))
        rows = graph.query(wanted.statement, tenant_id=whose, **values)
    if as_json:
        print_json({"query": wanted.name, "question": wanted.question, "rows": rows})
    else:
        _print(wanted, rows)


def _list(*, as_json: bool) -> None:
    from c360_pipeline.queries import all_queries

    if as_json:
        print_json([{"name": q.name, "question": q.question, "parameters": dict(q.parameters)}
                    for q in all_queries().values()])  # fmt: skip
        return
    table = Table("query", "question", "parameters (--set)")
    for q in all_queries().values():
        table.add_row(q.name, q.question, "\n".join(f"{name}: {text}" for name, text in q.parameters.items()))
    out.print(table)


def _given(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (_, equals, _) in zip(texts, pairs, strict=True) if not equals]:
        raise ConfigError(f"--set {wrong[0]!r}: name=value is right.")
    return {name: value for name, _, value in pairs}


def only_tenant(tenants: list[str]) -> str:
    """The tenant that is meant where none is named.

    Raises:
        ConfigError: there are several, or none.
    """
    if len(tenants) == 1:
        return tenants[0]
    held = f"It holds {', '.join(tenants)}." if tenants else "It holds none: `c360 run` fills it."
    raise ConfigError(f"Say with --tenant whose customers; the graph holds more than one tenant, or none. {held}")


def _print(wanted: Any, rows: list[dict[str, Any]]) -> None:
    table = Table(*(rows[0] if rows else ["no rows"]), title=wanted.question, caption=wanted.columns)
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    out.print(table)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
