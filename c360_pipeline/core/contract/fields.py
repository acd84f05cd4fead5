"""The one declaration of an event's fields; everything that holds an event derives its columns from here.

Adding a field is one more `EventField`. Contract, identity, archive, projection, the write of events that have not
landed, Cassandra, the stream's codec, the comparison of the stores with the topic, replay, Spark, the search of an
erasure, JSON Schema and reference follow.
"""

from dataclasses import dataclass
from enum import Enum

CONTRACT_VERSION = 1
"""Raised when a field is added or a rule changes what becomes of a line. The accounting of each file says which version
it was read by: a file of an older version stays as it was read, until its landing date is read again."""


class FieldType(Enum):
    """What the value of a field is."""

    TEXT = "text"
    INSTANT = "instant"
    ATTRIBUTES = "attributes"


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
    since: int = 1

    @property
    def may_not_be_blank(self) -> bool:
        """Whether a text here must hold more than whitespace."""
        return self.type is FieldType.TEXT and (self.required or self.column == "event_id")


TEXT, INSTANT, ATTRIBUTES = FieldType.TEXT, FieldType.INSTANT, FieldType.ATTRIBUTES
FIELDS: tuple[EventField, ...] = (
    EventField(
        "tenantId", "tenant_id", TEXT, "customer organisation whose data never mixes with another's", required=True
    ),
    EventField(
        "userId",
        "user_id",
        TEXT,
        "who acted, as the producer knows them",
        required=True,
        personal=True,
        in_graph="user_id",
    ),
    EventField("sessionId", "session_id", TEXT, "visit that the action belongs to", required=True),
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
    EventField("itemId", "item_id", TEXT, "product acted on"),
    EventField("attrs", "attrs", ATTRIBUTES, "further facts, names to strings", personal=True, in_graph="attrs"),
    EventField(
        "eventId",
        "event_id",
        TEXT,
        "the producer's own identity of the event, unique per tenant",
        hashed=False,
        in_graph="id",
    ),
)
