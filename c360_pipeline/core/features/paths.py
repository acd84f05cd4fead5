"""Paths of users: steps that are unlike the past, funnels that lose people, what precedes a ticket.

Source: "Real-time Customer-Journey Graph with Flink + Neo4j" (sudden path changes, high drop-off steps, what users did
just before raising a ticket). A step leads from an event to the next one of the same session and user.
"""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import polars as pl

from c360_pipeline.core.catalog.feature_tables import DROP_OFFS, PATH_ANOMALIES, SUPPORT_INSIGHTS
from c360_pipeline.core.projection.items import ADD_TO_CART, PURCHASE, VIEW

RECENT = timedelta(days=7)
"""What is scored; the past is what came before."""
FEWEST_STEPS = 3
"""A session of fewer steps is not scored."""
LEAST_DEVIATIONS = 3.0
"""Standard deviations above the usual surprise from which on a session is told of."""
TRUST_IN_COMMUNITY = 20.0
"""The community's past weighs as much as so many steps of the user's own."""
PURCHASE_FUNNEL = (VIEW, ADD_TO_CART, PURCHASE)
BEFORE_A_TICKET = timedelta(minutes=30)
FEWEST_TICKETS = 3
"""A path that precedes fewer tickets is no finding."""
LEAST_LIFT = 1.0
SURE = 1.96
"""Standard errors within which 95 of 100 estimates lie."""
LEAST_CHANGE = 3.0
"""Standard errors from which on a change of a funnel is no chance."""
IS_BROKEN = pl.col("deviations") >= LEAST_CHANGE
"""Of rows of `DROP_OFFS`, the steps that lose more sessions than chance explains."""
TICKETS = {
    "tenant_id": pl.String, "ticket_id": pl.String, "user_id": pl.String, "created_at": pl.Datetime("us", "UTC"),
}  # fmt: skip
SUPPORT = "support"
"""The action of an event by which a user asks for support."""
SHOWN_STEPS = 20

_SESSION = ["tenant_id", "session_id", "user_id"]
_STEP = ["from_action", "to_action"]


DIGITS = 9
"""After the point, of what is computed from sums of floats."""


def steps(events: pl.DataFrame) -> pl.DataFrame:
    """Steps between the events of a session, by time and event id.

    Args:
        events: tenant_id, user_id, session_id, event_id, ts, action.

    Returns:
        tenant_id, session_id, user_id, ts (of the step's end), from_action, to_action.
    """
    ordered = events.sort(*_SESSION, "ts", "event_id")
    before = pl.col("action").shift(1).over(_SESSION)
    return ordered.select(*_SESSION, "ts", from_action=before, to_action="action").drop_nulls("from_action")


def path_anomalies(events: pl.DataFrame, communities: pl.DataFrame) -> pl.DataFrame:
    """`PATH_ANOMALIES` rows: sessions of the last seven days that surprise.

    The probability of a step is what the user's own past and the community's say of it: (own steps + 20 x the
    community's probability) / (own steps from there + 20), where the community's is (its steps + 1) / (its steps from
    there + actions). The surprise of a session is the mean of -log2 of its steps' probabilities; it is told of when it
    lies three standard deviations above that of the sessions of the past, scored in the same way.

    Args:
        events: tenant_id, user_id, session_id, event_id, ts, action.
        communities: tenant_id, user_id, community; a user without one belongs to all users without one.
    """
    newest = events.group_by("tenant_id").agg(as_of=pl.col("ts").max())
    begun = events.group_by(_SESSION).agg(started_at=pl.col("ts").min())
    known = communities.select("tenant_id", "user_id", "community")
    found = (
        steps(events)
        .join(known, on=["tenant_id", "user_id"], how="left")
        .with_columns(pl.col("community").fill_null(-1))
        .join(begun.join(newest, on="tenant_id"), on=_SESSION)
        .with_columns(is_recent=pl.col("as_of") - pl.col("started_at") < RECENT)
    )
    of_session = scored_sessions(_surprises(found), [*_SESSION, "is_recent", "started_at"])
    usual = usual_surprises(of_session.filter(~pl.col("is_recent")))
    recent = of_session.filter("is_recent").join(usual, on="tenant_id")
    odd = recent.with_columns(DEVIATIONS).filter(pl.col("deviations") >= LEAST_DEVIATIONS)
    texts = _paths(events.join(odd.select(_SESSION), on=_SESSION, how="semi"))
    return (
        odd.join(texts, on=_SESSION).unnest("oddest").select(list(PATH_ANOMALIES.columns))
        .sort("tenant_id", "deviations", "session_id", descending=[False, True, False])
    )  # fmt: skip


