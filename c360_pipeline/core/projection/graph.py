"""The projection: how rows of the archive become nodes and relationships.

One declaration of each kind serves writing, reading back and reconciliation. Statements are in `stores.neo4j.graph`.
Sources: "Real-time Customer-Journey Graph with Flink + Neo4j" (User, Session, Action, Product), "Neo4j Integration
Guide" (VIEWED, PURCHASED, Category), "Apache AGE Journey Stitching" (Event, Correlation, Journey).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import polars as pl

from c360_pipeline.core.catalog.audience_tables import IS_MEMBER
from c360_pipeline.core.contract.fields import FieldType
from c360_pipeline.core.contract.frames import ENTRIES
from c360_pipeline.core.contract.layout import GRAPH_PROPERTIES, field_of
from c360_pipeline.core.projection.items import each_item, quantity, revenue
from c360_pipeline.core.stitching.statuses import LINKED
from c360_pipeline.core.visitors.groups import GROUP as NAME_OF_GROUP
from c360_pipeline.core.visitors.groups import facts_of_groups
from c360_pipeline.core.visitors.said import newest

TEXT = pl.String()
WHOLE = pl.Int64()
REAL = pl.Float64()
INSTANT = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class NodeKind:
    """A kind of node: its label, the properties that with tenant_id are its key, and the types of all properties.

    `extra_labels` are set beside the label. Properties that are not named belong to another projection, which has
    a kind of its own for them; they are left alone. `day` names the instant by whose date a node is counted.
    `removed` are labels and properties that are taken away when a node is written. `later` are properties that a later
    release added: the digest of rows without them is what it was. `is_owned` says that it is one property of nodes that
    another kind makes.
    """

    label: str
    key: tuple[str, ...]
    properties: Mapping[str, pl.DataType] = field(hash=False)
    extra_labels: tuple[str, ...] = ()
    day: str | None = None
    removed: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    is_owned: bool = False

    @property
    def name(self) -> str:
        """How findings, refusals and metadata call it: by its property where it is one of nodes of another kind."""
        return f"{self.label}.{self.owned_property}" if self.is_owned else self.label

    @property
    def owned_property(self) -> str:
        """The one property that is not of the key, of a kind that is one."""
        (name,) = (name for name in self.properties if name not in self.key)
        return name

    @property
    def key_columns(self) -> list[str]:
        """Columns that name a row."""
        return ["tenant_id", *self.key]

    @property
    def schema(self) -> pl.Schema:
        """Columns of a frame of such nodes."""
        return pl.Schema({"tenant_id": TEXT, **self.properties})


@dataclass(frozen=True)
class RelationshipKind:
    """A kind of relationship between two kinds of node, with the types of its properties.

    `day` says by what date one is counted: `from` or `to` is that of the node there, another name its own property.
    `later` are properties that a later release added.
    """

    type: str
    source: NodeKind
    target: NodeKind
    properties: Mapping[str, pl.DataType] = field(default_factory=dict, hash=False)
    day: str | None = None
    later: tuple[str, ...] = ()
    is_owned: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """How findings and metadata call it."""
        return f"({self.source.label})-[:{self.type}]->({self.target.label})"

    @property
    def key_columns(self) -> list[str]:
        """Columns that name a row."""
        return ["tenant_id", *(f"from_{k}" for k in self.source.key), *(f"to_{k}" for k in self.target.key)]

    @property
    def schema(self) -> pl.Schema:
        """Columns of a frame of such relationships."""
        ends = {f"from_{k}": self.source.properties[k] for k in self.source.key}
        ends |= {f"to_{k}": self.target.properties[k] for k in self.target.key}
        return pl.Schema({"tenant_id": TEXT, **ends, **self.properties})


Kind = NodeKind | RelationshipKind
DAY = "(day)"
"""The column that says by what date a row is counted; null for rows that have none. Columns of silos
may have any name of their own, so those that are added in passing stand in brackets."""
_RELATIONSHIP_NAME = re.compile(r"\((\w+)\)-\[:(\w+)\]->\((\w+)\)")


def parts_of(name: str) -> tuple[str, str, str]:
    """Source label, type and target label of a relationship by its kind's name."""
    found = _RELATIONSHIP_NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not the name of a kind of relationship")
    return found[1], found[2], found[3]


