"""Laws of audiences: they hold whom a plain reading says, and what is kept by difference is what all events say."""

import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from repetition import often

from c360_pipeline.core.audiences.definition import Audience, read_audience
from c360_pipeline.core.audiences.members import Facts, members
from c360_pipeline.core.catalog.audience_tables import AUDIENCE_MEMBERS
from c360_pipeline.core.catalog.feature_tables import USER_COMMUNITIES
from c360_pipeline.core.catalog.tables import CATALOG, EVENTS, VISITOR_DECISIONS
from c360_pipeline.core.privacy.purposes import Purpose
from c360_pipeline.core.visitors.counting import SPLIT, counted
from c360_pipeline.core.visitors.groups import with_groups
from c360_pipeline.stages.audiences.facts import FactsOfTenants
from c360_pipeline.stages.audiences.refresh import Members
from c360_pipeline.stages.visitors.counted import EventsAt
from c360_pipeline.stores.delta.lake import Lake

DAY = date(2026, 3, 20)
NOON = datetime(2026, 3, 20, 12, tzinfo=UTC)
PRODUCTS = {"p": "shoes", "q": "hats", "r": "shoes"}
COMMUNITIES = {"ana": 0, "bo": 1}
ACCOUNTS = {"ana": ("high", 12.5), "cy": ("low", 3.0)}
FORESEEN = {"ana": ("high", None), "bo": (None, 12.5), "cy": ("medium", 7.0)}
LINKED = {"ana": ["gold"], "bo": ["free", None]}
ITEM = st.fixed_dictionaries(
    {"id": st.sampled_from([*PRODUCTS]), "quantity": st.sampled_from([None, 2.0]),
     "price": st.sampled_from([None, 5.0, 7.5]), "currency": st.sampled_from([None, "EUR", "USD"])}
)  # fmt: skip
EVENT = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["ana", "bo", "cy", None]),
        "anonymous_id": st.sampled_from([None, "v", "w"]),
        # To the hour, up to two days after the day that is asked for.
        "hours": st.integers(-24 * 9, 24 * 2),
        "action": st.sampled_from(["view", "cart", "purchase"]),
        "item_id": st.sampled_from([None, *PRODUCTS]),
        "items": st.sampled_from([None, None]) | st.lists(ITEM, min_size=1, max_size=2),
        "attrs": st.sampled_from([None, {"channel": "ads"}, {"group.id": "g", "group.type": "team"}]),
        "traits": st.sampled_from([None, None, {"plan": "gold"}, {"plan": "7", "age": "31"}]),
        "consent": st.sampled_from([None, None, {"ads": "granted"}, {"ads": "denied"}]),
    }
).filter(lambda event: event["user_id"] or event["anonymous_id"])
Row = dict[str, Any]

DAYS = st.none() | st.integers(1, 8)


def without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None}


EVENTS_MEANT = st.fixed_dictionaries(
    {
        "did": st.sampled_from(["view", "purchase", "*", ["cart", "purchase"], "never"]),
        "item": st.none() | st.just(["p", "q"]),
        "category": st.none() | st.just(["shoes"]),
        "where": st.none() | st.just({"channel": "ads"}),
    }
).map(without_none)
COUNTS = st.sampled_from([{}, {"at_least": 2}, {"at_most": 1}, {"at_least": 1, "at_most": 2}, {"at_most": 0}])
WINDOWS = st.fixed_dictionaries(
    {"within_days": DAYS, "first_within_days": DAYS, "last_before_days": DAYS}
).map(without_none)  # fmt: skip
AMOUNT = st.sampled_from([{"at_least": 10}, {"at_most": 10}, {"at_least": 5.0, "at_most": 15.0}])
VALUE = st.sampled_from([{"is": "gold"}, {"one_of": ["7", "31"]}, {"at_least": 10}, {"at_most": 30}, {"is_set": True}])
LEAF = st.one_of(
    st.tuples(EVENTS_MEANT, COUNTS, WINDOWS).map(lambda parts: parts[0] | parts[1] | parts[2]),
    st.fixed_dictionaries(
        {"sequence": st.lists(EVENTS_MEANT, min_size=2, max_size=3), "each_within_hours": st.none() | st.just(30),
         "within_days": DAYS}
    ).map(without_none),
    st.fixed_dictionaries(
        {"spent": AMOUNT, "within_days": DAYS, "currency": st.sampled_from([None, "EUR"])}
    ).map(without_none),
    st.tuples(st.sampled_from(["plan", "age"]), VALUE).map(lambda pair: {"trait": pair[0], **pair[1]}),
    st.sampled_from(["granted", "denied", "unknown"]).map(lambda state: {"consent": "ads", "is": state}),
    st.sampled_from([{"group": "team"}, {"group": "team", "id": "g"}, {"group": "firm"}]),
    st.just({"community": [1, 2]}),
    st.just({"risk": ["high", "left"]}),
    AMOUNT.map(lambda amount: {"monthly_value": amount}),
    st.sampled_from([{"leaving": ["high"]}, {"leaving": ["low", "medium"]}]),
    AMOUNT.map(lambda amount: {"value_in_a_year": amount}),
    st.just({"label": "Account"}),
    VALUE.map(lambda value: {"label": "Account", "property": "plan", **value}),
)  # fmt: skip
CONDITION = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        inner.map(lambda one: {"not": one}),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"all": some}),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"any": some}),
    ),
    max_leaves=5,
)


