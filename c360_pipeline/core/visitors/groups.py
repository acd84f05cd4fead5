"""Groups that customers belong to, such as a company or a team: said by events with attributes `group.…`.

Sources: the calls `group` of Segment and `$groupidentify` of PostHog, which mappings make these attributes of.
"""

import polars as pl

from c360_pipeline.core.contract.identifiers import names_nobody, normal_form
from c360_pipeline.core.visitors.said import each_entry, newest_as_maps

GROUP = ["tenant_id", "group_type", "group_id"]
"""What names a group; its type is empty where the producer says none."""
PREFIX = "group."
ID, TYPE = f"{PREFIX}id", f"{PREFIX}type"


def says_group() -> pl.Expr:
    """Whether an event says something of a group."""
    return pl.col("attrs").map.get(ID).is_not_null()


def with_groups(events: pl.LazyFrame) -> pl.LazyFrame:
    """Events with the group that each says something of: group_type and group_id, null where there is none."""
    said = events.with_columns(group_id=pl.col("attrs").map.get(ID), group_type=pl.col("attrs").map.get(TYPE))
    is_one = said.with_columns(is_one=~names_nobody(normal_form(pl.col("group_id"))))
    named = pl.when("is_one")
    return is_one.with_columns(
        group_id=named.then("group_id"), group_type=named.then(pl.col("group_type").fill_null(""))
    ).drop("is_one")


def facts_of_groups(events: pl.DataFrame) -> pl.DataFrame:
    """The newest of what events said of each group.

    Args:
        events: all of each group, as `with_groups` gives them.

    Returns:
        `GROUP`, said (map of texts); groups of which nothing is said are left out.
    """
    each = each_entry(events.lazy().drop_nulls("group_id"), "attrs", GROUP)
    facts = each.filter(pl.col("name").str.starts_with(PREFIX) & ~pl.col("name").is_in([ID, TYPE]))
    return newest_as_maps(facts.with_columns(pl.col("name").str.strip_prefix(PREFIX)), GROUP)
