"""Which customers will not be seen again soon: learned from who stayed away before, a rule where too few did.

Sign of leaving is what can be seen of it: no event in the 28 days after a moment. At moments four weeks apart it is
known of the past who left then, and what they had done until then. A logistic regression over smooth curves of each
input learns from all but the last of these moments and is tried on the last; it is used where it orders customers
better than the rule and its chances are nearer to the truth than everybody's average. What is told is learned from all
moments. Curves of single inputs add up, so that reasons do: boosted trees were no better (docs/insights.md).
"""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.core.catalog.feature_tables import CUSTOMER_CHURN
from c360_pipeline.core.features.account_values import HIGH, MEDIUM
from c360_pipeline.core.features.lifetime_value import Floats

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Told = list[tuple[pl.DataFrame, npt.NDArray[np.bool_]]]
"""Of moments, the newest first: what was known of each customer (`seen_until`), and who left (`left_after`)."""

HORIZON = timedelta(days=28)
"""Who is not seen for so long has left."""
ASKED = timedelta(days=84)
"""Who was not seen for so long is not asked about: these have left already."""
MOMENTS = 7
"""So many at most are learned from and tried on."""
FEWEST_OF_EACH = 50
"""Customers who left and who stayed, from which on a model is tried."""
CHURN_MODEL = "churn"
"""Name in `CUSTOMER_MODELS`."""
MODEL, RULE = "model", "rule"
SHOWN_REASONS = 3
LEAST_REASON = 0.1
"""Of the logarithm of the odds, that a reason moves them by."""
FALLEN_USE, SILENCE, SHORT_TENURE = 0.6, 0.25, 0.15
"""Weights of the rule's signals; together 1."""
LONG_TENURE_DAYS = 84
DIGITS = 4
CALIBRATION_GROUPS = 10
KNOTS, RIDGE = 5, 0.1
"""Of the curves, and the inverse of how strongly they are kept flat."""

REASONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "silence": (
        ("silent", "silent_to_usual"),
        ("not seen for ", "{days_silent}", " days, ", "{usually}"),
    ),
    "use": (
        ("active_7", "active_28", "active_84", "trend", "events_28", "sessions_28"),
        ("seen on ", "{active_28}", " of 28 days, ", "{usual_28}", " usual"),
    ),
    "support": (("support_28",), ("calls for support in 28 days: ", "{support_28}")),
    "purchases": (
        ("orders_28", "orders_84", "carts_28"),
        ("purchases in 84 days: ", "{orders_84}"),
    ),
    "tenure": (("tenure",), ("a customer for ", "{tenure}", " days")),
}
"""What a customer is told to leave for: by name, the inputs that speak of it, and its text."""
INPUTS = tuple(name for names, _ in REASONS.values() for name in names)


@dataclass(frozen=True)
class ChurnModel:
    """A model that was tried.

    Attributes:
        fitted: makes curves of inputs, scales them, and gives chances.
        measures: rows of `CUSTOMER_MODELS` less the tenant.
        is_used: whether it is better than the rule.
    """

    fitted: "Pipeline"
    measures: list[dict[str, object]]
    is_used: bool

    def chances(self, seen: pl.DataFrame) -> Floats:
        """How likely each customer leaves, 0 to 1."""
        found: Floats = self.fitted.predict_proba(inputs(seen))[:, 1]
        return found

    def contributions(self, seen: pl.DataFrame) -> pl.DataFrame:
        """By how much each of `REASONS` moves the logarithm of the odds of each customer, from the average customer."""
        curves = self.fitted[:-1].transform(inputs(seen)) * self.fitted[-1].coef_[0]
        # Each input has as many curves as any other, one input after the other.
        moved = curves.reshape(seen.height, len(INPUTS), -1).sum(axis=2)
        return pl.DataFrame(
            {
                reason: moved[:, [INPUTS.index(name) for name in names]].sum(axis=1)
                for reason, (names, _) in REASONS.items()
            }
        )


def customer_churn(days: pl.DataFrame, as_of: date) -> tuple[pl.DataFrame, ChurnModel | None]:
    """`CUSTOMER_CHURN` rows less tenant and `as_of`, sorted by user_id, and the model that was tried.

    Args:
        days: `core.features.customer_days.DAYS` rows.
        as_of: day of the tenant's newest event.
    """
    seen, model = seen_until(days, as_of), churn_model(days, as_of)
    if model is not None and model.is_used:
        chances, made_by, why = model.chances(seen), MODEL, _reasons(seen, model.contributions(seen))
    else:
        chances, made_by, why = by_rule(seen), RULE, _texts(seen, ("silence", "use", "tenure"))
    level = (
        pl.when(pl.col("chance_to_leave") >= HIGH).then(pl.lit("high"))
        .when(pl.col("chance_to_leave") >= MEDIUM).then(pl.lit("medium")).otherwise(pl.lit("low"))
    )  # fmt: skip
    rows = seen.with_columns(
        chance_to_leave=pl.lit(pl.Series(np.round(chances, DIGITS), dtype=pl.Float64)), made_by=pl.lit(made_by),
        why=pl.lit(why),
    ).with_columns(level=level)  # fmt: skip
    return rows.select([name for name in CUSTOMER_CHURN.columns if name not in ("tenant_id", "as_of")]), model


