"""What of the graph came, went or changed between two snapshots of the archive."""

from collections.abc import Callable

import polars as pl

from c360_pipeline.core.projection.graph import DAY
from c360_pipeline.core.reconciliation.compare import compare
from c360_pipeline.stages.reconciliation.expected import Archive

CHANGES = {"missing": "went", "ghost": "came", "altered": "changed", "duplicate": "came"}
SCHEMA = {"entity": pl.String, "change": pl.String, "key": pl.String, "difference": pl.String}


def difference(before: Archive, after: Archive, observe: Callable[[str], None] = lambda what: None) -> pl.DataFrame:
    """Every node and relationship that differs.

    Args:
        before: one snapshot.
        after: another, of the same control rows.
        observe: called with each kind before it is compared.

    Returns:
        entity, change (came, went, changed), key (its tenant first), difference.
    """
    parts = [pl.DataFrame(schema=SCHEMA)]
    for (kind, earlier), (_, later) in zip(before.expected(), after.expected(), strict=True):
        observe(kind.name)
        if kind.is_owned:
            key = kind.key_columns
            earlier, later = (a.join(b, on=key, how="semi") for a, b in ((earlier, later), (later, earlier)))
        columns = [*kind.schema, DAY]
        found = compare(earlier.select(columns), later.select(columns), kind.key_columns, ("before", "after"))
        parts.append(
            found.findings.select(
                entity=pl.lit(kind.name), change=pl.col("kind").replace(CHANGES),
                key="key", difference="difference",
            )
        )  # fmt: skip
    return pl.concat(parts)
