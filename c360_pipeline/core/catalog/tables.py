"""The Delta tables of landing, stitching and reconciliation; those of features are in `feature_tables`."""

from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from c360_pipeline.core.catalog.audience_tables import AUDIENCES
from c360_pipeline.core.catalog.columns import (
    BOOL,
    BYTE_OFFSET,
    BYTES,
    CATEGORY,
    CREATED_AT,
    DATE,
    DAY,
    DEAD_LETTER_ID,
    EVENT_ID,
    FIRST_EVENT_TS,
    FOUNDING_EVENT_ID,
    INT,
    JOURNEY_ID,
    KEY_COUNT,
    KEY_HASH,
    KEY_TYPE,
    LAST_EVENT_TS,
    PARTNERS,
    REAL,
    RUN_ID,
    SET_AT,
    SOURCE_ETAG,
    SOURCE_LINE,
    SOURCE_URI,
    TENANT_ID,
    TEXT,
    TEXT_LIST,
    TEXTS_BY_NAME,
    UNTIL,
    UTC_MICROS,
    Column,
    of_events,
)
from c360_pipeline.core.catalog.feature_tables import FEATURES
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.contract.fields import FieldType
from c360_pipeline.core.contract.layout import COLUMNS as EVENT_COLUMNS
from c360_pipeline.core.contract.layout import field_of

_ARCHIVED_AS: dict[FieldType, pa.DataType] = {
    FieldType.TEXT: TEXT,
    FieldType.INSTANT: UTC_MICROS,
    FieldType.ATTRIBUTES: TEXTS_BY_NAME,
    FieldType.TEXTS: TEXTS_BY_NAME,
    FieldType.ITEMS: pa.list_(pa.struct([("id", TEXT), ("quantity", REAL), ("price", REAL), ("currency", TEXT)])),
    FieldType.WHOLE: INT,
}

EVENTS = Table(
    "events",
    ("tenant_id", "event_id"),
    (
        *(Column(column, _ARCHIVED_AS[field_of(column).type], field_of(column).meaning) for column in EVENT_COLUMNS),
        Column("event_date", DATE, "UTC date of `ts`"),
        Column("content_hash", TEXT, "sha256 of the event's canonical form, to tell a duplicate from a conflict"),
        SOURCE_URI,
        SOURCE_ETAG,
        SOURCE_LINE,
        Column("landed_at", UTC_MICROS, "when it was read (UTC)"),
    ),
    "Every event that landed, once: the archive that the graph is a projection of.",
    partition_by=("tenant_id", "event_date"),
    distinct=("event_id", "content_hash", "source_line", "ts"),
    retention=timedelta(days=30),
)

LANDING_FILES = Table(
    "landing_files",
    ("source_uri", "etag"),
    (
        SOURCE_URI,
        Column("etag", TEXT, "content of the object that was read: an overwritten object is another one"),
        Column("landing_date", DATE, "date in the object's path"),
        Column("bytes", INT, "size of the object as it lies in S3"),
        Column(
            "lines", INT, "lines of the file: landed + duplicates + dead + suppressed + skipped + withheld + replaced"
        ),
        Column("landed", INT, "lines that became new events of the archive"),
        Column("duplicates", INT, "lines whose event was in the archive already"),
        Column("dead", INT, "lines that went to the dead-letter queue"),
        Column("suppressed", INT, "lines of people who asked to be forgotten"),
        Column("landed_at", UTC_MICROS, "when it was read (UTC)"),
        Column("replayed_landed", INT, "dead lines that a replay landed"),
        Column("replayed_duplicates", INT, "dead lines that a replay found to be duplicates"),
        Column("replayed_suppressed", INT, "dead lines that a replay suppressed"),
        Column("damage", TEXT, "why the file could not be read to its end; empty when it could"),
        Column("reopened_at", UTC_MICROS, "when the file was asked to be read again (UTC)"),
        Column("contract_version", INT, "version of the event contract that the file was read by; null for the first"),
        Column("replaced", INT, "lines whose events or letters left for those of a newer version of the file"),
        Column("skipped", INT, "records that the mapping of the source leaves out"),
        Column("withheld", INT, "records whose visitor refused what the source requires"),
        Column("source", TEXT, "source that the file is of; null for events in this project's own form"),
        Column("mapping_version", INT, "version of the source's mapping that the file was read by"),
    ),
    "The accounting: for every file that was read, what became of each of its lines.",
)

