"""What it means that a file comes again under its name with other content.

Source: the producer's habit. Some deliver a day in parts under one name (`append`), others export it again, corrected
(`replace`): the files themselves do not tell which.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

MOSTLY = 2
"""A newer version replaces the earlier one when at least one in so many of its lines is an event, and when it brings at
least one in so many of the earlier one's events."""


@dataclass(frozen=True)
class OverwriteRule:
    """One row of `overwrite_rules`.

    Attributes:
        path_pattern: of the key below `landing/events/`; with `*`, `?` and `[…]`, where `*` goes over slashes.
        on_overwrite: `append`, what the earlier version brought stays; `replace`, it leaves.
    """

    path_pattern: str
    on_overwrite: str


@dataclass(frozen=True)
class OverwriteRules:
    """All rows; the longest pattern that fits decides, and without one a file appends."""

    rules: tuple[OverwriteRule, ...] = ()

    def replaces(self, path: str) -> bool:
        """Whether a newer version of this file stands in for the earlier one.

        Args:
            path: key of the object below `landing/events/`.
        """
        fitting = [rule for rule in self.rules if fnmatchcase(path, rule.path_pattern)]
        nearest = max(fitting, key=lambda rule: (len(rule.path_pattern), rule.path_pattern), default=None)
        return nearest is not None and nearest.on_overwrite == "replace"


def why_not_believed(
    *, lines: int, dead: int, damage: str | None, events: int, earlier: int, force: bool
) -> str | None:
    """Why a newer version of a file does not replace the earlier one yet; None where it does.

    Args:
        lines: of the newer version.
        dead: of these, rejected ones.
        damage: why it could not be read to its end.
        events: lines of it that are events, those of suppressed people too.
        earlier: events that the archive holds of earlier versions.
        force: somebody has looked, and wants it.
    """
    stays = "The earlier version's events stay until then."
    if damage is not None:
        return f"{damage} {stays}"
    if force:
        return None
    if MOSTLY * dead > lines:
        return f"{dead:,} of its {lines:,} lines are no events: deliver it again. {stays}"
    if MOSTLY * events < earlier:
        return (
            f"It has {events:,} events in place of {earlier:,}: that is what a broken export looks like. If it is "
            f"right, run again with `c360 run --force-removal`, or in the UI with force_removal: true. {stays}"
        )
    return None
