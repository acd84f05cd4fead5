"""What follows from the declared fields: columns and their order, properties in the graph, the identity."""

from c360_pipeline.core.contract.fields import FIELDS, EventField, FieldType

COLUMNS = ("event_id", *(field.column for field in FIELDS if field.column != "event_id"))
"""Columns of an event, its id first: the order of `Event` and of the archive."""
GRAPH_PROPERTIES = {
    field.column: field.in_graph for field in FIELDS if field.in_graph and field.column not in ("event_id", "tenant_id")
}
"""Properties of `:Action` beside its key, by column."""
IDENTITY = tuple(field for field in FIELDS if field.hashed and field.since == 1)
"""Fields of the canonical form, in its order."""
ADDED_TO_IDENTITY = tuple(field for field in FIELDS if field.hashed and field.since > 1)
"""Fields that are a part of the canonical form where they are present, by name, behind those of `IDENTITY`."""


def field_of(column: str) -> EventField:
    """The field of a column."""
    return next(field for field in FIELDS if field.column == column)


INSTANTS = tuple(field.column for field in FIELDS if field.type is FieldType.INSTANT)
STREAM_COLUMNS = tuple(column for column in COLUMNS if field_of(column).in_stream)


PERSONAL_TEXTS = tuple(field.column for field in FIELDS if field.personal and field.type is FieldType.TEXT)
"""Columns whose values an erasure looks for, wherever they stand."""