DEAD_LETTERS = Table(
    "dead_letters",
    ("dead_letter_id",),
    (
        DEAD_LETTER_ID,
        Column(
            "source_uri",
            TEXT,
            "object in S3 where the line was first found, or `graph:` and the kind of a row that the graph refused",
        ),
        SOURCE_LINE,
        BYTE_OFFSET,
        Column("raw", BYTES, "the line's bytes as they arrived"),
        Column("error_class", TEXT, "class of the contract, such as `missing_field`"),
        Column("reason", TEXT, "what is wrong and what its producer should change"),
        Column("tenant_id", TEXT, "tenant that the line names, where that can be read", origin=of_events("tenant_id")),
        Column("first_seen_at", UTC_MICROS, "when these bytes were first rejected (UTC)"),
        Column("status", TEXT, "open, replayed or discarded"),
        SOURCE_ETAG,
        Column("resolved_at", UTC_MICROS, "when the letter was replayed or discarded (UTC)"),
        Column("resolution", TEXT, "who or what closed the dead letter"),
    ),
    "Every rejected line with its bytes, its first place and the reason, ready to be replayed.",
    retention=timedelta(days=30),
)

DEAD_LETTER_LINES = Table(
    "dead_letter_lines",
    ("source_uri", "source_etag", "source_line"),
    (
        SOURCE_URI,
        SOURCE_ETAG,
        SOURCE_LINE,
        BYTE_OFFSET,
        DEAD_LETTER_ID,
        Column("outcome", TEXT, "dead, landed, duplicate or suppressed"),
    ),
    "Every place where a dead letter was found, and what became of that line: dead, landed, duplicate or suppressed.",
)

CATALOG = Table(
    "catalog",
    ("tenant_id", "id"),
    (
        TENANT_ID,
        Column("id", TEXT, "of the product"),
        Column("name", TEXT, "the catalogue's"),
        CATEGORY,
        Column("price", REAL, "the catalogue's, in its currency"),
        Column("source_uri", TEXT, "catalogue file that the row is from"),
    ),
    "Products as the newest catalogue file has them.",
)

JOURNEYS = Table(
    "journeys",
    ("tenant_id", "journey_id"),
    (
        TENANT_ID,
        JOURNEY_ID,
        CREATED_AT,
        FOUNDING_EVENT_ID,
        FIRST_EVENT_TS,
        LAST_EVENT_TS,
        Column("event_count", INT, "events of the journey", origin=of_events("event_id")),
        KEY_COUNT,
    ),
    "Customer journeys: events that share a key, directly or through others.",
)

EVENT_JOURNEY = Table(
    "event_journey",
    ("tenant_id", "event_id"),
    (
        TENANT_ID,
        EVENT_ID,
        JOURNEY_ID,
    ),
    "The journey that each event belongs to now.",
)

EVENT_KEYS = Table(
    "event_keys",
    ("tenant_id", "event_id", "key_type", "key_hash"),
    (
        TENANT_ID,
        EVENT_ID,
        KEY_TYPE,
        KEY_HASH,
        Column(
            "status", TEXT, "whether the key links its event: linked, weak, refused, excess, quarantined or blocked"
        ),
    ),
    "The identifiers seen on each event, hashed, and whether each links: linked, weak, refused, quarantined, blocked.",
)

JOURNEY_KEYS = Table(
    "journey_keys",
    ("tenant_id", "key_type", "key_hash"),
    (
        TENANT_ID,
        KEY_TYPE,
        KEY_HASH,
        JOURNEY_ID,
    ),
    "The journey that each identifier belongs to now.",
)

