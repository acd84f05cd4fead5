"""The plan of an erasure: decided once, and kept until the certificate is issued, readable by the owner only."""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import (
    CATALOG,
    DEAD_LETTER_LINES,
    DEAD_LETTERS,
    EVENT_JOURNEY,
    EVENT_KEYS,
    EVENTS,
)
from c360_pipeline.core.contract.identifiers import normal_form, normal_text
from c360_pipeline.core.contract.layout import PERSONAL_TEXTS
from c360_pipeline.core.landing.classify import TRACES, split_suppressed
from c360_pipeline.core.landing.lines import PLACE
from c360_pipeline.core.landing.suppressed import Suppressed
from c360_pipeline.core.privacy.erasure import (
    NO_TRACES,
    Person,
    SearchTerms,
    Traces,
    is_distinctive,
    of_others,
    own_rows,
    own_values,
    theirs,
    traces_of,
)
from c360_pipeline.core.silos.control_rows import LINEAGE
from c360_pipeline.core.sources.records import message_lines
from c360_pipeline.core.sources.source import Sources
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.landing.ingest import PIECE_BYTES, Ingest
from c360_pipeline.stages.privacy.mentions import companions, ids_of, redactable
from c360_pipeline.stages.privacy.search import texts_of
from c360_pipeline.stages.privacy.stores import Observe, Stores, hashed, search_everywhere, shared_hashes
from c360_pipeline.stages.projection.silos import label_tables
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.sources.active import source_of
from c360_pipeline.stages.sources.tables import FOLDER as TABLE_EVENTS
from c360_pipeline.stages.sources.topics import FOLDER as TOPIC_EVENTS
from c360_pipeline.stores.s3.landing import EventFile, LandingFile, dead_letter_key
from c360_pipeline.stores.s3.packed import reader

REASON = "erased"


@dataclass
class Plan:
    """What is to be erased.

    Attributes:
        asked: tenant_id, user_id of those who were named.
        people: the same, and every other spelling of theirs that the archive has.
        values: distinctive values of theirs.
        files: etag and numbers of lines to be blanked, by address.
        letters: ids of dead letters.
        events: tenant_id, event_id of each.
        rows: key columns of rows of silos, by lake table.
        tables: of the lake, whose earlier versions hold something.
        archive: the version of the archive before.
        before: what a search found before anything was done.
        companions: tenant_id, user_id, events of other ids in their journeys, which stay.
        redacted: etag and numbers of lines of others from which their name is taken out, by address.
        traces: visitors and visits that are theirs alone, and those that they share with others.
    """

    asked: list[tuple[str, str]]
    people: list[tuple[str, str]]
    values: list[str]
    files: dict[str, tuple[str, list[int]]]
    letters: list[str]
    events: list[tuple[str, str]]
    rows: dict[str, list[dict[str, Any]]]
    tables: list[str]
    archive: str
    before: list[dict[str, Any]]
    companions: list[tuple[str, str, int]] = field(default_factory=list)
    redacted: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    traces: Traces = NO_TRACES

    @property
    def addresses(self) -> set[str]:
        """Of landing files that are rewritten."""
        return {*self.files, *self.redacted}

    @property
    def ids(self) -> list[str]:
        """Ids of theirs that data of others holds, too, and `values` lacks."""
        return ids_of(self.persons, self.values)

    @property
    def persons(self) -> list[Person]:
        """As the search takes them."""
        return [Person(tenant, user) for tenant, user in self.people]


