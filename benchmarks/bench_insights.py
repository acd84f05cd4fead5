"""Insight against what is known to be true: planted in generated events, and the later purchases of a real shop.

make bench-insights ARGS="--customers 1000 --tenants 2"

Planted: `c360_pipeline.devstack.planted_samples`. Real: 69,659 purchases of CDNOW, 1997 and 1998, which the package
lifetimes carries (Fader and Hardie 2001). Prints tables; --plot FILE draws calibration and expectation.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from importlib.metadata import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier

from c360_pipeline.core.catalog.feature_tables import USER_COMMUNITIES
from c360_pipeline.core.features import paths
from c360_pipeline.core.features.algorithms import louvain
from c360_pipeline.core.features.churn import (
    by_rule,
    customer_churn,
    inputs,
    left_after,
    measured,
    seen_until,
    told_by_the_past,
)
from c360_pipeline.core.features.communities import canonical_communities, interaction_weights, number_members
from c360_pipeline.core.features.customer_days import DAYS, customer_days
from c360_pipeline.core.features.customer_values import YEAR, customer_values
from c360_pipeline.core.features.surprises import surprises, usual_steps
from c360_pipeline.core.projection import graph as model
from c360_pipeline.devstack.planted_samples import CURRENCY, Planted, planted

TENANT = "acme"
NO_TICKETS = pl.DataFrame(schema=paths.TICKETS)
CDNOW_CUT = date(1997, 9, 30)
"""As in the papers: customers of the first quarter, nine months known, nine foreseen."""
FUNNELS = 40
SHARES = (1.0, 0.6, 1.0, 0.8)
"""Of tenants with a funnel in turn: times which fewer carts are bought in the last week."""
FEWEST_CHANGE = 0.05
"""The plain way to tell a broken funnel: five points more leave than before."""
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """What the plot shows: chances with what came, expected purchases with those that came."""

    chances: Floats
    left: Bools
    expected: Floats
    bought: Floats


def communities_of(one: Planted) -> pl.DataFrame:
    """Communities as the product finds them."""
    counted = one.events.rename({"user_id": model.CUSTOMER_ID})
    weights = interaction_weights(model.views(counted), model.purchases(counted))
    members, edges = number_members(weights)
    return pl.concat([USER_COMMUNITIES.empty(), canonical_communities(TENANT, members, louvain(members, edges))])


def anomalies(worlds: Iterable[Planted], console: Console) -> None:
    """Odd sessions found, beside as many sessions that are the longest, or whose rarest step is rarest of all."""
    names = ("ours", "ours, as they happen", "the longest", "the rarest step")
    rows: dict[str, list[tuple[int, int, int]]] = {name: [] for name in names}
    by_manner: dict[str, list[int]] = {}
    for one in worlds:
        truth = one.odd_sessions
        found = paths.path_anomalies(one.events, communities_of(one))["session_id"]
        recent = one.events.filter(pl.col("ts") > one.as_of - paths.RECENT)
        longest = recent.group_by("session_id").len().sort("len", "session_id", descending=[True, False])
        steps = paths.steps(one.events)
        counts = steps.group_by("from_action", "to_action").agg(times=pl.len())
        rarest = (
            steps.filter(pl.col("ts") > one.as_of - paths.RECENT).join(counts, on=["from_action", "to_action"])
            .group_by("session_id").agg(pl.col("times").min()).sort("times", "session_id")
        )  # fmt: skip
        now = surprises(recent, usual_steps(one.events)).filter(pl.col("deviations") >= paths.LEAST_DEVIATIONS)
        told = {"ours": found, "ours, as they happen": now["session_id"],
                "the longest": longest["session_id"].head(len(found)),
                "the rarest step": rarest["session_id"].head(len(found))}  # fmt: skip
        for name, sessions in told.items():
            hits = truth.filter(pl.col("session_id").is_in(sessions.implode()))
            rows[name].append((hits.height, len(sessions), truth.height))
        for manner, is_found in truth.select("manner", pl.col("session_id").is_in(found.implode())).iter_rows():
            by_manner.setdefault(manner, []).append(int(is_found))
    table = Table("odd sessions", "precision", "recall")
    for name, parts in rows.items():
        hits, sessions, planted_ones = (sum(part) for part in zip(*parts, strict=True))
        table.add_row(name, f"{hits / max(sessions, 1):.2f}", f"{hits / planted_ones:.2f}")
    for manner, hits_of in sorted(by_manner.items()):
        table.add_row(f"  of ours: {manner}", "", f"{np.mean(hits_of):.2f} of {len(hits_of)}")
    console.print(table)


def funnels(customers: int, console: Console) -> None:
    """Broken funnels told from whole ones."""
    found: dict[str, list[tuple[bool, bool]]] = {"ours: 3 standard errors": [], "five points more leave": []}
    for seed in range(FUNNELS):
        share = SHARES[seed % len(SHARES)]
        steps = paths.drop_offs(planted(TENANT, customers, 100 + seed, share).events)
        for row in steps.iter_rows(named=True):
            is_broken = share < 1 and row["action"] == "add_to_cart"
            found["ours: 3 standard errors"].append((row["deviations"] >= paths.LEAST_CHANGE, is_broken))
            found["five points more leave"].append((row["change"] >= FEWEST_CHANGE, is_broken))
    table = Table(f"broken steps of {FUNNELS} funnels", "precision", "recall")
    for name, told in found.items():
        hits = sum(is_told and is_true for is_told, is_true in told)
        table.add_row(name, f"{hits / max(1, sum(one for one, _ in told)):.2f}",
                      f"{hits / sum(is_true for _, is_true in told):.2f}")  # fmt: skip
    console.print(table)


def before_tickets(worlds: Iterable[Planted], console: Console) -> None:
    """Of the first ten paths told, those with the step that leads to calls; whether the planted path is among them."""
    right: dict[str, list[tuple[int, bool]]] = {"ours": [], "the most frequent": []}
    for one in worlds:
        calls = paths.calls_for_support(one.events, NO_TICKETS)
        found = paths.support_insights(one.events, calls)
        frequent = found.sort("tickets_with_path", "path", descending=[True, False])
        for name, rows in (("ours", found), ("the most frequent", frequent)):
            first = rows["path"].head(10).to_list()
            cause = one.ticket_path[0]
            right[name].append((sum(cause in path for path in first), " → ".join(one.ticket_path) in first))
    table = Table("paths before tickets", "first ten: precision", "planted path among them")
    for name, of_worlds in right.items():
        counted, is_there = zip(*of_worlds, strict=True)
        table.add_row(name, f"{np.mean(counted) / 10:.2f}", f"{sum(is_there)} of {len(is_there)}")
    console.print(table)


def leaving(
    title: str, days: pl.DataFrame, future: pl.DataFrame, as_of: date, console: Console
) -> tuple[Floats, Bools]:
    """Chances to leave against who was not seen again, beside the rule, silence alone and boosted trees."""
    told, _ = customer_churn(days, as_of)
    seen = seen_until(days, as_of)
    left = left_after(pl.concat([days, future]), seen, as_of)
    silence = seen["days_silent"].cast(pl.Float64).to_numpy() / 84
    past = told_by_the_past(days, as_of)
    rows, truths = np.concatenate([inputs(one) for one, _ in past]), np.concatenate([known for _, known in past])
    trees = HistGradientBoostingClassifier(random_state=1).fit(rows, truths).predict_proba(inputs(seen))[:, 1]
    chances = told["chance_to_leave"].to_numpy()
    table = Table(f"{title}: {len(left):,} customers, {left.mean():.0%} left", "AUC", "likeliest tenth", "Brier",
                  "calibration error")  # fmt: skip
    made_by = told["made_by"][0]
    others = {f"ours ({made_by})": chances, "boosted trees": trees, "the rule": by_rule(seen), "days silent": silence}
    for name, scores in others.items():
        table.add_row(name, *(f"{found:.3f}" for found, _ in measured(left, scores, scores).values()))
    console.print(table)
    return chances, left


def buying(
    title: str, days: pl.DataFrame, later: pl.DataFrame, as_of: date, length: int, console: Console
) -> tuple[Floats, Floats]:  # fmt: skip
    """Purchases and revenue foreseen against those that came, beside each customer's own rate."""
    values, expected = customer_values(days, as_of, CURRENCY)
    came = later.filter(pl.col("orders") > 0).group_by("user_id").agg(days=pl.len(), paid=pl.col("paid").sum())
    joined = values.join(came, on="user_id", how="left", maintain_order="left").fill_null(0)
    bought, paid = (joined[name].cast(pl.Float64).to_numpy() for name in ("days", "paid"))
    # What is told is of a year; the time to come may be shorter.
    foreseen = joined["purchases_in_a_year"].to_numpy() * length / YEAR
    worth = joined["value_in_a_year"].to_numpy() * length / YEAR
    since = joined.select((pl.lit(as_of) - pl.col("first_bought")).dt.total_days())
    age = np.maximum(since.to_series().to_numpy(), 1)
    own = (joined["purchases"].to_numpy() - 1) / age * length
    own_worth = own * joined["mean_paid"].to_numpy()
    table = Table(f"{title}: {len(bought):,} customers, {length} days", "error of purchases", "all, of those that came",
                  "error of revenue", "all, of what came")  # fmt: skip
    plain = np.full(len(bought), bought.mean())
    for name, counts, sums in (("ours", foreseen, worth), ("own rate", own, own_worth),
                               ("the mean of what came", plain, np.full(len(paid), paid.mean()))):  # fmt: skip
        table.add_row(name, f"{np.abs(counts - bought).mean():.2f}", f"{counts.sum() / bought.sum():.2f}",
                      f"{np.abs(sums - paid).mean():.2f}", f"{sums.sum() / paid.sum():.2f}")  # fmt: skip
    console.print(table)
    if expected is None or not expected.is_used:
        console.print("  not used by the product: no better than each customer's own rate")
    return foreseen, bought


