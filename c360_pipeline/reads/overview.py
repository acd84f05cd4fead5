"""What the overview of a tenant shows: how much came, whether all of it is where it should be, and what needs a look.

Nothing here reads the archive's rows: figures come from tables that runs keep, from logs of tables, and from indexes of
the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.audience_tables import AUDIENCE_DEAD_LETTERS, AUDIENCE_DELIVERIES, AUDIENCE_MEMBERS
from c360_pipeline.core.catalog.feature_tables import (
    ACCOUNT_VALUES,
    CUSTOMER_CHURN,
    CUSTOMER_VALUES,
    DROP_OFFS,
    TRENDING_PRODUCTS,
)
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    CATALOG,
    DAILY_EVENTS,
    DEAD_LETTERS,
    EVENT_JOURNEY,
    EVENTS,
    GRAPH_PROOFS,
    RECONCILIATION_FINDINGS,
    RECONCILIATIONS,
    VISITOR_USER,
)
from c360_pipeline.core.features.paths import IS_BROKEN
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.reads.insights import insights
from c360_pipeline.stages.reconciliation.proofs import everything_proved_at
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.driver_values import Read

DAYS, HOURS, SHOWN = 30, 48, 5
OWN_FORM = "own form"
"""What events of no source are called."""
COUNT_PEOPLE = Statement("""
    CALL () { MATCH (u:User {tenant_id: $tenant_id}) WHERE u.id IS NOT NULL RETURN count(u) AS users }
    CALL () { MATCH (v:Visitor {tenant_id: $tenant_id}) WHERE v.id IS NOT NULL RETURN count(v) AS visitors }
    RETURN users, visitors
""")
STALE = timedelta(hours=36)
"""A comparison of everything, which each night makes, is late from then on."""


@dataclass(frozen=True)
class Day:
    """A UTC day of events.

    Attributes:
        day: which.
        events: by source, the most frequent source first.
    """

    day: date
    events: dict[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.events.values())


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline.

    Attributes:
        name: as people call it.
        page: that shows more.
        changed_at: when what it makes changed last; None where it made nothing yet.
    """

    name: str
    page: str
    changed_at: datetime | None


@dataclass(frozen=True)
class Alert:
    """Something that needs a look.

    Attributes:
        text: what.
        page: that shows more.
        at: when it was seen last; None where that is now.
    """

    text: str
    page: str
    at: datetime | None = None


@dataclass(frozen=True)
class Overview:
    """What there is, and how it is.

    Attributes:
        customers: users that are known.
        visitors: browsers and devices without one known user.
        events: in the archive.
        newest: the latest event.
        days: events of the last days, with those that had none, up to the newest event.
        hours: events of the hours up to the newest event: when each began, and how many.
        sources: of these events, the most frequent first.
        revenue: of these days by currency.
        purchases: of these days.
        products: that most people viewed and bought, of a week.
        risk: accounts that are likeliest to leave.
        to_keep: customers who are likely to leave, those first who may be expected to pay, or paid, most.
        at_risk: how many accounts are at high risk.
        stages: when each changed something last.
        proved_at: when graph and archive were found to be equal last.
        everything_at: when every row was compared last.
        rows: that the last proof compared.
        differences: that the newest comparison found.
        alerts: what needs a look.
    """

    customers: int
    visitors: int
    events: int
    newest: datetime | None
    days: list[Day]
    hours: list[tuple[datetime, int]]
    sources: list[str]
    revenue: dict[str, float]
    purchases: int
    products: list[dict[str, Any]]
    risk: list[dict[str, Any]]
    to_keep: list[dict[str, Any]]
    at_risk: int
    stages: list[Stage]
    proved_at: datetime | None
    everything_at: datetime | None
    rows: int
    differences: int
    alerts: list[Alert]