class Planner:
    """Finds out what is people's.

    Args:
        stores: where.
        folder: for the plan, until it is carried out.
        observe: called with what comes next.
    """

    def __init__(self, stores: Stores, folder: Path, observe: Observe) -> None:
        self._stores = stores
        self._folder = folder
        self._observe = observe

    @property
    def is_decided(self) -> bool:
        """Whether there is a plan that was not carried out yet."""
        return (self._folder / "plan.json").exists()

    def plan(self, wanted: list[tuple[str, str]], *, redact: bool = False) -> Plan:
        """What is to be erased: as it was decided before, or decided now and kept.

        Args:
            wanted: tenant_id, user_id of each.
            redact: their names are taken out of events of others, too.

        Raises:
            ConfigError: another erasure was broken off and has to be finished first.
        """
        path = self._folder / "plan.json"
        if path.exists():
            plan = self._read_plan(path)
            if plan.asked != wanted:
                raise ConfigError(
                    f"An erasure of {len(plan.asked)} other people was broken off. Finish it first: {path} names them."
                )
            return plan
        for tenant, user in wanted:
            self._stores.control.privacy.suppress(tenant, user, REASON)
        people = self.spellings(wanted)
        persons = [Person(*one) for one in people]
        self._observe("finding out what is theirs")
        traces = self.traces_of(persons)
        self._stores.control.privacy.suppress_traces(pl.concat([hashed([], traces), shared_hashes(traces)]), REASON)
        values, events, rows = self.known_of(persons, traces)
        terms = SearchTerms(values)
        letters = self._letters(terms, persons, traces)
        files = self._lines(letters, persons, traces, terms)
        named = ids_of(persons, values)
        found = search_everywhere(self._stores, SearchTerms([*values, *named]), persons, traces, self._observe)
        places = [place for one in found if one.store == "lake" for place in one.places]
        tables = [name for name in self._stores.lake.table_names() if any(f"/{name}/" in f"/{p}" for p in places)]
        before = [one.as_dict() for one in found]
        others = [astuple(one) for one in companions(self._stores.lake, persons)]
        redacted = self._redacted(persons, traces, values) if redact else {}
        plan = Plan(
            wanted, people, values, files, letters["dead_letter_id"].to_list(), events.rows(), rows, tables,
            str(self._stores.lake.versions.version(EVENTS.name) or ""), before, others, redacted, traces,
        )  # fmt: skip
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        scratch = path.with_suffix(".partial")
        scratch.write_text(json.dumps(asdict(plan), default=_plain), encoding="utf-8")
        scratch.chmod(0o600)
        scratch.rename(path)
        return self._read_plan(path)

    @staticmethod
    def _read_plan(path: Path) -> Plan:
        said = json.loads(path.read_text(encoding="utf-8"))
        people = [(tenant, user) for tenant, user in said["people"]]
        # A plan of before there were spellings names the people alone.
        asked = [(tenant, user) for tenant, user in said.get("asked", people)]
        files, redacted = (
            {uri: (etag, lines) for uri, (etag, lines) in said.get(name, {}).items()} for name in ("files", "redacted")
        )
        traces = Traces(**{name: tuple(map(tuple, ids)) for name, ids in said.get("traces", {}).items()})
        decided = {"asked": asked, "people": people, "files": files, "redacted": redacted, "traces": traces}
        return Plan(**{**said, **decided})

    def traces_of(self, persons: list[Person]) -> Traces:
        """The visitors and visits that are theirs alone; and the visitors that they share with others."""
        lake, control = self._stores.lake, self._stores.control
        policy, journeys = control.key_rules.policy(), lake.scan(EVENT_JOURNEY)
        listed = control.privacy.suppressed_users()
        found = []
        for tenant in sorted({one.tenant_id for one in persons}):
            events = lake.scan(EVENTS).filter(tenant_id=tenant).select("tenant_id", "event_id", "user_id", *TRACES)
            of_tenant = [one for one in persons if one.tenant_id == tenant]
            found.append(traces_of(events, journeys, of_tenant, policy.nobody_of(tenant), listed))
        parts = ([row for one in found for row in getattr(one, name)] for name in ("visitors", "visits", "shared"))
        return Traces(*(tuple(rows) for rows in parts))

    def _redacted(self, persons: list[Person], traces: Traces, values: list[str]) -> dict[str, tuple[str, list[int]]]:
        """Lines of others that name these people, by address of the file, with its etag; of files that are there."""
        present = {(file.uri, file.etag) for file in self._stores.landing.event_files()}
        lines: dict[str, tuple[str, list[int]]] = {}
        for uri, etag, number in (
            redactable(self._stores.lake, persons, ids_of(persons, values), traces).sort(PLACE).iter_rows()
        ):
            if (uri, etag) in present:
                lines.setdefault(uri, (etag, []))[1].append(number)
        return lines

    def spellings(self, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """These people, and all ids of the archive with the same normal form."""
        form = normal_form(pl.col("user_id")).alias("form")
        asked = pl.DataFrame(wanted, schema={"tenant_id": pl.String, "user_id": pl.String}, orient="row")
        users = self._stores.lake.scan(EVENTS).select("tenant_id", "user_id").unique().with_columns(form)
        same = users.join(asked.lazy().select("tenant_id", form), on=["tenant_id", "form"], how="semi")
        found = same.select("tenant_id", "user_id").sort(pl.all()).collect(engine="streaming").rows()
        return [*wanted, *(one for one in found if one not in wanted)]

    def known_of(
        self, persons: list[Person], traces: Traces = NO_TRACES
    ) -> tuple[list[str], pl.DataFrame, dict[str, list[dict[str, Any]]]]:
        """Distinctive values of people, their events, and the keys of their rows of silos by lake table."""
        lake = self._stores.lake
        held = theirs(lake.scan(EVENTS), persons, traces).collect(engine="streaming")
        values = {one.user_id for one in persons} | self._only_theirs(held)
        events = held.select("tenant_id", "event_id")
        keys = lake.scan(EVENT_KEYS)
        of_them = keys.join(events.lazy(), on=["tenant_id", "event_id"], how="semi").select("tenant_id", "key_hash")
        of_others = keys.join(events.lazy(), on=["tenant_id", "event_id"], how="anti").select("tenant_id", "key_hash")
        values |= set(of_them.join(of_others, on=["tenant_id", "key_hash"], how="anti").collect()["key_hash"])
        rows, texts = self._silo_rows(persons)
        found = sorted(value for value in values | texts if is_distinctive(value))
        return sorted(set(found) - self._elsewhere(SearchTerms(found), persons, traces, rows)), events, rows

    def _only_theirs(self, theirs: pl.DataFrame) -> set[str]:
        """Ids of their events, values of personal fields, and what rules for keys take for an id on them."""
        entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
        attrs = theirs.select(pl.col("attrs").cast(entries)).explode("attrs").unnest("attrs")
        rules = self._stores.control.key_rules.policy().rules
        names = [rule.source.removeprefix("attrs.") for rule in rules]
        ids = attrs.filter(pl.col("key").is_in(names))["value"]
        traits = theirs.select(pl.col("traits").cast(entries)).explode("traits").unnest("traits")["value"]
        named = (theirs[name] for name in PERSONAL_TEXTS)
        columns = (theirs["event_id"], theirs["session_id"], *named, ids, traits)
        return {value for column in columns for value in column.drop_nulls()}

    def _elsewhere(
        self, terms: SearchTerms, persons: list[Person], traces: Traces, rows: dict[str, list[dict[str, Any]]]
    ) -> set[str]:
        """Values that the catalogue has, or events and rows of silos of others: a city is nobody's."""
        lake, control = self._stores.lake, self._stores.control.read()
        others = [lake.scan(CATALOG), of_others(lake.scan(EVENTS), persons, traces)]
        for tables in label_tables(lake, control).values():
            for table in tables.tables:
                keys = pl.DataFrame(rows.get(table.name, []), schema={k: table.empty().schema[k] for k in table.key})
                others.append(lake.scan(table).join(keys.lazy(), on=list(table.key), how="anti"))
        found: set[str] = set()
        forms = _forms(persons)
        for letters in lake.batches(DEAD_LETTERS):
            raws = [raw.decode("utf-8", "replace") for raw in letters["raw"].drop_nulls() if _names_another(raw, forms)]
            found |= terms.found_in(pl.Series(raws, dtype=pl.String))
        for held in others:
            for batch in held.collect_batches(maintain_order=False):
                for name in batch.columns:
                    if name not in (*LINEAGE, "source_uri"):
                        found |= terms.found_in(texts_of(batch, name))
        return found

    def _silo_rows(self, persons: list[Person]) -> tuple[dict[str, list[dict[str, Any]]], set[str]]:
        """Keys of their rows of silos by lake table, and texts that only these hold."""
        control, lake = self._stores.control.read(), self._stores.lake
        silos = Archive(lake, control).silo_nodes()
        found = own_rows(persons, control.relationships, silos.frames, silos.kinds)
        rows: dict[str, list[dict[str, Any]]] = {}
        texts: set[str] = set()
        for label, tables in label_tables(lake, control).items():
            kind = tables.kind
            for table in tables.tables if label in found else ():
                held = lake.read(table)
                keyed = held.with_columns(pl.col(k).cast(kind.schema[k]) for k in kind.key_columns)
                is_theirs = (
                    keyed.select(kind.key_columns)
                    .with_row_index("row")
                    .join(found[label], on=kind.key_columns, how="semi")["row"]
                )
                mine = held[is_theirs.to_list()]
                if mine.height:
                    rows[table.name] = mine.select(table.key).to_dicts()
                    texts |= set(own_values(mine, held.join(mine.select(table.key), on=list(table.key), how="anti")))
        return rows, texts

    def _letters(self, terms: SearchTerms, persons: list[Person], traces: Traces) -> pl.DataFrame:
        """dead_letter_id of letters that hold a value of theirs, or are of their events."""
        tenants, forms = [one.tenant_id for one in persons], _forms(persons)
        ids = [{"userId": one.user_id} for one in persons] + [
            {"anonymousId": visitor} for _, visitor in traces.visitors
        ]
        names = [json.dumps(one).strip("{}").encode() for one in ids]
        users = [*names, *(name.replace(b": ", b":", 1) for name in names)]
        found = [pl.DataFrame(schema={"dead_letter_id": pl.String})]
        for letters in self._stores.lake.batches(DEAD_LETTERS):
            said = letters.select("dead_letter_id", "raw", "tenant_id").iter_rows()
            raws = [(self._raw(i) if raw is None else raw, tenant) for i, raw, tenant in said]
            # A name too short to be looked for by itself is somebody else's where no tenant is said.
            holds = [
                tenant in (None, *tenants)
                and not _names_another(raw, forms)
                and (terms.count(raw) > 0 or (tenant is not None and any(user in raw for user in users)))
                for raw, tenant in raws
            ]
            found.append(letters.filter(pl.Series(holds, dtype=pl.Boolean)).select("dead_letter_id"))
        return pl.concat(found)

    def letters_with_bytes(
        self, terms: SearchTerms, persons: list[Person], traces: Traces
    ) -> tuple[list[dict[str, Any]], int]:
        """Letters that say by themselves that they are theirs: when, why, and what was sent.

        Returns:
            These; and how many more hold a value of theirs, and may be of others.
        """
        ids = self._letters(terms, persons, traces)
        held = self._stores.lake.held(DEAD_LETTERS, ids, ["dead_letter_id", "first_seen_at", "reason", "raw"])
        forms, found, visitors = _forms(persons), [], set(traces.visitors)
        for row in held.sort("first_seen_at", "dead_letter_id").iter_rows(named=True):
            raw = row["raw"] or self._raw(row["dead_letter_id"])
            said = _said(raw)
            is_hers = (said.get("tenantId"), normal_text(str(said.get("userId", "")))) in forms
            if is_hers or ("userId" not in said and (said.get("tenantId"), said.get("anonymousId")) in visitors):
                sent = raw.decode("utf-8", "backslashreplace")
                found.append({"first_seen_at": row["first_seen_at"], "reason": row["reason"], "sent": sent})
        return found, held.height - len(found)

    def _raw(self, letter_id: str) -> bytes:
        key = dead_letter_key(letter_id)
        return b"".join(self._stores.bucket.pieces(key)) if self._stores.bucket.has(key) else b""

    def _lines(
        self, letters: pl.DataFrame, persons: list[Person], traces: Traces, terms: SearchTerms
    ) -> dict[str, tuple[str, list[int]]]:
        """Lines of the product's own files that are theirs, by address of the file, with its etag.

        A line counts as landing counts it: in files of messages, it is a record.
        """
        stores = self._stores
        # Of theirs alone: others on the list of the suppressed may come off it again.
        sources = own_sources(stores)
        ingest = Ingest(stores.landing, stores.lake, Suppressed(hashed(persons, traces)), sources=sources)
        written = [*stores.landing.files_under(TABLE_EVENTS), *stores.landing.files_under(TOPIC_EVENTS)]
        files = stores.landing.event_files()
        for source in sources:
            files += stores.landing.source_files(source)
        lines: dict[str, set[int]] = defaultdict(set)
        queued = stores.lake.scan(DEAD_LETTER_LINES).join(letters.lazy(), on="dead_letter_id", how="semi").collect()
        etags = {file.uri: file.etag for file in (*written, *files)}
        for uri, etag, number in queued.select("source_uri", "source_etag", "source_line").iter_rows():
            if etags.get(uri) == etag:
                lines[uri].add(number)
        for uri, number in [*self._events_of(ingest, files), *self._records_with(terms, written, sources)]:
            lines[uri].add(number)
        return {uri: (etags[uri], sorted(numbers)) for uri, numbers in lines.items()}

    @staticmethod
    def _events_of(ingest: Ingest, files: list[EventFile]) -> Iterator[tuple[str, int]]:
        """Address and number of each line of files that is of somebody on the list."""
        for batch in ingest.batches(files):
            for rows in (batch.decoded.events, batch.rejected):
                yield from split_suppressed(rows, ingest.suppressed)[1].select("source_uri", "source_line").iter_rows()

    def _records_with(
        self, terms: SearchTerms, files: list[LandingFile], sources: Sources
    ) -> Iterator[tuple[str, int]]:
        """The same of records with a value of theirs: also of what no source reads, and of what is no event."""
        for file in files:
            pieces, source = self._stores.landing.pieces(file, PIECE_BYTES), sources.of(file.uri)
            records = reader(iter(pieces if source is None else message_lines(pieces, source.framing)))
            for number, record in enumerate(iter(records.readline, b""), 1):
                if terms.count(record):
                    yield file.uri, number


def own_sources(stores: Stores) -> Sources:
    """The sources whose files the product wrote itself, rows of tables and messages of topics, active or not."""
    control, found = stores.control, []
    for row in control.sources.rows():
        version = row.active_version or row.newest_version
        if (row.from_table or row.from_topic) and version is not None:
            # One that is wrong has no records: its files are looked at line by line.
            with suppress(ConfigError):
                found.append(source_of(control, row, version, [row.from_topic or ""]))
    return Sources(tuple(found))


def _names_another(raw: bytes, forms: frozenset[tuple[str, str]]) -> bool:
    """Whether a rejected line says by itself that it is of another user."""
    said = _said(raw)
    if not all(isinstance(said.get(name), str) for name in ("tenantId", "userId")):
        return False
    return (said["tenantId"], normal_text(said["userId"])) not in forms


def _said(raw: bytes) -> dict[str, Any]:
    """What a rejected line says, where it can be read."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _forms(persons: list[Person]) -> frozenset[tuple[str, str]]:
    """tenant_id and the normal form of the user_id of each."""
    return frozenset((one.tenant_id, normal_text(one.user_id)) for one in persons)


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
