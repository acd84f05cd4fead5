"""Others who name somebody that is erased."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from c360_pipeline.core.catalog.tables import EVENTS
from c360_pipeline.core.landing.decode import decode_file
from c360_pipeline.core.landing.lines import Delivery
from c360_pipeline.core.silos.control_rows import ControlRows
from c360_pipeline.stages.privacy.certificate import mentions_of
from c360_pipeline.stores.delta.lake import Lake

ALICE = "alice@example.org"


def line(tenant: str, user: str, number: int, **attrs: str) -> bytes:
    event = {"tenantId": tenant, "userId": user, "sessionId": "s", "ts": f"2025-11-02T10:00:{number:02}Z",
             "action": "view", "attrs": attrs}  # fmt: skip
    return json.dumps(event).encode()


@pytest.mark.parametrize(("searched", "counted"), [([ALICE], {}), ([], {"events": 2})])
def test_what_names_a_person_and_is_of_others_is_counted(
    tmp_path: Path, searched: list[str], counted: dict[str, int]
) -> None:
    lines = [
        line("acme", "bob", 1, giftTo=ALICE), line("acme", "bob", 2, note=f"for {ALICE}, with love"),
        line("acme", "bob", 3), line("globex", "eve", 4, giftTo=ALICE),
    ]  # fmt: skip
    lake = Lake(str(tmp_path / "lake"), {}, tmp_path / "cache")
    decoded = decode_file(
        Delivery("s3://b/landing/events/date=2025-11-02/a.jsonl", "e"), b"\n".join(lines), datetime.now(UTC)
    )
    lake.commits.insert_new(EVENTS, decoded.events)
    control = SimpleNamespace(read=lambda: ControlRows((), (), {}, {}, ()))
    stores: Any = SimpleNamespace(lake=lake, control=control)
    plan: Any = SimpleNamespace(persons=[SimpleNamespace(tenant_id="acme", user_id=ALICE)], values=searched)
    assert mentions_of(stores, cast("Any", plan)) == counted