JOURNEY_ALIASES = Table(
    "journey_aliases",
    ("tenant_id", "journey_id"),
    (
        TENANT_ID,
        JOURNEY_ID,
        Column("merged_into", TEXT, "journey that this id leads to"),
    ),
    "Journeys that were merged away, and the one that each lives on in.",
)

JOURNEY_MERGES = Table(
    "journey_merges",
    ("tenant_id", "merge_id"),
    (
        Column("merge_id", TEXT, "of the merge"),
        TENANT_ID,
        Column("survivor", TEXT, "journey that kept its id"),
        Column("loser", TEXT, "journey that lost its id in a merge"),
        Column("via_event_id", TEXT, "event that linked two journeys together", origin=of_events("event_id")),
        Column("via_key_type", TEXT, "type of the key that linked them"),
        Column("merged_at", UTC_MICROS, "when two journeys became one (UTC)"),
    ),
    "The log of merges: which event and kind of identifier joined two journeys.",
)

JOURNEY_SPLITS = Table(
    "journey_splits",
    ("tenant_id", "split_id"),
    (
        Column("split_id", TEXT, "of the split"),
        TENANT_ID,
        JOURNEY_ID,
        Column("split_off", TEXT, "journey that came out of a split"),
        Column("event_count", INT, "events that left", origin=of_events("event_id")),
        Column("cause", TEXT, "why the journey was split: a person or an erased event"),
        Column("split_at", UTC_MICROS, "when the journey was split (UTC)"),
    ),
    "The log of splits: which part left a journey, under which id, and why.",
)

JOURNEY_CONFLICTS = Table(
    "journey_conflicts",
    ("tenant_id", "event_id", "key_type", "key_hash"),
    (
        TENANT_ID,
        EVENT_ID,
        KEY_TYPE,
        KEY_HASH,
        Column("reason", TEXT, "the guard that refused the link: a unique key, or the size of a journey"),
        JOURNEY_ID,
        Column("refused_journey_id", TEXT, "journey that the event would have merged"),
        Column("found_at", UTC_MICROS, "when the conflict was found (UTC)"),
    ),
    "The review queue: links that a guard refused, because of a unique key or the size of a journey.",
)

QUARANTINED_KEYS = Table(
    "quarantined_keys",
    ("tenant_id", "key_type", "key_hash"),
    (
        TENANT_ID,
        KEY_TYPE,
        KEY_HASH,
        PARTNERS,
        Column("quarantined_at", UTC_MICROS, "when the key was found to link too many (UTC)"),
    ),
    "Keys that met more others than their rule allows; they link nothing.",
)

JOURNEY_LOG = Table(
    "journey_log",
    (),
    (
        TENANT_ID,
        Column("seq", INT, "number of the commit"),
        Column(
            "kind", TEXT, "sort of entry: commit, event, key, journey, merge, split, conflict, quarantine or removed"
        ),
        EVENT_ID,
        Column("ts", UTC_MICROS, "when it happened (UTC, microseconds)"),
        KEY_TYPE,
        KEY_HASH,
        Column("status", TEXT, "of a key on its event, as in `event_keys`"),
        JOURNEY_ID,
        Column("other_journey_id", TEXT, "second journey of a merge or split"),
        CREATED_AT,
        FOUNDING_EVENT_ID,
        FIRST_EVENT_TS,
        LAST_EVENT_TS,
        Column("event_count", INT, "events", origin=of_events("event_id")),
        KEY_COUNT,
        Column("unique_keys", TEXT_LIST, "keys that may belong to one person only"),
        Column("apart_from", TEXT_LIST, "journeys that unique keys keep apart from this one"),
        PARTNERS,
        Column("detail", TEXT, "what else the commit says, as JSON"),
        Column("committed_at", UTC_MICROS, "when the commit of stitching was written (UTC)"),
    ),
    "All that stitching ever decided, one commit per batch; the tables of journeys are made from it.",
    distinct=("event_id", "key_hash", "founding_event_id", "ts"),
    retention=timedelta(days=30),
)

