"""What records of a file would become: the accounting of a trial, which writes nothing."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from c360_pipeline.core.contract.events import Event, Rejected, load_object
from c360_pipeline.core.contract.fields import FIELDS
from c360_pipeline.core.features.trends import FEATURED
from c360_pipeline.core.landing.accounting import OUTCOMES
from c360_pipeline.core.sources.decode import event_from
from c360_pipeline.core.sources.mapping import TARGET_OF, Skipped, SourceMapping
from c360_pipeline.core.sources.values import leaves, lies_in
from c360_pipeline.core.stitching.keys import KeyRule
from c360_pipeline.errors import ContractError

EXAMPLES = 3
OFTEN = 0.05
"""A value of a key in more than this share of the records is hardly anybody's."""
LEAST_EVENTS = 100
_EPOCH_DIGITS = (10, 13)


@dataclass
class Trial:
    """What records become.

    Attributes:
        counts: records by outcome; they add up to `records`.
        reasons: dead records by class and reason, and the number of the first line with it.
        filled: events that have a value, by field of the contract.
        by_path: of these, by field and the paths that the value came from.
        actions: events by action.
        examples: records and the events that they become.
        unread: records that have a value at a path that the mapping does not read, by path.
        damage: why the file could not be read to its end.
        warnings: what its reader should look at.
    """

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    filled: Counter[str] = field(default_factory=Counter)
    by_path: Counter[tuple[str, str]] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    damage: str | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def records(self) -> int:
        """All of them."""
        return self.counts.total()

    @property
    def events(self) -> int:
        """Records that make an event, repetitions included."""
        return self.counts["landed"] + self.counts["duplicates"]

    def as_dict(self) -> dict[str, Any]:
        """For a document."""
        return {
            "records": self.records,
            "accounting": {name: self.counts[name] for name in OUTCOMES},
            "dead": [
                {"error_class": kind, "reason": reason, "records": count, "first_line": line}
                for (kind, reason), (count, line) in self.reasons.items()
            ],
            "targets": {
                name: {
                    "filled": self.filled[name],
                    "by": {path: count for (f, path), count in self.by_path.most_common() if f == name},
                }
                for name in TARGET_OF
            },
            "actions": dict(self.actions.most_common()),
            "examples": [
                {"record": raw.decode("utf-8", "backslashreplace"), "event": event} for raw, event in self.examples
            ],
            "unread": dict(self.unread.most_common(20)),
            "warnings": self.warnings,
            "damage": self.damage,
        }


def try_records(
    lines: Iterable[bytes], mapping: SourceMapping, rules: Iterable[KeyRule], given: Mapping[str, str] | None = None
) -> Trial:
    """Map records, and say what becomes of them.

    Args:
        lines: a JSON line each.
        mapping: of their source.
        rules: for keys, whose values are counted.
        given: what the path of the file says of each record.
    """
    trial, now = Trial(), datetime.now(UTC)
    seen: dict[tuple[str, str], str] = {}
    keys: dict[str, Counter[str]] = {rule.source: Counter() for rule in rules if rule.mode != "ignore"}
    sessions: Counter[bool] = Counter()
    for number, line in enumerate(_until_damage(lines, trial), 1):
        record: dict[str, Any] | None = None
        try:
            record = load_object(line)
            event = event_from(record, mapping, now, given)
        except Skipped as skipped:
            trial.counts[skipped.outcome] += 1
        except Rejected as rejected:
            trial.counts["dead"] += 1
            trial.reasons.setdefault((rejected.error_class, rejected.reason), [0, number])[0] += 1
        else:
            held = seen.get((event.tenant_id, event.event_id))
            seen.setdefault((event.tenant_id, event.event_id), event.content_hash)
            outcome = "landed" if held is None else "duplicates" if held == event.content_hash else "dead"
            trial.counts[outcome] += 1
            if outcome == "dead":
                why = f"event id {event.event_id!r} is taken by another event of this file"
                trial.reasons.setdefault(("duplicate_id_conflict", why), [0, number])[0] += 1
            _count(trial, event, keys, sessions)
            if len(trial.examples) < EXAMPLES and outcome == "landed":
                trial.examples.append((line, shown(event)))
        if record is not None:
            _count_paths(trial, record, mapping)
    trial.warnings = list(_warnings(trial, keys, sessions, mapping))
    return trial


def _until_damage(lines: Iterable[bytes], trial: Trial) -> Iterator[bytes]:
    try:
        yield from lines
    except ContractError as error:
        trial.damage = str(error)


def shown(event: Event) -> dict[str, Any]:
    """An event for people: what it has, instants in RFC 3339."""
    values = event._asdict()
    del values["content_hash"]
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in values.items()
        if value not in (None, {}, [])
    }


_COLUMN_OF = {name: field.column for name in TARGET_OF for field in FIELDS if field.name == name}


def _count(trial: Trial, event: Event, keys: dict[str, Counter[str]], sessions: Counter[bool]) -> None:
    for name, column in _COLUMN_OF.items():
        trial.filled[name] += bool(getattr(event, column))
    trial.actions[event.action] += 1
    if event.session_id:
        sessions[event.session_id.isdigit() and len(event.session_id) in _EPOCH_DIGITS] += 1
    for source, values in keys.items():
        value = event.attrs.get(source.removeprefix("attrs.")) if source.startswith("attrs.") else None
        value = value or getattr(event, _COLUMN_OF.get(source, ""), None)
        if value:
            values[value] += 1


def _count_paths(trial: Trial, record: dict[str, Any], mapping: SourceMapping) -> None:
    for name, paths in mapping.alternatives(record):
        if paths is not None:
            trial.by_path[name, paths] += 1
    for path, value in leaves(record):
        if value not in (None, "") and not lies_in(path, mapping.paths):
            trial.unread[path] += 1


def _warnings(
    trial: Trial, keys: dict[str, Counter[str]], sessions: Counter[bool], mapping: SourceMapping
) -> Iterator[str]:
    if trial.damage:
        yield trial.damage
    if not trial.events:
        yield "no record makes an event: look at the reasons above"
        return
    if not any(trial.actions[name] for name in FEATURED):
        names = ", ".join(name for name, _ in trial.actions.most_common(5))
        yield f"no action is view or purchase, so that features stay empty: map those that are (there are {names})"
    if not trial.filled["items"] and any("product" in path or "item" in path for path in trial.unread):
        yield "no event has items, and records have paths with product or item in them: say items.each"
    if sessions[True] > sessions[False]:
        yield "session ids look like times, which two visitors may share: say scope: anonymous"
    if not trial.filled["userId"] and mapping.paths_of("userId") != "userId":
        yield f"no event has a user: none of {mapping.paths_of('userId')} has a value"
    yield from _shared_values(trial, keys)


def _shared_values(trial: Trial, keys: dict[str, Counter[str]]) -> Iterator[str]:
    for source, values in keys.items():
        # Of few records one has many by chance.
        if trial.events >= LEAST_EVENTS and len(values) > 1:
            most = values.most_common(1)[0][1]
            if most > OFTEN * trial.events:
                yield f"one value of {source} is in {most / trial.events:.0%} of the events: is it somebody's?"
