"""Looks for words in the raw bytes of every store, by other means than the product's own search."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from c360_pipeline.settings import Settings, postgres_login
from c360_pipeline.stores.neo4j.graph import Graph

EVERYTHING = "MATCH (n) RETURN properties(n) AS p UNION ALL MATCH ()-[n]->() RETURN properties(n) AS p"


def objects(home: Path, settings: Settings) -> Iterator[tuple[str, str]]:
    """Every object as text, packed or columnar or not, read by the disk under the gateway."""
    root = home / "s3" / "data" / settings.bucket
    for path in root.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        if path.suffix == ".parquet":
            frame = pl.read_parquet(io.BytesIO(content))
            yield str(path), str([list(map(str, column.to_list())) for column in frame])
        yield str(path), content.decode("utf-8", "replace")


def rows_of(login: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every row of a database as text."""
    with psycopg.connect(**login) as connection:
        names = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, name in names:
            statement = sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, name))
            for (text,) in connection.execute(statement):
                yield f"{schema}.{name}", text


def is_word(word: str, text: str) -> bool:
    """Whether a word stands in a text, not as a part of a longer one: some users' ids begin with others'."""
    start = text.find(word)
    while start >= 0:
        before, after = text[start - 1 : start], text[start + len(word) : start + len(word) + 2]
        longer = after[:1].isalnum() or (after[:1] in "-._@+" and after[1:].isalnum())
        if not before.isalnum() and before != "-" and not longer:
            return True
        start = text.find(word, start + 1)
    return False


def places_of(words: list[str], home: Path, settings: Settings, graph: Graph) -> list[tuple[str, str]]:
    """Where words stand: place and word."""
    texts = list(objects(home, settings))
    for database in (settings.etl_db_name, settings.dagster_db_name):
        texts += rows_of(postgres_login(settings, database))
    for folder in ("neo4j", "logs", "cache", "dagster"):
        files = (path for path in (home / folder).rglob("*") if path.is_file())
        texts += [(str(path), path.read_bytes().decode("latin-1")) for path in files]
    texts += [("graph", str(record["p"])) for record in graph.query(EVERYTHING)]
    return [(place, word) for place, text in texts for word in words if is_word(word, text)]