def scored_sessions(scored: pl.DataFrame, of: Sequence[str]) -> pl.DataFrame:
    """Sessions of three steps and more, by how much these surprise.

    Args:
        scored: steps with `probability` and `surprise` (bits).
        of: the columns that name a session, and what it is told with.

    Returns:
        The columns of `of`, steps, surprise (mean of the steps', in bits), oddest (struct of from_action, to_action,
        probability).
    """
    # In a fixed order and rounded: sums of floats depend on it, and two runs must say the same.
    return (
        scored.sort(*of, "ts", *_STEP)
        .group_by(*of, maintain_order=True)
        .agg(
            steps=pl.len().cast(pl.Int64),
            surprise=pl.col("surprise").mean().round(DIGITS),
            oddest=pl.struct(*_STEP, "probability").sort_by("surprise", descending=True, maintain_order=True).first(),
        )
        .filter(pl.col("steps") >= FEWEST_STEPS)
    )


# The mean of few steps lies far from the usual by chance: the more steps, the more it says.
_ABOVE = (pl.col("surprise") - pl.col("usual_surprise")) * pl.col("steps").sqrt()
DEVIATIONS = (_ABOVE / pl.col("spread")).round(DIGITS - 3).alias("deviations")
"""Of rows of `scored_sessions` with what is usual."""


def usual_surprises(past: pl.DataFrame) -> pl.DataFrame:
    """tenant_id, usual_surprise (bits), spread: what `DEVIATIONS` are told by; tenants whose sessions differ.

    Args:
        past: rows of `scored_sessions`, in a fixed order.
    """
    by_tenant = ["tenant_id"]
    mean = past.group_by(by_tenant, maintain_order=True).agg(usual_surprise=pl.col("surprise").mean().round(DIGITS))
    spreads = past.join(mean, on=by_tenant, maintain_order="left").group_by(by_tenant, maintain_order=True)
    usual = mean.join(spreads.agg(spread=_ABOVE.std().round(DIGITS)), on=by_tenant)
    return usual.filter(pl.col("spread") > 0)


def _surprises(found: pl.DataFrame) -> pl.DataFrame:
    """Each step with its probability by the past, and its surprise in bits.

    Steps of the past are scored against the rest of it: they are taken out of the counts, else all would be usual.
    """
    past = found.filter(~pl.col("is_recent"))
    own, crowd = ["tenant_id", "user_id"], ["tenant_id", "community"]

    def counts(of: Sequence[str], name: str) -> list[tuple[pl.DataFrame, list[str]]]:
        step = [*of, *_STEP]
        start = [*of, "from_action"]
        return [
            (past.group_by(step).agg(pl.len().cast(pl.Float64).alias(f"{name}_steps")), step),
            (past.group_by(start).agg(pl.len().cast(pl.Float64).alias(f"{name}_starts")), start),
        ]

    actions = found.group_by("tenant_id").agg(actions=pl.col("to_action").n_unique())
    counted = found.join(actions, on="tenant_id")
    for frame, on in (*counts(own, "own"), *counts(crowd, "crowd")):
        counted = counted.join(frame, on=on, how="left")
    itself = pl.when("is_recent").then(0.0).otherwise(1.0)
    own_steps, own_starts, crowd_steps, crowd_starts = (
        pl.col(name).fill_null(0.0) - itself for name in ("own_steps", "own_starts", "crowd_steps", "crowd_starts")
    )
    crowd_probability = (crowd_steps + 1) / (crowd_starts + pl.col("actions"))
    probability = (own_steps + TRUST_IN_COMMUNITY * crowd_probability) / (own_starts + TRUST_IN_COMMUNITY)
    return counted.with_columns(probability=probability).with_columns(surprise=-pl.col("probability").log(2))


def _paths(events: pl.DataFrame) -> pl.DataFrame:
    """The actions of sessions as text, in order; the first twenty."""
    ordered = events.sort(*_SESSION, "ts", "event_id")
    return ordered.group_by(_SESSION).agg(path=pl.col("action").head(SHOWN_STEPS).str.join(" → "))


