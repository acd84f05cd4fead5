"""What the routes ask: the stores, opened once for a process."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import psycopg
from neo4j.exceptions import DriverError, Neo4jError

from c360_pipeline import __version__
from c360_pipeline.core.audiences.definition import Audience
from c360_pipeline.core.catalog.feature_tables import RECOMMENDATION_SETTINGS
from c360_pipeline.core.contract.events import Event, Rejected, parse_event
from c360_pipeline.core.features.leads import Settings
from c360_pipeline.core.privacy.purposes import RECOMMENDATIONS, purposes_of
from c360_pipeline.core.privacy.retention import EVERY
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import C360Error, ConfigError, ConflictError, ContractError, UnavailableError
from c360_pipeline.queries import find_query
from c360_pipeline.reads.accounts import newest_of
from c360_pipeline.reads.audiences import Audiences, parts_of
from c360_pipeline.reads.customers import Customers
from c360_pipeline.reads.deliveries import delivered_by_source, sources_of_pages
from c360_pipeline.reads.insights import NOW, Found, insights, surprising_now
from c360_pipeline.reads.journeys import explanation, journey_of_event
from c360_pipeline.reads.overview import Overviews
from c360_pipeline.reads.recommend import RecommendationRequest, Recommended, Recommender
from c360_pipeline.reads.search import Search
from c360_pipeline.serving.audit import AuditWriter
from c360_pipeline.serving.models import Interaction
from c360_pipeline.settings import load_settings
from c360_pipeline.stages.audiences.sinks import require_labels, require_possible
from c360_pipeline.stages.audiences.trials import Trials
from c360_pipeline.stages.realtime.given import Given, GivenRecommendations
from c360_pipeline.stages.realtime.surprises import SessionSurprises
from c360_pipeline.stages.realtime.tracked_events import Tracked, TrackedEvents
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.driver_values import plain
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.api_keys import ApiKeys
from c360_pipeline.stores.postgres.audit_log import AuditLog
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.privacy_lists import PrivacyLists
from c360_pipeline.stores.postgres.sessions import StandingSession
from c360_pipeline.stores.s3.landing import Landing

if TYPE_CHECKING:
    from c360_pipeline.streaming.lag import StreamSeen

log = logging.getLogger(__name__)

ACTIONS = {"VIEWED": "view", "PURCHASED": "purchase"}
STORE_SECONDS, SHOW_SECONDS = 10.0, 1.0
"""For how long a request waits for S3, which it needs, and then for the graph, which it does not."""
KEPT_SECONDS = 5.0
"""How old what the control database said may be."""
SETTINGS_SECONDS = 60.0
"""How old the settings of recommendations may be, which are chosen once a night."""
FIRST_SECONDS = 1.0
"""For how long the first request waits for them."""
T = TypeVar("T")
SHORTEST_READY = Statement("RETURN 1 AS one")


class TrackOutcome(NamedTuple):
    """What became of tracked events.

    Attributes:
        event_ids: of those that are stored.
        uri: the file that they are in; None where there is none.
        is_shown: whether the graph has them.
        suppressed: how many are of people who asked to be forgotten.
    """

    event_ids: list[str]
    uri: str | None
    is_shown: bool
    suppressed: int


class Kept(Generic[T]):
    """What the control database says, at most `KEPT_SECONDS` old; the last that is known where it does not answer.

    Args:
        read: asks it.
        what: that is, for the error.
    """

    def __init__(self, read: Callable[[], T], what: str) -> None:
        self._read, self._what = read, what
        self._known: tuple[T, float] | None = None
        self._lock = threading.Lock()

    def value(self) -> T:
        """What it says.

        Raises:
            UnavailableError: it has not answered yet.
        """
        with self._lock:
            if self._known is None or time.monotonic() - self._known[1] > KEPT_SECONDS:
                try:
                    self._known = self._read(), time.monotonic()
                except (UnavailableError, ConfigError, ConflictError, psycopg.Error) as error:
                    if self._known is None:
                        raise UnavailableError(f"Nobody can tell {self._what}: {error}") from error
                    self._known = self._known[0], time.monotonic()
            return self._known[0]


class Refreshed(Generic[T]):
    """What a store said last, which nobody waits for but the first for a moment: it is asked in a thread of its own.

    Args:
        read: asks it; where that fails, the last answer stays.
        usual: what is used until it has answered.
        seconds: after which it is asked again.
    """

    def __init__(self, read: Callable[[], T], usual: T, seconds: float) -> None:
        self._read, self._known, self._seconds = read, usual, seconds
        self._due: float | None = None
        self._asked: Future[T] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="refreshed")
        self._lock = threading.Lock()

    def value(self) -> T:
        """The last that is known."""
        with self._lock:
            self._take()
            is_first, now = self._due is None, time.monotonic()
            if self._asked is None and (self._due is None or now >= self._due):
                self._due = now + self._seconds
                self._asked = self._pool.submit(self._read)
            asked = self._asked
        if is_first and asked is not None:
            wait([asked], FIRST_SECONDS)
            with self._lock:
                self._take()
        return self._known

    def close(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> None:
        """Keep the answer that has come."""
        if self._asked is None or not self._asked.done():
            return
        answer, self._asked = self._asked, None
        if error := answer.exception():
            log.warning("The last known settings are used: %s", error)
        else:
            self._known = answer.result()


class Backend:
    """The stores behind the routes.

    Args:
        graph: entered.
        lake: tables of features and reconciliations.
        landing: where tracked events go.
        control: keys and rules.
        stream: the real-time path as a tenant sees it; None where there is none.

    Attributes:
        audit: notes who looks at whom, and who changes what.
    """

    def __init__(
        self,
        graph: Graph,
        lake: Lake,
        landing: Landing,
        control: ControlDb,
        stream: "Callable[[str], StreamSeen] | None" = None,
    ) -> None:
        self.graph = graph
        self.lake = lake
        self.control = control
        self.stream = stream
        self.keys = ApiKeys(control.login)
        self._landing = landing
        self._surprises = SessionSurprises(graph, lake, control)
        self._tracked = TrackedEvents(landing, graph, control, self._surprises.note)
        self._purposes = Kept(control.privacy.purposes, "what people must agree to")
        self._rules = Kept(lambda: control.key_rules.policy().rules, "which attributes are identifiers")
        self._identifiers = Kept(control.identifiers.current, "how identifiers are hashed")
        self.trials = Trials(lake, graph.read_only)
        self._settings = Refreshed(self._read_settings, dict[str, Settings](), SETTINGS_SECONDS)
        # A session of the writer's own: it asks once a minute who is not to be noted.
        self._standing = StandingSession(control.login)
        self._given = GivenRecommendations(lake, PrivacyLists(self._standing, control.identifiers))
        self._audit_session = StandingSession(control.login)
        self.audit = AuditWriter(control.audit, AuditLog(self._audit_session, control.identifiers))

    def close(self) -> None:
        """Write what was tracked and not stored yet."""
        self._settings.close()
        # First: what waits there is in memory alone.
        self.audit.close()
        self._audit_session.close()
        self.trials.close()
        self._tracked.close()
        self._surprises.close()
        self._given.close()
        self._standing.close()

    def recommender(self, tenant_id: str) -> Recommender:
        """Recommendations of a tenant."""

        def asked() -> Iterable[str]:
            return purposes_of(self._purposes.value(), RECOMMENDATIONS, [tenant_id])["purpose"]

        def half_life() -> float:
            return self._settings_of(tenant_id).half_life

        return Recommender(self.graph, tenant_id, asked, half_life)

    def note_given(self, tenant_id: str, wanted: RecommendationRequest, found: Recommended) -> None:
        """Note what was recommended, so that it can be told what came of it; nothing of those who refused it."""
        if found.is_refused or not found.products:
            return
        settings = self._settings_of(tenant_id)
        version = f"{__version__}, half-life {settings.half_life:g}, ridge {settings.regularisation:g}"
        self._given.note(Given.now(
            tenant_id, found.user_id, None if found.user_id else wanted.anonymous_id, version,
            [(one.product_id, one.source) for one in found.products],
        ))  # fmt: skip

    def _settings_of(self, tenant_id: str) -> Settings:
        return self._settings.value().get(tenant_id, Settings())

    def _read_settings(self) -> dict[str, Settings]:
        rows = self.lake.read(RECOMMENDATION_SETTINGS).select("tenant_id", "half_life", "regularisation")
        return {tenant: Settings(half_life, ridge) for tenant, half_life, ridge in rows.iter_rows()}

    def customers(self, tenant_id: str) -> Customers:
        """Customers of a tenant."""
        return Customers(self.graph, tenant_id, self._identifiers.value())

    def sources(self, tenant_id: str) -> list[dict[str, Any]]:
        """What event sources brought a tenant."""
        return delivered_by_source(self.lake, sources_of_pages(self.control), tenant_id)

    def search(self, tenant_id: str) -> Search:
        """Customers of a tenant by whatever a person has of them."""

        def key_types() -> set[str]:
            return {rule.key_type for rule in self._rules.value() if rule.tenant_id in (EVERY, tenant_id)}

        return Search(self.graph.read_only, tenant_id, key_types, self._identifiers.value())

    def overview(self, tenant_id: str) -> Overviews:
        """The overview of a tenant."""
        return Overviews(self.lake, self.graph.read_only, tenant_id)

    def audiences(self, tenant_id: str) -> Audiences:
        """Audiences of a tenant."""
        return Audiences(self.lake, self.control.audiences, tenant_id)

    def try_audience(self, audience: Audience) -> dict[str, Any]:
        """How many would be in an audience, and how many fulfil each of its conditions.

        Returns:
            customers (of the tenant), sizes (members, enter, leave), each (customers by condition in words).

        Raises:
            ConfigError: it names a label that is none of silos.
        """
        require_labels(self.control, audience)
        parts = {"": audience} | parts_of(audience)
        tried = self.trials.tried(list(parts.values()), self._purposes.value(), datetime.now(UTC))
        each = {text: tried.sizes(part.audience)["members"] for text, part in parts.items() if text}
        return {"customers": tried.customers, "sizes": tried.sizes(audience.audience), "each": each}

    def require_audience(self, audience: Audience) -> None:
        """Go on only with a document that may say who is in an audience.

        Raises:
            ConfigError: it names a label or a destination that it may not.
        """
        require_possible(load_settings(), self.control, audience)

    def insights(self, tenant_id: str, name: str, limit: int) -> Found:
        """What the nightly features found, and what the real-time path finds now."""
        if name == NOW.name:
            return surprising_now(self.lake, self.graph.read_only, tenant_id, limit, self._purposes.value())
        return insights(self.lake, tenant_id, name, limit)

    def answer(self, tenant_id: str, name: str, given: dict[str, str]) -> list[dict[str, Any]]:
        """The rows of a business query."""
        query = find_query(name)
        newest = newest_of(self.graph.read_only, tenant_id) if query.needs_now(given) else None
        values = query.values(given, newest or datetime.now(UTC))
        return [plain(row) for row in self.graph.read_only(query.statement, tenant_id=tenant_id, **values)]

    def journey(self, tenant_id: str, event_id: str) -> list[dict[str, Any]]:
        """The events of the journey of an event."""
        return [plain(row) for row in journey_of_event(self.graph, tenant_id, event_id)]

    def explanation(self, tenant_id: str, first: str, second: str) -> list[dict[str, Any]]:
        """What links two events."""
        return explanation(self.graph, tenant_id, first, second) or []

    def track(self, tenant_id: str, interactions: Sequence[Interaction]) -> TrackOutcome:
        """Store events, and show them; those of people who asked to be forgotten are neither.

        Raises:
            ContractError: an event breaks the contract; none is stored then.
            UnavailableError: S3 does not take them.
            TimeoutError: S3 does not answer.
        """
        now = datetime.now(UTC)
        lines = [_line(tenant_id, interaction, now) for interaction in interactions]
        events = [_event(line, number, now) for number, line in enumerate(lines)]
        _refuse_two_of_one_id(events)
        tracked = Tracked(lines, events)
        self._tracked.submit(tracked)
        stored = tracked.stored.result(STORE_SECONDS)
        try:
            shown = tracked.shown.result(SHOW_SECONDS)
        except TimeoutError:
            shown = False
        ids = [event.event_id for event, out in zip(events, stored.suppressed, strict=True) if not out]
        return TrackOutcome(ids, stored.uri, shown, sum(stored.suppressed))

    def services(self) -> dict[str, Callable[[], bool]]:
        """By service, what tells whether it answers; `tracking` is our own writers."""
        return {
            "neo4j": lambda: _answers(lambda: self.graph.read_only(SHORTEST_READY)),
            "s3": lambda: _answers(self._landing.ensure_bucket),
            "postgres": lambda: _answers(self.control.privacy.suppressed_users),
            "tracking": lambda: self._tracked.is_alive,
        }


def _answers(ask: Any) -> bool:
    try:
        ask()
    except (C360Error, DriverError, Neo4jError, OSError):
        return False
    return True


def _line(tenant_id: str, interaction: Interaction, now: datetime) -> bytes:
    fields = {
        "tenantId": tenant_id,
        "userId": interaction.user_id,
        "sessionId": _session(interaction, interaction.ts or now),
        "ts": (interaction.ts or now).isoformat(),
        "action": ACTIONS[interaction.interaction_type],
        "itemId": interaction.product_id,
        "eventId": interaction.event_id or f"track-{uuid.uuid4()}",
        "attrs": interaction.attrs,
        "anonymousId": interaction.anonymous_id,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def _session(interaction: Interaction, at: datetime) -> str | None:
    """Of a visitor who names none, gaps make sessions; of a user without a visitor, a day is one."""
    if interaction.session_id is not None or interaction.anonymous_id is not None:
        return interaction.session_id
    return f"track {interaction.user_id} {at:%Y-%m-%d}"[:1_024]


def _refuse_two_of_one_id(events: Sequence[Event]) -> None:
    known: dict[str, tuple[int, str]] = {}
    for number, event in enumerate(events, start=1):
        first, content = known.setdefault(event.event_id, (number, event.content_hash))
        if content != event.content_hash:
            raise ContractError(f"Interactions {first} and {number} have one event_id and differ.")


def _event(line: bytes, number: int, now: datetime) -> Event:
    """The event as landing will read it: what it would reject is refused here."""
    try:
        return parse_event(line, now)
    except Rejected as rejected:
        said = f"Interaction {number + 1} would be rejected as {rejected.error_class}: {rejected.reason}"
        raise ContractError(said) from None