SEEN = {"id": TEXT, "first_seen": INSTANT, "last_seen": INSTANT}
SAID = {"traits": TEXT, "consents": TEXT, "said_at": INSTANT}
"""What events said of a user last, as JSON text with sorted names, and when; null where nothing was said."""
USER = NodeKind("User", ("id",), {**SEEN, **SAID}, day="first_seen", later=tuple(SAID))
VISITOR = NodeKind("Visitor", ("id",), {**SEEN, "users": WHOLE, "is_split": pl.Boolean()}, day="first_seen")
"""A browser or device, as producers know it before a login; `users` are those that it was named with."""
SESSION = NodeKind("Session", ("id",), SEEN, day="first_seen")
GROUP = NodeKind("Group", ("id", "type"), {**SEEN, "type": TEXT, "facts": TEXT}, day="first_seen")
"""A company or a team that customers belong to; what was said of it last, as JSON text with sorted names."""
CUSTOMER_ID = "customer_id"
"""Of an event without a user, the user whom it counts for; of another it is null."""
_PROPERTY_TYPES: Mapping[FieldType, pl.DataType] = {
    FieldType.TEXT: TEXT, FieldType.INSTANT: INSTANT, FieldType.ATTRIBUTES: TEXT
}  # fmt: skip
UNLANDED = "Unlanded"
"""Label of events that are in the graph before they are in the archive, written at `WRITTEN_AT` (docs/adr/0035)."""
WRITTEN_AT, SAID_BY = "written_at", "said"
"""Of an event that has not landed: when it was written, and its traits and consents as JSON text."""
ACTION = NodeKind(
    "Action",
    ("id",),
    {"id": TEXT}
    | {name: _PROPERTY_TYPES[field_of(column).type] for column, name in GRAPH_PROPERTIES.items()}
    | {CUSTOMER_ID: TEXT},
    ("Event",),
    "ts",
    (f":{UNLANDED}", f".{WRITTEN_AT}", f".{SAID_BY}"),
    (*(name for column, name in GRAPH_PROPERTIES.items() if field_of(column).since > 1), CUSTOMER_ID),
)
MARKED_ACTION = replace(ACTION, removed=())
"""The same, written without taking away the mark of what has not landed."""
PRODUCT = NodeKind("Product", ("id",), {"id": TEXT, "name": TEXT, "category": TEXT, "price": REAL})
CATEGORY = NodeKind("Category", ("name",), {"name": TEXT})
CORRELATION = NodeKind("Correlation", ("id",), {"id": TEXT, "key_type": TEXT})
JOURNEY = NodeKind(
    "Journey",
    ("id",),
    {"id": TEXT, "created_at": INSTANT, "first_event_ts": INSTANT, "last_event_ts": INSTANT, "event_count": WHOLE},
    day="first_event_ts",
)
INTERACTION = {"count": WHOLE, "first_interaction": INSTANT, "last_interaction": INSTANT}

