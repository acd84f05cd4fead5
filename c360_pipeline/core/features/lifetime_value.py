"""What a customer will buy and pay: BG/NBD for how often, Gamma-Gamma for how much.

Sources: Fader, Hardie and Lee, "'Counting Your Customers' the Easy Way: An Alternative to the Pareto/NBD Model" (2005);
Fader and Hardie, "The Gamma-Gamma Model of Monetary Value" (2013). docs/adr/0067 says why no library is used; a test
compares with one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

Floats = npt.NDArray[np.float64]

PRIOR = 0.05
"""Times the squared logarithms of the parameters, beside the likelihood of all customers: keeps a fit finite where few
customers leave a parameter open, and is nothing beside many."""


@dataclass(frozen=True)
class BuyingRate:
    """A fitted BG/NBD: customers buy at a rate of Gamma(r, alpha) and leave after a purchase by chance of Beta(a, b).

    Attributes:
        r: shape of the rates.
        alpha: scale of the rates, in the unit of time that the fit was given.
        a: of the chance to leave.
        b: of the chance to leave.
    """

    r: float
    alpha: float
    a: float
    b: float

    def chance_active(self, repeats: Floats, recency: Floats, age: Floats) -> Floats:
        """How likely each customer still buys, 0 to 1; who bought once has had no chance to leave."""
        later = np.log(self.alpha + age) - np.log(self.alpha + recency)
        odds = np.exp(np.log(self.a) - np.log(self.b + np.maximum(repeats, 1) - 1) + (self.r + repeats) * later)
        chances: Floats = 1 / (1 + np.where(repeats > 0, odds, 0.0))
        return chances

    def expected(self, horizon: float, repeats: Floats, recency: Floats, age: Floats) -> Floats:
        """Purchases that each customer is expected to make in the time to come.

        Args:
            horizon: how long, in the unit of time that the fit was given.
            repeats: times bought after the first.
            recency: from the first purchase to the last.
            age: from the first purchase to now.
        """
        # The formula has a pole at a = 1, around which it is smooth.
        a = self.a + 1e-6 if abs(self.a - 1) < 1e-6 else self.a
        of_all = a + self.b + repeats - 1
        tail = special.hyp2f1(self.r + repeats, self.b + repeats, of_all, horizon / (self.alpha + age + horizon))
        share = np.exp((self.r + repeats) * (np.log(self.alpha + age) - np.log(self.alpha + age + horizon)))
        bought = of_all / (a - 1) * (1 - share * tail)
        expected: Floats = np.maximum(bought, 0.0) * self.chance_active(repeats, recency, age)
        return expected


@dataclass(frozen=True)
class Spending:
    """A fitted Gamma-Gamma: purchases of a customer are of Gamma(p, v), where v is of Gamma(q, gamma) over all."""

    p: float
    q: float
    gamma: float

    def expected(self, purchases: Floats, mean: Floats) -> Floats:
        """What each customer is expected to pay for a purchase: their own mean, drawn to that of all.

        Args:
            purchases: times that each bought; 0 gives the mean of all.
            mean: paid for each of these; of no account where there are none.
        """
        return self.p * (self.gamma + purchases * mean) / (self.p * purchases + self.q - 1)


def fit_buying_rate(repeats: Floats, recency: Floats, age: Floats) -> BuyingRate:
    """Find the BG/NBD under which what customers did is most likely.

    Args:
        repeats: times bought after the first; one number for each customer.
        recency: from the first purchase to the last, in any unit.
        age: from the first purchase to the end of what is known, in the same unit.
    """
    rows, counts = np.unique(np.stack([repeats, recency, age]), axis=1, return_counts=True)
    scale = 1 / max(float(age.max()), 1e-9)
    x, last, whole = rows[0], rows[1] * scale, rows[2] * scale
    weights = counts / counts.sum()

    def loss(logs: Floats) -> float:
        r, alpha, a, b = np.exp(logs)
        common = special.gammaln(r + x) - special.gammaln(r) + r * np.log(alpha)
        common += special.gammaln(a + b) + special.gammaln(b + x) - special.gammaln(b) - special.gammaln(a + b + x)
        stays = -(r + x) * np.log(alpha + whole)
        left = np.log(a) - np.log(b + np.maximum(x, 1) - 1) - (r + x) * np.log(alpha + last)
        found = common + np.where(x > 0, np.logaddexp(stays, left), stays)
        return float(-(weights * found).sum() + PRIOR / counts.sum() * np.square(logs).sum())

    r, alpha, a, b = _most_likely(loss, 4)
    return BuyingRate(r, alpha / scale, a, b)


def fit_spending(purchases: Floats, mean: Floats) -> Spending:
    """Find the Gamma-Gamma under which what customers paid is most likely.

    Args:
        purchases: times that each customer bought, 1 at least.
        mean: paid for each of these, above 0.
    """
    scale = 1 / float(np.average(mean, weights=purchases))
    rows, counts = np.unique(np.stack([purchases, mean * scale]), axis=1, return_counts=True)
    x, paid = rows
    weights = counts / counts.sum()

    def loss(logs: Floats) -> float:
        p, q, gamma = np.exp(logs)
        # Of q below 1 the mean over customers is infinite.
        q += 1
        found = special.gammaln(p * x + q) - special.gammaln(p * x) - special.gammaln(q) + q * np.log(gamma)
        found += (p * x - 1) * np.log(paid) + p * x * np.log(x) - (p * x + q) * np.log(x * paid + gamma)
        return float(-(weights * found).sum() + PRIOR / counts.sum() * np.square(logs).sum())

    p, q, gamma = _most_likely(loss, 3)
    return Spending(p, q + 1, gamma / scale)


def _most_likely(loss: Callable[[Floats], float], parameters: int) -> list[float]:
    """Positive parameters of least loss; the same on each call."""
    bounds = [(-12, 12)] * parameters
    found = optimize.minimize(loss, np.zeros(parameters), method="L-BFGS-B", bounds=bounds)
    refined = optimize.minimize(
        loss, found.x, method="Nelder-Mead", bounds=bounds, options={"xatol": 1e-6, "fatol": 1e-10}
    )
    return [float(value) for value in np.exp(refined.x if refined.fun < found.fun else found.x)]