def drop_offs(events: pl.DataFrame, funnel: Sequence[str] = PURCHASE_FUNNEL, name: str = "purchase") -> pl.DataFrame:
    """`DROP_OFFS` rows: how many sessions went from each step of a funnel to the next, at whatever distance.

    A session has reached a step when it has the step's action at or after the moment at which it reached the step
    before. The last seven days before the tenant's newest event are scored against the 28 days before these.
    `deviations` says how much of a change is chance: from three on it is hardly any.

    Args:
        events: tenant_id, session_id, ts, action.
        funnel: actions in order, two at least.
        name: of the funnel.
    """
    newest = events.group_by("tenant_id").agg(as_of=pl.col("ts").max())
    begun = events.group_by("tenant_id", "session_id").agg(started_at=pl.col("ts").min()).join(newest, on="tenant_id")
    age = pl.col("as_of") - pl.col("started_at")
    period = pl.when(age < RECENT).then(pl.lit("now")).when(age < 5 * RECENT).then(pl.lit("before"))
    sessions = begun.select("tenant_id", "session_id", "as_of", period=period).drop_nulls("period")
    reached = events.join(sessions, on=["tenant_id", "session_id"]).filter(pl.col("action") == funnel[0])
    reached = reached.group_by("tenant_id", "session_id", "period", "as_of").agg(at=pl.col("ts").min())
    found = []
    for number, (action, following) in enumerate(pairwise(funnel), 1):
        later = (
            events.filter(pl.col("action") == following)
            .join(reached, on=["tenant_id", "session_id"])
            .filter(pl.col("ts") >= pl.col("at"))
            .group_by("tenant_id", "session_id", "period", "as_of")
            .agg(at=pl.col("ts").min())
        )
        counts = _continued(reached, later)
        found.append(counts.with_columns(
            step=pl.lit(number, pl.Int64), action=pl.lit(action), next_action=pl.lit(following)
        ))  # fmt: skip
        reached = later
    return pl.concat(found).with_columns(funnel=pl.lit(name)).select(list(DROP_OFFS.columns)).sort(DROP_OFFS.key)


def _continued(reached: pl.DataFrame, later: pl.DataFrame) -> pl.DataFrame:
    by = ["tenant_id", "period", "as_of"]
    went_on = later.group_by(by).agg(continued=pl.len().cast(pl.Int64))
    counts = reached.group_by(by).agg(sessions=pl.len().cast(pl.Int64)).join(went_on, on=by, how="left")
    counts = counts.with_columns(pl.col("continued").fill_null(0))
    rated = counts.with_columns(drop_off_rate=1 - pl.col("continued") / pl.col("sessions"))
    before = rated.filter(pl.col("period") == "before").select(
        "tenant_id", previous_rate="drop_off_rate", previous_sessions="sessions"
    )
    now = rated.filter(pl.col("period") == "now").join(before, on="tenant_id", how="left")
    told = now.with_columns(change=pl.col("drop_off_rate") - pl.col("previous_rate"))
    return told.with_columns(deviations=_deviations())


def _deviations() -> pl.Expr:
    """How many standard errors a change is, by the share of both times together; null where none can be told."""
    sessions, earlier = pl.col("sessions"), pl.col("previous_sessions")
    rate = (pl.col("drop_off_rate") * sessions + pl.col("previous_rate") * earlier) / (sessions + earlier)
    error = (rate * (1 - rate) * (1 / sessions + 1 / earlier)).sqrt()
    return pl.when(error > 0).then(pl.col("change") / error).round(DIGITS)


def calls_for_support(events: pl.DataFrame, tickets: pl.DataFrame) -> pl.DataFrame:
    """Tickets of the support desk and events by which users ask for support, in one form.

    Of events of a user of which each follows within 30 minutes of the one before the first is told: a conversation is
    one call.

    Args:
        events: tenant_id, user_id, event_id, ts, action.
        tickets: tenant_id, ticket_id, user_id, created_at.
    """
    user = ["tenant_id", "user_id"]
    asked = events.filter(pl.col("action") == SUPPORT).sort(*user, "ts", "event_id")
    pause = (pl.col("ts") - pl.col("ts").shift(1)).over(user)
    calls = asked.filter(pause.is_null() | (pause > BEFORE_A_TICKET)).select(
        "tenant_id", "user_id", ticket_id=pl.concat_str(pl.lit("event "), "event_id"), created_at="ts"
    )
    return pl.concat([tickets.select(calls.columns), calls])