HAS_SESSION = RelationshipKind("HAS_SESSION", USER, SESSION, day="to")
VISITOR_SESSION = RelationshipKind("HAS_SESSION", VISITOR, SESSION, day="to")
IS_USER = RelationshipKind("IS_USER", VISITOR, USER, day="from")
"""To the one known user of a visitor; what the visitor did before a login counts for that user."""
OF_VISITORS = (VISITOR, VISITOR_SESSION, IS_USER)
MEMBER_OF = RelationshipKind("MEMBER_OF", USER, GROUP, {"since": INSTANT}, day="since")
HAS_ACTION = RelationshipKind("HAS_ACTION", SESSION, ACTION, day="to")
PIECES = {"quantity": REAL, "price": REAL, "currency": TEXT}
"""Of a product that an event is about: how many, the price of one, its currency; null where the event does not say."""
ON_PRODUCT = RelationshipKind("ON_PRODUCT", ACTION, PRODUCT, PIECES, day="from", later=tuple(PIECES))
IN_CATEGORY = RelationshipKind("IN_CATEGORY", PRODUCT, CATEGORY)
VIEWED = RelationshipKind("VIEWED", USER, PRODUCT, INTERACTION, "first_interaction")
PURCHASED = RelationshipKind(
    "PURCHASED",
    USER,
    PRODUCT,
    {**INTERACTION, "quantity": REAL, "revenue": REAL},
    "first_interaction",
    ("quantity", "revenue"),
)
"""How often a user bought a product; how many pieces, and for how much, where the events say it."""
OF_CUSTOMERS = (HAS_SESSION, VIEWED, PURCHASED, MEMBER_OF)
"""Relationships from a user that are made of all events which count for that user."""
HAS_KEY = RelationshipKind("HAS_KEY", ACTION, CORRELATION, day="from")
PART_OF = RelationshipKind("PART_OF", CORRELATION, JOURNEY, day="to")
IN_JOURNEY = RelationshipKind("IN_JOURNEY", ACTION, JOURNEY, day="from")
"""The journey of an event that no key links: of one without keys, or with weak ones only."""
SIMILARITY = {"similarity": REAL, "shared": WHOLE, "rank": WHOLE}
SIMILAR_TO = RelationshipKind("SIMILAR_TO", PRODUCT, PRODUCT, SIMILARITY)
"""To the products with the same customers, the most similar ten."""
ALSO_VIEWED = RelationshipKind("ALSO_VIEWED", PRODUCT, PRODUCT, SIMILARITY)
"""To the products that were viewed in the same sessions, the most similar ten."""
LEADS_TO = RelationshipKind("LEADS_TO", PRODUCT, PRODUCT, {"weight": REAL, "shared": WHOLE, "rank": WHOLE})
"""To the products that one speaks for, by the weights that recommendations add up, the strongest fifty."""
AUDIENCE = NodeKind("Audience", ("id",), {"id": TEXT})
IN_AUDIENCE = RelationshipKind("IN_AUDIENCE", USER, AUDIENCE, {"since": INSTANT}, day="since")
"""To the audiences that a user is a member of."""

EVENT_STATUS = NodeKind("Action", ("id",), {"id": TEXT, "status": TEXT}, is_owned=True)
"""The status of an event, a property that stitching owns: NEW until the event has a journey, then PROCESSED."""
USER_COMMUNITY = NodeKind("User", ("id",), {"id": TEXT, "community": WHOLE}, is_owned=True)
"""The community of a user, a property that features own."""


def is_of_users(kind: Kind) -> bool:
    """Whether a kind is one property of users: what is on its way to one of these is on its way to all."""
    return isinstance(kind, NodeKind) and kind.is_owned and kind.label == USER.label


def _seen(events: pl.DataFrame, column: str) -> pl.DataFrame:
    return (
        events.drop_nulls(column)
        .group_by("tenant_id", id=pl.col(column))
        .agg(first_seen=pl.col("ts").min(), last_seen=pl.col("ts").max())
    )


def users(events: pl.DataFrame) -> pl.DataFrame:
    """`USER` rows."""
    rows = _seen(events, CUSTOMER_ID)
    key = ["tenant_id", "id"]
    for name, column in (("traits", "traits"), ("consents", "consent")):
        said = newest(events, column).rename({CUSTOMER_ID: "id"})
        texts = said.select(*key, attributes_text(said["said"]).alias(name))
        rows = rows.join(texts, on=key, how="left")
    says = pl.any_horizontal(pl.col(name).cast(ENTRIES).list.len() > 0 for name in ("traits", "consent"))
    moments = events.filter(says).group_by("tenant_id", id=pl.col(CUSTOMER_ID)).agg(said_at=pl.col("ts").max())
    return rows.join(moments, on=key, how="left")


def visitors(events: pl.DataFrame) -> pl.DataFrame:
    """`VISITOR` rows."""
    of_visitor = ("visitor_users", "is_split")
    facts = (
        events.drop_nulls("visitor_id").select("tenant_id", *of_visitor, id="visitor_id").unique(["tenant_id", "id"])
    )
    facts = facts.rename({"visitor_users": "users"})
    return _seen(events, "visitor_id").join(facts, on=["tenant_id", "id"])


