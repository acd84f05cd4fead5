"""What another version of a mapping changes, over files that are stored: nothing is written."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from c360_pipeline.core.contract.events import Event, Rejected, load_object
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.mapping import Skipped, SourceMapping

BRAKE = 0.05
"""More events than this share that vanish or die are looked at before they do."""


@dataclass
class Changes:
    """What becomes of records by another version.

    Attributes:
        records: that were looked at.
        events: that the earlier version makes of them.
        outcomes: records that `appear` (an event where there was none), `alter`, `vanish` (left out), `die` or stay the
            `same`, by outcome and action.
        altered: of events that alter, those in which a field differs, by field.
        reasons: of those that die, by reason.
    """

    records: int = 0
    events: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    altered: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: str) -> int:
        """Records with an outcome."""
        return sum(n for (name, _), n in self.outcomes.items() if name == outcome)

    @property
    def is_beyond_brake(self) -> bool:
        """Whether so much is lost that somebody should have looked."""
        return self.count("vanish") + self.count("die") > BRAKE * self.events


def compare_versions(
    lines: Iterable[tuple[bytes, Mapping[str, str]]], before: SourceMapping, after: SourceMapping
) -> Changes:
    """Map records by two versions.

    Args:
        lines: records, with what the path of their file says.
        before: the version that is active.
        after: the one that may be.
    """
    changes, now = Changes(), datetime.now(UTC)
    for line, given in lines:
        changes.records += 1
        old, new = (_outcome(line, mapping, now, given) for mapping in (before, after))
        changes.events += isinstance(old, Event)
        if isinstance(new, Event):
            outcome = "appear" if not isinstance(old, Event) else _difference(changes, old, new)
            changes.outcomes[outcome, new.action] += 1
        elif isinstance(old, Event):
            is_dead = isinstance(new, Rejected)
            changes.outcomes["die" if is_dead else "vanish", old.action] += 1
            changes.reasons[str(new)] += is_dead
    return changes


def _outcome(
    line: bytes, mapping: SourceMapping, now: datetime, given: Mapping[str, str]
) -> Event | Rejected | Skipped:
    try:
        return event_from(load_object(line), mapping, now, given)
    except (Rejected, Skipped) as reason:
        return reason


def _difference(changes: Changes, old: Event, new: Event) -> str:
    was, now = old._asdict(), new._asdict()
    fields = [name for name in was if name not in ("mapping_version", "content_hash") and was[name] != now[name]]
    changes.altered.update(fields)
    return "alter" if fields else "same"
