"""Which products lead to which: learned from what all customers of a tenant did, and used with what one did last.

The weight of a product towards another one says how much having it speaks for the other, beside all else that a
customer has: ridge regression of each product on its fifty nearest neighbours, in closed form. A product is worth to a
customer the sum of the weights from what the customer has, newest first: each further one counts less, by a half-life
in products (docs/adr/0062).

Sources: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019 (the closed form, without neighbours); Ning
and Karypis, "SLIM", 2011 (neighbours as a selection of features).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import polars as pl
from scipy import sparse

from c360_pipeline.core.catalog.feature_tables import PRODUCT_SIMILARITIES, RECOMMENDATION_SETTINGS
from c360_pipeline.core.features.ranks import best_of_each
from c360_pipeline.core.kernels.sparse_entries import entries_within
from c360_pipeline.core.projection.items import ADD_TO_CART, PURCHASE, VIEW, each_item

LEADS_TO = "leads_to"
"""Kind of `PRODUCT_SIMILARITIES`."""
INTEREST = {PURCHASE: 1.0, ADD_TO_CART: 0.5, VIEW: 0.25}
"""How much an action says. Sums of products of these are exact, in any order."""
NEIGHBOURS = 50
"""Products that one is explained by, the nearest by cosine."""
KEPT = 50
"""Products that one leads to at most."""
RECENT = 50
"""Products of a customer that count, the newest."""
MOST_OF_CUSTOMER = 300
"""Products of a customer that weights are learned from, the newest: pairs grow with the square."""
MOST_PAIRS = 80_000_000
"""Pairs of products of all customers that are held at once, 12 bytes each; where there would be more, fewer products of
each customer count."""
AT_ONCE = 256
"""Products whose equations are solved together."""
CUSTOMERS_AT_ONCE = 2_000
HALF_LIVES = (3.0, 5.0, 10.0, 30.0, 1_000.0)
"""Products after which a further one counts half; the last says that order hardly matters."""
REGULARISATIONS = (10.0, 30.0, 100.0, 200.0, 400.0)
LEAST_VALIDATED = 50
"""Customers with a product held out; of fewer nothing is chosen."""
MOST_VALIDATED = 3_000
ASKED = 10
"""Products that are recommended when settings are compared."""
PAIRS = ("user_id", "product_id", "strength", "ts")


@dataclass(frozen=True)
class Settings:
    """What recommendations of a tenant are made with.

    Attributes:
        half_life: products of the customer after which a further one counts half.
        regularisation: how much evidence weights need.
        validated: customers whose last new product was held out to choose these; 0 where there are too few.
        recall: share of these whose product is among ten; None where nothing was chosen.
        ndcg: the same, a place counts 1 / log2(place + 1).
        popular_recall: share of these whose product is among the ten that most customers bought.
    """

    half_life: float = 5.0
    regularisation: float = 200.0
    validated: int = 0
    recall: float | None = None
    ndcg: float | None = None
    popular_recall: float | None = None


def interactions(events: pl.LazyFrame) -> pl.DataFrame:
    """How customers and products met.

    Args:
        events: tenant_id, event_id, user_id, item_id, items, ts, action; of one tenant.

    Returns:
        user_id, product_id, action, first_ts, last_ts; each action of `INTEREST` once for a customer and a product.
    """
    telling = events.filter(pl.col("action").is_in(list(INTEREST)) & pl.col("user_id").is_not_null())
    met = each_item(telling).group_by("user_id", "action", product_id="item_id")
    return (
        met.agg(first_ts=pl.col("ts").min(), last_ts=pl.col("ts").max())
        .sort("user_id", "product_id", "action")
        .collect(engine="streaming")
    )


def interests(met: pl.DataFrame) -> pl.DataFrame:
    """`PAIRS`: how much each customer cares for a product, by the action that says most, and when they met last.

    Args:
        met: as `interactions` returns them.
    """
    said = met.with_columns(strength=pl.col("action").replace_strict(INTEREST, return_dtype=pl.Float64))
    return (
        said.group_by("user_id", "product_id")
        .agg(pl.col("strength").max(), ts=pl.col("last_ts").max())
        .select(PAIRS)
        .sort("user_id", "product_id")
    )


def newest_first(pairs: pl.DataFrame, most: int) -> pl.DataFrame:
    """The newest products of each customer with their `place`, 0 first; at one moment what says most, then by id."""
    best = best_of_each(pairs, ["user_id"], {"ts": True, "strength": True, "product_id": False}, most)
    return best.with_columns(place=pl.col("rank") - 1).drop("rank")


def learned(pairs: pl.DataFrame, regularisations: Sequence[float]) -> dict[float, pl.DataFrame]:
    """Weights between products, for each strength of regularisation.

    Args:
        pairs: `PAIRS` of one tenant.
        regularisations: above 0.

    Returns:
        Of each: product_id, similar_product_id, similarity (the weight, above 0), shared (customers who met both),
        rank; at most `KEPT` of a product, the strongest first.
    """
    known = newest_first(pairs, _most_of_customer(pairs)).sort("user_id", "product_id")
    users, products = (known[name].unique().sort() for name in ("user_id", "product_id"))
    row, column = (
        known[name].cast(pl.Enum(values)).to_physical().to_numpy()
        for name, values in (("user_id", users), ("product_id", products))
    )
    cared = sparse.csr_matrix((known["strength"].to_numpy(), (row, column)), shape=(len(users), len(products)))
    none = pl.DataFrame(schema={"source": pl.Int64, "target": pl.Int64, "weight": pl.Float64})
    found = {one: [none] for one in regularisations}
    for numbers, weights in _weights(cared, regularisations):
        for one, values in weights.items():
            found[one].append(numbers.with_columns(weight=values).filter(pl.col("weight") > 0))
    return {one: _strongest(pl.concat(parts), cared, products) for one, parts in found.items()}


def _most_of_customer(pairs: pl.DataFrame) -> int:
    """How many products of a customer count, so that memory is bounded."""
    sizes = pairs.group_by("user_id").len()["len"].cast(pl.Int64)
    most = MOST_OF_CUSTOMER
    while most > 1 and int((sizes.clip(upper_bound=most) ** 2).sum()) > MOST_PAIRS:
        most = most * 3 // 4
    return most


def _weights(
    cared: sparse.csr_matrix, regularisations: Sequence[float]
) -> Iterator[tuple[pl.DataFrame, dict[float, np.ndarray]]]:
    """Numbers of neighbours (`source`) and of the products that they explain (`target`), with the weights of each."""
    together = (cared.T @ cared).tocsr()
    together.sort_indices()
    length = np.sqrt(together.diagonal())
    for start in range(0, together.shape[0], AT_ONCE):
        rows = together[start : start + AT_ONCE].tocoo()
        neighbours = _nearest(rows, length, start)
        size = neighbours.shape[1]
        if not size:
            continue
        is_one = neighbours >= 0
        targets = np.broadcast_to(np.arange(start, start + len(neighbours))[:, None], neighbours.shape)
        # The target is the last of its group.
        groups = np.column_stack([neighbours, targets[:, :1]])
        entries = entries_within(together.indptr, together.indices, together.data, groups)
        met, with_target = entries[:, :size, :size], entries[:, :size, size]
        ridge = np.eye(size)
        solved = {
            one: np.linalg.solve(met + one * ridge, with_target[:, :, None])[:, :, 0][is_one] for one in regularisations
        }
        yield pl.DataFrame({"source": neighbours[is_one], "target": targets[is_one]}), solved


def _nearest(rows: sparse.coo_matrix, length: np.ndarray, start: int) -> np.ndarray:
    """Numbers of the nearest neighbours of some products, -1 where there are no more."""
    near = pl.DataFrame({"product": rows.row, "other": rows.col, "met": rows.data}).filter(
        pl.col("product") + start != pl.col("other")
    )
    cosine = near["met"].to_numpy() / (length[near["product"].to_numpy() + start] * length[near["other"].to_numpy()])
    likely = near.with_columns(cosine=cosine)
    best = best_of_each(likely, ["product"], {"cosine": True, "other": False}, NEIGHBOURS)
    rank = best["rank"].to_numpy()
    made = np.full((rows.shape[0], rank.max(initial=0)), -1, dtype=np.int64)
    made[best["product"].to_numpy(), rank - 1] = best["other"].to_numpy()
    return made


def _strongest(weights: pl.DataFrame, cared: sparse.csr_matrix, products: pl.Series) -> pl.DataFrame:
    """The strongest weights from each product, with the customers that speak for them."""
    rounded = weights.with_columns(pl.col("weight").round(6)).filter(pl.col("weight") > 0)
    kept = best_of_each(rounded, ["source"], {"weight": True, "target": False}, KEPT)
    met = cared.copy()
    met.data[:] = 1
    of_product = met.T.tocsr()
    shared = [pl.Series(dtype=pl.Int64)]
    for _, part in kept.with_columns(block=pl.col("source") // AT_ONCE).group_by("block", maintain_order=True):
        first = int(part["source"][0]) // AT_ONCE * AT_ONCE
        both = (of_product[first : first + AT_ONCE] @ met).tocsr()
        values = np.asarray(both[part["source"].to_numpy() - first, part["target"].to_numpy()]).ravel()
        shared.append(pl.Series(values.round().astype(np.int64)))
    return kept.select(
        "rank", product_id=products.gather(kept["source"]), similar_product_id=products.gather(kept["target"]),
        similarity="weight", shared=pl.concat(shared),
    )  # fmt: skip


def ranked(
    pairs: pl.DataFrame, bought: pl.DataFrame, leads: pl.DataFrame, half_life: float, kept: int
) -> Iterator[pl.DataFrame]:
    """The best products for customers, some customers at a time.

    Args:
        pairs: `PAIRS` of the customers.
        bought: user_id, product_id of what is not recommended.
        leads: product_id, similar_product_id, similarity.
        half_life: as in `Settings`.
        kept: products of each customer.

    Returns:
        user_id, product_id, rank, score, because_of (product that adds most to it) and share (of the score, 0 to 1).
    """
    own = newest_first(pairs, RECENT).with_columns(counts=pl.col("strength") * 0.5 ** (pl.col("place") / half_life))
    users = own["user_id"].unique().sort()
    for start in range(0, len(users), CUSTOMERS_AT_ONCE):
        some = pl.DataFrame({"user_id": users[start : start + CUSTOMERS_AT_ONCE]})
        paths = own.join(some, on="user_id", how="semi").join(leads, on="product_id")
        added = paths.select(
            "user_id", own_id="product_id", product_id="similar_product_id",
            adds=pl.col("counts") * pl.col("similarity"), place="place",
        )  # fmt: skip
        new = added.join(bought, on=["user_id", "product_id"], how="anti").sort("place")
        scored = new.group_by("user_id", "product_id", maintain_order=True).agg(
            score=pl.col("adds").sum(),
            most=pl.col("adds").max(),
            because_of=pl.col("own_id").get(pl.col("adds").arg_max()),
        )
        scored = scored.with_columns(share=(pl.col("most") / pl.col("score")).round(4), score=pl.col("score").round(6))
        best = best_of_each(scored, ["user_id"], {"score": True, "product_id": False}, kept)
        yield best.select("user_id", "product_id", "rank", "score", "because_of", "share")


def held_out(met: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was known before each customer's last new purchase, and that purchase: user_id, product_id.

    Args:
        met: as `interactions` returns them. Customers with one purchase are among the known.
    """
    new = met.filter(pl.col("action") == PURCHASE).sort(
        "user_id", "first_ts", "product_id", descending=[False, True, False]
    )
    last = new.group_by("user_id", maintain_order=True).agg(
        pl.col("product_id").first(), until=pl.col("first_ts").first(), several=pl.len() > 1
    )
    last = last.filter("several").drop("several")
    before = met.join(last.select("user_id", "until", hidden="product_id"), on="user_id", how="left")
    is_later = pl.col("first_ts") > pl.col("until")
    is_hidden = (pl.col("product_id") == pl.col("hidden")).fill_null(value=False)
    # Of a product that was met before and after, only the beginning is known.
    seen = pl.when(pl.col("last_ts") > pl.col("until")).then("first_ts").otherwise("last_ts")
    known = before.filter(~is_hidden & ~is_later.fill_null(value=False)).with_columns(last_ts=seen)
    return known.select(met.columns), last.select("user_id", "product_id")


