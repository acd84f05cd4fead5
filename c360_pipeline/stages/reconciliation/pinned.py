"""The moment of an archive that a graph has been brought to: versions of tables and commits of stitching."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES, USER_COMMUNITIES
from c360_pipeline.core.catalog.table import SILO_RETENTION, Table
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS, JOURNEY_LOG, VISITOR_DECISIONS
from c360_pipeline.core.projection import graph as model
from c360_pipeline.core.projection.graph import Kind
from c360_pipeline.core.projection.user_properties import UserProperty
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.stages.projection.audiences import AUDIENCE_PROJECTION
from c360_pipeline.stages.projection.events import EVENT_PROJECTION, PRODUCT_PROJECTION, SIMILARITIES, properties_of
from c360_pipeline.stages.projection.journeys import PROJECTION as JOURNEY_PROJECTION
from c360_pipeline.stages.projection.silos import NODES, OWN_SOURCES, RELATIONSHIPS
from c360_pipeline.stages.stitching.commit import log_name
from c360_pipeline.stages.stitching.tables import JourneyTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph

PROJECTED_TABLES = (EVENTS, CATALOG, USER_COMMUNITIES, PRODUCT_SIMILARITIES, VISITOR_DECISIONS, AUDIENCE_MEMBERS)
"""Tables of our own that the graph is made of, but for those of journeys, which follow from their log."""


@dataclass(frozen=True)
class PinnedVersions:
    """A snapshot of the archive.

    Attributes:
        versions: of lake tables by projection and name; of others the newest counts.
        commits: of stitching by tenant, None for all that there are.
        silos: versions of tables of silos by name; of others the newest counts.
        mapped: by the name of a mapped relationship, the checkpoints that the graph has of it.
        properties: traits that are properties of users; None for what control rows say.
    """

    versions: Mapping[tuple[str, str], Version] = field(default_factory=dict)
    commits: Mapping[str, int] | None = None
    silos: Mapping[str, Version] = field(default_factory=dict)
    mapped: Mapping[str, Mapping[str, Version]] = field(default_factory=dict)
    properties: tuple[UserProperty, ...] | None = None

    @classmethod
    def of(cls, graph: Graph, lake: Lake) -> "PinnedVersions":
        """The snapshot that a graph has been brought to; what it does not know, or the lake has lost, is not pinned."""
        # What stands on other checkpoints is read before them: a projection that ends meanwhile makes it look older.
        mapped = {
            projection.removeprefix(RELATIONSHIPS): checkpoints
            for projection, checkpoints in graph.checkpoints.under(RELATIONSHIPS).items()
        }
        versions = {
            (projection, table.name): version
            for projection in (EVENT_PROJECTION, PRODUCT_PROJECTION, AUDIENCE_PROJECTION)
            for table, version in _known(graph, lake, projection)
        }
        log_id = log_name(lake.commits.snapshot(JOURNEY_LOG))
        commits = {
            tenant: version.number
            for tenant, version in graph.checkpoints.of(JOURNEY_PROJECTION).items()
            if version.table_id == log_id
        }
        silos = {
            name: version
            for checkpoints in graph.checkpoints.under(NODES).values()
            for name, version in checkpoints.items()
            if name not in OWN_SOURCES
            and (table := lake.stored_table(name, ()))
            and lake.versions.still_there(table, version)
        }
        return cls(versions, commits or None, silos, mapped, properties_of(graph))

    @classmethod
    def now(cls, lake: Lake, control: ControlRows) -> "PinnedVersions":
        """This snapshot."""
        return cls._at(lake, control, lambda name, _: lake.versions.version(name), JourneyTables(lake).published())

    @classmethod
    def as_of(cls, lake: Lake, control: ControlRows, instant: datetime) -> "PinnedVersions":
        """The snapshot that was current at an instant; what was committed at the instant itself is in it.

        Raises:
            ConfigError: a table does not keep what it was then.
        """
        commits = JourneyTables(lake).target(instant)
        return cls._at(lake, control, lambda name, kept: lake.versions.version_at(name, instant, kept), commits)

    @classmethod
    def _at(
        cls,
        lake: Lake,
        control: ControlRows,
        version: Callable[[str, timedelta], Version | None],
        commits: Mapping[str, int],
    ) -> "PinnedVersions":
        projected = ((EVENT_PROJECTION, EVENTS), (EVENT_PROJECTION, USER_COMMUNITIES),
                     (EVENT_PROJECTION, VISITOR_DECISIONS),
                     (PRODUCT_PROJECTION, EVENTS), (PRODUCT_PROJECTION, CATALOG),
                     (PRODUCT_PROJECTION, PRODUCT_SIMILARITIES), (AUDIENCE_PROJECTION, AUDIENCE_MEMBERS))  # fmt: skip
        own = {table.name: version(table.name, table.retention) for _, table in projected}
        silos = {name: version(name, SILO_RETENTION) for name in map(control.lake_table, control.tables)}
        return cls(
            {(projection, t.name): found for projection, t in projected if (found := own[t.name])},
            commits,
            {name: found for name, found in silos.items() if found},
        )

    @property
    def unprojected(self) -> frozenset[Kind]:
        """Kinds whose projection has brought nothing into the graph yet, as far as its checkpoints say."""
        kinds: set[Kind] = set()
        if (EVENT_PROJECTION, EVENTS.name) not in self.versions:
            kinds |= {*(one.kind for one in model.EVENT_PROJECTIONS), model.EVENT_STATUS, model.USER_COMMUNITY}
        if not {(PRODUCT_PROJECTION, EVENTS.name), (PRODUCT_PROJECTION, CATALOG.name)} & self.versions.keys():
            kinds |= {model.PRODUCT, model.CATEGORY, model.IN_CATEGORY, *(kind for kind, _ in SIMILARITIES)}
        if self.commits is None:
            kinds |= {model.CORRELATION, model.JOURNEY, model.HAS_KEY, model.PART_OF, model.IN_JOURNEY}
        return frozenset(kinds)

    @property
    def on_their_way(self) -> frozenset[Kind]:
        """The same, and audiences, which an archive need not have."""
        has_audiences = (AUDIENCE_PROJECTION, AUDIENCE_MEMBERS.name) in self.versions
        return self.unprojected | (frozenset[Kind]() if has_audiences else {model.AUDIENCE, model.IN_AUDIENCE})

    def version(self, projection: str, table: Table) -> Version | None:
        """The version of a table that a projection has taken up; None for the newest."""
        return self.versions.get((projection, table.name))


def _known(graph: Graph, lake: Lake, projection: str) -> Iterator[tuple[Table, Version]]:
    done = graph.checkpoints.of(projection)
    for table in PROJECTED_TABLES:
        if (version := lake.versions.still_there(table, done.get(table.name))) is not None:
            yield table, version