def seen_until(days: pl.DataFrame, moment: date) -> pl.DataFrame:
    """What is known at the end of a day of each customer who was seen in the 84 days before, sorted by user_id.

    Args:
        days: `core.features.customer_days.DAYS` rows; later ones are of no account.
        moment: the day.
    """
    known = days.filter(pl.col("day") <= moment)

    def within(count: int) -> pl.Expr:
        return pl.col("day") > moment - timedelta(days=count)

    sums = {f"{name}_28": pl.col(name).filter(within(28)).sum() for name in ("events", "sessions", "carts", "support")}
    counted = known.group_by("user_id").agg(
        first_seen=pl.col("day").min(), last_seen=pl.col("day").max(), days_active=pl.len(),
        **{f"active_{count}": within(count).sum() for count in (7, 28, 84)},
        **{f"orders_{count}": pl.col("orders").filter(within(count)).sum() for count in (28, 84)},
        **sums,
    )  # fmt: skip
    asked = counted.filter(pl.col("last_seen") > moment - ASKED).sort("user_id")
    tenure = (pl.lit(moment) - pl.col("first_seen")).dt.total_days()
    age_of_last = (pl.col("last_seen") - pl.col("first_seen")).dt.total_days()
    earlier = pl.col("active_84").cast(pl.Float64) - pl.col("active_28")
    earlier_days = pl.min_horizontal(tenure.cast(pl.Float64) - 27, pl.lit(56.0)).clip(1.0)
    return asked.with_columns(
        days_silent=(pl.lit(moment) - pl.col("last_seen")).dt.total_days(),
        tenure=tenure,
        usual_gap=(age_of_last / (pl.col("days_active").cast(pl.Float64) - 1).clip(1)).clip(1).round(1),
        days_active=pl.col("days_active").cast(pl.Int64),
        usual_28=pl.when(tenure >= 28).then(earlier / earlier_days * 28).otherwise(pl.col("active_28")).round(1),
    ).with_columns(
        usually=pl.when(pl.col("days_active") > 1).then(pl.format("usually every {} days", "usual_gap"))
        .otherwise(pl.lit("and on one day before"))
    )  # fmt: skip


def inputs(seen: pl.DataFrame) -> Floats:
    """What the model is given of each customer, in the order of `INPUTS`: logarithms, of counts and of ratios."""
    counts = (name for name in INPUTS if name not in ("silent", "silent_to_usual", "trend"))
    logs = {name: pl.col(name).cast(pl.Float64).log1p() for name in counts}
    found = seen.select(
        silent=pl.col("days_silent").cast(pl.Float64).log1p(),
        silent_to_usual=(pl.col("days_silent").cast(pl.Float64) + 1).log() - (pl.col("usual_gap") + 1).log(),
        trend=(pl.col("active_28").cast(pl.Float64) + 1).log() - (pl.col("usual_28") + 1).log(),
        **logs,
    )
    return found.select(INPUTS).to_numpy()


def by_rule(seen: pl.DataFrame) -> Floats:
    """How much speaks for each customer leaving, 0 to 1, by signals that anybody can follow; it is no chance."""
    fallen = (1 - pl.col("active_28") / pl.col("usual_28")).clip(0, 1).fill_nan(0.0)
    silence = (pl.col("days_silent") / HORIZON.days).clip(0, 1)
    tenure = 1 - (pl.col("tenure") / LONG_TENURE_DAYS).clip(0, 1)
    risk = FALLEN_USE * fallen + SILENCE * silence + SHORT_TENURE * tenure
    return seen.select(risk.fill_null(0.0)).to_series().to_numpy()


def left_after(days: pl.DataFrame, seen: pl.DataFrame, moment: date) -> npt.NDArray[np.bool_]:
    """Which customers were not seen in the 28 days after a moment."""
    later = days.filter((pl.col("day") > moment) & (pl.col("day") <= moment + HORIZON))["user_id"].unique()
    return (~seen["user_id"].is_in(later.implode())).to_numpy()


def told_by_the_past(days: pl.DataFrame, as_of: date) -> Told:
    """The moments of which it is known who left: four weeks apart, each with four weeks of history at least."""
    begun = days["day"].min()
    if not isinstance(begun, date):
        return []
    moments = (as_of - HORIZON * number for number in range(1, MOMENTS + 1))
    known = ((seen_until(days, moment), moment) for moment in moments if moment - begun >= HORIZON)
    return [(seen, left_after(days, seen, moment)) for seen, moment in known]