VISITOR_DECISIONS = Table(
    "visitor_decisions",
    ("tenant_id", "kind", "anonymous_id"),
    (
        TENANT_ID,
        Column("kind", TEXT, "split: what the visitor did before logins counts for nobody; session_gap: see minutes"),
        Column("anonymous_id", TEXT, "visitor that is split; empty for a gap", origin=of_events("anonymous_id")),
        Column("minutes", INT, "without an event that end a session which no producer named"),
        Column("reason", TEXT, "why, in the words of who decided"),
        Column("decided_at", UTC_MICROS, "when it was decided (UTC)"),
    ),
    "What people decided about visitors: which are split, and which gap ends a session.",
    # An undo is told from the version that the decision was taken up at, however long ago that was.
    retention=timedelta(days=36_500),
)

VISITOR_USER = Table(
    "visitor_user",
    ("tenant_id", "anonymous_id"),
    (
        TENANT_ID,
        Column("anonymous_id", TEXT, "visitor", origin=of_events("anonymous_id")),
        Column("user_id", TEXT, "the one known user of the visitor", origin=of_events("user_id")),
    ),
    "The user of each visitor who was seen with exactly one: what the visitor did before a login counts for that user.",
)

SESSIONS = Table(
    "sessions",
    ("tenant_id", "session_id"),
    (
        TENANT_ID,
        Column("session_id", TEXT, "the producer's, or `gap:` and the id of the first event where it names none"),
        Column("anonymous_id", TEXT, "the only visitor of the session", origin=of_events("anonymous_id")),
        Column("user_id", TEXT, "the only user whom its events count for", origin=of_events("user_id")),
        FIRST_EVENT_TS,
        LAST_EVENT_TS,
        Column("event_count", INT, "events of the session", origin=of_events("event_id")),
        Column("seconds", REAL, "from the first event to the last"),
        Column("entry_action", TEXT, "what the first event did", origin=of_events("action")),
        Column("entry_path", TEXT, "page of the first event: its attribute `path`", origin=of_events("attrs")),
        Column("exit_action", TEXT, "what the last event did", origin=of_events("action")),
        Column("exit_path", TEXT, "page of the last event: its attribute `path`", origin=of_events("attrs")),
        Column("source", TEXT, "source of the first event", origin=of_events("source")),
        Column("campaign", TEXT, "campaign of the first event: its attribute `campaign`", origin=of_events("attrs")),
    ),
    "Sessions: how long, how many events, where they began and ended, and which campaign brought the visitor.",
)

USER_TRAITS = Table(
    "user_traits",
    ("tenant_id", "user_id", "name", "event_id"),
    (
        TENANT_ID,
        Column("user_id", TEXT, "customer whom it describes", origin=of_events("user_id", "anonymous_id")),
        Column("name", TEXT, "of the trait, as the source has it", origin=of_events("traits")),
        Column("value", TEXT, "what it was from then on", origin=of_events("traits")),
        SET_AT,
        UNTIL,
        EVENT_ID,
        Column("is_personal", BOOL, "whether its name says that it describes a person, such as an address"),
    ),
    "Traits of customers and their history: what a producer said of each, and from when to when it held.",
)

USER_CONSENTS = Table(
    "user_consents",
    ("tenant_id", "user_id", "purpose", "event_id"),
    (
        TENANT_ID,
        Column("user_id", TEXT, "customer who agreed, or did not", origin=of_events("user_id", "anonymous_id")),
        Column("purpose", TEXT, "such as analytics or advertising", origin=of_events("consent")),
        Column("state", TEXT, "granted or denied", origin=of_events("consent")),
        SET_AT,
        UNTIL,
        EVENT_ID,
    ),
    "What customers agreed to, by purpose, and its history.",
)