def sessions(events: pl.DataFrame) -> pl.DataFrame:
    """`SESSION` rows."""
    return _seen(events, "session_id")


def groups(events: pl.DataFrame) -> pl.DataFrame:
    """`GROUP` rows."""
    seen = events.drop_nulls("group_id").group_by(NAME_OF_GROUP).agg(
        first_seen=pl.col("ts").min(), last_seen=pl.col("ts").max()
    )  # fmt: skip
    said = facts_of_groups(events)
    rows = seen.join(said.select(*NAME_OF_GROUP, facts=attributes_text(said["said"])), on=NAME_OF_GROUP, how="left")
    return rows.rename({"group_type": "type", "group_id": "id"}).select(list(GROUP.schema))


def group_members(events: pl.DataFrame) -> pl.DataFrame:
    """`MEMBER_OF` rows."""
    named = events.drop_nulls([CUSTOMER_ID, "group_id"])
    return named.group_by(
        "tenant_id", from_id=pl.col(CUSTOMER_ID), to_type=pl.col("group_type"), to_id=pl.col("group_id")
    ).agg(since=pl.col("ts").min())  # fmt: skip


def actions(events: pl.DataFrame) -> pl.DataFrame:
    """`ACTION` rows; attributes as JSON text with sorted names."""
    texts = {
        name: attributes_text(events[column]) if field_of(column).type is FieldType.ATTRIBUTES else events[column]
        for column, name in GRAPH_PROPERTIES.items()
    }
    counts_for = pl.when(pl.col("user_id").ne_missing(pl.col(CUSTOMER_ID))).then(CUSTOMER_ID).alias(CUSTOMER_ID)
    return events.select("tenant_id", counts_for, id="event_id").with_columns(**texts)


def attributes_text(attrs: pl.Series) -> pl.Series:
    """Maps of texts as JSON objects with sorted names, `{}` for none."""
    entries = attrs.cast(pl.List(pl.Struct({"key": TEXT, "value": TEXT})))
    rows = pl.DataFrame({"entry": entries}).with_row_index("row").filter(pl.col("entry").list.len() > 0)
    pairs = rows.explode("entry").unnest("entry").sort("row", "key")
    texts = pairs.group_by("row", maintain_order=True).agg(
        attrs=pl.concat_str(_json_text("key"), pl.lit(": "), _json_text("value")).str.join(", ")
    )
    objects = texts.select("row", attrs=pl.concat_str(pl.lit("{"), "attrs", pl.lit("}")))
    whole = pl.select(row=pl.int_range(attrs.len(), dtype=pl.UInt32)).join(
        objects, on="row", how="left", maintain_order="left"
    )
    return whole["attrs"].fill_null("{}")


def _json_text(name: str) -> pl.Expr:
    """A text as JSON has it, in quotes."""
    in_an_object = pl.struct(pl.col(name).alias("v")).struct.json_encode()
    return in_an_object.str.strip_prefix('{"v":').str.strip_suffix("}")


def user_sessions(events: pl.DataFrame) -> pl.DataFrame:
    """`HAS_SESSION` rows."""
    return events.select("tenant_id", from_id=CUSTOMER_ID, to_id="session_id").drop_nulls().unique()


def visitor_sessions(events: pl.DataFrame) -> pl.DataFrame:
    """`VISITOR_SESSION` rows."""
    return events.select("tenant_id", from_id="visitor_id", to_id="session_id").drop_nulls().unique()


def visitor_users(events: pl.DataFrame) -> pl.DataFrame:
    """`IS_USER` rows."""
    return events.select("tenant_id", from_id="visitor_id", to_id="visitor_user").drop_nulls().unique()


def session_actions(events: pl.DataFrame) -> pl.DataFrame:
    """`HAS_ACTION` rows."""
    return events.select("tenant_id", from_id="session_id", to_id="event_id").drop_nulls()


def action_products(events: pl.DataFrame) -> pl.DataFrame:
    """`ON_PRODUCT` rows."""
    about = each_item(events.lazy()).collect()
    return about.select("tenant_id", *PIECES, from_id="event_id", to_id="item_id")


