"""Erasure of people from every store, with a certificate of what was searched and that nothing is left.

What is to be done is decided once and kept in a plan, readable by the owner only, until the certificate is issued: each
step can be broken off and done again, and a step that removes what tells of a person does not hide the rest.

Lines of landing files become blank, so that the numbers of the others stay; the books follow the file's new etag, and
the archive is compared with the files as a backfill compares them. What the archive does not hold any more leaves
journeys and graph as anything else does. Earlier versions of the tables that were touched are forgotten.
"""

import gzip
import json
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

import polars as pl

from c360_pipeline.core.arrays.row_hashes import row_name_hash, user_hash
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.tables import (
    ACCOUNT_VALUES,
    CATALOG,
    DEAD_LETTER_LINES,
    DEAD_LETTERS,
    EVENT_KEYS,
    EVENTS,
    FEATURES,
    JOURNEY_LOG,
    LANDING_FILES,
    RECONCILIATION_FINDINGS,
    Table,
)
from c360_pipeline.core.landing.dead_letters import emptied
from c360_pipeline.core.landing.decode import split_suppressed
from c360_pipeline.core.privacy.erasure import (
    Needles,
    Person,
    is_distinctive,
    is_overwritable,
    own_rows,
    own_values,
    users_frame,
)
from c360_pipeline.core.privacy.retention import ACTION, expired
from c360_pipeline.core.silos.control_rows import LINEAGE
from c360_pipeline.errors import C360Error, ConfigError
from c360_pipeline.stages.landing.backfill import backfill
from c360_pipeline.stages.landing.event_removal import remove_events
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stages.privacy.search import (
    Searched,
    overwrite,
    overwrite_rows,
    search_database,
    search_folder,
    search_graph,
    search_lake,
    search_objects,
    search_user_events,
    texts_of,
)
from c360_pipeline.stages.projection.everything import project_all, stitch_all
from c360_pipeline.stages.projection.silos import label_tables
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import drift, graph_digest, reconcile
from c360_pipeline.stages.recovery.cypher_script import SCRIPTS_PREFIX
from c360_pipeline.stages.stitching.catch_up import Stitching
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.tables import PUBLISHED
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.bucket import GZIP_MAGIC, Bucket
from c360_pipeline.stores.s3.landing import EventFile, Landing, dead_letter_key

if TYPE_CHECKING:
    from c360_pipeline.stores.cassandra.user_events import UserEvents

Observe = Callable[[str], None]
REASON = "erased"
TOUCHED = (EVENTS, LANDING_FILES, DEAD_LETTERS, DEAD_LETTER_LINES, RECONCILIATION_FINDINGS, JOURNEY_LOG,
           *FEATURES, *PUBLISHED)  # fmt: skip
"""Tables that an erasure writes, beside those of silos."""
LINE_BYTES = 1024 * 1024
LOGS = ("public.etl_run_logs", "public.etl_table_logs", "public.event_logs", "public.runs", "public.run_tags",
        "public.asset_check_executions")  # fmt: skip
"""Tables of databases that tell what happened."""
SILOS = "silos/"
AREAS = ("landing/", "dead-letters/", "lake/")
"""Parts of the bucket that are searched each in its own way."""


class ErasureError(C360Error):
    """Values of a person are still somewhere; the certificate says where."""


@dataclass(frozen=True)
class Stores:
    """All that may hold a person.

    Attributes:
        bucket: landing area, dead letters and lake as objects.
        landing: the landing area.
        lake: the tables.
        control: the control database.
        open_graph: opens the graph.
        databases: logins of Postgres databases of ours, by what they are called.
        files: folders of files of ours, by what they are called.
        cache: folder of what can be made again at any time.
        remake_graph: makes the graph's store anew, without a trace of what was removed; None where it is not ours.
        graph_files: folder of the graph's store; None where it is not ours.
        open_user_events: opens Cassandra's table; None where there is none.
    """

    bucket: Bucket
    landing: Landing
    lake: Lake
    control: ControlDb
    open_graph: Callable[[], Graph]
    databases: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    cache: Path | None = None
    remake_graph: Callable[[], object] | None = None
    graph_files: Path | None = None
    open_user_events: "Callable[[], UserEvents] | None" = None


