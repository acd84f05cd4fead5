"""What is not theirs and still leads to them: data of others that names them, other ids in the same journeys."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENTS
from c360_pipeline.core.contract.identifiers import normal_form
from c360_pipeline.core.landing.lines import PLACE
from c360_pipeline.core.privacy.erasure import (
    NO_TRACES,
    Person,
    SearchTerms,
    Traces,
    is_distinctive,
    of_others,
    users_frame,
)
from c360_pipeline.core.silos.control_rows import LINEAGE, ControlRows
from c360_pipeline.stages.projection.silos import label_tables
from c360_pipeline.stores.delta.lake import Lake

Rows = Mapping[str, list[dict[str, Any]]]
IDENTITY = ("tenant_id", "event_id", "user_id", "session_id", "action", "item_id")
"""What an event is: a name that stands here can't be taken out of it."""


@dataclass(frozen=True)
class Companion:
    """Another user id in the journeys of somebody: often the same person before a login, or who shares a device.

    Attributes:
        tenant_id: of both.
        user_id: the other id.
        events: how many events of it are in these journeys.
    """

    tenant_id: str
    user_id: str
    events: int


def companions(lake: Lake, persons: Sequence[Person]) -> list[Companion]:
    """The other user ids in the journeys of people, those with most events first; not other spellings of theirs."""
    users = users_frame(persons)
    events = lake.scan(EVENTS).select("tenant_id", "event_id", "user_id")
    theirs = events.join(users.lazy(), on=["tenant_id", "user_id"], how="semi")
    journeys = lake.scan(EVENT_JOURNEY)
    of_them = journeys.join(theirs, on=["tenant_id", "event_id"], how="semi").select("tenant_id", "journey_id").unique()
    inside = journeys.join(of_them, on=["tenant_id", "journey_id"], how="semi").select("tenant_id", "event_id")
    form = normal_form(pl.col("user_id")).alias("form")
    others = (
        events.join(inside, on=["tenant_id", "event_id"], how="semi")
        .drop_nulls("user_id")
        .with_columns(form)
        .join(users.lazy().select("tenant_id", form), on=["tenant_id", "form"], how="anti")
    )
    counted = others.group_by("tenant_id", "user_id").len("events").sort("events", "user_id", descending=[True, False])
    return [Companion(*row) for row in counted.collect(engine="streaming").iter_rows()]


def ids_of(persons: Sequence[Person], searched: Sequence[str]) -> list[str]:
    """Ids of people that are not searched as theirs alone, because data of others holds them, too."""
    return sorted({one.user_id for one in persons if is_distinctive(one.user_id)} - set(searched))


def mentions_of(
    lake: Lake,
    control: ControlRows,
    persons: Sequence[Person],
    ids: Sequence[str],
    own: Rows = MappingProxyType({}),
    traces: Traces = NO_TRACES,
) -> dict[str, int]:
    """How many events and rows of others name these people, by table.

    Args:
        lake: with archive and silos.
        control: which tables there are.
        persons: who.
        ids: by which they are named.
        own: keys of rows of silos that are theirs, by table.
        traces: of theirs.
    """
    if not ids:
        return {}
    tables = [EVENTS, *(t for found in label_tables(lake, control).values() for t in found.tables)]
    counted = {}
    for table in tables:
        keys = pl.DataFrame(own.get(table.name, []), schema={name: table.empty().schema[name] for name in table.key})
        found = naming(lake, table, persons, ids, traces)
        counted[table.name] = sum(rows.join(keys, on=list(table.key), how="anti").height for rows in found)
    return {name: count for name, count in counted.items() if count}


def redactable(lake: Lake, persons: Sequence[Person], ids: Sequence[str], traces: Traces = NO_TRACES) -> pl.DataFrame:
    """Lines of landing files whose events are of others and name these people where a name can be taken out.

    Returns:
        source_uri, source_etag, source_line.
    """
    found = [pl.DataFrame(schema={"source_uri": pl.String, "source_etag": pl.String, "source_line": pl.Int64})]
    if ids:
        terms = SearchTerms(ids)
        for rows in naming(lake, EVENTS, persons, ids, traces):
            fixed = pl.any_horizontal(terms.are_in(rows[name]) for name in IDENTITY)
            found.append(rows.filter(~fixed).select(PLACE).drop_nulls())
    return pl.concat(found)


def naming(
    lake: Lake, table: Table, persons: Sequence[Person], ids: Sequence[str], traces: Traces
) -> Iterator[pl.DataFrame]:
    """Rows of a table that are not of these people and name one of them, in batches."""
    terms, tenants = SearchTerms(ids), sorted({one.tenant_id for one in persons})
    for batch in lake.batches(table):
        rows = batch.filter(pl.col("tenant_id").is_in(tenants))
        if table is EVENTS:
            rows = of_others(rows.lazy(), persons, traces).collect()
        elif "user_id" in rows.columns:
            rows = rows.join(users_frame(persons), on=["tenant_id", "user_id"], how="anti")
        columns = [_text(name, dtype) for name, dtype in rows.schema.items() if name not in (*LINEAGE, *PLACE)]
        texts = [column for column in columns if column is not None]
        if not texts:
            return
        said = rows.select(pl.concat_str(texts, separator="\n", ignore_nulls=True)).to_series()
        found = rows.filter(terms.are_in(said))
        if found.height:
            yield found


def _text(name: str, dtype: pl.DataType) -> pl.Expr | None:
    """A column as text; None where it holds none."""
    if dtype == pl.String:
        return pl.col(name)
    if isinstance(dtype, pl.Map):
        entries = pl.col(name).cast(pl.List(pl.Struct({"key": pl.String, "value": pl.String})))
        return entries.list.eval(pl.element().struct.field("value")).list.join("\n", ignore_nulls=True)
    return None