def interactions(events: pl.DataFrame, action: str, *further: pl.Expr) -> pl.DataFrame:
    """`VIEWED` or `PURCHASED` rows: recomputed from the events, so that a replay can't count twice.

    Args:
        events: with customer_id, item_id, items, ts and action. Those that count for nobody are left out.
        action: that counts.
        further: what else is said of a user and a product.
    """
    counted = events.lazy().filter((pl.col("action") == action) & pl.col(CUSTOMER_ID).is_not_null())
    return (
        each_item(counted)
        .group_by("tenant_id", from_id=pl.col(CUSTOMER_ID), to_id=pl.col("item_id"))
        .agg(
            *further,
            count=pl.len().cast(pl.Int64),
            first_interaction=pl.col("ts").min(),
            last_interaction=pl.col("ts").max(),
        )
        .collect()
    )


def views(events: pl.DataFrame) -> pl.DataFrame:
    """`VIEWED` rows."""
    return interactions(events, "view")


def purchases(events: pl.DataFrame) -> pl.DataFrame:
    """`PURCHASED` rows."""
    return interactions(events, "purchase", quantity().alias("quantity"), revenue().alias("revenue"))


@dataclass(frozen=True)
class Projection:
    """How a kind is made from events.

    Attributes:
        kind: what is made.
        scope: event columns that decide a row: all events that agree on them are needed to make it.
        start: event column that holds the id of the node, or of the node that a relationship starts from.
        build: events, complete for their scopes and as `EventsAt.counted` gives them, to rows of the kind.
    """

    kind: Kind
    scope: tuple[str, ...]
    start: str
    build: Callable[[pl.DataFrame], pl.DataFrame]


EVENT_PROJECTIONS = (
    Projection(USER, ("tenant_id", CUSTOMER_ID), CUSTOMER_ID, users),
    Projection(VISITOR, ("tenant_id", "visitor_id"), "visitor_id", visitors),
    Projection(SESSION, ("tenant_id", "session_id"), "session_id", sessions),
    Projection(GROUP, tuple(NAME_OF_GROUP), "group_id", groups),
    Projection(ACTION, ("tenant_id", "event_id"), "event_id", actions),
    Projection(HAS_SESSION, ("tenant_id", CUSTOMER_ID, "session_id"), CUSTOMER_ID, user_sessions),
    Projection(VISITOR_SESSION, ("tenant_id", "visitor_id", "session_id"), "visitor_id", visitor_sessions),
    Projection(IS_USER, ("tenant_id", "visitor_id"), "visitor_id", visitor_users),
    Projection(MEMBER_OF, ("tenant_id", CUSTOMER_ID), CUSTOMER_ID, group_members),
    Projection(HAS_ACTION, ("tenant_id", "event_id"), "session_id", session_actions),
    Projection(ON_PRODUCT, ("tenant_id", "event_id"), "event_id", action_products),
    Projection(VIEWED, ("tenant_id", CUSTOMER_ID), CUSTOMER_ID, views),
    Projection(PURCHASED, ("tenant_id", CUSTOMER_ID), CUSTOMER_ID, purchases),
)
"""In the order of writing: nodes before the relationships between them."""


LABELS = {UNLANDED}.union(
    *((kind.label, *kind.extra_labels) for kind in (PRODUCT, CATEGORY, CORRELATION, JOURNEY, AUDIENCE)),
    *((p.kind.label, *p.kind.extra_labels) for p in EVENT_PROJECTIONS if isinstance(p.kind, NodeKind)),
)
"""Labels that are the product's own."""


def products(events: pl.DataFrame, catalog: pl.DataFrame) -> pl.DataFrame:
    """`PRODUCT` rows: the catalogue's, and a bare one for every item that only events know."""
    known = catalog.select("tenant_id", "id", "name", "category", "price")
    seen = events.drop_nulls("item_id").select("tenant_id", id="item_id").unique()
    bare = seen.join(known, on=["tenant_id", "id"], how="anti")
    return pl.concat([known, bare], how="diagonal")


def categories(catalog: pl.DataFrame) -> pl.DataFrame:
    """`CATEGORY` rows."""
    return catalog.filter(pl.col("category").is_not_null()).select("tenant_id", name="category").unique()


