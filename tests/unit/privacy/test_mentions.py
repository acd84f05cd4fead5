"""Others who name somebody that is erased."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.landing.decode import decode_file
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.core.privacy.erasure import Person
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.stages.privacy.mentions import ids_of, mentions_of, redactable
from c360_pipeline.stores.delta.lake import Lake

ALICE = "alice@example.org"


def line(tenant: str, user: str, number: int, **attrs: str) -> bytes:
    event = {"tenantId": tenant, "userId": user, "sessionId": "s", "ts": f"2025-11-02T10:00:{number:02}Z",
             "action": "view", "attrs": attrs}  # fmt: skip
    return json.dumps(event).encode()


def archive_of(lines: list[bytes], folder: Path) -> Lake:
    lake = Lake(str(folder / "lake"), {}, folder / "cache")
    delivery = Delivery("s3://b/landing/events/date=2025-11-02/a.jsonl", "e")
    lake.commits.insert_new(EVENTS, decode_file(delivery, b"\n".join(lines), datetime.now(UTC)).events)
    return lake


@pytest.mark.parametrize(("searched", "counted"), [([ALICE], {}), ([], {"events": 2})])
def test_what_names_a_person_and_is_of_others_is_counted(
    tmp_path: Path, searched: list[str], counted: dict[str, int]
) -> None:
    lines = [
        line("acme", "bob", 1, giftTo=ALICE), line("acme", "bob", 2, note=f"for {ALICE}, with love"),
        line("acme", "bob", 3), line("globex", "eve", 4, giftTo=ALICE),
    ]  # fmt: skip
    lake = archive_of(lines, tmp_path)
    alice, nothing = [Person("acme", ALICE)], ControlRows((), (), {}, {}, ())
    assert mentions_of(lake, nothing, alice, ids_of(alice, searched)) == counted


def test_a_name_is_taken_out_where_that_leaves_the_event_what_it_is(tmp_path: Path) -> None:
    lines = [
        line("acme", "bob", 1, giftTo=ALICE), line("acme", ALICE, 2), line("acme", f"shared with {ALICE}", 3),
        line("acme", "bob", 4, note=f"{ALICE}.uk"), line("acme", "bob", 5, note=f"<{ALICE}>"),
    ]  # fmt: skip
    lake = archive_of(lines, tmp_path)
    assert redactable(lake, [Person("acme", ALICE)], [ALICE])["source_line"].sort().to_list() == [1, 5]
