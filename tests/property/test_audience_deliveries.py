"""Laws of deliveries: whatever fails, a destination comes to have the members, and each change counts once."""

import itertools
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from repetition import often
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from c360_pipeline.core.audiences.definition import Audience, read_audience
from c360_pipeline.core.catalog.audience_tables import (
    AUDIENCE_DEAD_LETTERS,
    AUDIENCE_DELIVERED,
    AUDIENCE_DELIVERIES,
    AUDIENCE_MEMBERS,
)
from c360_pipeline.core.catalog.tables import USER_CONSENTS
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.audiences import deliver
from c360_pipeline.stages.audiences.deliver import Deliveries, Delivery, Sink, held_by_destinations, tell
from c360_pipeline.stages.audiences.sinks import WebhookSink
from c360_pipeline.stores import activation
from c360_pipeline.stores.activation import Webhook, is_inside
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.audiences import AudienceVersion

NOON = datetime(2026, 3, 20, 12, tzinfo=UTC)
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
POISON = "u13"
AUDIENCE = read_audience(
    {
        "audience": "a", "tenant": "t", "who": {"did": "view"},
        "deliver": {"crm": {"to": "webhook", "url": "http://crm.test/x", "secret_ref": "env:C360_SOURCE_CRM",
                            "purpose": "ads"}},
    }
)  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers as its receiver is in the mood to."""

    protocol_version = "HTTP/1.1"

    def __init__(self, receiver: "Receiver", *args: Any) -> None:
        self.receiver = receiver
        super().__init__(*args)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            Verifier(SECRET).verify(content, dict(self.headers))
        except WebhookVerificationError:
            self.receiver.unsigned += 1
        self.answer(next(self.receiver.moods, "take"), json.loads(content)["changes"])

    def answer(self, mood: str, changes: list[dict[str, Any]]) -> None:
        is_poisoned = any(change["user_id"] == POISON for change in changes)
        is_taken = mood in ("take", "drop after") and not is_poisoned
        if is_taken:
            self.receiver.take(changes)
        if mood.startswith("drop"):
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(int(mood) if mood.isdecimal() else 200 if is_taken else 422)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Receiver:
    """A server that keeps members by the changes that it hears of, each once by its id; what it answers is given."""

    def __init__(self) -> None:
        self.members: set[str] = set()
        self.seen: Counter[str] = Counter()
        self.moods: Iterator[str] = iter(())
        self.unsigned = 0
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/token"

    def take(self, changes: list[dict[str, Any]]) -> None:
        for change in changes:
            self.seen[change["id"]] += 1
            if self.seen[change["id"]] == 1:
                is_new = change["change"] == "entered"
                (self.members.add if is_new else self.members.discard)(change["user_id"])

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def no_waiting() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(activation, "_wait", lambda state: 0.0)
    patch.setattr(deliver, "BATCH", 4)
    yield
    patch.undo()


def sinks_to(url: str, kills: Iterator[bool]) -> Any:
    @contextmanager
    def opened(audience: Audience, destination: str) -> Iterator[Sink]:
        with Webhook(url, SecretStr(SECRET)) as webhook:
            sink = WebhookSink(webhook, {"tenant_id": audience.tenant, "audience": audience.audience})
            send = sink.send

            def killed_after(changes: pl.DataFrame) -> Any:
                done = send(changes)
                if next(kills, False):
                    raise KeyboardInterrupt  # the process goes before it has noted what it sent
                return done

            sink.send = killed_after  # type: ignore[method-assign]
            yield sink

    return opened


def members(users: set[int], moment: datetime) -> pl.DataFrame:
    rows = [("t", "a", f"u{user}", moment, None) for user in sorted(users)]
    return pl.DataFrame(rows, schema=AUDIENCE_MEMBERS.empty().schema, orient="row")


MOODS = st.lists(st.sampled_from(["take", "take", "500", "429", "drop before", "drop after"]), max_size=25)
STEP = st.tuples(
    st.sets(st.integers(0, 20), max_size=15), st.sets(st.integers(0, 20), max_size=3), MOODS,
    st.lists(st.booleans(), max_size=4), st.integers(0, 3), st.booleans(),
)  # fmt: skip
"""Who is a member, who refuses, how server and process behave, how often it is tried, whether the audience ended."""


@settings(max_examples=often(8, 300), deadline=None)
@given(st.lists(STEP, min_size=1, max_size=4), st.booleans())
@pytest.mark.usefixtures("no_waiting")
def test_a_destination_comes_to_have_the_members_and_each_change_counts_once(
    steps: list[tuple[set[int], set[int], list[str], list[bool], int, bool]], is_quiet: bool
) -> None:
    """Members change while changes are in doubt, too: nobody waits for a delivery."""
    receiver = Receiver()
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(f"{folder}/lake", {}, Path(folder) / "cache")
        lake.commits.append(USER_CONSENTS, USER_CONSENTS.empty())
        kept: set[int] = set()
        for number, (users, refusing, moods, kills, tries, is_ended) in enumerate(steps):
            said = [("t", f"u{user}", "ads", "denied", NOON, None, "e") for user in sorted(refusing)]
            lake.commits.replace(USER_CONSENTS, pl.DataFrame(said, USER_CONSENTS.empty().schema, orient="row"))
            gone = pl.DataFrame({"user_id": [f"u{one}" for one in kept - users]}, schema={"user_id": pl.String})
            lake.commits.merge(
                AUDIENCE_MEMBERS, members(users - kept, NOON + timedelta(days=number)),
                lake.read(AUDIENCE_MEMBERS).join(gone, on="user_id", how="semi").select(AUDIENCE_MEMBERS.key),
            )  # fmt: skip
            kept = users
            receiver.moods = iter([] if is_quiet else moods)
            killed = iter(kills)
            for _ in range(tries):
                with suppress(KeyboardInterrupt):
                    Deliveries(lake, sinks_to(receiver.url, killed)).deliver(AUDIENCE, "crm", is_ended=is_ended)
        receiver.moods = iter(())
        deliveries = Deliveries(lake, sinks_to(receiver.url, iter(())))
        done = deliveries.deliver(AUDIENCE, "crm")
        wanted = {f"u{user}" for user in kept - refusing}
        assert receiver.members == wanted - {POISON}
        held = lake.read(AUDIENCE_DELIVERED)
        assert {*held["user_id"]} == receiver.members
        assert {*held["state"]} <= {"has"}
        assert {*lake.read(AUDIENCE_DEAD_LETTERS)["user_id"]} == wanted & {POISON}
        assert (done.members, done.dead + done.refused) == (held.height, len(wanted & {POISON}))
        assert (done.withheld, done.waiting, done.error) == (len(kept & refusing), 0, "")
        again = deliveries.deliver(AUDIENCE, "crm")
        assert (again.entered, again.left) == (0, 0)
    receiver.close()
    assert not receiver.unsigned


@pytest.mark.usefixtures("no_waiting")
def test_without_failures_each_change_is_sent_once_and_what_is_quiet_is_not_accounted_again(tmp_path: Path) -> None:
    receiver, lake = Receiver(), Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    lake.commits.append(USER_CONSENTS, USER_CONSENTS.empty())
    lake.commits.append(AUDIENCE_MEMBERS, members({*range(1, 12)}, NOON))
    deliveries = Deliveries(lake, sinks_to(receiver.url, iter(())))

    def told(done: Delivery) -> tuple[int, int, int, int]:
        return done.entered, done.left, done.waiting, done.members

    assert told(deliveries.deliver(AUDIENCE, "crm")) == (11, 0, 0, 11)
    assert told(deliveries.deliver(AUDIENCE, "crm")) == (0, 0, 0, 11)
    assert lake.count(AUDIENCE_DELIVERIES) == 1
    assert told(deliveries.deliver(AUDIENCE, "crm", is_ended=True)) == (0, 11, 0, 0)
    assert {*receiver.seen.values()} == {1}
    assert len(receiver.seen) == 22
    assert not receiver.members
    receiver.close()


@pytest.mark.usefixtures("no_waiting")
def test_a_server_that_is_away_says_so_and_nothing_is_lost(tmp_path: Path) -> None:
    lake = Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    lake.commits.append(USER_CONSENTS, USER_CONSENTS.empty())
    lake.commits.append(AUDIENCE_MEMBERS, members({1, 2}, NOON))
    closed = Receiver()
    closed.close()
    found = Deliveries(lake, sinks_to(closed.url, iter(()))).deliver(AUDIENCE, "crm")
    assert (found.waiting, found.members) == (2, 0)
    assert "does not answer" in found.error
    assert "token" not in found.error, "what is behind the host may be a secret"
    assert lake.read(AUDIENCE_DELIVERIES)["waiting"].to_list() == [2]


@pytest.mark.usefixtures("no_waiting")
def test_an_erasure_tells_the_destination_and_says_when_it_could_not(tmp_path: Path) -> None:
    receiver, lake = Receiver(), Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    lake.commits.append(USER_CONSENTS, USER_CONSENTS.empty())
    lake.commits.append(AUDIENCE_MEMBERS, members({1, 2}, NOON))
    sinks, name = sinks_to(receiver.url, iter(())), ("t", "a", "crm")
    versions = [AudienceVersion("t", "a", 1, 1, AUDIENCE.document(), "", NOON)]
    Deliveries(lake, sinks).deliver(AUDIENCE, "crm")
    erased = pl.DataFrame({"tenant_id": ["t"], "user_id": ["u1"]})
    assert held_by_destinations(lake, erased) == [name]
    assert held_by_destinations(lake, erased.with_columns(user_id=pl.lit("u7"))) == []
    lake.commits.merge(AUDIENCE_MEMBERS, AUDIENCE_MEMBERS.empty(), members({1}, NOON).select(AUDIENCE_MEMBERS.key))
    receiver.moods = iter(["500"] * 8)
    assert "500" in tell(lake, sinks, versions, name, nullcontext)
    assert receiver.members == {"u1", "u2"}
    receiver.moods = iter(())
    assert tell(lake, sinks, versions, name, nullcontext) == ""
    assert receiver.members == {"u2"}
    assert tell(lake, sinks, [], name, nullcontext) == "no document says how to reach it."
    receiver.close()


@pytest.mark.parametrize("mood", ["302", "304", "401", "404"])
@pytest.mark.usefixtures("no_waiting")
def test_what_is_no_yes_is_none(mood: str, tmp_path: Path) -> None:
    receiver, lake = Receiver(), Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    lake.commits.append(USER_CONSENTS, USER_CONSENTS.empty())
    lake.commits.append(AUDIENCE_MEMBERS, members({1, 2}, NOON))
    receiver.moods = iter([mood])
    done = Deliveries(lake, sinks_to(receiver.url, iter(()))).deliver(AUDIENCE, "crm")
    assert (done.members, done.waiting, mood in done.error) == (0, 2, True)
    receiver.close()


@pytest.mark.usefixtures("no_waiting")
def test_a_server_that_refuses_everything_is_asked_a_few_times_and_loses_nobody(tmp_path: Path) -> None:
    receiver, lake = Receiver(), Lake(f"{tmp_path}/lake", {}, tmp_path / "cache")
    lake.commits.append(USER_CONSENTS, USER_CONSENTS.empty())
    lake.commits.append(AUDIENCE_MEMBERS, members({*range(14, 64)}, NOON))
    asked = itertools.count()
    receiver.moods = ("422" for _ in asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deliver, "BATCH", 500)
        done = Deliveries(lake, sinks_to(receiver.url, iter(()))).deliver(AUDIENCE, "crm")
    assert (done.refused, done.waiting, done.members) == (0, 50, 0)
    assert next(asked) < 40
    assert lake.count(AUDIENCE_DEAD_LETTERS) == 0
    receiver.close()


def test_no_pattern_opens_an_address_inside() -> None:
    inside = ("127.0.0.1", "::1", "10.1.2.3", "192.168.0.9", "169.254.169.254", "::ffff:169.254.169.254", "0.0.0.0",  # noqa: S104
              "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "224.0.0.1", "100.64.0.1")  # fmt: skip
    assert [address for address in inside if not is_inside(address)] == []
    assert [address for address in ("8.8.8.8", "2606:4700::1111") if is_inside(address)] == []
    receiver = Receiver()
    # Between the look-up and the request a name may come to lead elsewhere: the connection itself is looked at.
    with Webhook(receiver.url, SecretStr(SECRET), may_be_inside=False) as webhook, pytest.raises(ConfigError):
        webhook.post("m", {"changes": []})
    assert not receiver.seen
    receiver.close()
    for url in ("http://169.254.169.254\\.partner.test/", "http://user@x.test/", "ftp://x.test/", "http://x.test?a"):
        with pytest.raises(ConfigError):
            read_audience(
                {**AUDIENCE.document(), "deliver": {"a": {**AUDIENCE.document()["deliver"]["crm"], "url": url}}}
            )