def product_categories(catalog: pl.DataFrame) -> pl.DataFrame:
    """`IN_CATEGORY` rows."""
    return catalog.filter(pl.col("category").is_not_null()).select("tenant_id", from_id="id", to_name="category")


def correlation_id() -> pl.Expr:
    """The id of a Correlation node: `type:hash`."""
    return pl.concat_str("key_type", pl.lit(":"), "key_hash")


def correlations(journey_keys: pl.DataFrame) -> pl.DataFrame:
    """`CORRELATION` rows."""
    return journey_keys.select("tenant_id", "key_type", id=correlation_id()).select("tenant_id", "id", "key_type")


def journeys(rows: pl.DataFrame) -> pl.DataFrame:
    """`JOURNEY` rows."""
    return rows.select("tenant_id", "created_at", "first_event_ts", "last_event_ts", "event_count", id="journey_id")


def event_correlations(event_keys: pl.DataFrame) -> pl.DataFrame:
    """`HAS_KEY` rows: keys that link; those that are weak, refused, blocked or in quarantine lead nowhere."""
    return event_keys.filter(pl.col("status") == LINKED).select("tenant_id", from_id="event_id", to_id=correlation_id())


def unlinked_events(event_journey: pl.DataFrame, event_keys: pl.DataFrame) -> pl.DataFrame:
    """`IN_JOURNEY` rows."""
    linked = event_keys.filter(pl.col("status") == LINKED).select("tenant_id", "event_id")
    unlinked = event_journey.join(linked, on=["tenant_id", "event_id"], how="anti")
    return unlinked.select("tenant_id", from_id="event_id", to_id="journey_id")


def correlation_journeys(journey_keys: pl.DataFrame) -> pl.DataFrame:
    """`PART_OF` rows."""
    return journey_keys.select("tenant_id", from_id=correlation_id(), to_id="journey_id")


def event_status(events: pl.DataFrame, event_journey: pl.DataFrame) -> pl.DataFrame:
    """`EVENT_STATUS` rows."""
    processed = event_journey.select("tenant_id", "event_id", status=pl.lit("PROCESSED"))
    return events.join(processed, on=["tenant_id", "event_id"], how="left").select(
        "tenant_id", pl.col("status").fill_null("NEW"), id="event_id"
    )


def day_source(kind: Kind) -> tuple[str, str] | None:
    """Where the day of a row is: `n`, `r`, `a` (source) or `b` (target), and the property that is an instant."""
    if isinstance(kind, NodeKind):
        return ("n", kind.day) if kind.day else None
    ends = {"from": ("a", kind.source.day), "to": ("b", kind.target.day)}
    variable, name = ends.get(kind.day or "", ("r", kind.day))
    return (variable, name) if name else None