@dataclass
class Plan:
    """What is to be erased.

    Attributes:
        people: tenant_id, user_id of each.
        values: distinctive values of theirs.
        files: etag and numbers of lines to be blanked, by address.
        letters: ids of dead letters.
        events: tenant_id, event_id of each.
        rows: key columns of rows of silos, by lake table.
        tables: of the lake, whose earlier versions hold something.
        archive: the version of the archive before.
        before: what a search found before anything was done.
    """

    people: list[tuple[str, str]]
    values: list[str]
    files: dict[str, tuple[str, list[int]]]
    letters: list[str]
    events: list[tuple[str, str]]
    rows: dict[str, list[dict[str, Any]]]
    tables: list[str]
    archive: str
    before: list[dict[str, Any]]

    @property
    def persons(self) -> list[Person]:
        """As the search takes them."""
        return [Person(tenant, user) for tenant, user in self.people]


@dataclass(frozen=True)
class Certificate:
    """What an erasure did, without naming anybody.

    Attributes:
        certificate_id: random.
        issued_at: ISO 8601, UTC.
        people: tenant_id and user_hash of each, as the list of the suppressed has them.
        values_searched: how many distinctive values were looked for, as words in all bytes.
        removed: how many events, lines of landing files, dead letters, and rows of silos by table.
        stores: of each what was searched, and the hits before and after.
        graph_digest: of the graph afterwards.
        findings: differences between graph and archive afterwards.
        is_clean: whether nothing is left.
        notes: what the search can't see.
    """

    certificate_id: str
    issued_at: str
    people: list[dict[str, str]]
    values_searched: int
    removed: dict[str, Any]
    stores: list[dict[str, Any]]
    graph_digest: str
    findings: int
    is_clean: bool
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


NOTES = [
    "Backups that were taken before hold what they held: erase again after a restore.",
    "The source databases are not ours: what they still hold of the person is not read again.",
    "Databases are searched row by row. A bucket that keeps old versions of objects keeps them: let these expire.",
]


STREAM_NOTES = [
    "Kafka keeps messages until its retention ends; what is read of these people until then is suppressed.",
    "Cassandra keeps what was deleted on its disks until it compacts, and in backups of its own.",
]


