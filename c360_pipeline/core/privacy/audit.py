"""What the audit log says: who looked at whom, and who changed what (docs/adr/0070)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import polars as pl

from c360_pipeline.core.arrays.row_hashes import user_hash
from c360_pipeline.core.contract.identifiers import normal_text

DAYS_KEPT = 400
"""A year, and time to look at it."""


class Action(StrEnum):
    """What somebody did, as the log names it."""

    LOGGED_IN = "logged in"
    LOOKED_AT = "looked at a customer"
    LISTED = "listed customers"
    READ_AUDIT = "read the audit log"
    EXPORTED = "exported a person"
    ERASED = "erased a person"
    SUPPRESSED = "suppressed a person"
    UNSUPPRESSED = "ended a suppression"
    BLOCKED_KEY = "let an identifier link nothing"
    UNBLOCKED_KEY = "let an identifier link again"
    PARTED_KEYS = "parted two identifiers"
    JOINED_KEYS = "let two identifiers link again"
    SPLIT_VISITOR = "split a visitor"
    JOINED_VISITOR = "ended the split of a visitor"
    APPLIED_AUDIENCE = "applied an audience"
    ENDED_AUDIENCE = "ended an audience"
    MADE_KEY = "made an API key"
    REVOKED_KEY = "revoked an API key"
    ENDED_SESSIONS = "ended sessions of the pages"


@dataclass(frozen=True)
class Entry:
    """One line of the log.

    Attributes:
        tenant_id: whose customers.
        actor: who, such as `key 7 (support desk)` or `command line (deploy)`.
        role: of the key; empty on the command line.
        action: what.
        subject: the person, visitor or account that it is about; kept as a hash alone. None where it is about nobody.
        what: what else it is about, such as the name of an audience; never anything of a person.
        at: when (UTC).
    """

    tenant_id: str
    actor: str
    role: str
    action: Action
    subject: str | None
    what: str
    at: datetime

    @classmethod
    def now(
        cls, tenant_id: str, actor: str, role: str, action: Action, subject: str | None = None, what: str = ""
    ) -> "Entry":
        """An entry of this moment."""
        return cls(tenant_id, actor, role, action, subject, what, datetime.now(UTC))


def subject_hashes(tenant_ids: list[str], subjects: list[str | None]) -> pl.Series:
    """What stands for subjects in the log, before secrets cover it: sha256 of tenant and normal form; null for none."""
    normal = [None if subject is None else normal_text(subject) for subject in subjects]
    people = pl.DataFrame(
        {"tenant_id": tenant_ids, "user_id": normal}, schema=dict.fromkeys(("tenant_id", "user_id"), pl.String)
    )
    return people.select(subject_hash=pl.when(pl.col("user_id").is_not_null()).then(user_hash())).to_series()
