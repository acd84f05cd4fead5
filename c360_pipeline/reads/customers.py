"""All that the graph knows of one customer, for the page that shows it.

A customer is a user with all users that stitching put into the same journeys, and the account that they have.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.features.account_values import account_values
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.stitching.keys import value_hash
from c360_pipeline.queries import find_query
from c360_pipeline.reads.accounts import newest_of, read_accounts
from c360_pipeline.reads.journeys import PRODUCTS_OF_EVENT
from c360_pipeline.stores.neo4j.driver_values import Read, instant, plain
from c360_pipeline.stores.neo4j.graph import Graph

BEFORE = timedelta(minutes=30)
"""Timeline so long before a ticket is shown with it."""
SHOWN_PRODUCTS = 3
"""Of an order."""
SHOWN_BEFORE = 5
T = TypeVar("T")

FIND_USERS = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $customer_id}) RETURN u.id AS user_id
    UNION
    MATCH (a:Account {tenant_id: $tenant_id, email: $customer_id})<-[:IS_ACCOUNT]-(u:User {tenant_id: $tenant_id})
    RETURN u.id AS user_id
""")
FIND_ACCOUNTS = Statement("""
    MATCH (a:Account {tenant_id: $tenant_id, email: $customer_id}) RETURN a.email AS email, toString(a.account_id) AS id
    UNION
    MATCH (:User {tenant_id: $tenant_id, id: $customer_id})-[:IS_ACCOUNT]->(a:Account {tenant_id: $tenant_id})
    RETURN a.email AS email, toString(a.account_id) AS id
""")
READ_JOURNEYS_OF_KEYS = Statement("""
    UNWIND $keys AS key
    MATCH (c:Correlation {tenant_id: $tenant_id, id: key})-[:PART_OF]->(j:Journey {tenant_id: $tenant_id})
    RETURN DISTINCT j.id AS journey_id, j.event_count AS event_count, j.first_event_ts AS first_event,
           j.last_event_ts AS last_event
    ORDER BY last_event DESC, journey_id
""")
READ_USERS = Statement("""
    UNWIND $user_ids AS user_id
    MATCH (u:User {tenant_id: $tenant_id, id: user_id})
    RETURN u.id AS user_id, u.first_seen AS first_seen, u.last_seen AS last_seen, u.community AS community
    ORDER BY user_id
""")
READ_USERS_OF_JOURNEYS = Statement("""
    UNWIND $journey_ids AS journey_id
    MATCH (j:Journey {tenant_id: $tenant_id, id: journey_id})
        <-[:PART_OF]-(c:Correlation {tenant_id: $tenant_id, key_type: 'user'})
    CALL (c) {
        MATCH (c)<-[:HAS_KEY]-(e:Event {tenant_id: $tenant_id})
        WITH e LIMIT 20
        RETURN DISTINCT coalesce(e.customer_id, e.user_id) AS user_id
    }
    WITH user_id WHERE user_id IS NOT NULL
    RETURN DISTINCT user_id
""")
_EVENT_ENTRY = f"""
    RETURN e.id AS id, e.ts.epochMillis * 1000 + e.ts.microsecond % 1000 AS at, e.type AS action,
           e.user_id AS user_id, e.customer_id AS customer_id, s.id AS session_id, e:Unlanded AS is_unlanded,
           {PRODUCTS_OF_EVENT} AS products
    ORDER BY at DESC, id DESC
"""
READ_EVENTS = Statement(
    """
    UNWIND $journey_ids AS journey_id
    MATCH (j:Journey {tenant_id: $tenant_id, id: journey_id})
        <-[:PART_OF|HAS_KEY|IN_JOURNEY*1..2]-(e:Event {tenant_id: $tenant_id})
    WHERE e.ts < $before
    WITH DISTINCT e ORDER BY e.ts DESC, e.id DESC LIMIT $limit
    OPTIONAL MATCH (s:Session {tenant_id: $tenant_id})-[:HAS_ACTION]->(e)
    """
    + _EVENT_ENTRY
)
READ_EVENTS_OF_USERS = Statement(
    """
    UNWIND $user_ids AS user_id
    MATCH (:User {tenant_id: $tenant_id, id: user_id})-[:HAS_SESSION]->(s:Session {tenant_id: $tenant_id})
        -[:HAS_ACTION]->(e:Event {tenant_id: $tenant_id})
    WHERE coalesce(e.customer_id, e.user_id) = user_id AND e.ts < $before AND NOT e.id IN $known
    WITH e, s ORDER BY e.ts DESC, e.id DESC LIMIT $limit
    """
    + _EVENT_ENTRY
)
READ_PLAYS = Statement("""
    MATCH (a:Account {tenant_id: $tenant_id, email: $email})-[:WATCHED]->(e:PlayEvent {tenant_id: $tenant_id})
    WHERE e.event_timestamp < $before
    WITH e ORDER BY e.event_timestamp DESC LIMIT $limit
    OPTIONAL MATCH (e)-[:PLAYED]->(m:Media {tenant_id: $tenant_id})
    RETURN toString(e.play_event_id) AS id, e.event_timestamp AS at, e.action AS action, m.title AS title,
           m.genre AS genre
    ORDER BY at DESC, id DESC
""")
READ_TICKETS = Statement("""
    MATCH (a:Account {tenant_id: $tenant_id, email: $email})-[:SUBMITTED]->(t:Ticket {tenant_id: $tenant_id})
    WHERE t.created_at < $before
    RETURN toString(t.ticket_id) AS id, t.created_at AS at, t.subject AS subject, t.status AS status,
           t.priority AS priority,
           COLLECT {
               MATCH (t)-[:TAGGED_WITH]->(g:Tag {tenant_id: $tenant_id}) RETURN g.tag_name ORDER BY g.tag_name
           } AS topics
    ORDER BY at DESC, id DESC
    LIMIT $limit
""")
READ_VISITORS = Statement("""
    UNWIND $user_ids AS user_id
    MATCH (v:Visitor {tenant_id: $tenant_id})-[:IS_USER]->(:User {tenant_id: $tenant_id, id: user_id})
    RETURN v.id AS anonymous_id, user_id, v.first_seen AS first_seen, v.last_seen AS last_seen,
           COUNT { (v)-[:HAS_SESSION]->() } AS sessions
    ORDER BY last_seen DESC, anonymous_id
    LIMIT $limit
""")
READ_GROUPS = Statement("""
    UNWIND $user_ids AS user_id
    MATCH (u:User {tenant_id: $tenant_id, id: user_id})-[m:MEMBER_OF]->(g:Group {tenant_id: $tenant_id})
    WITH g, min(m.since) AS since
    RETURN g.type AS type, g.id AS id, g.facts AS facts, since
    ORDER BY type, id
    LIMIT $limit
""")
READ_IDENTIFIERS = Statement("""
    UNWIND $journey_ids AS journey_id
    MATCH (j:Journey {tenant_id: $tenant_id, id: journey_id})<-[:PART_OF]-(c:Correlation {tenant_id: $tenant_id})
    RETURN c.id AS key, c.key_type AS key_type, j.id AS journey_id, COUNT { (c)<-[:HAS_KEY]-() } AS events
    ORDER BY key_type, events DESC, key
    LIMIT $limit
""")


