"""Sample events in which is planted what insight has to find, with labels, and their future.

Planted are customers who leave, odd sessions, a funnel that breaks, and what leads to calls for support. Customers come
at rates of their own, buy and pay as it is theirs to, and leave: most fade before, some call for support before, some
just stay away; others pause and come back. A session is a Markov chain in one of two styles, which are the customer's.
Nothing of it is a formula that features are computed by.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from c360_pipeline.core.contract.frames import ITEMS
from c360_pipeline.devstack.people import SAMPLE_DATE, TENANTS, products
from c360_pipeline.devstack.sample_files import TRUTH_FILE, LineTruth, Written, write_catalog, write_lines, write_truth

PLANTED_FILE = "_planted.json"
"""Labels of what was planted; landing does not take it for events."""
KNOWN_DAYS, FUTURE_DAYS, RECENT_DAYS = 238, 365, 7
EVENTS_PER_CUSTOMER = 105
LINES_PER_FILE = 20_000
CURRENCY = "EUR"
ACTIONS = ("view", "search", "add_to_cart", "purchase", "support", "account", "end")
_STYLES = (
    # Browsers go from product to product, searchers from query to query. Rows: from view, search, …, account.
    ((55, 4, 20, 0, 2, 2, 17), (70, 10, 5, 0, 2, 3, 10), (40, 5, 5, 30, 1, 2, 17), (20, 2, 2, 2, 4, 20, 50),
     (10, 5, 0, 0, 20, 15, 50), (30, 5, 0, 0, 10, 15, 40)),
    ((8, 55, 15, 0, 2, 2, 18), (42, 38, 6, 0, 2, 2, 10), (8, 35, 5, 30, 1, 2, 19), (2, 20, 2, 2, 4, 20, 50),
     (2, 15, 0, 0, 20, 13, 50), (3, 30, 0, 0, 10, 17, 40)),
)  # fmt: skip
_FIRST = ((85, 15, 0, 0, 0, 0, 0), (20, 80, 0, 0, 0, 0, 0))
_ODD_PATHS = {
    "orders in a row": ("purchase", "account", "purchase", "account", "purchase", "account"),
    "support in circles": ("support", "search", "support", "search", "support", "search"),
    "nothing but the account": ("account", "add_to_cart", "account", "add_to_cart", "account", "add_to_cart"),
}
OTHER_STYLE = "somebody else's style"
"""An odd session that is no odd path: a browser's of which a searcher's was made, or the other way round."""
TICKET_PATH = ("apply_coupon", "error")
"""What leads to calls for support."""
LONGEST_SESSION = 24

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Planted:
    """Events of one tenant and what is true of them.

    Attributes:
        events: tenant_id, user_id, session_id, event_id, ts, action, item_id, items; until `as_of`, by time.
        future: the same of the year after.
        as_of: end of what is known (UTC).
        leavers: user_id, leaves_on (null: does not leave), manner (fades, complains, just stays away).
        odd_sessions: session_id, manner; of the last seven days.
        broken_share: times which fewer carts are bought in the last seven days; 1 where nothing is broken.
        ticket_path: actions in a row, after which half of all sessions call for support.
    """

    events: pl.DataFrame
    future: pl.DataFrame
    as_of: datetime
    leavers: pl.DataFrame
    odd_sessions: pl.DataFrame
    broken_share: float
    ticket_path: tuple[str, ...] = TICKET_PATH

    def labels(self) -> dict[str, Any]:
        """What was planted, for a JSON file."""
        later = self.future.filter(pl.col("ts") <= self.as_of + timedelta(days=28))["user_id"].unique().implode()
        bought = self.future.filter(pl.col("action") == "purchase")
        year = bought.group_by("user_id").agg(
            days=pl.col("ts").dt.date().n_unique(),
            paid=pl.col("items").list.eval(pl.element().struct.field("price")).list.sum().sum().round(2),
        )
        told = self.leavers.with_columns(
            leaves_on=pl.col("leaves_on").cast(pl.String), seen_in_28_days=pl.col("user_id").is_in(later)
        ).join(year, on="user_id", how="left", maintain_order="left")
        return {
            "as_of": self.as_of.isoformat(), "customers": told.rename({"days": "purchases_in_a_year",
            "paid": "paid_in_a_year"}).to_dicts(), "odd_sessions": self.odd_sessions.to_dicts(),
            "share_of_carts_still_bought": self.broken_share, "before_tickets": " → ".join(self.ticket_path),
        }  # fmt: skip


@dataclass(frozen=True)
class _Customers:
    """One number of each, or one of a few: what customers are like."""

    begins: npt.NDArray[np.int64]
    leaves: npt.NDArray[np.int64]
    manner: npt.NDArray[np.int64]
    rate: Numbers
    pause: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]
    buys: Numbers
    pays: Numbers


MANNERS = ("fades", "complains", "just stays away")


def planted(tenant: str, customers: int, seed: int, broken_share: float = 1.0) -> Planted:
    """Events of a tenant; equal arguments give equal events.

    Args:
        tenant: whose.
        customers: how many.
        seed: of everything.
        broken_share: times which fewer carts are bought in the last seven days.
    """
    rng = np.random.default_rng([seed, sum(tenant.encode())])
    whose = _customers(rng, customers)
    sessions = _sessions(rng, whose)
    odd = _odd(rng, sessions)
    rows = _walk(rng, whose, sessions, odd, broken_share)
    as_of = SAMPLE_DATE - timedelta(seconds=1)
    begin = SAMPLE_DATE - timedelta(days=KNOWN_DAYS)
    events = _named(rng, tenant, rows, whose, begin)
    leaves = [begin.date() + timedelta(days=int(day)) if day < KNOWN_DAYS + FUTURE_DAYS else None
              for day in whose.leaves]  # fmt: skip
    leavers = pl.DataFrame(
        {"user_id": [f"u-{number}" for number in range(customers)], "leaves_on": leaves,
         "manner": [MANNERS[one] for one in whose.manner]}, schema_overrides={"leaves_on": pl.Date},
    ).with_columns(manner=pl.when(pl.col("leaves_on").is_not_null()).then("manner"))  # fmt: skip
    told = pl.DataFrame(odd, schema={"session": pl.Int64, "manner": pl.String}, orient="row")
    named = told.select(session_id=pl.format("s-{}", "session"), manner="manner")
    is_known = pl.col("ts") <= as_of
    known = events.filter(is_known)
    odd_sessions = named.join(known.select("session_id").unique(), on="session_id", how="semi").sort("session_id")
    return Planted(known, events.filter(~is_known), as_of, leavers, odd_sessions, broken_share)


def _customers(rng: np.random.Generator, count: int) -> _Customers:
    begins = np.maximum(rng.integers(-60, KNOWN_DAYS - 14, count), 0)
    lifetime = rng.exponential(rng.gamma(2.0, 130.0, count))
    return _Customers(
        begins, (begins + 1 + lifetime).astype(np.int64), rng.choice(3, count, p=(0.5, 0.2, 0.3)),
        np.maximum(rng.gamma(1.3, 0.15, count), 0.02),
        np.where(rng.random(count) < 0.5, rng.integers(0, KNOWN_DAYS + FUTURE_DAYS, count), -1_000),
        rng.integers(0, 2, count), rng.beta(3, 6, count), rng.lognormal(3.2, 0.6, count),
    )  # fmt: skip


@dataclass(frozen=True)
class _Sessions:
    """Of each session: whose, on which day, and whether its customer is about to leave with complaints."""

    customer: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]
    complains: npt.NDArray[np.bool_]


def _sessions(rng: np.random.Generator, whose: _Customers) -> _Sessions:
    days = np.arange(KNOWN_DAYS + FUTURE_DAYS)
    season = 1 + 0.3 * np.sin(2 * np.pi * days / 7)
    found = []
    for number in range(len(whose.rate)):
        to_leave = whose.leaves[number] - days
        rate = whose.rate[number] * season * ((days >= whose.begins[number]) & (to_leave > 0))
        if whose.manner[number] == 0:
            rate = np.where(to_leave <= 21, 0.4 * rate, rate)
        rate = np.where(np.abs(days - whose.pause[number]) <= 10, 0.0, rate)
        visits = rng.poisson(rate)
        visits[min(whose.begins[number], len(days) - 1)] += 1
        on = np.repeat(days, visits)
        complains = (whose.manner[number] == 1) & (whose.leaves[number] - on <= 14)
        found.append((np.full(len(on), number), on, complains))
    customer, day, complains = (np.concatenate(part) for part in zip(*found, strict=True))
    return _Sessions(customer, day, complains)


def _odd(rng: np.random.Generator, sessions: _Sessions) -> list[tuple[int, str]]:
    """Sessions of the last week that are odd, with their manner: one in 80."""
    is_recent = (sessions.day >= KNOWN_DAYS - RECENT_DAYS) & (sessions.day < KNOWN_DAYS)
    recent = np.flatnonzero(is_recent)
    chosen = np.sort(rng.choice(recent, size=max(4, len(recent) // 80), replace=False))
    manners = (*_ODD_PATHS, OTHER_STYLE)
    return [(int(session), manners[place % len(manners)]) for place, session in enumerate(chosen)]


@dataclass(frozen=True)
class _Rows:
    """Of each event: which session, the number in it, its action, seconds since its session began, and others."""

    session: npt.NDArray[np.int64]
    seconds: Numbers
    action: npt.NDArray[np.int64]
    customer: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]


ALL_ACTIONS = (*ACTIONS[:-1], *TICKET_PATH)


def _walk(
    rng: np.random.Generator, whose: _Customers, sessions: _Sessions, odd: Iterable[tuple[int, str]],
    broken_share: float,
) -> _Rows:  # fmt: skip
    """Go through all sessions at once, an event of each in turn."""
    count = len(sessions.customer)
    style = whose.style[sessions.customer].copy()
    given = np.full((count, 6), -1)
    for session, manner in odd:
        if manner == OTHER_STYLE:
            style[session] = 1 - style[session]
        else:
            given[session] = [ACTIONS.index(action) for action in _ODD_PATHS[manner]]
    steps = np.array(_STYLES, dtype=np.float64) / 100
    steps /= steps.sum(axis=2, keepdims=True)
    first = np.array(_FIRST, dtype=np.float64) / 100
    end, cart, bought, support = (ACTIONS.index(one) for one in ("end", "add_to_cart", "purchase", "support"))
    is_broken = (sessions.day >= KNOWN_DAYS - RECENT_DAYS) & (sessions.day < KNOWN_DAYS)
    buys = whose.buys[sessions.customer] * np.where(is_broken, broken_share, 1.0)
    running = np.arange(count)
    state = np.full(count, -1)
    seconds = np.zeros(count)
    parts: list[tuple[npt.NDArray[np.int64], Numbers, npt.NDArray[np.int64]]] = []
    for step in range(LONGEST_SESSION):
        chances = first[style[running]] if step == 0 else steps[style[running], state[running]]
        if step:
            is_cart = state[running] == cart
            # Who does not buy goes on or away as else.
            rest = (1 - buys[running]) / np.maximum(1 - chances[:, bought], 1e-9)
            carts = chances * rest[:, None]
            carts[:, bought] = buys[running]
            chances = np.where(is_cart[:, None], carts, chances)
        chances[:, support] *= np.where(sessions.complains[running], 6.0, 1.0)
        sums = np.cumsum(chances, axis=1)
        drawn = (rng.random(len(running))[:, None] * sums[:, -1:] > sums).sum(axis=1)
        if step < given.shape[1]:
            drawn = np.where(given[running, step] >= 0, given[running, step], drawn)
        elif step == given.shape[1]:
            drawn = np.where(given[running, 0] >= 0, end, drawn)
        goes_on = drawn != end
        running, drawn = running[goes_on], drawn[goes_on]
        state[running] = drawn
        seconds[running] += rng.integers(5, 90, len(running))
        parts.append((running, seconds[running].copy(), drawn))
    parts += _towards_tickets(rng, np.flatnonzero(given[:, 0] < 0), seconds)
    whole, after, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Rows(whole, after, numbers, sessions.customer[whole], sessions.day[whole])


def _towards_tickets(rng: np.random.Generator, sessions: npt.NDArray[np.int64], seconds: Numbers) -> list[Any]:
    """A coupon that fails at the end of one session in 50; every second of these calls for support."""
    hit = sessions[rng.random(len(sessions)) < 0.02]
    coupon, error, support = (ALL_ACTIONS.index(one) for one in (*TICKET_PATH, "support"))
    parts = []
    for action in (coupon, error):
        seconds[hit] += rng.integers(5, 60, len(hit))
        parts.append((hit, seconds[hit].copy(), np.full(len(hit), action)))
    calls = hit[rng.random(len(hit)) < 0.5]
    seconds[calls] += rng.integers(60, 1_200, len(calls))
    return [*parts, (calls, seconds[calls].copy(), np.full(len(calls), support))]


def _named(rng: np.random.Generator, tenant: str, rows: _Rows, whose: _Customers, begin: datetime) -> pl.DataFrame:
    catalog = products(tenant)
    count = len(rows.session)
    starts = rng.integers(0, 79_000, int(rows.session.max()) + 1)
    taste = (rows.customer * 7 + (rng.random(count) ** 2 * 40).astype(np.int64)) % len(catalog)
    price = np.round(whose.pays[rows.customer] * rng.lognormal(0.0, 0.4, count), 2)
    frame = pl.DataFrame(
        {"session": rows.session, "day": rows.day, "seconds": starts[rows.session] + rows.seconds,
         "customer": rows.customer, "number": rows.action, "item": taste, "price": price}
    )  # fmt: skip
    ids = pl.Series([one.id for one in catalog])
    item_id = pl.when(pl.col("action").is_in(["view", "add_to_cart", "purchase"])).then(pl.lit(ids).gather("item"))
    bought = pl.concat_list(pl.struct(id="item_id", quantity=pl.lit(1.0), price="price", currency=pl.lit(CURRENCY)))
    moment = pl.lit(begin) + pl.duration(days="day", milliseconds=(pl.col("seconds") * 1000).cast(pl.Int64))
    frame = frame.sort("session", "seconds", maintain_order=True)
    named = frame.with_columns(place=pl.int_range(pl.len()).over("session")).select(
        tenant_id=pl.lit(tenant), user_id=pl.format("u-{}", "customer"), session_id=pl.format("s-{}", "session"),
        event_id=pl.format("e-{}-{}", "session", "place"), ts=moment.cast(pl.Datetime("us", "UTC")),
        action=pl.lit(pl.Series(ALL_ACTIONS)).gather("number"), item="item", price="price",
    ).with_columns(item_id=item_id)  # fmt: skip
    items = pl.when(pl.col("action") == "purchase").then(bought).cast(ITEMS)
    return named.with_columns(items=items).drop("item", "price").sort("ts", "event_id")


def write_planted(folder: Path, events: int, tenants: int, seed: int, report: Callable[[int], None]) -> Written:
    """Write event files, a catalogue, the truth about each line, and labels of what was planted.

    Every second tenant has a funnel that breaks in the last week. A support agent who wants to see insight at work
    lands the files and runs the features.

    Args:
        folder: created where it is missing; files of the same names are replaced.
        events: about how many until the sample's date.
        tenants: how many customer organisations share them.
        seed: equal seeds give equal files.
        report: called with the number of lines written, after each file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    customers = max(50, events // tenants // EVENTS_PER_CUSTOMER)
    event_files: list[Path] = []
    truth_file = folder / TRUTH_FILE
    labels, written = {}, 0
    with truth_file.open("w", encoding="utf-8") as truth:
        for number, tenant in enumerate(TENANTS[:tenants]):
            made = planted(tenant, customers, seed, 0.6 if number % 2 else 1.0)
            labels[tenant] = made.labels()
            for part in made.events.iter_slices(LINES_PER_FILE):
                rows = part.to_dicts()
                path = folder / f"planted-{len(event_files):04d}.jsonl.gz"
                event_files.append(path)
                write_lines(path, map(_line, rows))
                # Nothing links customers: each of them is a journey.
                write_truth(truth, (
                    LineTruth(path.name, line, "event", f"{tenant}/{row['user_id']}")
                    for line, row in enumerate(rows, 1)
                ))  # fmt: skip
                written += len(rows)
                report(written)
    (folder / PLANTED_FILE).write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    catalog = (product for tenant in TENANTS[:tenants] for product in products(tenant))
    return Written(event_files, write_catalog(folder / "catalog.csv", catalog), truth_file, {"event": written})


def _line(row: dict[str, Any]) -> bytes:
    at: datetime = row["ts"]
    event = {
        "tenantId": row["tenant_id"], "userId": row["user_id"], "sessionId": row["session_id"],
        "eventId": row["event_id"], "ts": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "action": row["action"], "itemId": row["item_id"], "items": row["items"],
    }  # fmt: skip
    return json.dumps(
        {name: value for name, value in event.items() if value is not None}, separators=(",", ":")
    ).encode()
