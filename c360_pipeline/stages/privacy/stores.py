"""All that may hold a person, and the search of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from c360_pipeline.core.arrays.row_hashes import trace_hash, user_hash
from c360_pipeline.core.contract.identifiers import normal_form
from c360_pipeline.core.landing.classify import TRACE_HASHES
from c360_pipeline.core.privacy.erasure import (
    NO_TRACES,
    Person,
    SearchTerms,
    Traces,
    users_frame,
)
from c360_pipeline.errors import C360Error
from c360_pipeline.stages.audiences.deliver import Sinks
from c360_pipeline.stages.privacy.search import (
    Searched,
    search_database,
    search_folder,
    search_graph,
    search_lake,
    search_objects,
    search_user_events,
)
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.bucket import Bucket
from c360_pipeline.stores.s3.landing import Landing

if TYPE_CHECKING:
    from c360_pipeline.stores.cassandra.user_events import UserEvents

Observe = Callable[[str], None]
SILOS = "silos/"
AREAS = ("landing/", "dead-letters/", "lake/")
"""Parts of the bucket that are searched each in its own way."""


class ErasureError(C360Error):
    """Values of a person are still somewhere; the certificate says where."""


@dataclass(frozen=True)
class Stores:
    """All that may hold a person.

    Attributes:
        bucket: landing area, dead letters and lake as objects.
        landing: the landing area.
        lake: the tables.
        control: the control database.
        open_graph: opens the graph.
        databases: logins of Postgres databases of ours, by what they are called.
        files: folders of files of ours, by what they are called.
        cache: folder of what can be made again at any time.
        remake_graph: rebuilds the graph's store, without a trace of what was removed; None where it is not ours.
        graph_files: folder of the graph's store; None where it is not ours.
        open_user_events: opens Cassandra's table; None where there is none.
        open_sink: opens destinations of audiences; None where none is told.
    """

    bucket: Bucket
    landing: Landing
    lake: Lake
    control: ControlDb
    open_graph: Callable[[], Graph]
    databases: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    remake_graph: Callable[[], object] | None = None
    graph_files: Path | None = None
    open_user_events: "Callable[[], UserEvents] | None" = None
    open_sink: Sinks | None = None


def search_everywhere(
    stores: Stores, terms: SearchTerms, persons: list[Person], traces: Traces, observe: Observe
) -> list[Searched]:
    """Look for values of people in every store; changes nothing.

    Args:
        stores: where.
        terms: the values.
        persons: whose rows are looked for, too.
        traces: of theirs, whose rows are looked for, too.
        observe: called with which store comes next.
    """
    searches: list[tuple[str, Callable[[], Searched]]] = [
        ("landing area", partial(search_objects, "landing area", stores.bucket, "landing/", terms)),
        ("dead letters", partial(search_objects, "dead letters", stores.bucket, "dead-letters/", terms)),
        ("lake", partial(search_lake, stores.bucket, terms, persons, traces)),
        ("other objects", partial(search_objects, "other objects", stores.bucket, "", terms, AREAS)),
        *((n, partial(search_database, n, login, terms)) for n, login in stores.databases.items()),
        *((n, partial(search_folder, n, folder, terms)) for n, folder in stores.files.items()),
    ]  # fmt: skip
    if stores.cache is not None:
        searches.append(("cache", partial(search_folder, "cache", stores.cache, terms)))
    if stores.graph_files is not None:
        searches.append(("graph files", partial(search_folder, "graph files", stores.graph_files, terms)))
    found = []
    for store, search in searches:
        observe(f"searching {store}")
        found.append(search())
    if stores.open_user_events is not None:
        observe("searching cassandra")
        with stores.open_user_events() as table:
            found.append(search_user_events(table, terms, persons))
    with stores.open_graph() as graph:
        observe("searching graph")
        return [*found, search_graph(graph, terms, persons)]


def hashed(persons: Iterable[Person], traces: Traces = NO_TRACES) -> pl.DataFrame:
    """tenant_id and user_hash, as the list of the suppressed has them, but for the secrets that cover them there."""
    users = users_frame(persons).select("tenant_id", user_hash=user_hash(normal_form(pl.col("user_id"))))
    own = [
        ids.select("tenant_id", user_hash=of) for ids, of in zip(traces.frames(), TRACE_HASHES.values(), strict=True)
    ]
    return pl.concat([users, *own]).unique(maintain_order=True)


def shared_hashes(traces: Traces) -> pl.DataFrame:
    """tenant_id and user_hash of visitors that are not theirs alone: nobody's alone from now on."""
    shared = Traces(traces.shared).frames()[0]
    return shared.select("tenant_id", user_hash=trace_hash("shared", normal_form(pl.col("anonymous_id")))).unique()