@dataclass(frozen=True)
class Customer:
    """One customer.

    Attributes:
        tenant_id: whose.
        customer_id: as it was asked for.
        users: user_id, first_seen, last_seen, community; those whose events the journeys hold.
        journeys: journey_id, event_count, first_event, last_event.
        account: what query `customer_story` says, and the value and the risk of the account; None without one.
        visitors: anonymous_id, user_id, first_seen, last_seen, sessions: browsers and devices that count for them.
        groups: type, id, facts, since: companies and teams that they belong to.
        identifiers: key, key_type, journey_id, events: why these users are one customer.
        timeline: newest first: kind (event, play, ticket), at, id, title, detail, and of tickets what came before.
        is_more: whether there are earlier entries: those before the `at` of the last.
    """

    tenant_id: str
    customer_id: str
    users: list[dict[str, Any]]
    journeys: list[dict[str, Any]]
    account: dict[str, Any] | None
    visitors: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    identifiers: list[dict[str, Any]]
    timeline: list[dict[str, Any]] = field(default_factory=list)
    is_more: bool = False


@dataclass(frozen=True)
class _Who:
    """Users by whose id or account a customer was found, their journeys, and the account with email and id."""

    users: list[str]
    journeys: list[dict[str, Any]]
    account: dict[str, Any] | None

    @property
    def journey_ids(self) -> list[str]:
        return [journey["journey_id"] for journey in self.journeys]