def chosen(met: pl.DataFrame) -> Settings:
    """The settings that find most of what customers bought last, from what they did before.

    Others than the usual ones are chosen only where the difference is above its standard error: among as many settings
    one is best by chance.

    Args:
        met: as `interactions` returns them, of one tenant.
    """
    known, hidden = held_out(met)
    if hidden.height < LEAST_VALIDATED:
        return Settings()
    sample = hidden.sample(min(hidden.height, MOST_VALIDATED), seed=1, shuffle=True)
    weights = learned(interests(known), REGULARISATIONS)
    of_sample = known.join(sample, on="user_id", how="semi")
    asked, bought = interests(of_sample), of_sample.filter(pl.col("action") == PURCHASE).select("user_id", "product_id")

    def gains(half_life: float, regularisation: float) -> np.ndarray:
        best = pl.concat(ranked(asked, bought, weights[regularisation], half_life, ASKED))
        return _gains(best, sample)

    usual = Settings()
    half_life, regularisation = usual.half_life, usual.regularisation
    best = gains(half_life, regularisation)
    for one in HALF_LIVES:
        half_life, best = _better((half_life, best), (one, gains(one, regularisation)))
    for one in REGULARISATIONS:
        regularisation, best = _better((regularisation, best), (one, gains(half_life, one)))
    popular = _gains(most_bought(known, sample, ASKED), sample)
    shares = (round(float(values.mean()), 4) for values in (best > 0, best, popular > 0))
    return Settings(half_life, regularisation, sample.height, *shares)