def audience(who: Row, name: str = "a") -> Audience:
    return read_audience({"audience": name, "tenant": "t", "who": who})


# The plain reading: customer by customer, event by event.


def start_of_day(event: Row) -> int:
    return (NOON + timedelta(hours=event["hours"])).date().toordinal()


def of_days(event: Row, days: int | None, day: date) -> bool:
    return days is None or start_of_day(event) > day.toordinal() - days


def about(event: Row) -> list[str]:
    return [item["id"] for item in event["items"]] if event["items"] else [event["item_id"]] if event["item_id"] else []


def is_meant(event: Row, events: Row) -> bool:
    actions = events["did"] if isinstance(events["did"], list) else [events["did"]]
    return (
        ("*" in actions or event["action"] in actions)
        and ("item" not in events or any(one in events["item"] for one in about(event)))
        and ("category" not in events or any(PRODUCTS[one] in events["category"] for one in about(event)))
        and all((event["attrs"] or {}).get(name) == value for name, value in events.get("where", {}).items())
    )


def counts(leaf: Row, events: list[Row], day: date) -> bool:
    meant = [event for event in events if is_meant(event, leaf)]
    count = len([event for event in meant if of_days(event, leaf.get("within_days"), day)])
    days = [start_of_day(event) for event in meant]
    return (
        count >= leaf.get("at_least", 0 if "at_most" in leaf else 1)
        and count <= leaf.get("at_most", count)
        and ("first_within_days" not in leaf or bool(days and min(days) > day.toordinal() - leaf["first_within_days"]))
        and ("last_before_days" not in leaf or bool(days and max(days) <= day.toordinal() - leaf["last_before_days"]))
    )


def follows(leaf: Row, events: list[Row], day: date) -> bool:
    recent = [event for event in events if of_days(event, leaf.get("within_days"), day)]
    reached = [event["hours"] for event in recent if is_meant(event, leaf["sequence"][0])]
    for step in leaf["sequence"][1:]:
        longest = leaf.get("each_within_hours", 10_000)
        reached = [
            event["hours"] for event in recent
            if is_meant(event, step) and any(0 < event["hours"] - earlier <= longest for earlier in reached)
        ]  # fmt: skip
    return bool(reached)


def spent(leaf: Row, events: list[Row], day: date) -> bool:
    found: dict[str | None, float] = {}
    for event in events:
        if event["action"] == "purchase" and of_days(event, leaf.get("within_days"), day):
            for name in {item["id"] for item in event["items"] or []}:
                same = [item for item in event["items"] if item["id"] == name]
                currency = next((item["currency"] for item in same if item["currency"]), None)
                prices = [(item["quantity"] or 1) * item["price"] for item in same if item["price"]]
                if prices:
                    found[currency] = found.get(currency, 0) + sum(prices)
                elif currency and "currency" not in leaf:
                    found.setdefault(currency, 0)
    if "currency" in leaf:
        found = {name: amount for name, amount in found.items() if name == leaf["currency"]}
    if not any(found.values()) or len(found.keys() - {None}) > 1:
        return False
    return bounded(sum(found.values()), leaf["spent"])


def bounded(number: float | None, bounds: Row) -> bool:
    return number is not None and bounds.get("at_least", number) <= number <= bounds.get("at_most", number)


def newest(events: list[Row], column: str, name: str) -> str | None:
    said = [event for event in events if (event[column] or {}).get(name) is not None]
    return max(said, key=lambda event: (event["hours"], event["event_id"]))[column][name] if said else None


def fits(value: str | None, wanted: Row) -> bool:
    if value is None or "is_set" in wanted:
        return value is not None
    if "is" in wanted or "one_of" in wanted:
        return value in wanted.get("one_of", [wanted.get("is")])
    return bounded(float(value) if value.isdecimal() else None, wanted)