class Customers:
    """Customers of a tenant.

    Args:
        graph: where they are.
        tenant_id: whose.
        identifiers: secrets that keys are hashed with.
    """

    def __init__(self, graph: Graph, tenant_id: str, identifiers: IdentifierKeys) -> None:
        self._graph = graph
        self._tenant_id = tenant_id
        self._identifiers = identifiers

    def find(self, customer_id: str, limit: int = 100, before: datetime | None = None) -> Customer | None:
        """A customer by a user's id or an account's e-mail address; None when there is none.

        Args:
            customer_id: of a user or an account.
            limit: entries of the timeline at most, identifiers too.
            before: entries of earlier moments only.
        """
        return self._together(lambda reading: reading.customer(customer_id, limit, before))

    def timeline(
        self, customer_id: str, limit: int, before: datetime | None
    ) -> tuple[list[dict[str, Any]], bool] | None:
        """The part of `find` that is the timeline, and whether there is more of it; None without such a customer."""
        return self._together(lambda reading: reading.timeline(customer_id, limit, before))

    def members(self, customer_id: str) -> tuple[list[str], list[str]] | None:
        """Ids of the users and the journeys of a customer; None without such a customer."""
        return self._together(lambda reading: reading.members(customer_id))

    def _together(self, work: "Callable[[_Reading], T]") -> T:
        return self._graph.read_together(lambda read: work(_Reading(read, self._tenant_id, self._identifiers)))