def cdnow() -> pl.DataFrame:
    """Days of CDNOW's customers."""
    source = next(path for path in files("lifetimes") or [] if path.name == "CDNOW_master.txt")
    lines = (line.split() for line in Path(str(source.locate())).read_text(encoding="utf-8").splitlines())
    bought = pl.DataFrame(
        [(words[0], words[1], float(words[3])) for words in lines if len(words) >= 4 and words[0].isdigit()],
        schema=["user_id", "day", "paid"], orient="row",
    ).with_columns(pl.col("day").str.to_date("%Y%m%d"))  # fmt: skip
    days = bought.group_by("user_id", "day").agg(events=pl.len(), orders=pl.len(), paid=pl.col("paid").sum())
    none = dict.fromkeys(("sessions", "carts", "support"), pl.lit(0))
    return days.with_columns(**none).select(list(DAYS)).cast(DAYS).sort("user_id", "day")  # type: ignore[arg-type]  # polars' stubs


def draw(drawn: Drawn, path: Path) -> None:
    """Calibration of the chances to leave, and expected against real purchases in groups of like expectation."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (told, came, title, unit) in zip(
        figure.subplots(1, 2),
        (
            (drawn.chances, drawn.left.astype(float), "who will not be seen in 28 days", "share"),
            (drawn.expected, drawn.bought, "purchases in the year after", "days with a purchase"),
        ),
        strict=True,
    ):
        groups = [one for one in np.array_split(np.argsort(told, kind="stable"), 20) if len(one)]
        axes.plot([told[one].mean() for one in groups], [came[one].mean() for one in groups], "o", color="#2a7f62")
        most = max(max(told[one].mean(), came[one].mean()) for one in groups)
        axes.plot([0, most], [0, most], color="#b8b8b8", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"told: {unit}, twenty groups of customers")
        axes.set_ylabel("came")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=4_000)
    parser.add_argument("--tenants", type=int, default=5, help="generated worlds")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    console = Console(width=120)
    worlds = [planted(TENANT, given.customers, seed) for seed in range(1, given.tenants + 1)]
    console.print(f"{given.tenants} worlds, each of {given.customers:,} customers, "
                  f"{sum(one.events.height for one in worlds):,} events")  # fmt: skip
    anomalies(worlds, console)
    funnels(given.customers // 2, console)
    before_tickets(worlds, console)
    one = worlds[0]
    catalog = pl.LazyFrame(schema={"id": pl.String, "price": pl.Float64})
    days, future = (customer_days(rows.lazy(), catalog, CURRENCY) for rows in (one.events, one.future))
    chances, left = leaving("planted", days, future, one.as_of.date(), console)
    expected, bought = buying("planted", days, future, one.as_of.date(), YEAR, console)
    shop = cdnow()
    known, later = shop.filter(pl.col("day") <= CDNOW_CUT), shop.filter(pl.col("day") > CDNOW_CUT)
    leaving("CDNOW", known, later, CDNOW_CUT, console)
    last: date = later["day"].max()  # type: ignore[assignment]  # a column of dates
    buying("CDNOW", known, later, CDNOW_CUT, (last - CDNOW_CUT) // timedelta(days=1), console)
    if given.plot:
        draw(Drawn(chances, left, expected, bought), given.plot)


if __name__ == "__main__":
    main()
