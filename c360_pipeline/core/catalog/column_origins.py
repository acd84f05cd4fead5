"""Which columns of events a derived column is made of: a name comes from the same wherever it stands."""

from collections.abc import Mapping

from c360_pipeline.core.catalog.tables import ACCOUNT_VALUES, CATALOG, EVENTS, Table

_TOUCHED = ("user_id", "action", "item_id", "ts")
FROM_EVENTS: Mapping[str, tuple[str, ...]] = {
    "tenant_id": ("tenant_id",), "event_id": ("event_id",), "user_id": ("user_id",), "session_id": ("session_id",),
    "founding_event_id": ("event_id",), "via_event_id": ("event_id",), "first_event_ts": ("ts",),
    "last_event_ts": ("ts",), "event_count": ("event_id",), "key_hash": ("user_id", "session_id", "attrs"),
    "key_count": ("user_id", "session_id", "attrs"), "product_id": ("item_id",), "similar_product_id": ("item_id",),
    "community": ("user_id", "item_id", "action"), "similarity": ("user_id", "session_id", "item_id"),
    "similar_users": ("user_id", "item_id"), "strength": ("user_id", "item_id"), "score": _TOUCHED,
    "viewers": _TOUCHED, "buyers": _TOUCHED, "as_of": ("ts",), "started_at": ("ts",), "from_action": ("action",),
    "to_action": ("action",), "path": ("action", "ts"), "next_action": ("action",), "sessions": ("session_id",),
    "probability": ("user_id", "action", "ts"), "surprise": ("user_id", "action", "ts"),
}  # fmt: skip
"""Columns of the archive's events, by the derived column."""


def origins(table: Table) -> dict[str, list[tuple[str, str]]]:
    """By column of a derived table, the tables and columns that it is made of; none for what is only counted or named.

    Values of accounts come from silos, whose tables only the control rows know.
    """
    if table is ACCOUNT_VALUES:
        return {}
    found = {column: [(EVENTS.name, one) for one in FROM_EVENTS.get(column, ())] for column in table.columns}
    if "category" in table.columns:
        found["category"] = [(CATALOG.name, "category")]
    return {column: sources for column, sources in found.items() if sources}
