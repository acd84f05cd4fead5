"""What customers are expected to buy and pay, against the library that the models are known from."""

from importlib.metadata import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from c360_pipeline.core.features.lifetime_value import Floats, fit_buying_rate, fit_spending


@pytest.fixture(scope="module")
def cdnow() -> pl.DataFrame:
    """Customers of CDNOW with frequency, recency and T in weeks, as the papers have them."""
    source = next(path for path in files("lifetimes") or [] if path.name == "cdnow_customers_summary.csv")
    return pl.read_csv(Path(str(source.locate())))


def histories(rows: pl.DataFrame) -> tuple[Floats, Floats, Floats]:
    repeats, recency, age = (rows[name].cast(pl.Float64).to_numpy() for name in ("frequency", "recency", "T"))
    return repeats, recency, age


def test_the_rate_of_buying_is_that_of_the_papers(cdnow: pl.DataFrame) -> None:
    found = fit_buying_rate(*histories(cdnow))
    # Fader, Hardie and Lee 2005, table 2.
    assert (found.r, found.alpha, found.a, found.b) == pytest.approx((0.243, 4.414, 0.793, 2.426), rel=0.01)
    one = tuple(np.array([value]) for value in (2.0, 30.43, 38.86))
    assert found.expected(39, *one)[0] == pytest.approx(1.226, rel=0.01)


@pytest.mark.filterwarnings("ignore")  # of a library that is as old as the papers
def test_expectations_are_those_of_the_library(cdnow: pl.DataFrame) -> None:
    from lifetimes import BetaGeoFitter, GammaGammaFitter

    repeats, recency, age = histories(cdnow)
    theirs, ours = BetaGeoFitter().fit(repeats, recency, age), fit_buying_rate(repeats, recency, age)
    told = theirs.predict(52, repeats, recency, age)
    assert ours.expected(52, repeats, recency, age) == pytest.approx(np.asarray(told), rel=0.01, abs=1e-6)
    alive = theirs.conditional_probability_alive(repeats, recency, age)
    assert ours.chance_active(repeats, recency, age) == pytest.approx(np.asarray(alive), rel=0.01)

    rng, times = np.random.default_rng(1), repeats[repeats > 0]
    rate = rng.gamma(4.0, 1 / 15.0, len(times))
    mean = rng.gamma(6.0 * times) / (rate * times)
    spending, spent = fit_spending(times, mean), GammaGammaFitter()
    spent.fit(times, mean)
    expected = spent.conditional_expected_average_profit(times, mean)
    assert spending.expected(times, mean) == pytest.approx(np.asarray(expected), rel=0.01)


def test_the_unit_of_time_and_money_does_not_matter(cdnow: pl.DataFrame) -> None:
    repeats, recency, age = histories(cdnow)
    weeks, days = fit_buying_rate(repeats, recency, age), fit_buying_rate(repeats, recency * 7, age * 7)
    assert days.expected(364, repeats, recency * 7, age * 7) == pytest.approx(
        weeks.expected(52, repeats, recency, age), rel=1e-3
    )
    mean = 1.0 + np.arange(len(repeats)) % 7
    euros, cents = fit_spending(repeats + 1, mean), fit_spending(repeats + 1, mean * 100)
    assert cents.expected(repeats + 1, mean * 100) == pytest.approx(euros.expected(repeats + 1, mean) * 100, rel=1e-3)


@pytest.mark.parametrize("repeats", [0.0, 3.0], ids=["nobody returned", "everybody did the same"])
def test_what_leaves_parameters_open_is_told_all_the_same(repeats: float) -> None:
    many = np.full(60, repeats)
    rate = fit_buying_rate(many, many * 7, np.full(60, 100.0))
    expected = rate.expected(365, many, many * 7, np.full(60, 100.0))
    assert np.isfinite(expected).all()
    assert (expected >= 0).all()