DAILY_EVENTS = Table(
    "daily_events",
    ("tenant_id", "day", "source", "action", "currency"),
    (
        TENANT_ID,
        Column("day", DATE, "UTC day of the events", origin=of_events("ts")),
        Column("source", TEXT, "source whose mapping made them; empty for events in this project's own form"),
        Column("action", TEXT, "what was done", origin=of_events("action")),
        Column("currency", TEXT, "of purchases with prices the currency; empty for other events"),
        Column("events", INT, "how many", origin=of_events("event_id")),
        Column("hours", pa.list_(INT), "how many in each hour of the day (UTC), 24 numbers", origin=of_events("ts")),
        Column("revenue", REAL, "what purchases with prices come to; null for other events", origin=of_events("items")),
    ),
    "Events of each day by source and action, with those of each hour, and what purchases come to.",
)

RECONCILIATIONS = Table(
    "reconciliations",
    ("run_id", "tenant_id", "day", "entity"),
    (
        RUN_ID,
        TENANT_ID,
        DAY,
        Column("entity", TEXT, "kind of node or relationship"),
        Column("expected", INT, "rows that the archive asks for"),
        Column("found", INT, "rows that the graph holds"),
        Column("expected_digest", TEXT, "digest of those rows"),
        Column("found_digest", TEXT, "digest of those rows"),
        Column("reconciled_at", UTC_MICROS, "when the comparison ended (UTC)"),
    ),
    "Graph against archive, per label or relationship type and day: counts and digests of both sides. Rows without a "
    "date of their own, such as products, have no day.",
)

GRAPH_PROOFS = Table(
    "graph_proofs",
    ("run_id",),
    (
        RUN_ID,
        Column("is_everything", BOOL, "whether every row was compared, not only what changed since the proof before"),
        Column("reason", TEXT, "why everything was compared; null where only changes were"),
        Column("rows", INT, "rows that were compared"),
        Column("uncounted", TEXT, "kinds whose number nobody knew without reading them, as a JSON list"),
        Column("proved_at", UTC_MICROS, "when the comparison began (UTC); what was damaged later it may not have seen"),
        Column("everything_proved_at", UTC_MICROS, "when the last comparison of every row began (UTC)"),
        Column("snapshot", TEXT, "versions of tables and commits of stitching that were proved, as JSON"),
        Column("counts", TEXT, "rows that the graph must hold by kind, as a JSON object; null where it is not known"),
    ),
    "Comparisons of graph and archive that found both equal: what the next one starts from.",
)

RECONCILIATION_FINDINGS = Table(
    "reconciliation_findings",
    ("run_id", "tenant_id", "kind", "label", "key"),
    (
        RUN_ID,
        TENANT_ID,
        Column("kind", TEXT, "missing, ghost, altered or duplicate"),
        Column("label", TEXT, "kind of node or relationship that differs"),
        Column("key", TEXT, "key of the node or relationship, as JSON"),
        Column("difference", TEXT, "the property that differs, where it is known"),
        Column("repaired", BOOL, "whether the run brought it back to the archive"),
        DAY,
    ),
    "Each node or relationship that differed: missing, ghost, altered or duplicate.",
)

TABLES = {
    table.name: table
    for table in (
        EVENTS, LANDING_FILES, DEAD_LETTERS, DEAD_LETTER_LINES, CATALOG, JOURNEYS, EVENT_JOURNEY, EVENT_KEYS,
        JOURNEY_KEYS, JOURNEY_ALIASES, JOURNEY_MERGES, JOURNEY_SPLITS, JOURNEY_CONFLICTS, QUARANTINED_KEYS, JOURNEY_LOG,
        VISITOR_DECISIONS, VISITOR_USER, SESSIONS, USER_TRAITS, USER_CONSENTS, DAILY_EVENTS, RECONCILIATIONS,
        RECONCILIATION_FINDINGS, GRAPH_PROOFS, *AUDIENCES, *FEATURES, RECOMMENDATIONS_GIVEN,
    )
}  # fmt: skip


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