def most_bought(known: pl.DataFrame, customers: pl.DataFrame, kept: int) -> pl.DataFrame:
    """user_id, product_id, rank: of each customer the products that most bought, less those that the customer bought.

    Args:
        known: as `interactions` returns them.
        customers: user_id.
        kept: products of each.
    """
    bought = known.filter(pl.col("action") == PURCHASE)
    own = bought.join(customers, on="user_id", how="semi").select("user_id", "product_id")
    most = kept + min(int(own.group_by("user_id").len()["len"].max() or 0), MOST_OF_CUSTOMER)  # type: ignore[arg-type]
    popular = bought.group_by("product_id").len().sort("len", "product_id", descending=[True, False]).head(most)
    offered = customers.select("user_id").join(popular.with_row_index("place"), how="cross")
    new = offered.join(own, on=["user_id", "product_id"], how="anti")
    return best_of_each(new, ["user_id"], {"place": False}, kept).select("user_id", "product_id", "rank")


def _gains(best: pl.DataFrame, hidden: pl.DataFrame) -> np.ndarray:
    """Of each hidden purchase 1 / log2(rank + 1), 0 where it was not found."""
    places = hidden.join(best, on=["user_id", "product_id"], how="left", maintain_order="left")["rank"]
    return (1 / (places + 1).cast(pl.Float64).log(2)).fill_null(0.0).to_numpy()


def _better(held: tuple[float, np.ndarray], other: tuple[float, np.ndarray]) -> tuple[float, np.ndarray]:
    """The setting whose gains are higher; the one that is held unless they are by more than chance."""
    more = other[1] - held[1]
    return other if more.mean() > more.std() / np.sqrt(len(more)) else held


def lead_rows(tenant_id: str, leads: pl.DataFrame) -> pl.DataFrame:
    """`PRODUCT_SIMILARITIES` rows."""
    rows = leads.with_columns(tenant_id=pl.lit(tenant_id), kind=pl.lit(LEADS_TO))
    return rows.select(list(PRODUCT_SIMILARITIES.columns))


def settings_row(tenant_id: str, settings: Settings) -> pl.DataFrame:
    """The `RECOMMENDATION_SETTINGS` row of a tenant."""
    row = {"tenant_id": tenant_id, **asdict(settings)}
    return pl.DataFrame([row], schema=RECOMMENDATION_SETTINGS.empty().schema)
