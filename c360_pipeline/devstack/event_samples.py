"""Sample events as producers deliver them, good and bad, with the truth about each line.

Visits follow a Markov chain over view, search, add_to_cart, purchase and support. A person has several devices;
visits before a login, calls to the support desk and clicks in newsletters carry other user ids and are linked to the
person by a cookie, an order or the hash of an address. Memory is bounded by the events of two days.
"""

import hashlib
import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from c360_pipeline.devstack.people import (
    ACCOUNTS,
    SAMPLE_DATE,
    TENANTS,
    Person,
    Product,
    people,
    products,
)
from c360_pipeline.devstack.sample_files import TRUTH_FILE, LineTruth, Written, write_catalog, write_lines, write_truth
from c360_pipeline.errors import ConfigError

DAYS = 30
EVENTS_PER_PERSON = 40
FILES = 10
LONGEST_SESSION = 24
CONVERSATION_EVENTS = 2
NEXT = {
    "start": (("view", "search"), (55, 45)),
    "view": (("view", "search", "add_to_cart", "support", "end"), (40, 18, 22, 3, 17)),
    "search": (("view", "search", "end"), (70, 15, 15)),
    "add_to_cart": (("purchase", "view", "end"), (45, 35, 20)),
    "purchase": (("end", "view", "support"), (60, 30, 10)),
    "support": (("end", "view"), (70, 30)),
}
QUERIES = ("gift", "noise cancelling", "usb c", "for kids", "second hand", "birthday", "office", "silent")
CAMPAIGNS = ("autumn", "newsletter", "black-week")


@dataclass(frozen=True)
class SampleRequest:
    """What to generate.

    Attributes:
        events: good events, each of them once.
        tenants: how many customer organisations share them.
        seed: equal requests with equal seeds give equal files.
        malformed_rate: lines that break the contract, per good event.
        duplicate_rate: repetitions of earlier events in another spelling, per good event.
        late_rate: share of good events that arrive hours or days after they happened.
    """

    events: int
    tenants: int
    seed: int
    malformed_rate: float = 0.02
    duplicate_rate: float = 0.03
    late_rate: float = 0.01

    def __post_init__(self) -> None:
        """Check the request.

        Raises:
            ConfigError: a number is out of range; the message says which.
        """
        if self.events < 1:
            raise ConfigError(f"--events {self.events}: at least 1 is right.")
        if not 1 <= self.tenants <= len(TENANTS):
            raise ConfigError(f"--tenants {self.tenants}: from 1 to {len(TENANTS)} is right.")
        for name in ("malformed_rate", "duplicate_rate", "late_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: from 0 to 1 is right.")


DEFAULT_SAMPLE = SampleRequest(events=20_000, tenants=3, seed=1, malformed_rate=0.02, duplicate_rate=0.03)
"""What the demo generates, and what the documents print of it."""


def _fingerprint(request: SampleRequest) -> str:
    """What ids of sessions, cookies and orders bear, so that those of two requests are never the same.

    Events of another request under an id that is taken would be conflicts.
    """
    if request == DEFAULT_SAMPLE:
        return ""
    return "-" + hashlib.sha256(repr(request).encode()).hexdigest()[:6]


@dataclass(order=True)
class Delivery:
    """A line on its way to a file; deliveries are ordered by arrival."""

    arrival: datetime
    number: int
    line: bytes = field(compare=False)
    kind: str = field(compare=False)
    journey: str | None = field(compare=False, default=None)
    error_class: str | None = field(compare=False, default=None)
    original: "Delivery | None" = field(compare=False, default=None)
    place: tuple[str, int] | None = field(compare=False, default=None)