def churn_model(days: pl.DataFrame, as_of: date) -> ChurnModel | None:
    """Learn from the past, tried on its last four weeks; None where too few left or stayed."""
    told = told_by_the_past(days, as_of)
    if len(told) < 2 or not (_enough(told[:1]) and _enough(told[1:])):
        return None
    (seen, left), earlier = told[0], told[1:]
    tried = _fit(earlier)
    chances, rule = tried.predict_proba(inputs(seen))[:, 1], by_rule(seen)
    average = np.full(len(left), np.concatenate([known for _, known in earlier]).mean())
    measures = measured(left, chances, rule)
    is_better = measures["order (AUC)"][0] > measures["order (AUC)"][1]
    is_used = bool(is_better and _squared(left, chances) < _squared(left, average))
    rows: list[dict[str, object]] = [
        {"model": CHURN_MODEL, "measure": name, "value": found, "baseline": plain, "cases": len(left),
         "is_used": is_used}
        for name, (found, plain) in measures.items()
    ]  # fmt: skip
    return ChurnModel(_fit(told), rows, is_used)


def measured(left: npt.NDArray[np.bool_], chances: Floats, plain: Floats) -> dict[str, tuple[float, float]]:
    """How good chances to leave are, and how good plainer ones, of customers of whom it is known who left."""
    from sklearn.metrics import roc_auc_score

    def both(of: Any) -> tuple[float, float]:
        return round(float(of(chances)), DIGITS), round(float(of(plain)), DIGITS)

    return {
        "order (AUC)": both(lambda told: roc_auc_score(left, told)),
        "leavers in the likeliest tenth": both(lambda told: _best_tenth(left, told)),
        "squared error (Brier)": both(lambda told: _squared(left, told)),
        "calibration error": both(lambda told: _miscalibrated(left, told)),
    }


def _squared(left: npt.NDArray[np.bool_], told: Floats) -> float:
    return float(np.square(told - left).mean())


def _best_tenth(left: npt.NDArray[np.bool_], told: Floats) -> float:
    first = np.argsort(-told, kind="stable")[: max(1, len(told) // 10)]
    return float(left[first].mean())


def _miscalibrated(left: npt.NDArray[np.bool_], told: Floats) -> float:
    """How far chances lie from what came, over ten groups of customers with like chances."""
    groups = np.array_split(np.argsort(told, kind="stable"), CALIBRATION_GROUPS)
    return float(sum(abs(told[one].mean() - left[one].mean()) * len(one) for one in groups if len(one)) / len(told))


def _enough(told: Told) -> bool:
    left, everybody = sum(int(known.sum()) for _, known in told), sum(len(known) for _, known in told)
    return min(left, everybody - left) >= FEWEST_OF_EACH


def _fit(told: Told) -> "Pipeline":
    # The library takes seconds to import, and most commands need none of it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import SplineTransformer, StandardScaler

    rows = np.concatenate([inputs(seen) for seen, _ in told])
    left = np.concatenate([known for _, known in told])
    curves = SplineTransformer(n_knots=KNOTS, include_bias=False)
    learned = LogisticRegression(C=RIDGE, max_iter=2_000)
    fitted: Pipeline = make_pipeline(curves, StandardScaler(), learned).fit(rows, left)
    return fitted


def _text(reason: str) -> pl.Expr:
    pieces = [
        pl.col(piece[1:-1]).cast(pl.String) if piece.startswith("{") else pl.lit(piece) for piece in REASONS[reason][1]
    ]
    return pl.concat_str(pieces)


def _texts(seen: pl.DataFrame, reasons: tuple[str, ...]) -> pl.Series:
    return seen.select(why=pl.concat_str([_text(one) for one in reasons], separator="; ")).to_series()


def _reasons(seen: pl.DataFrame, moved: pl.DataFrame) -> pl.Series:
    """The reasons that move the odds of each customer most, the strongest first, as text."""
    parts = [seen.select("user_id", why=_text(reason)).with_columns(moved[reason].alias("moved")) for reason in REASONS]
    strength = pl.col("moved").abs()
    told = pl.concat(parts).filter(strength >= LEAST_REASON).with_columns(
        why=pl.format(
            "{} ({} the odds {} times)", "why",
            pl.when(pl.col("moved") > 0).then(pl.lit("raises")).otherwise(pl.lit("lowers")), strength.exp().round(1),
        )
    )  # fmt: skip
    ordered = told.sort("user_id", strength.round(DIGITS), "why", descending=[False, True, False])
    joined = ordered.group_by("user_id").agg(pl.col("why").head(SHOWN_REASONS).str.join("; "))
    of_each = seen.select("user_id").join(joined, on="user_id", how="left", maintain_order="left")
    return of_each["why"].fill_null("like the average customer")
