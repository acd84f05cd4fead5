"""All that is held of a person, for that person: the right of access, by the search of an erasure.

What is theirs is decided as an erasure decides it (`plan`), so that a person is given what would be erased, and nothing
of others. Files of the landing area are not handed over: their lines are the events and the dead letters here.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from c360_pipeline.core.catalog.audience_tables import AUDIENCES
from c360_pipeline.core.catalog.feature_tables import ACCOUNT_VALUES, FEATURES
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.tables import EVENT_JOURNEY, EVENTS, JOURNEYS
from c360_pipeline.core.privacy.erasure import Person, SearchTerms, Traces, theirs, users_frame
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.silos.control_rows import LINEAGE
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.privacy.mentions import ids_of, mentions_of
from c360_pipeline.stages.privacy.plan import Planner
from c360_pipeline.stages.privacy.stores import Observe, Stores

READ_LINKS = Statement("""
    MATCH (u:User {tenant_id: $tenant_id, id: $user_id})-[r]->(p:Product {tenant_id: $tenant_id})
    RETURN type(r) AS link, p.id AS product, properties(r) AS said ORDER BY link, product
""")
"""What the graph says of somebody and products; neighbours who are other people are theirs, and stay out."""
FACTS_OF_LANDING = ("source_uri", "source_etag", "source_line", "content_hash", "event_date")
"""Columns that say where a line stood, which says nothing of a person."""
FOLDER_MODE, FILE_MODE = 0o700, 0o600


@dataclass(frozen=True)
class Export:
    """What is held of a person.

    Attributes:
        tenant_id: whose customer it is.
        user_ids: every spelling of the id that the archive has, the one that was asked for first.
        made_at: ISO 8601, UTC.
        visitors: anonymous ids that are theirs alone.
        shared_visitors: anonymous ids that others were named with, too: what nobody known did there is not handed over.
        events: their events with all that is known of each, by time.
        journeys: the journeys that these are in, with how many of their events each has.
        rows: rows of source databases that are theirs, by table.
        features: what was worked out of that, by table.
        links: what the graph says of them and products.
        dead_letters: what they sent and nobody could read, with the reason.
        real_time: events that the real-time store has of them.
        mentions: how many events and rows of others name them, by table; these are not handed over.
    """

    tenant_id: str
    user_ids: list[str]
    made_at: str
    visitors: list[str]
    shared_visitors: list[str]
    events: list[dict[str, Any]]
    journeys: list[dict[str, Any]]
    rows: dict[str, list[dict[str, Any]]]
    features: dict[str, list[dict[str, Any]]]
    links: list[dict[str, Any]]
    dead_letters: list[dict[str, Any]]
    real_time: list[dict[str, Any]]
    mentions: dict[str, int]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held of them at all."""
        return not any((self.events, self.rows, self.features, self.links, self.dead_letters, self.real_time))

    def as_json(self) -> str:
        """Plain JSON, readable."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, default=_plain)

    def as_page(self) -> str:
        """An HTML page that needs nothing beside it."""
        environment = Environment(
            loader=PackageLoader("c360_pipeline.stages.privacy", "."), autoescape=True, undefined=StrictUndefined
        )
        tables = {f"Rows of {name}": rows for name, rows in self.rows.items()}
        tables |= {f"Worked out: {name.replace('_', ' ')}": rows for name, rows in self.features.items()}
        parts = {
            "Events": self.events, "Journeys": self.journeys, **tables, "Products": self.links,
            "Not readable": self.dead_letters, "Real-time store": self.real_time,
        }  # fmt: skip
        shown = {title: _as_table(rows) for title, rows in parts.items() if rows}
        return environment.get_template("export.html").render(export=self, parts=shown)

    def write(self, folder: Path) -> list[Path]:
        """Write both so that only their owner may read them; returns the files.

        Raises:
            ConfigError: they are there already, or can't be written.
        """
        files = {folder / "person.json": self.as_json(), folder / "person.html": self.as_page()}
        try:
            folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
            for path, content in files.items():
                with open(path, "x", encoding="utf-8", opener=partial(os.open, mode=FILE_MODE)) as file:
                    file.write(content)
        except FileExistsError as error:
            raise ConfigError(f"{error.filename} is there already: say another folder by --out.") from None
        except OSError as error:
            raise ConfigError(f"{folder} can't be written ({error.strerror}): say another folder by --out.") from None
        return list(files)


def export(stores: Stores, person: Person, observe: Observe = lambda what: None) -> Export:
    """Gather all that is held of a person; changes nothing.

    Args:
        stores: where.
        person: who, in any spelling.
        observe: called with what comes next.

    Raises:
        ConflictError: people are being erased now.
    """
    stores.control.privacy.require_no_erasure()
    planner, lake = Planner(stores, Path(), observe), stores.lake
    persons = [Person(*one) for one in planner.spellings([(person.tenant_id, person.user_id)])]
    observe("finding out what is theirs")
    traces = planner.traces_of(persons)
    values, _, keys = planner.known_of(persons, traces)
    events = theirs(lake.scan(EVENTS), persons, traces).collect(engine="streaming").sort("ts", "event_id")
    placed = lake.scan(EVENT_JOURNEY).join(events.lazy().select(EVENTS.key), on=list(EVENTS.key), how="semi")
    counted = placed.group_by("tenant_id", "journey_id").len("their_events")
    seen = lake.scan(JOURNEYS).select("tenant_id", "journey_id", "created_at")
    journeys = counted.join(seen, on=["tenant_id", "journey_id"]).sort("journey_id").collect(engine="streaming")
    features = _features(stores, persons, traces, SearchTerms(values))
    observe("dead letters")
    letters, others = planner.letters_with_bytes(SearchTerms(values), persons, traces)
    observe("graph")
    with stores.open_graph() as graph:
        links = [
            {"link": row["link"], "product": row["product"], **row["said"]}
            for one in persons
            for row in graph.query(READ_LINKS, tenant_id=one.tenant_id, user_id=one.user_id)
        ]
    return Export(
        person.tenant_id, [one.user_id for one in persons], datetime.now(UTC).isoformat(timespec="seconds"),
        [visitor for _, visitor in traces.visitors], [visitor for _, visitor in traces.shared],
        _rows(events.drop(FACTS_OF_LANDING)), _rows(journeys),
        {name: _rows_of(stores, name, of_table) for name, of_table in keys.items()},
        {name: _rows(rows) for name, rows in features.items() if rows.height}, links, letters,
        _real_time(stores, persons),
        mentions_of(lake, stores.control.read(), persons, ids_of(persons, values), keys, traces)
        | ({"dead_letters": others} if others else {}),
    )  # fmt: skip


def _features(
    stores: Stores, persons: Sequence[Person], traces: Traces, terms: SearchTerms
) -> dict[str, pl.DataFrame]:  # fmt: skip
    """Rows of features that are theirs: by user, by visitor, and of accounts those with a value of theirs alone."""
    visitors = traces.frames()[0].lazy()
    given = stores.lake.scan(RECOMMENDATIONS_GIVEN)
    by_user = given.join(users_frame(persons).lazy(), on=["tenant_id", "user_id"], how="semi")
    by_visitor = given.join(visitors, on=["tenant_id", "anonymous_id"], how="semi")
    found = {RECOMMENDATIONS_GIVEN.name: pl.concat([by_user, by_visitor]).unique("given_id").collect()}
    for table in (*FEATURES, *AUDIENCES):
        rows = stores.lake.scan(table)
        if "user_id" in table.columns:
            found[table.name] = rows.join(
                users_frame(persons).lazy(), on=["tenant_id", "user_id"], how="semi"
            ).collect()
        elif table is ACCOUNT_VALUES:
            held = rows.filter(pl.col("tenant_id").is_in({one.tenant_id for one in persons})).collect()
            texts = [name for name, dtype in held.schema.items() if dtype == pl.String]
            hits = held.select(pl.any_horizontal(terms.are_in(held[name]) for name in texts)).to_series()
            found[table.name] = held.filter(hits)
    return found


def _rows_of(stores: Stores, name: str, keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table of the lake by their keys, without what says when they were read."""
    table = stores.lake.stored_table(name, tuple(keys[0]))
    if table is None:
        return []
    wanted = pl.DataFrame(keys, schema={column: table.empty().schema[column] for column in table.key})
    held = stores.lake.scan(table).join(wanted.lazy(), on=list(table.key), how="semi").collect()
    return _rows(held.drop([column for column in LINEAGE if column in held.columns and column != "tenant_id"]))


