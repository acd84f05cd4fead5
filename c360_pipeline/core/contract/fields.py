"""The one declaration of an event's fields; everything that holds an event derives its columns from here.

Adding a field is one more `EventField`. Contract, identity, archive, projection, the write of events that have not
landed, Cassandra, the stream's codec, the comparison of the stores with the topic, replay, Spark, the search of an
erasure, JSON Schema and reference follow.
"""

from dataclasses import dataclass
from enum import Enum

CONTRACT_VERSION = 2
"""Raised when a field is added or a rule changes what becomes of a line. The accounting of each file says which version
it was read by: a file of an older version stays as it was read, until its landing date is read again."""


class FieldType(Enum):
    """What the value of a field is."""

    TEXT = "text"
    INSTANT = "instant"
    ATTRIBUTES = "attributes"
    TEXTS = "texts"
    ITEMS = "items"
    WHOLE = "whole"


@dataclass(frozen=True)
class EventField:
    """One field of an event.

    Attributes:
        name: in the producer's JSON.
        column: in the lake, in frames and between operators.
        type: of its value.
        meaning: for people who read the reference or the UI.
        required: whether a line without it is rejected.
        personal: whether its value can name or describe a person, so that an erasure searches for it.
        hashed: whether it is a part of the event's identity.
        in_graph: the property of `:Action` that holds it; None where it is a node or a relationship of its own.
        in_stream: whether Cassandra and the comparison with the topic hold it.
        is_name: whether it names somebody or something, so that a text of blanks is refused.
        since: version of the contract that brought it. Fields that came after the first are a part of the identity
            only where they are present, so that the ids of events that do not have them never change.
    """

    name: str
    column: str
    type: FieldType
    meaning: str
    required: bool = False
    personal: bool = False
    hashed: bool = True
    in_graph: str | None = None
    in_stream: bool = True
    is_name: bool = False
    since: int = 1

    @property
    def may_not_be_blank(self) -> bool:
        """Whether a text here must hold more than whitespace."""
        return self.type is FieldType.TEXT and (self.required or self.is_name)


TEXT, INSTANT, ATTRIBUTES = FieldType.TEXT, FieldType.INSTANT, FieldType.ATTRIBUTES
ITEM_PARTS = ("id", "quantity", "price", "currency")
"""What an item of an event has; its id is required."""
FIELDS: tuple[EventField, ...] = (
    EventField(
        "tenantId", "tenant_id", TEXT, "customer organisation whose data never mixes with another's", required=True
    ),
    EventField(
        "userId",
        "user_id",
        TEXT,
        "who acted, as the producer knows them; none before a login",
        personal=True,
        in_graph="user_id",
        is_name=True,
    ),
    EventField(
        "sessionId", "session_id", TEXT, "visit that the action belongs to, where the producer has one", is_name=True
    ),
    EventField(
        "ts",
        "ts",
        INSTANT,
        "when it happened: RFC 3339 with an offset, or epoch milliseconds",
        required=True,
        in_graph="ts",
    ),
    EventField(
        "action",
        "action",
        TEXT,
        "what was done, such as view, search, add_to_cart, purchase, support",
        required=True,
        in_graph="type",
    ),
    EventField("itemId", "item_id", TEXT, "product acted on; of several, see items"),
    EventField("attrs", "attrs", ATTRIBUTES, "further facts, names to strings", personal=True, in_graph="attrs"),
    EventField(
        "eventId",
        "event_id",
        TEXT,
        "the producer's own identity of the event, unique per tenant",
        hashed=False,
        in_graph="id",
        is_name=True,
    ),
    EventField(
        "anonymousId",
        "anonymous_id",
        TEXT,
        "browser or device that acted, as the producer knows it before a login",
        personal=True,
        in_graph="anonymous_id",
        in_stream=False,
        is_name=True,
        since=2,
    ),
    EventField(
        "items",
        "items",
        FieldType.ITEMS,
        "products acted on, of an order of several: id, quantity, price of one, currency",
        in_stream=False,
        since=2,
    ),
    EventField(
        "traits",
        "traits",
        FieldType.TEXTS,
        "what the producer says of the user from then on, names to strings",
        personal=True,
        in_stream=False,
        since=2,
    ),
    EventField(
        "consent",
        "consent",
        FieldType.TEXTS,
        "what the visitor agreed to: purposes, and granted or denied",
        in_stream=False,
        since=2,
    ),
    EventField(
        "receivedAt",
        "received_at",
        INSTANT,
        "when the producer's collector had it",
        hashed=False,
        in_stream=False,
        since=2,
    ),
    EventField(
        "mappingSource", "source", TEXT, "source whose mapping made the event", hashed=False, in_stream=False, since=2
    ),
    EventField(
        "mappingVersion",
        "mapping_version",
        FieldType.WHOLE,
        "version of that mapping",
        hashed=False,
        in_stream=False,
        since=2,
    ),
)
EITHER = ("user_id", "anonymous_id")
"""Columns of which an event has at least one: who acted."""