def plainly(condition: Row, who: str, events: list[Row], day: date) -> bool:
    """Whether a condition holds for a customer of whom these are the events."""
    kinds: dict[str, Callable[[Row], bool]] = {
        "all": lambda c: all(plainly(one, who, events, day) for one in c["all"]),
        "any": lambda c: any(plainly(one, who, events, day) for one in c["any"]),
        "not": lambda c: not plainly(c["not"], who, events, day),
        "did": lambda c: counts(c, events, day),
        "sequence": lambda c: follows(c, events, day),
        "spent": lambda c: spent(c, events, day),
        "trait": lambda c: fits(newest(events, "traits", c["trait"]), c),
        "consent": lambda c: (newest(events, "consent", "ads") or "unknown") == c["is"],
        "group": lambda c: any(
            (event["attrs"] or {}).get("group.type") == c["group"] and c.get("id", "g") == "g" for event in events
        ),
        "community": lambda c: COMMUNITIES.get(who) in c["community"],
        "risk": lambda c: ACCOUNTS.get(who, ("none", 0))[0] in c["risk"],
        "leaving": lambda c: FORESEEN.get(who, (None, None))[0] in c["leaving"],
        "value_in_a_year": lambda c: bounded(FORESEEN.get(who, (None, None))[1], c["value_in_a_year"]),
        "monthly_value": lambda c: who in ACCOUNTS and bounded(ACCOUNTS[who][1], c["monthly_value"]),
        "label": lambda c: who in LINKED
        and ("property" not in c or any(fits(value, c) for value in LINKED[who])),
    }  # fmt: skip
    return next(holds(condition) for word, holds in kinds.items() if word in condition)


def named(events: list[Row]) -> list[Row]:
    return [{**event, "event_id": f"e{number:02}"} for number, event in enumerate(events)]


def archived(events: list[Row]) -> pl.DataFrame:
    made = [
        {
            **{name: event[name] for name in event if name != "hours"},
            "tenant_id": "t", "ts": NOON + timedelta(hours=event["hours"]), "event_date": NOON.date(),
            "landed_at": NOON, "content_hash": repr(sorted(event.items(), key=str)),
        }
        for event in events
    ]  # fmt: skip
    return pl.DataFrame(made, schema=EVENTS.empty().schema)


FACTS = Facts(
    pl.DataFrame([*PRODUCTS.items()], schema=["id", "category"], orient="row"),
    pl.DataFrame([*COMMUNITIES.items()], schema=["user_id", "community"], orient="row"),
    pl.DataFrame([(n, *v) for n, v in ACCOUNTS.items()], schema=["user_id", "risk_level", "monthly_value"],
                 orient="row"),
    pl.DataFrame([(n, *v) for n, v in FORESEEN.items()], schema=["user_id", "level", "value_in_a_year"], orient="row"),
    {
        ("Account", name): pl.DataFrame(
            [(who, value if name else None) for who, values in LINKED.items() for value in values],
            schema={"user_id": pl.String, "value": pl.String}, orient="row",
        )
        for name in (None, "plan")
    },
)  # fmt: skip