class _Reading:
    """What `Customers` reads in one transaction."""

    def __init__(self, read: Read, tenant_id: str, identifiers: IdentifierKeys) -> None:
        self._statement = read
        self._tenant_id = tenant_id
        self._identifiers = identifiers

    def customer(self, customer_id: str, limit: int, before: datetime | None) -> Customer | None:
        who = self._who(customer_id)
        if who is None:
            return None
        events, timeline, is_more = self._happened(who, limit, before)
        users = {*self._members(who), *(event["user_id"] for event in events if event["user_id"])}
        return Customer(
            self._tenant_id, customer_id,
            users=self._read(READ_USERS, user_ids=sorted(users)),
            journeys=who.journeys,
            account=self._account(who.account) if who.account else None,
            visitors=self._read(READ_VISITORS, user_ids=sorted(users), limit=limit),
            groups=[
                {**row, "facts": json.loads(row["facts"] or "{}")}
                for row in self._read(READ_GROUPS, user_ids=sorted(users), limit=limit)
            ],
            identifiers=self._read(READ_IDENTIFIERS, journey_ids=who.journey_ids, limit=limit),
            timeline=timeline, is_more=is_more,
        )  # fmt: skip

    def timeline(
        self, customer_id: str, limit: int, before: datetime | None
    ) -> tuple[list[dict[str, Any]], bool] | None:
        who = self._who(customer_id)
        return None if who is None else self._happened(who, limit, before)[1:]

    def members(self, customer_id: str) -> tuple[list[str], list[str]] | None:
        who = self._who(customer_id)
        return None if who is None else (self._members(who), who.journey_ids)

    def _who(self, customer_id: str) -> _Who | None:
        users = [row["user_id"] for row in self._read(FIND_USERS, customer_id=customer_id)]
        accounts = self._read(FIND_ACCOUNTS, customer_id=customer_id)
        if not users and not accounts:
            return None
        return _Who(users, self._journeys(users), accounts[0] if accounts else None)

    def _members(self, who: _Who) -> list[str]:
        linked = self._read(READ_USERS_OF_JOURNEYS, journey_ids=who.journey_ids)
        return sorted({*who.users, *(row["user_id"] for row in linked)})

    def _happened(
        self, who: _Who, limit: int, before: datetime | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
        """Events, the timeline that they are in with plays and tickets, and whether there is more of it."""
        until = before or datetime.max.replace(tzinfo=UTC)
        email = who.account["email"] if who.account else None
        # One more than is shown tells whether there are more; all of a moment are shown, however many.
        asked = limit + 1
        while True:
            events = self._events(who.users, who.journey_ids, until, asked)
            entries = self._timeline(events, email, until, asked)
            if len(entries) < asked or entries[asked - 1]["at"] < entries[0]["at"]:
                return events, *page_of(entries, limit)
            asked *= 4

    def _journeys(self, users: list[str]) -> list[dict[str, Any]]:
        hashes = [value_hash(self._tenant_id, "user", user, self._identifiers) for user in users]
        return self._read(READ_JOURNEYS_OF_KEYS, keys=[f"user:{found}" for found in hashes if found])

    def _events(self, users: list[str], journey_ids: list[str], until: datetime, limit: int) -> list[dict[str, Any]]:
        found = self._read(READ_EVENTS, journey_ids=journey_ids, before=until, limit=limit)
        # Events that no journey holds yet: they are ahead of stitching, or of the archive.
        known = [event["id"] for event in found]
        own = self._read(READ_EVENTS_OF_USERS, user_ids=users, known=known, before=until, limit=limit)
        return sorted([*found, *own], key=lambda e: (instant(e["at"]), e["id"]), reverse=True)[:limit]

    def _account(self, found: dict[str, Any]) -> dict[str, Any]:
        query = find_query("customer_story")
        values = query.values({"email": found["email"]}, datetime.now(UTC))
        stories = [plain(row) for row in self._read(query.statement, **values)]
        now = newest_of(self._statement, self._tenant_id) or datetime.now(UTC)
        worth = account_values(read_accounts(self._statement, self._tenant_id, now, found["id"])).to_dicts()
        return {"account_id": found["id"], "story": stories, "value": worth[0] if worth else None}

    def _timeline(
        self, events: list[dict[str, Any]], email: str | None, until: datetime, limit: int
    ) -> list[dict[str, Any]]:
        said = [_event_entry(event) for event in events]
        if email is not None:
            said += [_play_entry(row) for row in self._read(READ_PLAYS, email=email, before=until, limit=limit)]
            said += [_ticket_entry(row) for row in self._read(READ_TICKETS, email=email, before=until, limit=limit)]
        ordered = sorted(said, key=lambda entry: (entry["at"], entry["kind"], entry["id"]), reverse=True)
        for number, entry in enumerate(ordered):
            if entry["kind"] == "ticket":
                earlier = [e for e in ordered[number + 1 :] if entry["at"] - e["at"] <= BEFORE]
                entry["before"] = [{k: e[k] for k in ("at", "title", "detail")} for e in earlier[:SHOWN_BEFORE]]
        return ordered

    def _read(self, statement: Statement, **parameters: Any) -> list[dict[str, Any]]:
        return self._statement(statement, tenant_id=self._tenant_id, **parameters)


def page_of(entries: list[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], bool]:
    """The first entries, and whether there are more; what happened at one moment is not split by a page's end.

    Args:
        entries: newest first, with `at`; all of the first moment at least.
        limit: shown at most, unless more are of the first moment.
    """
    if len(entries) <= limit:
        return entries, False
    whole = [entry for entry in entries[:limit] if entry["at"] > entries[limit]["at"]]
    whole = whole or [entry for entry in entries if entry["at"] == entries[0]["at"]]
    return whole, len(whole) < len(entries)


def _event_entry(row: dict[str, Any]) -> dict[str, Any]:
    products = row["products"]
    named = ", ".join(product["name"] for product in products[:SHOWN_PRODUCTS])
    more = f" and {len(products) - SHOWN_PRODUCTS} more" if len(products) > SHOWN_PRODUCTS else ""
    before = f"before a login of {row['customer_id']}" if row["customer_id"] else "nobody known"
    who = f"user {row['user_id']}" if row["user_id"] and not row["customer_id"] else before
    where = f", session {row['session_id']}" if row["session_id"] else ""
    ahead = ", not landed yet" if row["is_unlanded"] else ""
    return {
        "kind": "event", "at": instant(row["at"]), "id": row["id"],
        "title": f"{row['action']} {named}{more}".rstrip(), "detail": f"{who}{where}{ahead}",
        "session_id": row["session_id"],
        "product_id": products[0]["id"] if products else None,
    }  # fmt: skip


def _play_entry(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "play", "at": instant(row["at"]), "id": row["id"],
        "title": f"{row['action']} {row['title'] or 'a title'}", "detail": row["genre"] or "",
    }  # fmt: skip


def _ticket_entry(row: dict[str, Any]) -> dict[str, Any]:
    detail = ", ".join([row["status"] or "", row["priority"] or "", *row["topics"]])
    return {"kind": "ticket", "at": instant(row["at"]), "id": row["id"], "title": row["subject"], "detail": detail}
