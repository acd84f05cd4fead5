"""Records through a mapping and the contract: an event, or all that is wrong in one reason."""

import unicodedata
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from c360_pipeline.core.contract.events import Event, Rejected, checked, event_of, together
from c360_pipeline.core.contract.fields import FIELDS
from c360_pipeline.core.sources import times
from c360_pipeline.core.sources.mapping import SourceMapping


def event_from(
    record: dict[str, Any], mapping: SourceMapping, now: datetime, given: Mapping[str, str] | None = None
) -> Event:
    """The event of a record.

    Args:
        record: as `contract.events.load_object` reads it.
        mapping: of its source.
        now: the moment of landing.
        given: values that the place of the file gives: tenantId, receivedAt.

    Raises:
        Rejected: it makes no event; the reason has every fault, and the source and version of the mapping.
        Skipped: the mapping leaves it out, or its visitor refused what the source requires.
    """
    try:
        mapped = mapping.apply(record, given)
        values, wrong = checked(mapped.fields, now)
        if "receivedAt" in wrong:
            # Nothing rests on it.
            del wrong["receivedAt"]
            values["received_at"] = None
    except RecursionError:
        raise Rejected("invalid_json", f"values are nested too deep to be read ({mapping.name})") from None
    faults = {name: _named(fault, name, mapped.fields, mapping) for name, fault in wrong.items()} | mapped.faults
    if faults:
        ordered = [faults[field.name] for field in FIELDS if field.name in faults]
        rejected = together(ordered)
        rejected.tenant_id, rejected.user_id = _readable(values, "tenant_id"), _readable(values, "user_id")
        rejected.anonymous_id = _readable(values, "anonymous_id")
        rejected.session_id = _readable(values, "session_id")
        raise rejected
    return event_of(values, mapped.content)


def _named(fault: Rejected, name: str, fields: Mapping[str, Any], mapping: SourceMapping) -> Rejected:
    """A fault of the contract, with the mapping that brought the value, and what the mapping could say instead."""
    hint = times.hint(fields.get(name)) if name in ("ts", "receivedAt") else ""
    where = mapping.paths_of(name)
    return Rejected(fault.error_class, f"{fault.reason}{hint}, from {where} ({mapping.name})")


def _readable(values: Mapping[str, Any], column: str) -> str | None:
    value = values.get(column)
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else None
