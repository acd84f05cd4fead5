"""Adds two fields to the declaration of an event, and says what every output and store then holds of them.

A process of its own: everything derives from the declaration when it is imported. Prints one JSON object.
"""

import dataclasses
import json
import sys
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from c360_pipeline.core.contract import fields

TEXT = fields.FieldType.TEXT
fields.FIELDS += (
    fields.EventField("channel", "channel", TEXT, "where it was done", in_graph="channel", since=2),
    fields.EventField("contactPhone", "contact_phone", TEXT, "asked for by the shop", personal=True, since=2),
)
PHONE = "+43 660 1234567"
LINE = {
    "tenantId": "acme", "userId": "u1", "sessionId": "s1", "ts": "2025-11-03T10:00:00Z", "action": "view",
    "itemId": "p1", "attrs": {"a": "b"}, "channel": "kiosk", "contactPhone": PHONE,
}  # fmt: skip


def main(folder: Path) -> dict[str, Any]:
    """Land one event with the fields and one without, project both, and look everywhere."""
    import polars as pl

    from c360_pipeline.connections import open_bucket, open_control, open_graph, open_lake, open_landing
    from c360_pipeline.core.catalog.tables import EVENTS
    from c360_pipeline.core.contract.events import Event, json_schema, parse_event
    from c360_pipeline.core.contract.frames import CONTENT, event_frame
    from c360_pipeline.core.landing.decode import decode_file
    from c360_pipeline.core.landing.lines import Delivery
    from c360_pipeline.core.privacy.erasure import Person
    from c360_pipeline.core.silos.control_rows import ControlRows
    from c360_pipeline.settings import load_settings
    from c360_pipeline.stages.landing.ingest import Ingest
    from c360_pipeline.stages.privacy.erasure import Erasure
    from c360_pipeline.stages.privacy.stores import Stores
    from c360_pipeline.stages.projection.events import EventGraph, ProductGraph
    from c360_pipeline.stages.realtime.unlanded_events import write_unlanded
    from c360_pipeline.stages.reconciliation.expected import Archive
    from c360_pipeline.stages.reconciliation.reconcile import reconcile
    from c360_pipeline.stages.reconciliation.results import summarise
    from c360_pipeline.streaming.operators import decode, encode
    from c360_pipeline.streaming.replay import archived_lines

    now = datetime.now(UTC)
    settings = load_settings()
    landing, lake, control = open_landing(settings), open_lake(settings), open_control(settings)
    without = {name: value for name, value in LINE.items() if name not in ("channel", "contactPhone")}
    file = folder / "events.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (LINE, {**without, "userId": "u2", "sessionId": "s2"})))
    landing.put_file(file, "landing/events/date=2025-11-03/")
    Ingest(landing, lake, control.privacy.suppressed_users()).land(landing.event_files(), lambda _: None)
    archived = lake.read(EVENTS).sort("user_id")
    event = parse_event(json.dumps(LINE).encode(), now)
    found: dict[str, Any] = {
        "schema": sorted(json_schema()["properties"]),
        "archive": archived.select("channel", "contact_phone").rows(),
        "id of a line without them": archived["event_id"][1],
        "scanned as parsed": archived["event_id"][0] == event.event_id,
        "changed id": event.event_id != parse_event(json.dumps(without).encode(), now).event_id,
        "codec": decode(encode(event)) == event,
        "compared": sorted(CONTENT),
    }
    with open_graph(settings) as graph:
        graph.schema.apply()
        write_unlanded(graph, event_frame([event]))
        read = "MATCH (a:Action {tenant_id: 'acme', user_id: 'u1'}) RETURN a.channel AS channel"
        found["unlanded in the graph"] = graph.query(read)
        ProductGraph(lake, graph).project()
        EventGraph(lake, graph, ()).project()
        found["in the graph"] = graph.query(read)
        archive = Archive(lake, ControlRows((), (), {}, {}, ()))
        found["reconciled"] = summarise(reconcile(archive, graph))["findings"]
        graph.run("MATCH (a:Action {tenant_id: 'acme', user_id: 'u1'}) SET a.channel = 'web'")
        found["damage"] = [finding["difference"] for finding in summarise(reconcile(archive, graph))["findings"]]
    day = date(2025, 11, 3)
    found["replayed"] = sorted(str(json.loads(line)["channel"]) for line, _ in archived_lines(lake, "acme", day, day))
    try:
        from c360_pipeline.stores.cassandra.user_events import COLUMNS, user_event
    except ImportError:
        found["cassandra"] = None
    else:
        row = user_event(event._asdict())
        found["cassandra"] = [row._asdict()["channel"], "contact_phone" in COLUMNS]
    stores = Stores(open_bucket(settings), landing, lake, control, lambda: open_graph(settings))
    searched = Erasure(stores, folder / "erasure").look([Person("acme", "u1")])[0]
    planned = Erasure(stores, folder / "erasure")._planner.known_of([Person("acme", "u1")])[0]
    found["erasure searches"] = PHONE in planned
    found["hits"] = {one.store: one.hits for one in searched if one.hits}
    found["event"] = list(Event._fields)
    assert dataclasses.is_dataclass(fields.FIELDS[-1])
    assert isinstance(archived, pl.DataFrame)
    assert decode_file(Delivery("f", "e"), json.dumps(LINE).encode(), now).events["channel"].to_list() == ["kiosk"]
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        result = main(Path(scratch))
    sys.stdout.write(json.dumps(result, default=str))
