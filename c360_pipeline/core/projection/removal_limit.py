"""The brake: a mistake in a source or a control row must not change much over night."""

BRAKE_SHARE = 0.05
BRAKE_FREE = 5
"""So many may always change: of a label with a handful of nodes, each is more than the share."""


def is_beyond_brake(touched: int, held: int) -> bool:
    """Whether a change touches more than this share of what there is, and more than this number."""
    return touched > max(BRAKE_FREE, BRAKE_SHARE * held)