def support_insights(events: pl.DataFrame, tickets: pl.DataFrame) -> pl.DataFrame:
    """`SUPPORT_INSIGHTS` rows: what users did just before raising a ticket more often than else.

    A path is two or three actions in a row; calls for support are tickets themselves, and in no path. Before a ticket
    counts what its user did in the 30 minutes before it, in whatever session; elsewhere are the sessions of which no
    event lies in such a time. The lift is the share of tickets that a path precedes by the share of such sessions that
    hold it, half a ticket and half a session added to each. Told are paths whose lift, were the same counted again,
    would be above 1 in 39 of 40 cases (Katz, Baptista, Azen and Pike 1978); the one whose lift is at least the highest
    comes first.

    Args:
        events: tenant_id, user_id, session_id, event_id, ts, action.
        tickets: tenant_id, ticket_id, user_id, created_at.
    """
    before = (
        events.join(tickets, on=["tenant_id", "user_id"])
        .filter((pl.col("ts") < pl.col("created_at")) & (pl.col("created_at") - pl.col("ts") <= BEFORE_A_TICKET))
    )  # fmt: skip
    of_session = ["tenant_id", "session_id"]
    elsewhere = events.join(before.select(of_session).unique(), on=of_session, how="anti")
    of_tickets = _grams(before, ["tenant_id", "ticket_id"]).rename({"holders": "tickets_with_path"})
    of_sessions = _grams(elsewhere, of_session).rename({"holders": "sessions_with_path"})
    all_tickets = before.group_by("tenant_id").agg(tickets=pl.col("ticket_id").n_unique().cast(pl.Int64))
    all_sessions = elsewhere.group_by("tenant_id").agg(sessions=pl.col("session_id").n_unique().cast(pl.Int64))
    found = (
        of_tickets.filter(pl.col("tickets_with_path") >= FEWEST_TICKETS)
        .join(of_sessions, on=["tenant_id", "path"], how="left")
        .join(all_tickets, on="tenant_id")
        .join(all_sessions, on="tenant_id")
        .with_columns(pl.col("sessions_with_path").fill_null(0))
        .with_columns(
            share_before_tickets=pl.col("tickets_with_path") / pl.col("tickets"),
            share_elsewhere=pl.col("sessions_with_path") / pl.col("sessions"),
        )
        .with_columns(_lift())
    )
    told = found.filter(pl.col("lift_at_least") > LEAST_LIFT)
    ordered = told.sort("tenant_id", "lift_at_least", "path", descending=[False, True, False])
    return ordered.select(list(SUPPORT_INSIGHTS.columns))


def _lift() -> list[pl.Expr]:
    """`lift` and `lift_at_least` of rows that have the counts."""
    of_tickets, tickets, of_sessions, sessions = (
        pl.col(name) + 0.5 for name in ("tickets_with_path", "tickets", "sessions_with_path", "sessions")
    )
    lift = (of_tickets / tickets) / (of_sessions / sessions)
    error = (1 / of_tickets - 1 / tickets + 1 / of_sessions - 1 / sessions).sqrt()
    at_least = lift * (-SURE * error).exp()
    return [lift.round(DIGITS).alias("lift"), at_least.round(DIGITS).alias("lift_at_least")]


def _grams(events: pl.DataFrame, holder: Sequence[str]) -> pl.DataFrame:
    """Paths of two and three actions with the number of holders that have them: tenant_id, path, holders."""
    ordered = events.filter(pl.col("action") != SUPPORT).sort(*holder, "ts", "event_id")
    first, second = (pl.col("action").shift(n).over(holder) for n in (2, 1))
    pairs = ordered.select(*holder, path=pl.concat_str(second, "action", separator=" → "))
    triples = ordered.select(*holder, path=pl.concat_str(first, second, "action", separator=" → "))
    paths = pl.concat([pairs, triples]).drop_nulls("path").unique()
    return paths.group_by("tenant_id", "path").agg(holders=pl.len().cast(pl.Int64))