class Erasure:
    """Erases people.

    Nothing else may run meanwhile.

    Args:
        stores: where.
        folder: for the plan, until it is carried out.
        observe: told what comes next.
    """

    def __init__(self, stores: Stores, folder: Path, observe: Observe = lambda what: None) -> None:
        self._stores = stores
        self._folder = folder
        self._observe = observe

    def erase(self, people: Iterable[Person], keep: Callable[[Certificate], object]) -> Certificate:
        """Erase people of one or more tenants; done again after a crash, it goes on.

        Args:
            people: who.
            keep: keeps the certificate; what is to be done is forgotten afterwards.

        Raises:
            ConfigError: another erasure was broken off and has to be finished first.
        """
        wanted = sorted({(one.tenant_id, one.user_id) for one in people})
        self._stores.control.privacy.begin_erasure()
        plan = self._plan(wanted)
        for step in (
            self._erase_letters, self._erase_lines, self._erase_events, self._erase_rows, self._erase_user_events,
            self._follow, self._erase_traces, self._forget,
        ):  # fmt: skip
            step(plan)
        certificate = self._certificate(plan)
        keep(certificate)
        if certificate.is_clean:
            shutil.rmtree(self._folder)
            self._stores.control.privacy.end_erasure()
        return certificate

    def search(self, people: Iterable[Person]) -> list[Searched]:
        """Look for people's values everywhere; changes nothing."""
        persons = list(people)
        values, _, _ = self._known_of(persons)
        return self._search(Needles(values), persons)

    def _plan(self, wanted: list[tuple[str, str]]) -> Plan:
        path = self._folder / "plan.json"
        if path.exists():
            plan = self._read_plan(path)
            if plan.people != wanted:
                raise ConfigError(
                    f"An erasure of {len(plan.people)} other people was broken off. Finish it first: {path} names them."
                )
            return plan
        for tenant, user in wanted:
            self._stores.control.privacy.suppress(tenant, user, REASON)
        persons = [Person(*one) for one in wanted]
        self._observe("finding out what is theirs")
        values, events, rows = self._known_of(persons)
        needles = Needles(values)
        letters = self._letters(needles, persons)
        files = self._lines(letters, persons)
        found = self._search(needles, persons)
        places = [place for one in found if one.store == "lake" for place in one.places]
        tables = [name for name in self._stores.lake.table_names() if any(f"/{name}/" in f"/{p}" for p in places)]
        before = [one.as_dict() for one in found]
        plan = Plan(
            wanted, values, files, letters["dead_letter_id"].to_list(), events.rows(), rows, tables,
            str(self._stores.lake.versions.version(EVENTS.name) or ""), before,
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
        files = {uri: (etag, lines) for uri, (etag, lines) in said["files"].items()}
        return Plan(**{**said, "people": people, "files": files})

    def _known_of(self, persons: list[Person]) -> tuple[list[str], pl.DataFrame, dict[str, list[dict[str, Any]]]]:
        """Distinctive values of people, their events, and the keys of their rows of silos by lake table."""
        lake = self._stores.lake
        users = users_frame(persons).lazy()
        theirs = lake.scan(EVENTS).join(users, on=["tenant_id", "user_id"], how="semi").collect(engine="streaming")
        values = {one.user_id for one in persons} | self._only_theirs(theirs)
        events = theirs.select("tenant_id", "event_id")
        keys = lake.scan(EVENT_KEYS)
        of_them = keys.join(events.lazy(), on=["tenant_id", "event_id"], how="semi").select("tenant_id", "key_hash")
        of_others = keys.join(events.lazy(), on=["tenant_id", "event_id"], how="anti").select("tenant_id", "key_hash")
        values |= set(of_them.join(of_others, on=["tenant_id", "key_hash"], how="anti").collect()["key_hash"])
        rows, texts = self._silo_rows(persons)
        found = sorted(value for value in values | texts if is_distinctive(value))
        return sorted(set(found) - self._elsewhere(Needles(found), users, rows)), events, rows

    def _only_theirs(self, theirs: pl.DataFrame) -> set[str]:
        """Ids of their events, and what rules for keys take for an id on them."""
        entries = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
        attrs = theirs.select(pl.col("attrs").cast(entries)).explode("attrs").unnest("attrs")
        rules = self._stores.control.key_rules.policy().rules
        names = [rule.source.removeprefix("attrs.") for rule in rules]
        ids = attrs.filter(pl.col("key").is_in(names))["value"]
        return {value for column in (theirs["event_id"], theirs["session_id"], ids) for value in column.drop_nulls()}

    def _elsewhere(self, needles: Needles, users: pl.LazyFrame, rows: dict[str, list[dict[str, Any]]]) -> set[str]:
        """Values that the catalogue has, or events and rows of silos of others: a city is nobody's."""
        lake, control = self._stores.lake, self._stores.control.read()
        others = [lake.scan(CATALOG), lake.scan(EVENTS).join(users, on=["tenant_id", "user_id"], how="anti")]
        for tables in label_tables(lake, control).values():
            for table in tables.tables:
                keys = pl.DataFrame(rows.get(table.name, []), schema={k: table.empty().schema[k] for k in table.key})
                others.append(lake.scan(table).join(keys.lazy(), on=list(table.key), how="anti"))
        found: set[str] = set()
        persons = [Person(*row) for row in users.select("tenant_id", "user_id").collect().iter_rows()]
        for letters in lake.batches(DEAD_LETTERS):
            raws = [
                raw.decode("utf-8", "replace") for raw in letters["raw"].drop_nulls() if _names_another(raw, persons)
            ]
            found |= needles.found_in(pl.Series(raws, dtype=pl.String))
        for held in others:
            for batch in held.collect_batches(maintain_order=False):
                for name in batch.columns:
                    if name not in (*LINEAGE, "source_uri"):
                        found |= needles.found_in(texts_of(batch, name))
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

    def _letters(self, needles: Needles, persons: list[Person]) -> pl.DataFrame:
        """dead_letter_id of letters that hold a value of theirs, or are of their events."""
        tenants = [one.tenant_id for one in persons]
        names = [json.dumps({"userId": one.user_id}).strip("{}").encode() for one in persons]
        users = [*names, *(name.replace(b": ", b":", 1) for name in names)]
        found = [pl.DataFrame(schema={"dead_letter_id": pl.String})]
        for letters in self._stores.lake.batches(DEAD_LETTERS):
            said = letters.select("dead_letter_id", "raw", "tenant_id").iter_rows()
            raws = [(self._raw(i) if raw is None else raw, tenant) for i, raw, tenant in said]
            # A name too short to be looked for by itself is somebody else's where no tenant is said.
            holds = [
                tenant in (None, *tenants)
                and not _names_another(raw, persons)
                and (needles.count(raw) > 0 or (tenant is not None and any(user in raw for user in users)))
                for raw, tenant in raws
            ]
            found.append(letters.filter(pl.Series(holds, dtype=pl.Boolean)).select("dead_letter_id"))
        return pl.concat(found)

    def _raw(self, letter_id: str) -> bytes:
        key = dead_letter_key(letter_id)
        return b"".join(self._stores.bucket.pieces(key)) if self._stores.bucket.has(key) else b""

    def _lines(self, letters: pl.DataFrame, persons: list[Person]) -> dict[str, tuple[str, list[int]]]:
        """Lines of landing files that are theirs, by address of the file, with its etag."""
        stores = self._stores
        # Of theirs alone: others on the list of the suppressed may come off it again.
        ingest = Ingest(stores.landing, stores.lake, _hashed(persons))
        files = stores.landing.event_files()
        lines: dict[str, set[int]] = defaultdict(set)
        queued = stores.lake.scan(DEAD_LETTER_LINES).join(letters.lazy(), on="dead_letter_id", how="semi").collect()
        etags = {file.uri: file.etag for file in files}
        for uri, etag, number in queued.select("source_uri", "source_etag", "source_line").iter_rows():
            if etags.get(uri) == etag:
                lines[uri].add(number)
        for batch in ingest.batches(files):
            for rows in (batch.decoded.events, batch.rejected):
                _, silent = split_suppressed(rows, ingest.suppressed)
                for uri, number in silent.select("source_uri", "source_line").iter_rows():
                    lines[uri].add(number)
        return {uri: (etags[uri], sorted(numbers)) for uri, numbers in lines.items()}

    def _erase_letters(self, plan: Plan) -> None:
        """Letters lose their bytes and what was said of them; the books go on counting their lines."""
        self._observe("dead letters")
        stores = self._stores
        ids = pl.DataFrame({"dead_letter_id": plan.letters}, schema={"dead_letter_id": pl.String})
        held = stores.lake.held(DEAD_LETTERS, ids, list(DEAD_LETTERS.columns))
        without = emptied(held, REASON, datetime.now(UTC)).with_columns(reason=pl.lit(REASON))
        stores.lake.commits.merge(DEAD_LETTERS, without)
        stores.bucket.delete(key for key in map(dead_letter_key, plan.letters) if stores.bucket.has(key))

    def _erase_lines(self, plan: Plan) -> None:
        """Lines of landing files become blank; books, queue and archive follow the new files."""
        stores = self._stores
        renamed: dict[tuple[str, str], str] = {}
        for uri, (etag, numbers) in plan.files.items():
            self._observe(f"lines of {uri}")
            if not stores.bucket.has(uri.removeprefix(f"s3://{stores.bucket.name}/")):
                continue  # somebody removed it since
            file = stores.landing.named(uri)
            if file.etag == etag:
                self._blank(file.key, set(numbers))
                file = stores.landing.named(uri)
            renamed[uri, etag] = file.etag
        self._observe("books and archive")
        stores.lake.commits.rename_deliveries(LANDING_FILES, "etag", renamed)
        for table in (DEAD_LETTER_LINES, DEAD_LETTERS, EVENTS):
            stores.lake.commits.rename_deliveries(table, "source_etag", renamed)
        again: list[EventFile] = [file for file in stores.landing.event_files() if file.uri in plan.files]
        suppressed = stores.control.privacy.suppressed_users()
        backfill(Ingest(stores.landing, stores.lake, suppressed), again, lambda _: None)
        self._remove_expired(plan)

    def _remove_expired(self, plan: Plan) -> None:
        """A backfill lands again what a retention has removed: that goes again."""
        lake, rules = self._stores.lake, self._stores.control.privacy.retention_rules()
        since = lake.versions.still_there(EVENTS, Version.parse(plan.archive)) if plan.archive else None
        if since is None or not plan.files:
            return
        held = lake.scan(EVENTS, since.number).select(EVENTS.key)
        new = (
            lake.scan(EVENTS)
            .filter(pl.col("source_uri").is_in(list(plan.files)))
            .join(held, on=list(EVENTS.key), how="anti")
        )
        remove_events(lake, expired(new, rules, ACTION, datetime.now(UTC), "action", "ts").collect(engine="streaming"))

    def _blank(self, key: str, numbers: set[int]) -> None:
        bucket = self._stores.bucket
        with TemporaryDirectory(prefix="c360-erase-") as folder:
            (copied,) = bucket.fetch([key], Path(folder))
            source, target = Path(folder) / copied.path, Path(folder) / "blanked"
            with source.open("rb") as raw, target.open("wb") as out:
                is_gzip = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
                raw.seek(0)
                try:
                    if is_gzip:
                        with gzip.open(raw) as lines, gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed:
                            _write_blanked(lines, packed, numbers)  # type: ignore[arg-type]  # they read as files do
                    else:
                        _write_blanked(raw, out, numbers)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    raise ErasureError(
                        f"{key} is not a whole gzip file ({error}): what is behind its damage can't be searched. "
                        "Remove it from the landing area, and erase again."
                    ) from None
            # As what it was: its producer may send it again.
            bucket.put(key, target, {"sha256": self._stores.landing.stored_sha256(key) or copied.sha256})

    def _erase_events(self, plan: Plan) -> None:
        """Events whose landing files are gone leave the archive too; the books count them as suppressed."""
        self._observe("events")
        users = users_frame(plan.persons).lazy()
        left = self._stores.lake.scan(EVENTS).join(users, on=["tenant_id", "user_id"], how="semi")
        remove_events(self._stores.lake, left.collect(engine="streaming"))

    def _erase_rows(self, plan: Plan) -> None:
        """Rows of silos leave their snapshots, and are not read again."""
        lake, control = self._stores.lake, self._stores.control
        for name, keys in plan.rows.items():
            self._observe(f"rows of {name}")
            key = list(keys[0])
            table = lake.stored_table(name, key)
            if table is None:
                continue
            schema = {column: table.empty().schema[column] for column in key}
            gone = pl.DataFrame(keys).select(_as_type(column, dtype) for column, dtype in schema.items())
            control.privacy.suppress_rows(name, row_name_hash(name, gone, key).to_list())
            lake.commits.merge(table, table.empty(), gone, on=key)
        self._erase_unlabelled(plan)
        users = users_frame(plan.persons).lazy()
        for table in FEATURES:
            if "user_id" in table.columns:
                theirs = lake.scan(table).join(users, on=["tenant_id", "user_id"], how="semi").select(table.key)
                lake.commits.merge(table, table.empty(), theirs.collect())

    def _erase_unlabelled(self, plan: Plan) -> None:
        """Rows of tables that are no nodes leave them where a text of theirs is one of the values."""
        lake = self._stores.lake
        labelled = {t.name for found in label_tables(lake, self._stores.control.read()).values() for t in found.tables}
        tenants = sorted({tenant for tenant, _ in plan.people})
        for name in lake.table_names():
            table = lake.stored_table(name, ()) if name.startswith(SILOS) and name not in labelled else None
            if table is not None:
                schema = table.empty().schema
                texts = [n for n, dtype in schema.items() if dtype == pl.String and n not in LINEAGE]
                lake.commits.delete_rows(table, tenants, dict.fromkeys(texts, plan.values), blank={})

    def _erase_user_events(self, plan: Plan) -> None:
        """What Cassandra has of them; the stream writes nothing while people are being erased."""
        if self._stores.open_user_events is not None:
            self._observe("cassandra")
            with self._stores.open_user_events() as table:
                for tenant, user in plan.people:
                    table.delete_user(tenant, user)

    def _follow(self, plan: Plan) -> None:
        """Journeys and graph are brought up; then the log of stitching forgets the events."""
        self._observe("journeys")
        stores = self._stores
        stitch_all(stores.lake, stores.control.key_rules.policy())
        with stores.open_graph() as graph:
            project_all(stores.lake, stores.control.read(), graph, self._observe, force=True)
        events = pl.DataFrame(plan.events, schema={"tenant_id": pl.String, "event_id": pl.String}, orient="row")
        if events.height:
            Journeys(stores.lake).purge(events)

    def _erase_traces(self, plan: Plan) -> None:
        """What tables, databases and files of ours say of them in passing."""
        needles, stores = Needles(plan.values), self._stores
        self._observe("traces")
        for table in (RECONCILIATION_FINDINGS, ACCOUNT_VALUES):
            _remove_rows_with(stores.lake, table, needles)
        # Scripts that rebuild the silos' graph hold its rows; the next run writes one of what is left.
        stores.bucket.delete(search_objects("scripts", stores.bucket, SCRIPTS_PREFIX, needles).places)
        # Only where something is told of what happened, and only what can't be a word of that.
        ids = Needles(filter(is_overwritable, plan.values))
        for store, login in stores.databases.items():
            overwrite_rows(login, [place for place in search_database(store, login, ids).places if place in LOGS], ids)
        for store, folder in stores.files.items():
            for path in search_folder(store, folder, ids).places:
                overwrite(Path(path), ids)
        if stores.cache is not None:
            shutil.rmtree(stores.cache, ignore_errors=True)

    def _forget(self, plan: Plan) -> None:
        """Earlier versions of tables, and what the graph's store has on disk of removed nodes."""
        stores = self._stores
        carried = {}
        for name in sorted({*plan.tables, *plan.rows, *(table.name for table in TOUCHED)}):
            self._observe(f"forgetting earlier versions of {name}")
            pair = stores.lake.maintenance.forget_versions(name)
            # Checkpoints of the log are numbers of its commits, not of its versions.
            if pair is not None and name != JOURNEY_LOG.name:
                carried[str(pair[0])] = pair[1]
        # What has been taken up is what it was: under another number, for those that go on from there.
        Stitching(stores.lake, Journeys(stores.lake), stores.control.key_rules.policy()).carry(carried)
        with stores.open_graph() as graph:
            graph.checkpoints.carry(carried)
        if stores.remake_graph is not None:
            self._observe("the graph's store anew")
            stores.remake_graph()

    def _search(self, needles: Needles, persons: list[Person]) -> list[Searched]:
        stores = self._stores
        searches: list[tuple[str, Callable[[], Searched]]] = [
            ("landing area", partial(search_objects, "landing area", stores.bucket, "landing/", needles)),
            ("dead letters", partial(search_objects, "dead letters", stores.bucket, "dead-letters/", needles)),
            ("lake", partial(search_lake, stores.bucket, needles, persons)),
            ("other objects", partial(search_objects, "other objects", stores.bucket, "", needles, AREAS)),
            *((n, partial(search_database, n, login, needles)) for n, login in stores.databases.items()),
            *((n, partial(search_folder, n, folder, needles)) for n, folder in stores.files.items()),
        ]  # fmt: skip
        if stores.cache is not None:
            searches.append(("cache", partial(search_folder, "cache", stores.cache, needles)))
        if stores.graph_files is not None:
            searches.append(("graph files", partial(search_folder, "graph files", stores.graph_files, needles)))
        found = []
        for store, search in searches:
            self._observe(f"searching {store}")
            found.append(search())
        if stores.open_user_events is not None:
            self._observe("searching cassandra")
            with stores.open_user_events() as table:
                found.append(search_user_events(table, needles, persons))
        with stores.open_graph() as graph:
            self._observe("searching graph")
            return [*found, search_graph(graph, needles, persons)]

    def _certificate(self, plan: Plan) -> Certificate:
        stores = self._stores
        after = [found.as_dict() for found in self._search(Needles(plan.values), plan.persons)]
        earlier = {one["store"]: one for one in plan.before}
        compared = [
            {"store": one["store"], "what": one["what"], "searched": one["searched"], "bytes": one["bytes"],
             "hits_before": earlier.get(one["store"], {}).get("hits", 0), "hits_after": one["hits"],
             "left_in": one["places"]}
            for one in after
        ]  # fmt: skip
        with stores.open_graph() as graph:
            results = reconcile(Archive(stores.lake, stores.control.read()), graph)
        users = _hashed(plan.persons)
        removed = {
            "events": len(plan.events), "landing_lines": sum(len(lines) for _, lines in plan.files.values()),
            "dead_letters": len(plan.letters), "silo_rows": {name: len(keys) for name, keys in plan.rows.items()},
        }  # fmt: skip
        findings = len(drift(results))
        return Certificate(
            str(uuid4()), datetime.now(UTC).isoformat(), users.to_dicts(), len(plan.values), removed, compared,
            graph_digest(results), findings, findings == 0 and not any(one["hits_after"] for one in compared),
            NOTES + (STREAM_NOTES if stores.open_user_events is not None else []),
        )  # fmt: skip


def _hashed(persons: Iterable[Person]) -> pl.DataFrame:
    """tenant_id and user_hash, as the list of the suppressed has them."""
    return users_frame(persons).select("tenant_id", user_hash=user_hash())


def _names_another(raw: bytes, persons: list[Person]) -> bool:
    """Whether a rejected line says by itself that it is of another user."""
    try:
        said = json.loads(raw)
    except ValueError:
        return False
    if not isinstance(said, dict) or not all(isinstance(said.get(name), str) for name in ("tenantId", "userId")):
        return False
    return Person.named(said["tenantId"], said["userId"]) not in persons


def _write_blanked(lines: IO[bytes], out: IO[bytes], numbers: set[int]) -> None:
    """Copy lines, of those with these numbers, from 1, their ends only: the others keep theirs."""
    for number, part in _parts(lines):
        if number not in numbers:
            out.write(part)
        elif part.endswith(b"\n"):
            out.write(b"\n")


def _parts(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines, the long ones in parts, each with the number of its line."""
    number = 1
    while part := lines.readline(LINE_BYTES):
        yield number, part
        number += part.endswith(b"\n")


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _as_type(column: str, dtype: pl.DataType) -> pl.Expr:
    """A key column as it was before it went through JSON."""
    match dtype:
        case pl.Datetime():
            return pl.col(column).cast(pl.String).str.to_datetime(time_unit="us", time_zone=dtype.time_zone)
        case pl.Date():
            return pl.col(column).cast(pl.String).str.to_date()
        case pl.Binary():
            return pl.col(column).str.decode("hex")
        case _:
            return pl.col(column).cast(dtype)


def _remove_rows_with(lake: Lake, table: Table, needles: Needles) -> None:
    """Remove rows that hold a value in one of their texts."""
    for rows in lake.batches(table):
        texts = [name for name, dtype in rows.schema.items() if dtype == pl.String]
        hits = pl.select(pl.any_horizontal(needles.are_in(rows[name]) for name in texts)).to_series()
        lake.commits.merge(table, table.empty(), rows.filter(hits).select(table.key))
