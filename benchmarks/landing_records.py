"""Records of a source through its mapping, against the same events in this project's own form and against peers.

A part of `bench_landing.py`: a million records as Segment writes them, 1 % of them broken off.

- mapped: everything that `landing` does with them, by the preset `segment@1`;
- own-form: the same with lines of the contract that say the same (of an order its first product);
- dlt-records: dlt's filesystem source into its Delta destination, nested tables included, a tenth of the records;
- orjson-records: orjson and a pydantic model per record, appended to Delta in batches of 100,000.

Peers get the file without the broken records, which they fail on.
"""

import gzip
import io
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

RECORDS = ("mapped", "own-form", "dlt-records", "orjson-records")
IN_BENCH_ENVIRONMENT = ("dlt-records", "orjson-records")
SEGMENT, OWN = "segment-logs/", "landing/events/date=2026-11-02/"
CLEAN, TENTH = "clean-records/", "clean-tenth/"
_START = datetime(2026, 11, 2, tzinfo=UTC)


def records(count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Records of Segment, each with the event of the contract that it is."""
    made = random.Random(3)  # noqa: S311 - a sample, the same each time
    for number in range(count):
        at = _START + timedelta(milliseconds=86_000 * number // max(count // 1000, 1))
        visitor, user = f"{made.getrandbits(128):032x}", f"user-{made.randrange(50_000)}@shop.example"
        product = {
            "product_id": f"sku-{made.randrange(5_000)}", "price": made.randrange(100, 99_900) / 100, "currency": "EUR",
            "quantity": 1,
        }  # fmt: skip
        kind = made.choices(
            ("Product Viewed", "Product Added", "Order Completed", "page", "identify"), (6, 2, 1, 2, 1)
        )[0]
        yield _segment(number, at, visitor, user, product, kind), _own(number, at, visitor, user, product, kind)


def _segment(number: int, at: datetime, visitor: str, user: str, product: dict[str, Any], kind: str) -> dict[str, Any]:
    stamp, sent = at.isoformat().replace("+00:00", "Z"), (at + timedelta(seconds=1)).isoformat().replace("+00:00", "Z")
    record: dict[str, Any] = {
        "type": kind if kind in ("page", "identify") else "track", "anonymousId": visitor, "userId": user,
        "messageId": f"ajs-next-{number:032x}", "originalTimestamp": stamp, "sentAt": sent, "receivedAt": sent,
        "timestamp": stamp, "integrations": {"All": True},
        "context": {
            "ip": f"203.0.113.{number % 250}", "userAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0",
            "library": {"name": "analytics.js", "version": "npm:next-1.70.0"}, "locale": "en-GB",
            "page": {"path": "/p", "url": "https://shop.example/p", "referrer": "", "title": "Shop"},
            "campaign": {"name": "autumn", "source": "newsletter"},
        },
    }  # fmt: skip
    if kind == "page":
        return record | {"name": "Home", "properties": {"path": "/", "url": "https://shop.example/"}}
    if kind == "identify":
        return record | {"traits": {"email": user, "plan": "pro"}}
    if kind == "Order Completed":
        return record | {"event": kind, "properties": {"order_id": f"o-{number}", "products": [product]}}
    return record | {"event": kind, "properties": {**product, "category": "audio"}}


_ACTIONS = {
    "Product Viewed": "view",
    "Product Added": "add_to_cart",
    "Order Completed": "purchase",
    "page": "page_view",
}


def _own(number: int, at: datetime, visitor: str, user: str, product: dict[str, Any], kind: str) -> dict[str, Any]:
    event = {
        "tenantId": "acme", "userId": user, "anonymousId": visitor, "ts": at.isoformat(),
        "action": _ACTIONS.get(kind, kind), "eventId": f"ajs-next-{number:032x}",
        "attrs": {
            "ip": f"203.0.113.{number % 250}", "path": "/p", "locale": "en-GB", "campaign": "autumn",
            "campaign_source": "newsletter", "userAgent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0",
        },
    }  # fmt: skip
    return event | ({"itemId": product["product_id"]} if kind in _ACTIONS and kind != "page" else {})


def upload_records(landing: Any, count: int) -> dict[str, int]:
    """Put the files into the bucket; the bytes of the records, and of the events in the own form."""
    sizes = dict.fromkeys(("mapped", "own-form"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        paths = {prefix: Path(scratch) / f"{n}.jsonl.gz" for n, prefix in enumerate((SEGMENT, OWN, CLEAN, TENTH))}
        files = {prefix: gzip.open(path, "wb", 6) for prefix, path in paths.items()}  # noqa: SIM115 - closed below
        for number, (record, event) in enumerate(records(count)):
            raw, own = (
                json.dumps(record, separators=(",", ":")).encode(),
                json.dumps(event, separators=(",", ":")).encode(),
            )
            broken = 30 if number % 100 == 99 else 0
            for prefix, line in ((SEGMENT, raw), (OWN, own)):
                files[prefix].write(line[: len(line) - broken] + b"\n")
            if not broken:
                files[CLEAN].write(raw + b"\n")
                if number % 10 == 0:
                    files[TENTH].write(raw + b"\n")
            sizes["mapped"] += len(raw) + 1
            sizes["own-form"] += len(own) + 1
        for prefix, file in files.items():
            file.close()
            landing.put_file(paths[prefix], prefix)
    return sizes


def lander(bucket: str, options: dict[str, str], source: Any) -> Callable[[], None]:
    """Land into a lake of its own, and hold the accounting to what was sent."""
    from c360_pipeline.connections import open_landing
    from c360_pipeline.core.landing.suppressed import Suppressed
    from c360_pipeline.core.sources.source import Sources
    from c360_pipeline.settings import load_settings
    from c360_pipeline.stages.landing.ingest import Ingest, waiting_files
    from c360_pipeline.stores.delta.lake import Lake

    landing = open_landing(load_settings())
    lake = Lake(f"s3://{bucket}/{uuid4().hex}", options, Path(tempfile.mkdtemp()))
    nobody = Suppressed()
    sources = Sources((source,)) if source else Sources()
    ingest = Ingest(landing, lake, nobody, sources=sources)
    files = landing.source_files(source) if source else landing.event_files()
    _compile(source)

    def land() -> None:
        new, _ = waiting_files(lake, files)
        accounts = ingest.land(new, lambda lines: None)
        landed, lines = sum(one.landed for one in accounts), sum(one.lines for one in accounts)
        if not 0.98 * lines < landed < lines:
            raise SystemExit(f"{landed:,} of {lines:,} records landed")

    return land


def _compile(source: Any) -> None:
    """What the first use compiles."""
    from c360_pipeline.core.landing.decode import decode, decode_records
    from c360_pipeline.core.landing.lines import Delivery, LineBlock

    block, now = LineBlock(Delivery("s3://bench/x", "e"), 1, 0, b"{}\n"), datetime.now(UTC)
    _ = decode_records(block, now, source) if source else decode(block, now)


def segment_source(bucket: str) -> Any:
    """The source of the records."""
    from c360_pipeline.core.sources.location import Location
    from c360_pipeline.core.sources.records import Framing
    from c360_pipeline.core.sources.source import Source
    from c360_pipeline.stages.sources.presets import compiled

    mapping = compiled({"extends": "segment@1", "tenant": {"const": "acme"}}, "shop", 1)
    return Source("shop", Location(f"s3://{bucket}/{SEGMENT}*"), Framing(), mapping)


def orjson_records(read: Callable[[], bytes], bucket: str, options: dict[str, str]) -> Callable[[], None]:
    """What one writes on the first day for this one source."""
    import orjson
    import pyarrow as pa
    from deltalake import write_deltalake
    from pydantic import AwareDatetime, BaseModel, Field, ValidationError

    class Record(BaseModel):
        messageId: str = Field(min_length=1)
        type: str
        event: str | None = None
        userId: str | None = None
        anonymousId: str | None = None
        timestamp: AwareDatetime
        properties: dict[str, Any] = Field(default_factory=dict)
        traits: dict[str, Any] = Field(default_factory=dict)
        context: dict[str, Any] = Field(default_factory=dict)

    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("event_id", "user_id", "anonymous_id", "action", "item_id")),
            ("ts", pa.timestamp("us", "UTC")),
            ("attrs", pa.map_(pa.string(), pa.string())),
        ]
    )

    def row(record: Record) -> dict[str, Any]:
        page, campaign = record.context.get("page", {}), record.context.get("campaign", {})
        attrs = {"ip": record.context.get("ip"), "path": page.get("path"), "locale": record.context.get("locale"),
                 "campaign": campaign.get("name"), "campaign_source": campaign.get("source"),
                 "userAgent": record.context.get("userAgent")}  # fmt: skip
        products = record.properties.get("products") or [record.properties]
        return {
            "event_id": record.messageId, "user_id": record.userId, "anonymous_id": record.anonymousId,
            "action": _ACTIONS.get(record.event or record.type, record.event or record.type),
            "item_id": products[0].get("product_id"), "ts": record.timestamp,
            "attrs": [(name, str(value)) for name, value in attrs.items() if value],
        }  # fmt: skip

    def run() -> None:
        address, rows = f"s3://{bucket}/{uuid4().hex}", list[dict[str, Any]]()

        def write() -> None:
            table = pa.Table.from_pylist(rows, schema=schema)
            write_deltalake(address, table, mode="append", storage_options=options)
            rows.clear()

        with gzip.open(io.BytesIO(read())) as lines:
            for line in lines:
                try:
                    rows.append(row(Record.model_validate(orjson.loads(line))))
                except (ValueError, ValidationError):
                    continue
                if len(rows) == 100_000:
                    write()
        write()

    return run
