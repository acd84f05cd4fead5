"""Looks for values of people in everything that the pipeline stores: objects, tables, graph, databases, files."""

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import polars as pl
import psycopg
import pyarrow.parquet as pq
from psycopg import sql

from c360_pipeline.core.landing.classify import TRACES
from c360_pipeline.core.landing.framing import as_utf8
from c360_pipeline.core.privacy.erasure import NO_TRACES, Person, SearchTerms, Traces, theirs, users_frame
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ContractError
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.s3.bucket import Bucket
from c360_pipeline.stores.s3.landing import is_of_messages
from c360_pipeline.stores.s3.packed import reader, unpacked

if TYPE_CHECKING:
    from c360_pipeline.stores.cassandra.user_events import UserEvents

CHUNK_BYTES = 8 * 1024 * 1024
OVERLAP_BYTES = 8 * 1024
"""Of a chunk that is looked at again with the next one: a value may lie across."""
BATCH_ROWS = 65_536
OBJECTS_AT_ONCE = 4
NAMED_PLACES = 20
"""Places that a certificate names."""

FIND_USER = Statement("MATCH (u:User {tenant_id: $tenant_id, id: $user_id}) RETURN u.id AS user_id")
TABLES_OF_A_DATABASE = """
    SELECT table_schema, table_name FROM information_schema.tables
    WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')
    ORDER BY table_schema, table_name
"""
TEXT_COLUMNS = """
    SELECT column_name FROM information_schema.columns
    WHERE table_schema = %(schema)s AND table_name = %(name)s AND data_type IN ('text', 'character varying')
"""


