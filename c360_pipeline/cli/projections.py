"""`c360 graph-projection …`: graphs in Neo4j's memory, for algorithms that people run by hand."""

from typing import Annotated

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, err, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings

graph_projection_app = typer.Typer(
    help="Graphs of users and products in Neo4j's memory, for algorithms of Graph Data Science.", no_args_is_help=True
)
DEFAULT_NAME = "user-product-graph"
Name = Annotated[str, typer.Option(help="what algorithms call it by")]


@graph_projection_app.command("create")
def create(
    tenant: Annotated[str, typer.Option(help="whose users and products")],
    name: Name = DEFAULT_NAME,
    as_json: AsJson = False,
) -> None:
    """Make the graph of a tenant's users, products, views and purchases, in place of one of that name.

    It stays in the server's memory, as it was, until it is dropped or the server ends. Views weigh 1, purchases 5.
    """
    from c360_pipeline.connections import open_graph
    from c360_pipeline.stores.neo4j.projections import project

    with open_graph(load_settings()) as graph:
        made = project(graph, tenant, name)
    if as_json:
        print_json({"name": made.name, "nodes": made.nodes, "relationships": made.relationships})
        return
    out.print(f"{made.name}: {made.nodes:,} nodes, {made.relationships:,} relationships", highlight=False)
    out.print(f"Try  CALL gds.louvain.stream('{made.name}')", highlight=False, markup=False)
    out.print(f"Drop it  `c360 graph-projection drop --name {made.name}`", highlight=False)


@graph_projection_app.command("list")
def show(as_json: AsJson = False) -> None:
    """Show the graphs in the server's memory."""
    from c360_pipeline.connections import open_graph
    from c360_pipeline.stores.neo4j.projections import listed

    with open_graph(load_settings()) as graph:
        found = listed(graph)
    if as_json:
        print_json(found)
        return
    if not found:
        err.print("There is no graph in the server's memory: `c360 graph-projection create` makes one.")
        return
    table = Table("name", "nodes", "relationships", "bytes", "made")
    for row in found:
        table.add_row(
            str(row["name"]), f"{row['nodes']:,}", f"{row['relationships']:,}", f"{row['bytes']:,}",
            str(row["made_at"])[:19],
        )  # fmt: skip
    out.print(table)


@graph_projection_app.command("drop")
def drop_projection(name: Name = DEFAULT_NAME) -> None:
    """Take a graph out of the server's memory."""
    from c360_pipeline.connections import open_graph
    from c360_pipeline.stores.neo4j.projections import drop

    with open_graph(load_settings()) as graph:
        if not drop(graph, name):
            raise ConfigError(f"There is no graph {name!r}: `c360 graph-projection list` shows those that are.")
    err.print(f"{name} is dropped.", highlight=False)
