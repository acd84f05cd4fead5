"""What becomes of a key of an event."""

LINKED, WEAK, REFUSED_UNIQUE, REFUSED_SIZE, QUARANTINED, BLOCKED, EXCESS = (
    "linked", "weak", "refused_unique", "refused_size", "quarantined", "blocked", "excess",
)  # fmt: skip
STATUSES = (LINKED, WEAK, REFUSED_UNIQUE, REFUSED_SIZE, QUARANTINED, BLOCKED, EXCESS)
"""The first four in the order of the kernel's numbers."""