def write_sample(request: SampleRequest, folder: Path, report: Callable[[int], None]) -> Written:
    """Write event files, a catalogue and the truth.

    Args:
        request: how much of what.
        folder: created where it is missing; files of the same names are replaced.
        report: called with the number of lines written, now and then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deliveries = generate(request)
    total = sum(planned_lines(request))
    per_file = -(-total // min(FILES, total))
    counts: Counter[str] = Counter()
    event_files: list[Path] = []
    truth_file = folder / TRUTH_FILE
    with truth_file.open("w", encoding="utf-8") as truth:
        while batch := list(islice(deliveries, per_file)):
            path = folder / f"events-{len(event_files):04d}.jsonl.gz"
            event_files.append(path)
            write_lines(path, (d.line for d in batch))
            for line, delivery in enumerate(batch, 1):
                delivery.place = (path.name, line)
            write_truth(truth, (truth_of(d) for d in batch))
            counts.update(d.kind for d in batch)
            report(counts.total())
    catalog = [p for tenant in TENANTS[: request.tenants] for p in products(tenant)]
    return Written(event_files, write_catalog(folder / "catalog.csv", catalog), truth_file, dict(counts))


def truth_of(delivery: Delivery) -> LineTruth:
    """What is known about a line of which the place is known."""
    file, line = delivery.place or ("", 0)
    original_file, original_line = (delivery.original and delivery.original.place) or (None, None)
    return LineTruth(file, line, delivery.kind, delivery.journey, delivery.error_class, original_file, original_line)


def planned_lines(request: SampleRequest) -> tuple[int, int, int]:
    """Good events, malformed lines, duplicates."""
    return (
        request.events,
        round(request.events * request.malformed_rate),
        round(request.events * request.duplicate_rate),
    )


def generate(request: SampleRequest) -> Iterator[Delivery]:
    """The lines in the order of arrival."""
    good, malformed, duplicates = planned_lines(request)
    waiting: list[Delivery] = []
    plan = _DeliveryPlan(random.Random(f"{request.seed}/deliveries"), request.late_rate)  # noqa: S311 - sample data
    for day in range(DAYS):
        start = SAMPLE_DATE - timedelta(days=DAYS - day)
        today = share(good, day, DAYS)
        events: list[_SampleEvent] = []
        for number, tenant_id in enumerate(TENANTS[: request.tenants]):
            events += _day_of_tenant(request, tenant_id, day, start, share(today, number, request.tenants))
        for delivery in plan.deliver(events, share(malformed, day, DAYS), share(duplicates, day, DAYS)):
            heapq.heappush(waiting, delivery)
        while waiting and waiting[0].arrival < start + timedelta(days=1):
            yield heapq.heappop(waiting)
    while waiting:
        yield heapq.heappop(waiting)


def share(total: int, part: int, parts: int) -> int:
    """How many of `total` fall on part `part` of `parts`; all parts together have them all."""
    return total * (part + 1) // parts - total * part // parts


@dataclass(frozen=True)
class _SampleEvent:
    fields: dict[str, Any]
    ts: datetime
    journey: str


def _day_of_tenant(request: SampleRequest, tenant_id: str, day: int, start: datetime, count: int) -> list[_SampleEvent]:
    rng = random.Random(f"{request.seed}/{tenant_id}/{day}")  # noqa: S311 - sample data
    population = max(ACCOUNTS, request.events // request.tenants // EVENTS_PER_PERSON)
    visits = _Visits(rng, people(tenant_id, population), products(tenant_id), start, _fingerprint(request))
    events: list[_SampleEvent] = []
    while len(events) < count:
        events += visits.next_unit(count - len(events))
    return events


class _Visits:
    """Makes units of sessions: what one person does in a row, whole or not at all, so that its links are whole."""

    def __init__(
        self, rng: random.Random, persons: list[Person], catalog: list[Product], start: datetime, fingerprint: str
    ) -> None:
        self._rng = rng
        self._persons = persons
        self._catalog = catalog
        self._start = start
        self._of = f"{start:%m%d}{fingerprint}"
        self._number = 0

    def next_unit(self, room: int) -> list[_SampleEvent]:
        """The next unit, of at most `room` events."""
        self._number += 1
        # Regulars come again and again, John Smith most of all.
        person = self._persons[int(len(self._persons) * self._rng.random() ** 1.7)]
        at = self._start + timedelta(seconds=self._rng.randint(0, 79_000), milliseconds=self._rng.randint(0, 999))
        cookie = f"c-{person.tenant_id}-{self._of}-{self._number}"
        unit = self._unit(person, at, cookie)
        return unit if len(unit) <= room else self._visit(person, at, cookie, person.user_id)[:room]

    def _unit(self, person: Person, at: datetime, cookie: str) -> list[_SampleEvent]:
        kinds = ("visit", "login", "support", "newsletter", "visitor")
        match self._rng.choices(kinds, (60, 12, 6, 7, 15))[0]:
            case "login":
                before = self._visit(person, at, cookie, f"anon-{cookie}")
                return before + self._visit(person, _after(before), cookie, person.user_id)
            case "support":
                visit = self._visit(person, at, cookie, person.user_id)
                return visit + self._call_about_order(person, visit)
            case "newsletter":
                click = self._newsletter_click(person, at, cookie)
                return [*click, *self._visit(person, _after(click), None, person.user_id, person.email_hash)]
            case "visitor":
                return self._visit(person, at, cookie, f"anon-{cookie}", journey=f"{person.tenant_id}/visitor-{cookie}")
            case _:
                return self._visit(person, at, cookie, person.user_id)

    def _visit(
        self, person: Person, at: datetime, cookie: str | None, user_id: str, email_hash: str | None = None,
        journey: str | None = None,
    ) -> list[_SampleEvent]:  # fmt: skip
        rng = self._rng
        session = f"s-{person.tenant_id}-{self._of}-{self._number}-{'v' if user_id.startswith('anon-') else 'u'}"
        attrs: dict[str, Any] = {"ip": f"198.51.100.{rng.randint(1, 250)}"}
        # A visitor whom nothing links to a person uses a device that nobody else uses.
        attrs["deviceId"] = f"d-{cookie}" if journey else rng.choice(person.devices)
        attrs |= {"cookieId": cookie} if cookie else {}
        attrs |= {"emailHash": email_hash} if email_hash else {}
        attrs |= {"campaign": rng.choice(CAMPAIGNS)} if rng.random() < 0.2 else {}
        events: list[_SampleEvent] = []
        action, item = "start", self._item(person)
        while len(events) < LONGEST_SESSION:
            actions, weights = NEXT[action]
            action = rng.choices(actions, weights)[0]
            if action == "end" and events:
                break
            if action == "end":
                action = "view"
            if action == "view":
                item = self._item(person)
            more, at = (
                self._details(action, item),
                at + timedelta(seconds=rng.randint(5, 90), milliseconds=rng.randint(0, 999)),
            )
            fields: dict[str, Any] = {
                "tenantId": person.tenant_id,
                "userId": user_id,
                "sessionId": session,
                "action": action,
            }
            fields |= {"itemId": item.id} if action not in ("search", "support") else {}
            fields["attrs"] = attrs | more
            if self._number % 3 == 0:
                fields["eventId"] = f"{session}-{len(events) + 1}"
            events.append(_SampleEvent(fields, at, journey or person.household))
        return events

    def _item(self, person: Person) -> Product:
        # Everybody has a taste: two neighbouring categories, and within them the well-known products.
        taste = (person.account_id * 7) % 8
        number = (
            int(len(self._catalog) // 8 * self._rng.random() ** 2) * 8 + (taste + self._rng.choice((0, 0, 0, 1))) % 8
        )
        return self._catalog[number % len(self._catalog)]

    def _details(self, action: str, item: Product) -> dict[str, Any]:
        match action:
            case "search":
                return {"query": self._rng.choice(QUERIES)}
            case "purchase":
                order = f"o-{self._of}-{self._number}-{item.id}-{self._rng.randint(1000, 9999)}"
                return {"orderId": order, "price": item.price, "quantity": self._rng.randint(1, 3)}
            case "add_to_cart":
                return {"quantity": 1}
            case _:
                return {}

    def _call_about_order(self, person: Person, visit: list[_SampleEvent]) -> list[_SampleEvent]:
        orders = [e.fields["attrs"]["orderId"] for e in visit if "orderId" in e.fields["attrs"]]
        if not orders:
            return []
        caller = f"caller-{self._of}-{self._number}"
        at = _after(visit)
        return [
            _SampleEvent(
                {
                    "tenantId": person.tenant_id, "userId": caller, "sessionId": f"call-{person.tenant_id}-{caller}",
                    "action": "support", "attrs": {"orderId": orders[-1], "channel": "phone", "step": step},
                },
                at + timedelta(minutes=step),
                person.household,
            )
            for step in range(CONVERSATION_EVENTS)
        ]  # fmt: skip

    def _newsletter_click(self, person: Person, at: datetime, cookie: str) -> list[_SampleEvent]:
        reader, item = f"reader-{cookie}", self._item(person)
        attrs = {"emailHash": person.email_hash, "campaign": "newsletter"}
        fields = {
            "tenantId": person.tenant_id, "userId": reader, "sessionId": f"mail-{reader}", "action": "view",
            "itemId": item.id, "attrs": attrs,
        }  # fmt: skip
        return [_SampleEvent(fields, at, person.household)]


def _after(events: list[_SampleEvent]) -> datetime:
    return events[-1].ts + timedelta(seconds=40)


class _DeliveryPlan:
    """Turns events into lines with arrival times, and adds what goes wrong on the way."""

    def __init__(self, rng: random.Random, late_rate: float) -> None:
        self._rng = rng
        self._late_rate = late_rate
        self._number = 0
        self._recent: list[tuple[_SampleEvent, Delivery]] = []
        self._malformed = 0

    def deliver(self, events: list[_SampleEvent], malformed: int, duplicates: int) -> Iterator[Delivery]:
        """Deliveries of a day's events; what goes wrong concerns events of this day, or of the last that had any."""
        today = [(event, self._good(event)) for event in events]
        self._recent = today or self._recent
        yield from (delivery for _, delivery in today)
        for _ in range(malformed):
            yield self._bad()
        for _ in range(duplicates):
            yield self._duplicate(*self._rng.choice(self._recent))

    def _good(self, event: _SampleEvent) -> Delivery:
        delay = timedelta(seconds=self._rng.random() * 5)
        if self._rng.random() < self._late_rate:
            delay += timedelta(hours=self._rng.randint(1, 40))
        line = _line({**event.fields, "ts": event.ts.isoformat(timespec="milliseconds").replace("+00:00", "Z")})
        return self._delivery(event.ts + delay, line, kind="event", journey=event.journey)

    def _duplicate(self, event: _SampleEvent, original: Delivery) -> Delivery:
        """The same event as a second producer would spell it: other order of names, other form of the time."""
        names = list(event.fields)
        self._rng.shuffle(names)
        ts: object = round(event.ts.timestamp() * 1000)
        if self._rng.random() < 0.5:
            ts = event.ts.astimezone(UTC).isoformat(timespec="microseconds")
        line = _line({"ts": ts, **{name: event.fields[name] for name in names}})
        return self._delivery(self._later(original), line, kind="duplicate", journey=event.journey, original=original)

    def _bad(self) -> Delivery:
        self._malformed += 1
        error_class = CLASSES[self._malformed % len(CLASSES)]
        candidates = self._recent
        if error_class == CONFLICT:
            candidates = [(event, good) for event, good in self._recent if "eventId" in event.fields]
            error_class = CONFLICT if candidates else CLASSES[0]
        event, original = self._rng.choice(candidates or self._recent)
        fields = {**event.fields, "ts": event.ts.isoformat(), "sessionId": f"bad-{self._malformed}"}
        line = DEFECTS.get(error_class, _line)(fields)
        return self._delivery(self._later(original), line, kind="malformed", error_class=error_class)

    def _later(self, original: Delivery) -> datetime:
        return original.arrival + timedelta(seconds=self._rng.randint(1, 80_000))

    def _delivery(self, arrival: datetime, line: bytes, **facts: Any) -> Delivery:
        self._number += 1
        return Delivery(arrival, self._number, line, **facts)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _without_user(fields: dict[str, Any]) -> bytes:
    return _line({name: value for name, value in fields.items() if name != "userId"})


DEFECTS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "invalid_utf8": lambda fields: _line(fields).replace(b'"action":"', b'"action":"\xff', 1),
    "invalid_json": lambda fields: _line(fields)[:-2],
    "not_an_object": lambda fields: _line([fields]),  # type: ignore[arg-type]  # the defect
    "missing_field": _without_user,
    "wrong_type": lambda fields: _line({**fields, "action": ["view"]}),
    "empty_value": lambda fields: _line({**fields, "userId": "  "}),
    "too_large": lambda fields: _line({**fields, "itemId": "x" * 1100}),
    "bad_timestamp": lambda fields: _line({**fields, "ts": "yesterday"}),
    "timestamp_out_of_range": lambda fields: _line({**fields, "ts": int(SAMPLE_DATE.timestamp())}),
    "too_many_attrs": lambda fields: _line({**fields, "attrs": {f"a{n}": "1" for n in range(65)}}),
}
"""How a good event becomes a line that breaks the contract, by the class of error that it then has."""

CONFLICT = "duplicate_id_conflict"
CLASSES = (*DEFECTS, CONFLICT)
"""Classes in turn; a conflict is a line with other content under an id that a good event has."""