def _real_time(stores: Stores, persons: Sequence[Person]) -> list[dict[str, Any]]:
    if stores.open_user_events is None:
        return []
    with stores.open_user_events() as table:
        days = [(p.tenant_id, p.user_id, day) for p in persons for day in table.days(p.tenant_id, p.user_id)]
        return [_without_nothing(event._asdict()) for event in table.of_days(days)]


def _rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what a row does not have is left out, and maps are by name."""
    return [_without_nothing(row) for row in frame.iter_rows(named=True)]


def _without_nothing(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _readable(value) for name, value in row.items() if value not in (None, [], {})}


def _readable(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(one, dict) and one.keys() == {"key", "value"} for one in value):
        return {one["key"]: one["value"] for one in value}
    return value


def _plain(value: Any) -> Any:
    match value:
        case datetime() | date():
            return value.isoformat()
        case Decimal():
            return str(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case _:
            return str(value)


def _as_table(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Columns that any row has, in their order, and the cells of each row as text."""
    held = list(rows)
    columns = list(dict.fromkeys(name for row in held for name in row))
    return {"columns": columns, "rows": [[_cell(row.get(name)) for name in columns] for row in held]}


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case datetime():
            return f"{value:%Y-%m-%d %H:%M:%S}"
        case dict():
            return "\n".join(f"{name}: {_cell(one)}" for name, one in value.items())
        case list() | tuple():
            return "\n".join(map(_cell, value))
        case _:
            return str(_plain(value))
