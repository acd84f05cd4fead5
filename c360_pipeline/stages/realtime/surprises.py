"""Sessions that are unlike the past, told while they go on: in the graph within seconds of their events.

`Session` nodes get `surprise` (bits), `deviations` (standard deviations above the usual) and `oddest_step`. What they
are told by is learned each night (`features/usual_steps`); these properties are made of no archive, so no comparison
looks at them, and after a week they go.
"""

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import islice

import polars as pl
import psycopg
import structlog
from neo4j.exceptions import DriverError, Neo4jError

from c360_pipeline.core.catalog.feature_tables import PATH_ANOMALIES, USUAL_STEPS, feature_of
from c360_pipeline.core.contract.events import Event
from c360_pipeline.core.features.paths import RECENT
from c360_pipeline.core.features.surprises import surprises
from c360_pipeline.core.privacy.purposes import Purpose, purposes_of
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.visitors.said import refusal
from c360_pipeline.errors import C360Error
from c360_pipeline.stages.realtime.later import Later
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.driver_values import Read
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

GATHER_SECONDS = 1.0
"""For how long more events of the same sessions are waited for."""
PAUSE_SECONDS = 5.0
"""Before it is tried again where a store did not answer."""
USUAL_SECONDS = 300.0
"""How old what is usual may be, which is learned once a night."""
PURPOSES_SECONDS = 5.0
MOST_WAITING = 50_000
"""Sessions; of more, some are left out until their next event."""
MOST_EVENTS = 1_000
"""Of a session; a longer one is a program's, and is not scored."""
AT_ONCE = 10
"""Sessions of one transaction, which holds them meanwhile: an event of theirs waits so long."""

IS_AGREED = """($refusals = [] OR (
        EXISTS { (:User {tenant_id: $tenant_id})-[:HAS_SESSION]->(s) }
        AND NOT EXISTS {
            MATCH (u:User {tenant_id: $tenant_id})-[:HAS_SESSION]->(s)
            WHERE ANY(refusal IN $refusals WHERE u.consents CONTAINS refusal)
        }))"""
"""Of a visitor nobody knows what was agreed to."""
# Held, so that of two processes that score a session at the same time the later one sees what both have written.
HOLD_SESSIONS = Statement(f"""
    UNWIND $sessions AS session_id
    MATCH (s:Session {{tenant_id: $tenant_id, id: session_id}})
    SET s.held = true REMOVE s.held
    WITH s WHERE COUNT {{ (s)-[:HAS_ACTION]->() }} <= $most_events AND {IS_AGREED}
    MATCH (s)-[:HAS_ACTION]->(a:Action {{tenant_id: $tenant_id}})
    RETURN s.id AS session_id, a.id AS event_id, a.type AS action,
           a.ts.epochMillis * 1000 + a.ts.microsecond % 1000 AS ts
""")
SET_SURPRISES = Statement("""
    UNWIND $rows AS row
    MATCH (s:Session {tenant_id: $tenant_id, id: row.session_id})
    SET s.surprise = row.surprise, s.deviations = row.deviations, s.oddest_step = row.oddest_step
""")
FORGET_SURPRISES = Statement(f"""
    MATCH (s:Session {{tenant_id: $tenant_id}})
    WHERE s.deviations IS NOT NULL AND (s.last_seen < $until OR NOT {IS_AGREED})
    REMOVE s.surprise, s.deviations, s.oddest_step
""")
EVENT_OF_SESSION = {"session_id": pl.String, "event_id": pl.String, "action": pl.String, "ts": pl.Int64}
SURPRISE = ("surprise", "deviations", "oddest_step")
FEATURE = feature_of(PATH_ANOMALIES)
"""Whose purposes people must not have refused."""