@dataclass(frozen=True)
class Searched:
    """What was looked at in a store.

    Attributes:
        store: which.
        what: objects, rows or files.
        number: how many of them.
        bytes: of their content as it was looked at, 0 where rows were.
        places: hits by place, of places with any.
    """

    store: str
    what: str
    number: int
    bytes: int
    places: dict[str, int]

    @property
    def hits(self) -> int:
        """In all places."""
        return sum(self.places.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values; addresses of at most 20 places."""
        return {
            "store": self.store, "what": self.what, "searched": self.number, "bytes": self.bytes, "hits": self.hits,
            "places": sorted(self.places)[:NAMED_PLACES],
        }  # fmt: skip


def search_objects(
    store: str, bucket: Bucket, prefix: str, terms: SearchTerms, without: tuple[str, ...] = ()
) -> Searched:
    """All objects under a prefix but those under some others, unpacked where they are packed."""

    def look(path: str) -> tuple[str, int, int]:
        try:
            if is_of_messages(path):
                return path, *_count(bucket.pieces(path), terms)
            return path, *_count_unpacked(bucket.pieces(path), path, terms)
        except FileNotFoundError:
            return path, 0, 0  # gone since it was listed, as checkpoints of the stream are

    paths = [o.path for o in bucket.objects(prefix) if not o.path.startswith(without)]
    return _gathered(store, "objects", paths, look)


def search_lake(bucket: Bucket, terms: SearchTerms, people: Iterable[Person], traces: Traces) -> Searched:
    """All objects of the lake: of data files every column, of logs every byte; files of earlier versions too."""
    persons = list(people)

    def look(path: str) -> tuple[str, int, int]:
        content = b"".join(bucket.pieces(path))
        if not path.endswith(".parquet"):
            return path, len(content), terms.count(content)
        frames = map(pl.DataFrame, pq.ParquetFile(io.BytesIO(content)).iter_batches(BATCH_ROWS))
        tenant = _partition(path, "tenant_id")
        return path, len(content), sum(_hits(frame, terms, persons, traces, tenant) for frame in frames)

    return _gathered("lake", "objects", [o.path for o in bucket.objects("lake/")], look)


def _gathered(store: str, what: str, names: list[str], look: Any) -> Searched:
    places: dict[str, int] = {}
    size = 0
    with ThreadPoolExecutor(OBJECTS_AT_ONCE) as pool:
        for name, count, hits in pool.map(look, names):
            size += count
            if hits:
                places[name] = hits
    return Searched(store, what, len(names), size, places)


def _partition(path: str, column: str) -> str | None:
    named = [part.removeprefix(f"{column}=") for part in path.split("/") if part.startswith(f"{column}=")]
    return named[0] if named else None


def _hits(
    frame: pl.DataFrame, terms: SearchTerms, persons: Sequence[Person], traces: Traces, tenant: str | None
) -> int:
    """Values in any column, and rows of these people, whose name may be too short to be looked for by itself."""
    hits = sum(terms.hits(texts_of(frame, name)) for name in frame.columns)
    named = frame if "tenant_id" in frame.columns else frame.with_columns(tenant_id=pl.lit(tenant, pl.String))
    if {"user_id", *TRACES} <= set(frame.columns):
        hits += theirs(named.lazy(), persons, traces).select(pl.len()).collect().item()
    elif "user_id" in frame.columns:
        hits += named.join(users_frame(persons), on=["tenant_id", "user_id"], how="semi").height
    return hits


def texts_of(frame: pl.DataFrame, name: str) -> pl.Series:
    """A column as texts in which values can be found; nothing of numbers and instants."""
    match frame.schema[name]:
        case pl.String() | pl.Categorical() | pl.Enum():
            return frame[name].cast(pl.String)
        case pl.Binary():
            raw = frame[name].drop_nulls()
            return pl.Series([value.decode("utf-8", "replace") for value in raw], dtype=pl.String)
        case pl.Map() as dtype:
            entries = frame[name].cast(pl.List(pl.Struct({"key": dtype.key, "value": dtype.value})))
            return entries.to_frame("v").select(pl.struct("v").struct.json_encode()).to_series()
        case pl.List() | pl.Struct() | pl.Array():
            return frame.select(pl.struct(pl.col(name).alias("v")).struct.json_encode()).to_series()
        case _:
            return pl.Series([], dtype=pl.String)


def search_graph(graph: Graph, terms: SearchTerms, people: Iterable[Person]) -> Searched:
    """All values of all nodes and relationships, and the users themselves."""
    places: dict[str, int] = {}
    for name, held in groupby(graph.audit.all_texts(), key=itemgetter(0)):
        while texts := [text for _, some in islice(held, BATCH_ROWS) for text in some]:
            places[name] = places.get(name, 0) + terms.hits(pl.Series(texts, dtype=pl.String))
    places = {name: hits for name, hits in places.items() if hits}
    users = sum(len(graph.query(FIND_USER, tenant_id=p.tenant_id, user_id=p.user_id)) for p in people)
    if users:
        places["User"] = places.get("User", 0) + users
    counts = graph.counts.label_counts() | graph.counts.type_counts()
    return Searched("graph", "nodes and relationships", sum(counts.values()), 0, places)


def search_user_events(table: "UserEvents", terms: SearchTerms, people: Iterable[Person]) -> Searched:
    """All texts of all rows of Cassandra's table, and the rows of the people themselves."""
    persons = list(people)
    number = hits = 0
    events = table.scan()
    while rows := list(islice(events, BATCH_ROWS)):
        texts = [{name: value if isinstance(value, str | None) else str(value) for name, value in e._asdict().items()}
                 for e in rows]  # fmt: skip
        frame = pl.DataFrame(texts, schema=dict.fromkeys(rows[0]._fields, pl.String))
        number += frame.height
        hits += _hits(frame, terms, persons, NO_TRACES, None)
    hits += sum(len(table.days(tenant, user)) for tenant, user in users_frame(persons).iter_rows())
    return Searched("cassandra", "rows", number, 0, {"user_events": hits} if hits else {})


def search_folder(store: str, folder: Path, terms: SearchTerms) -> Searched:
    """Every byte of every file below a folder."""

    def look(name: str) -> tuple[str, int, int]:
        with Path(name).open("rb") as file:
            return name, *_count(_chunks(file), terms)

    files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
    return _gathered(store, "files", files, look)


def overwrite(path: Path, terms: SearchTerms) -> None:
    """Overwrite values in a file where they stand, so that a process that writes to its end is not disturbed."""
    at = 0
    with path.open("r+b") as file:
        while chunk := file.read(CHUNK_BYTES):
            replaced = terms.replaced(chunk, b"x")
            if replaced != chunk:
                file.seek(at)
                file.write(replaced)
            # A value may lie across: the end is looked at again with what follows.
            at += max(len(chunk) - OVERLAP_BYTES, 1) if len(chunk) == CHUNK_BYTES else len(chunk)
            file.seek(at)


def search_database(store: str, login: dict[str, Any], terms: SearchTerms) -> Searched:
    """Every row of every table of a Postgres database, as text."""
    places: dict[str, int] = {}
    number = 0
    with psycopg.connect(**login) as connection:
        for schema, name in connection.execute(TABLES_OF_A_DATABASE).fetchall():
            table = sql.Identifier(schema, name)
            number += int(_only(connection, sql.SQL("SELECT count(*) FROM {}").format(table)))
            copied = sql.SQL("COPY (SELECT t::text FROM {} AS t) TO STDOUT (FORMAT csv)").format(table)
            with connection.cursor().copy(copied) as rows:
                _, hits = _count((bytes(row) for row in rows), terms)
            if hits:
                places[f"{schema}.{name}"] = hits
    return Searched(store, "rows", number, 0, places)


def overwrite_rows(login: dict[str, Any], tables: Iterable[str], terms: SearchTerms) -> None:
    """Overwrite values in text columns of tables, and write the tables again, so that no earlier row stays behind."""
    with psycopg.connect(**login, autocommit=True) as connection:
        for qualified in tables:
            schema, _, name = qualified.partition(".")
            table = sql.Identifier(schema, name)
            columns = [row[0] for row in connection.execute(TEXT_COLUMNS, {"schema": schema, "name": name})]
            for column in map(sql.Identifier, columns):
                found = connection.execute(sql.SQL("SELECT ctid::text, {} FROM {}").format(column, table)).fetchall()
                rows = pl.DataFrame(found, schema={"at": pl.String, "text": pl.String}, orient="row")
                update = sql.SQL("UPDATE {} SET {} = %s WHERE ctid = %s::tid").format(table, column)
                for at, text in rows.filter(terms.are_in(rows["text"])).iter_rows():
                    connection.execute(update, (terms.replaced(text.encode(), b"x").decode(), at))
            connection.execute(sql.SQL("VACUUM FULL {}").format(table))


def _only(connection: psycopg.Connection[Any], statement: sql.Composed) -> Any:
    row = connection.execute(statement).fetchone()
    return row[0] if row else 0


def _count_unpacked(pieces: Iterator[bytes], name: str, terms: SearchTerms) -> tuple[int, int]:
    """The same, of what packed files hold and of texts in other encodings.

    What can't be read to its end counts as a hit, for nobody knows what it holds.
    """
    damage: list[ContractError] = []

    def read() -> Iterator[bytes]:
        try:
            yield from as_utf8(unpacked(reader(pieces), CHUNK_BYTES, name), name)
        except ContractError as error:
            damage.append(error)

    size, hits = _count(read(), terms)
    return size, hits + len(damage)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _count(chunks: Iterable[bytes], terms: SearchTerms) -> tuple[int, int]:
    """How many bytes there are, and how often values stand in them, also across the ends of chunks."""
    size = hits = 0
    tail = b""
    for chunk in chunks:
        size += len(chunk)
        hits += max(terms.count(tail + chunk) - terms.count(tail), 0)
        tail = (tail + chunk)[-OVERLAP_BYTES:]
    return size, hits
