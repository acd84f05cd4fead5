"""`c360 plan` and `c360 grants`: what the next run would read, and what its logins need for that."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.settings import load_settings


def _open() -> tuple[Any, Any]:
    """The control database, and a function that opens silos."""
    from c360_pipeline.connections import open_control, open_silo

    return open_control(load_settings()), open_silo


def plan(as_json: AsJson = False) -> None:
    """Show what the next run would read from the silos, and what changed since the last; refuse what can't be."""
    from c360_pipeline.connections import open_lake
    from c360_pipeline.core.silos.plan import make_plan, plan_changes
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.silos.run import found_tables

    control, open_silo = _open()
    rows, applied = control.read(), control.runs.applied_plan()
    made = make_plan(rows, found_tables(rows, open_silo), applied)
    changes = plan_changes(applied, made.document)
    counts = {count.name: count for count in Archive(open_lake(load_settings()), rows).join_counts()}
    if as_json:
        expected = {extract.name: extract.rows for extract in made.extracts}
        print_json({
            "hash": made.hash, **made.document, "expected_rows": expected, "changes": [vars(c) for c in changes],
            "joined": {name: vars(count) for name, count in counts.items()},
        })  # fmt: skip
        return
    _show(made, changes, counts)


def _show(made: Any, changes: list[Any], counts: Mapping[str, Any]) -> None:
    tables = Table("table", "label", "key", "reads", "left out", "mode", "drift", "rows ≈", title="tables")
    for e in made.extracts:
        left_out = "\n".join(f"{name}: {reason or 'excluded'}" for name, reason in e.left_out.items())
        mode = e.table.snapshot_mode + (
            f" by {e.table.cursor_column}" if e.table.snapshot_mode == "incremental" else ""
        )
        tables.add_row(e.name, e.label or "—", ", ".join(e.table.key_columns), f"{len(e.columns)} columns", left_out,
                       mode, e.table.drift_policy, "?" if e.rows is None else f"{e.rows:,}")  # fmt: skip
    joins = Table("relationship", "where", "via", "joined from", "joined to", title="relationships, by the last run")
    for name, entry in made.document["relationships"].items():
        count = counts.get(name)
        ends = [(count.from_joined, count.from_rows), (count.to_joined, count.to_rows)] if count else []
        joins.add_row(name, entry["on"], entry["via"] or "", *(f"{some:,} of {all_:,}" for some, all_ in ends))
    differences = Table("what", "since the last run", title="changes")
    for change in changes:
        differences.add_row(change.subject, change.change)
    for table in (tables, joins, differences):
        if table.row_count:
            out.print(table)
    for name, count in counts.items():
        if count.by_form:
            out.print(
                f"{name}: {count.by_form:,} more would join if case, blanks and invisible characters did not count: "
                "compare lower(alias.column), trim(alias.column) or normalForm(alias.column) on both sides if that is "
                "meant.",
                highlight=False, soft_wrap=True,
            )  # fmt: skip
    out.print(f"plan {made.hash}" + ("" if changes else ", as in the last run"), highlight=False)


def grants(
    role: Annotated[str | None, typer.Option(help="the login; that of each control row if not given")] = None,
) -> None:
    """Print the statements that give each silo's login the columns that are read, and no others."""
    from c360_pipeline.core.silos.plan import make_plan
    from c360_pipeline.stages.silos.grants import create_role_statement, grant_statements
    from c360_pipeline.stages.silos.run import as_if_readable, found_tables

    control, open_silo = _open()
    rows = control.read()
    made = make_plan(rows, as_if_readable(found_tables(rows, open_silo)))
    for login in dict.fromkeys(role or d.user for d in rows.databases):
        out.print(f"{create_role_statement(login).as_string(None)};  -- if it is not there; then \\password", **PLAIN)
    for database in rows.databases:
        extracts = [e for e in made.extracts if e.table.database_id == database.database_id]
        out.print(f"\n\\connect {database.db_name}", **PLAIN)
        for statement in grant_statements(database.db_name, role or database.user, extracts):
            out.print(f"{statement.as_string(None)};", **PLAIN)
    err.print("Run these with psql, as a login that owns the tables.", highlight=False)


def clear_database(
    yes_remove_all_of: Annotated[str | None, typer.Option(help="the Neo4j address, instead of the questions")] = None,
) -> None:
    """Remove every node of the graph, of all tenants; the lake stays, and the next run projects it again."""
    from c360_pipeline.connections import open_control, open_graph
    from c360_pipeline.errors import ConfigError

    settings = load_settings()
    address = settings.neo4j_uri
    if yes_remove_all_of is None:
        typer.confirm(f"Remove every node and relationship from the graph at {address}?", abort=True, err=True)
        yes_remove_all_of = typer.prompt("This can't be undone. Type the address to go on", err=True)
    if yes_remove_all_of != address:
        raise ConfigError(f"{yes_remove_all_of!r} is not {address}: nothing was removed.")
    with open_control(settings).locks.exclusive_run(), open_graph(settings) as graph:
        err.print(f"{graph.writer.clear():,} nodes removed", highlight=False)


PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}
