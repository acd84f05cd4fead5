"""Keys of one version of the secret, brought to the next: in columns of hashes, and in texts that name keys."""

import json
import re
from collections.abc import Iterable

import polars as pl

from c360_pipeline.core.contract.identifier_keys import IdentifierKeys
from c360_pipeline.core.stitching.log import COMMIT

NAMED = re.compile(r":(\d{20,39})(?!\d)")
"""The hash in `type:hash`; 128 bits have fewer digits once in a quintillion."""


def rotated_hashes(hashes: pl.Expr, keys: IdentifierKeys, since: int) -> pl.Expr:
    """Hashes as decimal text, brought to the newest version; null stays null."""
    return keys.covered(hashes.cast(pl.UInt128), since).cast(pl.String)


def rotated_names(texts: Iterable[str], keys: IdentifierKeys, since: int) -> dict[str, str]:
    """Texts that name keys as `type:hash`, with what they are under the newest version; others are left out."""
    named = {text: NAMED.findall(text) for text in texts}
    found = pl.Series("hash", sorted({one for some in named.values() for one in some}), dtype=pl.String)
    new = found.to_frame().select("hash", new=rotated_hashes(pl.col("hash"), keys, since))
    by_hash = dict(new.iter_rows())
    return {text: NAMED.sub(lambda match: f":{by_hash[match.group(1)]}", text) for text, some in named.items() if some}


def rotated_rows(rows: pl.DataFrame, keys: IdentifierKeys, since: int) -> pl.DataFrame:
    """Rows of a table of journeys, brought to the newest version.

    Args:
        rows: with any of key_hash, unique_keys, detail, cause.
        keys: the secrets, the newest included.
        since: the version that the rows are of.
    """
    if "key_hash" in rows.columns:
        rows = rows.with_columns(rotated_hashes(pl.col("key_hash"), keys, since).alias("key_hash"))
    for name in ("detail", "cause"):
        if name in rows.columns:
            new = rotated_names(rows[name].drop_nulls().unique(), keys, since)
            rows = rows.with_columns(pl.col(name).replace(new))
    if "unique_keys" in rows.columns:
        named = rows["unique_keys"].explode().drop_nulls().unique()
        new = rotated_names(named, keys, since)
        rows = rows.with_columns(pl.col("unique_keys").list.eval(pl.element().replace(new)))
    return _said_of_secrets(rows, keys) if "kind" in rows.columns else rows


def _said_of_secrets(rows: pl.DataFrame, keys: IdentifierKeys) -> pl.DataFrame:
    """Commits of the log note which secret their keys are of; remarks of all tenants are of none."""
    is_commit = pl.col("kind") == COMMIT
    details = rows.filter(is_commit)["detail"].drop_nulls().unique()
    said = {text: json.loads(text) for text in details}
    new = {
        text: json.dumps({**detail, "identifiers": keys.name}, sort_keys=True)
        for text, detail in said.items()
        if "policy" in detail
    }
    return rows.with_columns(pl.when(is_commit).then(pl.col("detail").replace(new)).otherwise("detail").alias("detail"))
