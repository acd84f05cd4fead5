"""The removal limit: a mistake in a source or a control row must not change much over night."""

REMOVAL_SHARE = 0.05
REMOVALS_FREE = 5
"""So many may always change: of a label with a handful of nodes, each is more than the share."""


def is_beyond_removal_limit(touched: int, held: int) -> bool:
    """Whether a change touches more than this share of what there is, and more than this number."""
    return touched > max(REMOVALS_FREE, REMOVAL_SHARE * held)