class Overviews:
    """The overview of a tenant.

    Args:
        lake: with what runs keep.
        read: runs a statement in the graph.
        tenant_id: whose.
    """

    def __init__(self, lake: Lake, read: Read, tenant_id: str) -> None:
        self._lake = lake
        self._read = read
        self._tenant_id = tenant_id

    def read(self, now: datetime) -> Overview:
        """The overview at a moment."""
        people = self._read(COUNT_PEOPLE, tenant_id=self._tenant_id)[0]
        known = self._count(VISITOR_USER)
        daily = self._of(DAILY_EVENTS)
        newest = _instant(self._lake.newest(EVENTS, "ts", "tenant_id").get(self._tenant_id))
        last = daily.select(pl.col("day").max()).collect().item() or now.date()
        recent = daily.filter(pl.col("day") > last - timedelta(days=DAYS)).collect(engine="streaming")
        sources = _by_size(recent)
        paid = recent.filter(pl.col("revenue").is_not_null())
        proofs = self._lake.scan(GRAPH_PROOFS).sort("proved_at").tail(1).collect().to_dicts()
        differences, everything_at = self._differences(), everything_proved_at(self._lake)
        risk = insights(self._lake, self._tenant_id, "churn", SHOWN)
        high = self._of(ACCOUNT_VALUES).filter(pl.col("risk_level") == "high")
        return Overview(
            int(people["users"]), max(0, int(people["visitors"]) - known),
            int(daily.select(pl.col("events").sum()).collect().item()), newest,
            _days(recent, sources, last), _hours(recent, newest), sources,
            dict(paid.group_by("currency").agg(pl.col("revenue").sum()).sort("currency").iter_rows()),
            int(recent.filter(pl.col("action") == "purchase")["events"].sum()), self._products(), risk.rows,
            self._to_keep(), int(high.select(pl.len()).collect().item()), self._stages(),
            proofs[0]["proved_at"] if proofs else None, everything_at,
            proofs[0]["rows"] if proofs else 0, differences, self._alerts(now, differences, everything_at),
        )  # fmt: skip

    def _of(self, table: Table) -> pl.LazyFrame:
        return self._lake.scan(table).filter(pl.col("tenant_id") == self._tenant_id)

    def _count(self, table: Table, *conditions: pl.Expr) -> int:
        return int(self._of(table).filter(*conditions).select(pl.len()).collect(engine="streaming").item())

    def _to_keep(self) -> list[dict[str, Any]]:
        likely = self._of(CUSTOMER_CHURN).filter(pl.col("level") != "low")
        worth = self._of(CUSTOMER_VALUES).select("user_id", "value_in_a_year", "revenue", "currency")
        order = ["value_in_a_year", "revenue", "chance_to_leave", "user_id"]
        both = likely.join(worth, on="user_id").sort(order, descending=[True, True, True, False], nulls_last=True)
        return both.head(SHOWN).collect().to_dicts()

    def _products(self) -> list[dict[str, Any]]:
        week = self._of(TRENDING_PRODUCTS).filter((pl.col("window_hours") == 168) & (pl.col("rank") <= SHOWN))
        names = self._of(CATALOG).select(product_id="id", name="name")
        return week.join(names, on="product_id", how="left").sort("rank", "product_id").head(SHOWN).collect().to_dicts()

    def _stages(self) -> list[Stage]:
        named: Sequence[tuple[str, str, Table]] = (
            ("Landing", "delivery", EVENTS), ("Journeys", "explore", EVENT_JOURNEY),
            ("Comparison", "reconciliation", RECONCILIATIONS), ("Audiences", "audiences", AUDIENCE_MEMBERS),
            ("Features", "insights", TRENDING_PRODUCTS),
        )  # fmt: skip
        return [Stage(name, page, self._lake.versions.changed_at(table)) for name, page, table in named]

    def _differences(self) -> int:
        """Differences that the newest comparison found."""
        newest = self._lake.scan(RECONCILIATIONS).select("run_id", "reconciled_at").top_k(1, by="reconciled_at")
        found = self._of(RECONCILIATION_FINDINGS).join(newest, on="run_id", how="semi")
        return int(found.select(pl.len()).collect(engine="streaming").item())

    def _alerts(self, now: datetime, differences: int, everything_at: datetime | None) -> list[Alert]:
        letters = self._of(DEAD_LETTERS).filter(pl.col("status") == "open").select(
            number=pl.len(), newest=pl.col("first_seen_at").max()
        )  # fmt: skip
        rejected, at = letters.collect(engine="streaming").row(0)
        newest = self._of(AUDIENCE_DELIVERIES).sort("started_at").group_by("audience", "destination").last()
        waiting = newest.filter(pl.col("waiting") > 0).sort("audience", "destination").collect().to_dicts()
        refused = self._count(AUDIENCE_DEAD_LETTERS)
        broken = self._of(DROP_OFFS).filter(IS_BROKEN).sort("funnel", "step").collect()
        found = [
            Alert(f"{differences:,} differences between graph and archive", "reconciliation") if differences else None,
            Alert("No comparison of every row for more than a day", "reconciliation", everything_at)
            if everything_at is not None and now - everything_at > STALE else None,
            Alert(f"{rejected:,} rejected lines wait for a replay", "delivery", at) if rejected else None,
            *(Alert(f"{one['audience']}: {one['waiting']:,} changes wait for {one['destination']}",
                    f"audiences/{one['audience']}", one["ended_at"]) for one in waiting),
            *(Alert(f"{one['drop_off_rate']:.0%} of sessions leave after {one['action']}, "
                    f"{one['previous_rate']:.0%} before", "insights", one["as_of"]) for one in broken.to_dicts()),
            Alert(f"{refused:,} members were refused where their audience is sent", "audiences") if refused else None,
        ]  # fmt: skip
        return [one for one in found if one is not None]


def _by_size(recent: pl.DataFrame) -> list[str]:
    counts = recent.group_by("source").agg(pl.col("events").sum())
    return counts.sort("events", "source", descending=[True, False])["source"].to_list()


def _days(recent: pl.DataFrame, sources: list[str], last: date) -> list[Day]:
    counts = recent.group_by("day", "source").agg(pl.col("events").sum())
    by_day: dict[date, dict[str, int]] = {}
    for day, source, number in counts.iter_rows():
        by_day.setdefault(day, {})[source] = number
    days = [last - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    return [Day(day, {source: by_day.get(day, {}).get(source, 0) for source in sources}) for day in days]


def _hours(recent: pl.DataFrame, newest: datetime | None) -> list[tuple[datetime, int]]:
    """Events of each of the last hours, the one of the newest event last."""
    if newest is None:
        return []
    each = recent.explode("hours").with_columns(hour=pl.int_range(pl.len()).over("day", "source", "action", "currency"))
    counts = {(day, hour): n for day, hour, n in each.group_by("day", "hour").agg(pl.col("hours").sum()).iter_rows()}
    last = newest.replace(minute=0, second=0, microsecond=0)
    moments = [last - timedelta(hours=back) for back in range(HOURS - 1, -1, -1)]
    return [(moment, counts.get((moment.date(), moment.hour), 0)) for moment in moments]


def _instant(value: Any) -> datetime | None:
    if value is None:
        return None
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