class SessionSurprises:
    """Takes events that the graph shows, and scores their sessions a moment later, in a thread of its own.

    Args:
        graph: holds the sessions.
        lake: holds what is usual.
        control: says what people may have refused.
    """

    def __init__(self, graph: Graph, lake: Lake, control: ControlDb) -> None:
        self._graph, self._lake, self._control = graph, lake, control
        self._waiting: dict[tuple[str, str], None] = {}
        self._usual, self._usual_at = USUAL_STEPS.empty(), float("-inf")
        self._purposes: Collection[Purpose] = ()
        self._purposes_at = float("-inf")
        self._lock = threading.Lock()
        self._log = structlog.get_logger("c360.surprises")
        self._later = Later("session-surprises", self.score_waiting, GATHER_SECONDS, PAUSE_SECONDS)

    def note(self, events: Iterable[Event]) -> None:
        """Take events that were written; returns at once."""
        with self._lock:
            for event in events:
                if event.session_id is not None and len(self._waiting) < MOST_WAITING:
                    self._waiting[event.tenant_id, event.session_id] = None
        self._later.ask()

    def close(self) -> None:
        """End; sessions that wait are scored with their next event."""
        self._later.close()

    def score_waiting(self) -> bool:
        """Score what waits; what can't be scored waits on, and the log says why."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        tenants = sorted({tenant for tenant, _ in taken})
        left = {
            (tenant, session): None
            for tenant in tenants
            for session in self._left_of(tenant, sorted(session for one, session in taken if one == tenant))
        }
        with self._lock:
            self._waiting |= dict(islice(left.items(), max(MOST_WAITING - len(self._waiting), 0)))
        return not left

    def _left_of(self, tenant_id: str, sessions: Sequence[str]) -> Sequence[str]:
        """Score sessions of a tenant; those that could not be. One tenant's trouble is not the others'."""
        done = 0
        try:
            self._learn()
            usual, refusals = (
                self._usual.filter(pl.col("tenant_id") == tenant_id),
                refusals_of(self._purposes, tenant_id),
            )
            while done < len(sessions) and not usual.is_empty() and not self._later.is_closing:
                _score_sessions(self._graph, tenant_id, sessions[done : done + AT_ONCE], usual, refusals)
                done += AT_ONCE
        except (C360Error, DriverError, Neo4jError, psycopg.Error) as error:
            self._log.warning("not_scored", sessions=len(sessions) - done, error=type(error).__name__)
        except Exception as error:
            # The next sessions are not to wait for a thread that is gone, nor for one that can't be scored.
            self._log.exception("not_scored", sessions=len(sessions) - done, error=type(error).__name__)
            done += AT_ONCE
        else:
            return []
        return sessions[done:]

    def _learn(self) -> None:
        """Read again what is usual, and what people may have refused, where it is old.

        Where the lake is away, what was usual before stays for a while; what people refused is never guessed.
        """
        now = time.monotonic()
        if now - self._usual_at > USUAL_SECONDS:
            try:
                self._usual = self._lake.read(USUAL_STEPS)
            except C360Error as error:
                self._log.warning("usual_steps_not_read", error=type(error).__name__)
            self._usual_at = now
        if now - self._purposes_at > PURPOSES_SECONDS:
            self._purposes, self._purposes_at = self._control.privacy.purposes(), now


def refusals_of(purposes: Collection[Purpose], tenant_id: str) -> list[str]:
    """What the consents of a user whose sessions are not to be scored hold."""
    return [refusal(purpose) for purpose in purposes_of(purposes, FEATURE, [tenant_id])["purpose"]]


def forget_surprises(graph: Graph, tenant_id: str, newest: datetime, purposes: Collection[Purpose]) -> None:
    """Remove what sessions of more than seven days before a moment are told to be, and those of people who refused."""
    until, refusals = newest - RECENT, refusals_of(purposes, tenant_id)
    graph.run(FORGET_SURPRISES, tenant_id=tenant_id, until=until, refusals=refusals)


def _score_sessions(
    graph: Graph, tenant_id: str, sessions: Sequence[str], usual: pl.DataFrame, refusals: Collection[str]
) -> None:
    """Write of each session how surprising it is; what was said is removed where it is not to be told any more."""

    def score(run: Read) -> None:
        rows = run(
            HOLD_SESSIONS, tenant_id=tenant_id, sessions=sessions, refusals=list(refusals), most_events=MOST_EVENTS
        )
        events = pl.DataFrame(rows, schema=EVENT_OF_SESSION).with_columns(tenant_id=pl.lit(tenant_id))
        oddest = pl.concat_str("from_action", "to_action", separator=" → ")
        found = surprises(events, usual).with_columns(oddest_step=oddest)
        told = pl.DataFrame({"session_id": sessions}).join(
            found.select("session_id", *SURPRISE), on="session_id", how="left"
        )
        run(SET_SURPRISES, tenant_id=tenant_id, rows=told.to_dicts())

    graph.write_together(score)
