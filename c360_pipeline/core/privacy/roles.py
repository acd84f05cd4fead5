"""Who may what: roles of keys, and what each allows (docs/adr/0070)."""

from collections.abc import Mapping
from enum import StrEnum


class Permission(StrEnum):
    """What a request needs, as a refusal names it."""

    TRACK = "track events"
    READ = "read"
    AUDIENCES = "make audiences"
    IDENTITY = "undo what links customers"
    AUDIT = "read the audit log"


_READS = frozenset({Permission.READ})
ROLES: Mapping[str, frozenset[Permission]] = {
    "ingest": frozenset({Permission.TRACK}),
    "viewer": _READS,
    "analyst": _READS | {Permission.AUDIENCES},
    "operator": _READS | {Permission.IDENTITY},
    "privacy": _READS | {Permission.AUDIT},
    "admin": frozenset(Permission),
    # What a viewer was called before.
    "read": _READS,
}
"""By name; each key has one."""
NAMED_ROLES = tuple(role for role in ROLES if role != "read")
"""That new keys are given."""


def allowed(role: str, permission: Permission) -> bool:
    """Whether a role allows something; one that nobody knows allows nothing."""
    return permission in ROLES.get(role, frozenset())


def who_may(permission: Permission) -> str:
    """The roles that allow something, in words."""
    *others, last = [role for role in NAMED_ROLES if permission in ROLES[role]]
    return f"{', '.join(others)} or {last}" if others else last
