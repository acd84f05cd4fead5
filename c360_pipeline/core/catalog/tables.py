"""The Delta tables: their columns, keys and partitions, and how two versions of a table compare."""

from dataclasses import dataclass
from datetime import timedelta

import polars as pl
import pyarrow as pa

UTC_MICROS = pa.timestamp("us", "UTC")
TEXT = pa.string()
INT = pa.int64()


@dataclass(frozen=True, eq=False)
class Table:
    """A Delta table under `lake/`.

    Attributes:
        name: path below `lake/`.
        key: columns that are unique together.
        columns: Arrow types by column name, key first.
        partition_by: Delta partition columns.
        description: one sentence for the catalogue and the UI.
        distinct: columns whose values hardly repeat: a dictionary of them would be built in vain.
        retention: for how long data files that newer versions do not need are kept, for readers of older ones.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, pa.DataType]
    description: str
    partition_by: tuple[str, ...] = ()
    distinct: tuple[str, ...] = ()
    retention: timedelta = timedelta(days=7)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema."""
        return pa.schema(list(self.columns.items()))

    def empty(self) -> pl.DataFrame:
        """A frame with the table's columns and no rows."""
        return pl.DataFrame(schema=pl.Schema(self.schema))


EVENTS = Table(
    "events",
    ("tenant_id", "event_id"),
    {
        "event_id": TEXT,
        "tenant_id": TEXT,
        "user_id": TEXT,
        "session_id": TEXT,
        "ts": UTC_MICROS,
        "action": TEXT,
        "item_id": TEXT,
        "attrs": pa.map_(TEXT, TEXT),
        "event_date": pa.date32(),
        "content_hash": TEXT,
        "source_uri": TEXT,
        "source_etag": TEXT,
        "source_line": INT,
        "landed_at": UTC_MICROS,
    },
    "Every event that landed, once: the archive that the graph is a projection of.",
    ("tenant_id", "event_date"),
    distinct=("event_id", "content_hash", "source_line", "ts"),
    retention=timedelta(days=30),
)
LANDING_FILES = Table(
    "landing_files",
    ("source_uri", "etag"),
    {
        "source_uri": TEXT,
        "etag": TEXT,
        "landing_date": pa.date32(),
        "bytes": INT,
        "lines": INT,
        "landed": INT,
        "duplicates": INT,
        "dead": INT,
        "suppressed": INT,
        "landed_at": UTC_MICROS,
        "replayed_landed": INT,
        "replayed_duplicates": INT,
        "replayed_suppressed": INT,
        "damage": TEXT,
        "reopened_at": UTC_MICROS,
    },
    "The books: for every file that was read, what became of each of its lines.",
)
DEAD_LETTERS = Table(
    "dead_letters",
    ("dead_letter_id",),
    {
        "dead_letter_id": TEXT,
        "source_uri": TEXT,
        "source_line": INT,
        "byte_offset": INT,
        "raw": pa.binary(),
        "error_class": TEXT,
        "reason": TEXT,
        "tenant_id": TEXT,
        "first_seen_at": UTC_MICROS,
        "status": TEXT,
        "source_etag": TEXT,
        "resolved_at": UTC_MICROS,
        "resolution": TEXT,
    },
    "Every rejected line with its bytes, its first place and the reason, ready to be replayed.",
    retention=timedelta(days=30),
)
DEAD_LETTER_LINES = Table(
    "dead_letter_lines",
    ("source_uri", "source_etag", "source_line"),
    {
        "source_uri": TEXT,
        "source_etag": TEXT,
        "source_line": INT,
        "byte_offset": INT,
        "dead_letter_id": TEXT,
        "outcome": TEXT,
    },
    "Every place where a dead letter was found, and what became of that line: dead, landed, duplicate or suppressed.",
)
CATALOG = Table(
    "catalog",
    ("tenant_id", "id"),
    {"tenant_id": TEXT, "id": TEXT, "name": TEXT, "category": TEXT, "price": pa.float64(), "source_uri": TEXT},
    "Products as the newest catalogue file has them.",
)
JOURNEYS = Table(
    "journeys",
    ("tenant_id", "journey_id"),
    {
        "tenant_id": TEXT,
        "journey_id": TEXT,
        "created_at": UTC_MICROS,
        "founding_event_id": TEXT,
        "first_event_ts": UTC_MICROS,
        "last_event_ts": UTC_MICROS,
        "event_count": INT,
        "key_count": INT,
    },
    "Customer journeys: events that share a key, directly or through others.",
)
EVENT_JOURNEY = Table(
    "event_journey",
    ("tenant_id", "event_id"),
    {"tenant_id": TEXT, "event_id": TEXT, "journey_id": TEXT},
    "The journey that each event belongs to now.",
)
EVENT_KEYS = Table(
    "event_keys",
    ("tenant_id", "event_id", "key_type", "key_hash"),
    {"tenant_id": TEXT, "event_id": TEXT, "key_type": TEXT, "key_hash": TEXT, "status": TEXT},
    "The identifiers seen on each event, hashed, and whether each ties: linked, weak, refused, quarantined, blocked.",
)
JOURNEY_KEYS = Table(
    "journey_keys",
    ("tenant_id", "key_type", "key_hash"),
    {"tenant_id": TEXT, "key_type": TEXT, "key_hash": TEXT, "journey_id": TEXT},
    "The journey that each identifier belongs to now.",
)
JOURNEY_ALIASES = Table(
    "journey_aliases",
    ("tenant_id", "journey_id"),
    {"tenant_id": TEXT, "journey_id": TEXT, "merged_into": TEXT},
    "Journeys that were merged away, and the one that each lives on in.",
)
JOURNEY_MERGES = Table(
    "journey_merges",
    ("tenant_id", "merge_id"),
    {
        "merge_id": TEXT,
        "tenant_id": TEXT,
        "survivor": TEXT,
        "loser": TEXT,
        "via_event_id": TEXT,
        "via_key_type": TEXT,
        "merged_at": UTC_MICROS,
    },
    "The log of merges: which event and kind of identifier joined two journeys.",
)
JOURNEY_SPLITS = Table(
    "journey_splits",
    ("tenant_id", "split_id"),
    {
        "split_id": TEXT,
        "tenant_id": TEXT,
        "journey_id": TEXT,
        "split_off": TEXT,
        "event_count": INT,
        "cause": TEXT,
        "split_at": UTC_MICROS,
    },
    "The log of splits: which part left a journey, under which id, and why.",
)
JOURNEY_CONFLICTS = Table(
    "journey_conflicts",
    ("tenant_id", "event_id", "key_type", "key_hash"),
    {
        "tenant_id": TEXT,
        "event_id": TEXT,
        "key_type": TEXT,
        "key_hash": TEXT,
        "reason": TEXT,
        "journey_id": TEXT,
        "refused_journey_id": TEXT,
        "found_at": UTC_MICROS,
    },
    "The review queue: ties that a guard refused, because of a unique key or the size of a journey.",
)
QUARANTINED_KEYS = Table(
    "quarantined_keys",
    ("tenant_id", "key_type", "key_hash"),
    {"tenant_id": TEXT, "key_type": TEXT, "key_hash": TEXT, "partners": INT, "quarantined_at": UTC_MICROS},
    "Keys that met more others than their rule allows; they tie nothing.",
)
JOURNEY_LOG = Table(
    "journey_log",
    (),
    {
        "tenant_id": TEXT,
        "seq": INT,
        "kind": TEXT,
        "event_id": TEXT,
        "ts": UTC_MICROS,
        "key_type": TEXT,
        "key_hash": TEXT,
        "status": TEXT,
        "journey_id": TEXT,
        "other_journey_id": TEXT,
        "created_at": UTC_MICROS,
        "founding_event_id": TEXT,
        "first_event_ts": UTC_MICROS,
        "last_event_ts": UTC_MICROS,
        "event_count": INT,
        "key_count": INT,
        "unique_keys": pa.list_(TEXT),
        "partners": INT,
        "detail": TEXT,
        "committed_at": UTC_MICROS,
    },
    "All that stitching ever decided, one commit per batch; the tables of journeys are made from it.",
    distinct=("event_id", "key_hash", "founding_event_id", "ts"),
    retention=timedelta(days=30),
)
RECONCILIATIONS = Table(
    "reconciliations",
    ("run_id", "tenant_id", "day", "entity"),
    {
        "run_id": TEXT,
        "tenant_id": TEXT,
        "day": pa.date32(),
        "entity": TEXT,
        "expected": INT,
        "found": INT,
        "expected_digest": TEXT,
        "found_digest": TEXT,
        "reconciled_at": UTC_MICROS,
    },
    "Graph against archive, per label or relationship type and day: counts and digests of both sides. Rows without a "
    "date of their own, such as products, have no day.",
)
RECONCILIATION_FINDINGS = Table(
    "reconciliation_findings",
    ("run_id", "tenant_id", "kind", "label", "key"),
    {
        "run_id": TEXT,
        "tenant_id": TEXT,
        "kind": TEXT,
        "label": TEXT,
        "key": TEXT,
        "difference": TEXT,
        "repaired": pa.bool_(),
        "day": pa.date32(),
    },
    "Each node or relationship that differed: missing, ghost, altered or duplicate.",
)
USER_COMMUNITIES = Table(
    "features/user_communities",
    ("tenant_id", "user_id"),
    {"tenant_id": TEXT, "user_id": TEXT, "community": INT, "community_size": INT},
    "Louvain communities of users who touch the same products; numbered by their first member.",
)
REAL = pa.float64()
PRODUCT_SIMILARITIES = Table(
    "features/product_similarities",
    ("tenant_id", "kind", "product_id", "similar_product_id"),
    {
        "tenant_id": TEXT, "kind": TEXT, "product_id": TEXT, "similar_product_id": TEXT, "rank": INT,
        "similarity": REAL, "shared": INT,
    },
    "Products with the same customers (by GDS node similarity), and products viewed in the same sessions.",
)  # fmt: skip
PRODUCT_CANDIDATES = Table(
    "features/product_candidates",
    ("tenant_id", "user_id", "product_id"),
    {
        "tenant_id": TEXT, "user_id": TEXT, "product_id": TEXT, "rank": INT, "score": INT, "similar_users": INT,
        "strength": INT,
    },
    "What customers with the same purchases bought besides, the best 20 for each user.",
)  # fmt: skip
TRENDING_PRODUCTS = Table(
    "features/trending_products",
    ("tenant_id", "window_hours", "product_id"),
    {
        "tenant_id": TEXT, "window_hours": INT, "product_id": TEXT, "category": TEXT, "as_of": UTC_MICROS, "rank": INT,
        "rank_in_category": INT, "viewers": INT, "buyers": INT, "score": INT, "previous_score": INT, "growth": REAL,
    },
    "Products that most people viewed and bought in the last day, week and month, against the same time before.",
)  # fmt: skip
PATH_ANOMALIES = Table(
    "features/path_anomalies",
    ("tenant_id", "session_id", "user_id"),
    {
        "tenant_id": TEXT, "session_id": TEXT, "user_id": TEXT, "started_at": UTC_MICROS, "steps": INT,
        "surprise": REAL, "usual_surprise": REAL, "deviations": REAL, "from_action": TEXT, "to_action": TEXT,
        "probability": REAL, "path": TEXT,
    },
    "Sessions of the last week whose path is unlike the user's own and the community's past, the oddest step named.",
)  # fmt: skip
DROP_OFFS = Table(
    "features/drop_offs",
    ("tenant_id", "funnel", "step"),
    {
        "tenant_id": TEXT, "funnel": TEXT, "step": INT, "action": TEXT, "next_action": TEXT, "sessions": INT,
        "continued": INT, "drop_off_rate": REAL, "previous_rate": REAL, "change": REAL, "as_of": UTC_MICROS,
    },
    "How many sessions of the last week went on from each step of a funnel, against the four weeks before.",
)  # fmt: skip
SUPPORT_INSIGHTS = Table(
    "features/support_insights",
    ("tenant_id", "path"),
    {
        "tenant_id": TEXT, "path": TEXT, "tickets_with_path": INT, "tickets": INT, "share_before_tickets": REAL,
        "sessions_with_path": INT, "sessions": INT, "share_elsewhere": REAL, "lift": REAL,
    },
    "Paths that users take in the 30 minutes before a ticket more often than in sessions that no ticket follows.",
)  # fmt: skip
ACCOUNT_VALUES = Table(
    "features/account_values",
    ("tenant_id", "account_id"),
    {
        "tenant_id": TEXT, "account_id": TEXT, "email": TEXT, "plan": TEXT, "months": INT, "monthly_value": REAL,
        "value_to_date": REAL, "churn_risk": REAL, "risk_level": TEXT, "value_in_a_year": REAL, "why": TEXT,
    },
    "What each account has brought and may bring in a year, and how likely it is to leave, with the reasons.",
)  # fmt: skip
FEATURES = (
    USER_COMMUNITIES, PRODUCT_SIMILARITIES, PRODUCT_CANDIDATES, TRENDING_PRODUCTS, PATH_ANOMALIES, DROP_OFFS,
    SUPPORT_INSIGHTS, ACCOUNT_VALUES,
)  # fmt: skip

TABLES = {
    table.name: table
    for table in (
        EVENTS, LANDING_FILES, DEAD_LETTERS, DEAD_LETTER_LINES, CATALOG, JOURNEYS, EVENT_JOURNEY, EVENT_KEYS,
        JOURNEY_KEYS, JOURNEY_ALIASES, JOURNEY_MERGES, JOURNEY_SPLITS, JOURNEY_CONFLICTS, QUARANTINED_KEYS, JOURNEY_LOG,
        RECONCILIATIONS, RECONCILIATION_FINDINGS, *FEATURES,
    )
}  # fmt: skip


SILO_RETENTION = timedelta(days=7)
"""As `Table.retention`, for tables of silos."""


@dataclass(frozen=True)
class MaintenanceReport:
    """What caring for a table did.

    Attributes:
        table: its name.
        rows: in the table.
        files_before: data files before small ones were put together.
        files: data files afterwards.
        bytes: of the data files afterwards.
        vacuumed: data files of older versions that were removed.
        added_columns: columns of this release that the table did not have.
    """

    table: str
    rows: int
    files_before: int
    files: int
    bytes: int
    vacuumed: int
    added_columns: int
