"""Events of sessions, written as their actions."""

from datetime import UTC, datetime, timedelta

import polars as pl

NOW = datetime(2025, 11, 1, 12, tzinfo=UTC)


def session(name: str, actions: str, user: str = "u", ago: timedelta = timedelta(0)) -> list[tuple[object, ...]]:
    return [
        ("acme", user, name, f"{name}-{n}", NOW - ago + timedelta(seconds=n), action)
        for n, action in enumerate(actions.split())
    ]


def events(*sessions: list[tuple[object, ...]]) -> pl.DataFrame:
    schema = {"tenant_id": pl.String, "user_id": pl.String, "session_id": pl.String, "event_id": pl.String,
              "ts": pl.Datetime("us", "UTC"), "action": pl.String}  # fmt: skip
    return pl.DataFrame([row for rows in sessions for row in rows], schema=schema, orient="row")


def month_ago(count: int, *kinds: str) -> list[list[tuple[object, ...]]]:
    return [session(f"old{n}", kinds[n % len(kinds)], f"v{n % 7}", timedelta(days=30)) for n in range(count)]