@settings(max_examples=often(80, 3000), deadline=None)
@given(
    st.lists(EVENT.filter(lambda e: e["user_id"] and not e["anonymous_id"]), max_size=14), CONDITION,
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_members_are_whom_a_plain_reading_says(events: list[Row], who: Row, random: Any) -> None:
    mine = named(events)
    customers: dict[str, list[Row]] = {}
    for event in mine:
        customers.setdefault(event["user_id"], []).append(event)
    past = {
        who: [event for event in theirs if start_of_day(event) <= DAY.toordinal()] for who, theirs in customers.items()
    }
    wanted = {name for name, theirs in past.items() if theirs and plainly(who, name, theirs, DAY)}
    found = members(of_customers(random.sample(mine, len(mine))), [audience(who)], FACTS, DAY)
    assert {*found["user_id"]} == wanted
    assert found.height == len(wanted)


def of_customers(events: list[Row]) -> pl.LazyFrame:
    return with_groups(counted(archived(events).lazy(), VISITOR_DECISIONS.empty().lazy()))


@settings(max_examples=often(15, 1000), deadline=None)
@given(st.lists(EVENT, max_size=10), st.lists(CONDITION, min_size=2, max_size=4))
def test_audiences_together_are_what_each_is_alone(events: list[Row], conditions: list[Row]) -> None:
    frame = of_customers(named(events))
    some = [audience(who, f"a{number}") for number, who in enumerate(conditions)]
    together = members(frame, some, FACTS, DAY)
    alone = pl.concat([members(frame, [one], FACTS, DAY) for one in some])
    assert together.sort(pl.all()).equals(alone.sort(pl.all()))


CHANGE = st.tuples(
    st.lists(EVENT, max_size=4), st.dictionaries(st.integers(0, 8), EVENT, max_size=2),
    st.sets(st.integers(0, 12), max_size=3),
    st.sets(st.sampled_from(["v", "w"])), st.integers(0, 2), st.lists(st.integers(0, 3), max_size=3, unique=True),
)  # fmt: skip
"""Events that come, come otherwise and go; visitors that are split; days that pass; audiences that there are."""
IN_STEPS = CONDITION.filter(lambda who: not {"label", "risk", "monthly_value"} & words_of(who))


def words_of(condition: Row) -> set[str]:
    inner = [*condition.get("all", []), *condition.get("any", []), *([condition["not"]] if "not" in condition else [])]
    return {*condition}.union(*map(words_of, inner))


@settings(max_examples=often(4, 300), deadline=None)
@given(st.lists(IN_STEPS, min_size=4, max_size=4), st.lists(CHANGE, min_size=2, max_size=5), st.booleans())
def test_what_is_kept_by_difference_is_what_all_events_say(
    conditions: list[Row], steps: list[Any], needs_consent: bool
) -> None:
    """Late events, corrections, erasures, splits and undos, new days, audiences that come, go and change."""
    purposes = [Purpose("*", "audiences", "ads")] if needs_consent else []
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake", {}, Path(folder) / "cache")
        for table in (EVENTS, VISITOR_DECISIONS, CATALOG, USER_COMMUNITIES):
            lake.commits.append(table, table.empty())
        kept, facts = Members(lake, FactsOfTenants(lake)), FactsOfTenants(lake)
        there: set[str] = set()
        count, now = 0, NOON
        for came, altered, gone, splits, days, chosen in steps:
            new = [{**event, "event_id": f"e{count + n:02}"} for n, event in enumerate(came)]
            again = [{**event, "event_id": f"e{n:02}"} for n, event in altered.items() if f"e{n:02}" in there]
            leaving = [f"e{n:02}" for n in gone if n not in altered and f"e{n:02}" in there]
            count, there = count + len(came), (there | {event["event_id"] for event in new}) - {*leaving}
            keys = pl.DataFrame({"tenant_id": ["t"] * len(leaving), "event_id": leaving},
                                schema={"tenant_id": pl.String, "event_id": pl.String})  # fmt: skip
            lake.commits.merge(EVENTS, archived([*new, *again]), keys)
            lake.commits.replace(VISITOR_DECISIONS, pl.DataFrame(
                [("t", SPLIT, name, None, "", NOON) for name in sorted(splits)],
                schema=VISITOR_DECISIONS.empty().schema, orient="row",
            ))  # fmt: skip
            now += timedelta(days=days, minutes=1)
            # The fourth takes turns with the first under its name.
            some = [audience(conditions[n], f"a{n % 3}") for n in chosen if n < 3 or 0 not in chosen]
            kept.refresh(some, purposes, now)
            again_done = kept.refresh(some, purposes, now + timedelta(seconds=1))
            assert (again_done.entered, again_done.left, again_done.worked_out) == ({}, {}, [])
            held = lake.read(AUDIENCE_MEMBERS)
            inside = held.filter(pl.col("left_at").is_null()).select("tenant_id", "audience", "user_id")
            at = EventsAt.now(lake)
            whole = at.counted(at.scan(list(EVENTS.columns)))
            wanted = members(whole, some, facts.of("t", some), now.date())
            if needs_consent:
                said = {who: plainly({"consent": "ads", "is": "denied"}, who, theirs, now.date())
                        for who, theirs in by_customer(whole).items()}  # fmt: skip
                wanted = wanted.filter(~pl.col("user_id").is_in([who for who, denied in said.items() if denied]))
            assert inside.sort(pl.all()).equals(wanted.sort(pl.all()))
            known = {*whole.select("customer_id").collect()["customer_id"].drop_nulls()}
            assert {*held["user_id"]} <= known, "of a customer who is gone nothing stays"
            spans = held.sort("audience", "user_id", "entered_at").with_columns(
                following=pl.col("entered_at").shift(-1).over("audience", "user_id")
            )
            assert spans.filter(
                pl.col("following") < pl.col("left_at").fill_null(NOON + timedelta(days=999))
            ).is_empty()


def by_customer(whole: pl.LazyFrame) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for who, moment, event_id, consent in (
        whole.select("customer_id", "ts", "event_id", "consent").collect().iter_rows()
    ):
        if who is not None:
            said = dict(consent) if consent is not None and not isinstance(consent, dict) else consent
            found.setdefault(who, []).append({"hours": moment, "event_id": event_id, "consent": said})
    return found