def with_days(kind: Kind, rows: pl.DataFrame, days: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Rows with the column `DAY`.

    Args:
        kind: of the rows.
        rows: columns of the kind.
        days: by label, key columns and `DAY` of the nodes at the ends.
    """
    at = day_source(kind)
    if at is None:
        return rows.with_columns(pl.lit(None, pl.Date).alias(DAY))
    if isinstance(kind, NodeKind) or at[0] == "r":
        return rows.with_columns(pl.col(at[1]).dt.date().alias(DAY))
    end, prefix = (kind.source, "from_") if at[0] == "a" else (kind.target, "to_")
    nodes = days[end.label].rename({name: f"{prefix}{name}" for name in end.key})
    on = ["tenant_id", *(f"{prefix}{name}" for name in end.key)]
    return rows.join(nodes, on=on, how="left", maintain_order="left")


def user_communities(communities: pl.DataFrame) -> pl.DataFrame:
    """`USER_COMMUNITY` rows."""
    return communities.select("tenant_id", "community", id="user_id")


def users_without_community(gone: pl.DataFrame) -> pl.DataFrame:
    """`USER_COMMUNITY` rows that take the community away.

    Args:
        gone: tenant_id, user_id.
    """
    return gone.select("tenant_id", pl.lit(None, WHOLE).alias("community"), id="user_id")


def similar_products(
    kind: RelationshipKind, similarities: pl.DataFrame, products: pl.DataFrame, name: str
) -> pl.DataFrame:
    """`SIMILAR_TO`, `ALSO_VIEWED` or `LEADS_TO` rows.

    Args:
        kind: of relationship; its first property is the similarity.
        similarities: rows of `PRODUCT_SIMILARITIES`.
        products: tenant_id, id of the products that there are; an item whose events are gone is none.
        name: of the kind of similarity.
    """
    there = products.select("tenant_id", "id")
    first, *others = kind.properties
    rows = similarities.filter(pl.col("kind") == name).select(
        "tenant_id", pl.col("similarity").alias(first), *others, from_id="product_id", to_id="similar_product_id"
    )
    for end in ("from_id", "to_id"):
        rows = rows.join(there, left_on=["tenant_id", end], right_on=["tenant_id", "id"], how="semi")
    return rows.select(list(kind.schema))


def audience_members(members: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """`IN_AUDIENCE` rows.

    Args:
        members: rows of `AUDIENCE_MEMBERS`; those who left are left out.
        users: tenant_id, id of the users that there are; of others there is no node.
    """
    inside = members.filter(IS_MEMBER)
    rows = inside.select("tenant_id", from_id="user_id", to_id="audience", since="entered_at")
    return rows.join(users, left_on=["tenant_id", "from_id"], right_on=["tenant_id", "id"], how="semi")


def audiences(members: pl.DataFrame) -> pl.DataFrame:
    """`AUDIENCE` rows of `IN_AUDIENCE` rows: one that nobody is in is not in the graph."""
    return members.select("tenant_id", id="to_id").unique()


UNLANDED_COLUMNS = ("tenant_id", "event_id", "user_id", "session_id", "item_id", "visitor_id")


def unlanded_keys(events: pl.DataFrame, visitors: pl.DataFrame) -> dict[Kind, tuple[pl.DataFrame, ...]]:
    """Keys of the rows that events may touch which only the graph has yet, by kind.

    Args:
        events: `UNLANDED_COLUMNS`.
        visitors: tenant_id, event_id, user_id of the other events of their visitors: one that logs in makes them count
            for somebody, and a second one for somebody else.
    """
    of = events.select
    items = events.drop_nulls("item_id").select("tenant_id", "user_id", "event_id", "item_id")
    interacted = items.select("tenant_id", from_id="user_id", to_id="item_id").drop_nulls()
    keys: dict[Kind, pl.DataFrame] = {
        USER: of("tenant_id", id="user_id").drop_nulls(),
        USER_COMMUNITY: of("tenant_id", id="user_id").drop_nulls(),
        SESSION: of("tenant_id", id="session_id").drop_nulls(),
        ACTION: of("tenant_id", id="event_id"),
        EVENT_STATUS: of("tenant_id", id="event_id"),
        PRODUCT: items.select("tenant_id", id="item_id"),
        HAS_SESSION: of("tenant_id", from_id="user_id", to_id="session_id").drop_nulls(),
        HAS_ACTION: of("tenant_id", to_id="event_id"),
        ON_PRODUCT: items.select("tenant_id", from_id="event_id"),
        VIEWED: interacted,
        PURCHASED: interacted,
    }
    of_visitors = events.drop_nulls("visitor_id")
    people = pl.concat([visitors, of_visitors.select(visitors.columns)]).select("tenant_id", id="user_id").drop_nulls()
    moved: dict[Kind, pl.DataFrame] = {
        USER: people,
        USER_COMMUNITY: people,
        VISITOR: of_visitors.select("tenant_id", id="visitor_id"),
        ACTION: visitors.select("tenant_id", id="event_id"),
        VISITOR_SESSION: of_visitors.select("tenant_id", from_id="visitor_id", to_id="session_id").drop_nulls(),
        IS_USER: of_visitors.select("tenant_id", from_id="visitor_id"),
        **{kind: people.rename({"id": "from_id"}) for kind in OF_CUSTOMERS},
    }
    return {kind: tuple(part[kind].unique() for part in (keys, moved) if kind in part) for kind in {**keys, **moved}}
