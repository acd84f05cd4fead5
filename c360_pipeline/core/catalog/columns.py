"""Columns of Delta tables: of each its type, what it means, and what it is made of, said once.

A column that stands in several tables and means the same in all of them is declared here; the others stand in their
table.
"""

from dataclasses import dataclass

import pyarrow as pa

UTC_MICROS = pa.timestamp("us", "UTC")
TEXT, INT, REAL, BOOL, DATE, BYTES = (
    pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.binary()
)  # fmt: skip
TEXTS_BY_NAME, TEXT_LIST = pa.map_(pa.string(), pa.string()), pa.list_(pa.string())


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: of the column.
        type: in Arrow.
        meaning: for people who read the reference or the UI.
        origin: table and column of what it is made of, for column lineage; none for what is counted or named only.
    """

    name: str
    type: pa.DataType
    meaning: str
    origin: tuple[tuple[str, str], ...] = ()


def of_events(*columns: str) -> tuple[tuple[str, str], ...]:
    """The origin of a column that is made of columns of the archive's events."""
    return tuple(("events", column) for column in columns)


AS_OF = Column("as_of", UTC_MICROS, "the tenant's newest event, where the windows end (UTC)", origin=of_events("ts"))
BYTE_OFFSET = Column("byte_offset", INT, "where the line begins in its file, in bytes from 0")
CATEGORY = Column("category", TEXT, "the catalogue's", origin=(("catalog", "category"),))
CREATED_AT = Column("created_at", UTC_MICROS, "when the journey was first known (UTC)")
DAY = Column("day", DATE, "UTC day of the compared rows; empty where a kind has no time")
DEAD_LETTER_ID = Column("dead_letter_id", TEXT, "sha256 of the line's bytes")
EVENT_ID = Column(
    "event_id",
    TEXT,
    "the producer's `eventId`, or the sha256 of the event's canonical form",
    origin=of_events("event_id"),
)
FIRST_EVENT_TS = Column("first_event_ts", UTC_MICROS, "of the journey's earliest event (UTC)", origin=of_events("ts"))
FOUNDING_EVENT_ID = Column(
    "founding_event_id", TEXT, "the event that the journey's id is made of", origin=of_events("event_id")
)
JOURNEY_ID = Column("journey_id", TEXT, "uuid5 of tenant and founding event: it never changes")
KEY_COUNT = Column("key_count", INT, "correlation keys", origin=of_events("user_id", "session_id", "attrs"))
KEY_HASH = Column(
    "key_hash",
    TEXT,
    "128 bits of the HMAC-SHA-256 of tenant, type and normalised value, as decimal digits. Only who has the "
    "installation's secret finds a value by trying; archives of earlier releases have xxh3, without one, until "
    "`c360 keys rotate`",
    origin=of_events("user_id", "session_id", "attrs"),
)
KEY_TYPE = Column("key_type", TEXT, "such as user, device, cookie, order")
LAST_EVENT_TS = Column("last_event_ts", UTC_MICROS, "of the journey's latest event (UTC)", origin=of_events("ts"))
PARTNERS = Column("partners", INT, "users that share the key")
PATH = Column("path", TEXT, "actions in their order", origin=of_events("action", "ts"))
PRODUCT_ID = Column("product_id", TEXT, "of the catalogue or an event", origin=of_events("item_id"))
RANK = Column("rank", INT, "1 is best")
RUN_ID = Column("run_id", TEXT, "of the Dagster run or command")
SET_AT = Column("set_at", UTC_MICROS, "time of the event that said so (UTC)", origin=of_events("ts"))
SOURCE_ETAG = Column("source_etag", TEXT, "content of the object that the line was read from")
SOURCE_LINE = Column("source_line", INT, "line in its file, 1 first")
SOURCE_URI = Column("source_uri", TEXT, "object in S3")
UNTIL = Column("until", UTC_MICROS, "when it was said otherwise (UTC); null for the newest")
TENANT_ID = Column("tenant_id", TEXT, "whose customers these are", origin=of_events("tenant_id"))
USER_ID = Column("user_id", TEXT, "the producer's user", origin=of_events("user_id"))
