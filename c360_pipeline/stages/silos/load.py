"""From a silo into its lake table: only what differs is written, in one commit, and only after every row was seen.

Memory does not follow the table: beyond `SPOOL_BYTES` the rows of both sides are put away on disk, parted by key, and
compared part by part.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
import polars as pl

from c360_pipeline.core.arrays.row_hashes import identity_hash, row_name_hash
from c360_pipeline.core.catalog.changes import RowChanges, Version
from c360_pipeline.core.catalog.table import SILO_RETENTION, Table
from c360_pipeline.core.silos.control_rows import FULL, INCREMENTAL, compare_rows, unusable_keys
from c360_pipeline.core.silos.plan import Extract
from c360_pipeline.errors import ContractError
from c360_pipeline.stores.delta.commits import MERGED_BYTES
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.run_log import ExtractionState, TableCounts
from c360_pipeline.stores.postgres.silo import Position, SiloSnapshot

SPOOL_BYTES = 96 * 1024 * 1024
"""Rows up to this size, as Arrow holds them, are compared in memory."""
PARTS = 32
MERGED_ROWS = 200_000
"""Up to so many changed rows are merged into the files that hold them; for more, the table is written anew."""
BYTES_PER_STORED_BYTE = 6
"""How much larger rows are in memory than in the lake's files, roughly."""


def silo_table(extract: Extract) -> Table:
    """The lake table of a source table."""
    schema = pl.DataFrame(
        schema={
            "tenant_id": pl.String(), **extract.lake_schema,
            "extracted_at": pl.Datetime("us", "UTC"), "run_id": pl.String(),
        }
    ).to_arrow().schema  # fmt: skip
    return Table.of_types(
        extract.lake_table,
        ("tenant_id", *extract.table.key_columns),
        {field.name: field.type for field in schema},
        f"{extract.table.schema_name}.{extract.table.table_name} of {extract.db_name}",
        retention=SILO_RETENTION,
    )


class _Spool:
    """Rows in memory, or on disk in parts by key once there are many."""

    def __init__(self, folder: Path, key: tuple[str, ...], schema: pl.Schema, *, on_disk: bool = False) -> None:
        self._folder = folder
        self._key = key
        self._frames: list[pl.DataFrame] = []
        self._bytes = 0
        self._files = 0
        self.on_disk = on_disk
        self.schema = schema
        self.rows = 0
        self.bytes = 0

    def add(self, rows: pl.DataFrame) -> None:
        """Put rows away."""
        if rows.is_empty():
            return
        size = int(rows.estimated_size())
        self.rows += rows.height
        self.bytes += size
        self._bytes += size
        self._frames.append(rows)
        if self._bytes > (SPOOL_BYTES // 8 if self.on_disk else SPOOL_BYTES):
            self.spill()

    def spill(self) -> None:
        """Put what is in memory on disk."""
        self.on_disk = True
        if not self._frames:
            return
        rows = pl.concat(self._frames)
        part = (identity_hash(rows, self._key) % PARTS).alias("__c360_part")
        for (number,), group in (
            rows.with_columns(part).partition_by("__c360_part", as_dict=True, include_key=False).items()
        ):
            folder = self._folder / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            group.write_ipc(folder / f"{self._files:06}.arrow", compression="lz4")
        self._files += 1
        self._frames, self._bytes = [], 0

    def part(self, number: int) -> pl.DataFrame:
        """The rows of a part; in memory there is one, number 0."""
        if not self.on_disk:
            return pl.concat([pl.DataFrame(schema=self.schema), *self._frames])
        files = sorted((self._folder / str(number)).glob("*.arrow"))
        return pl.concat([pl.DataFrame(schema=self.schema), *(pl.read_ipc(f) for f in files)])


@dataclass
class _Difference:
    """What is to be written, in memory when it is little."""

    changes: list[RowChanges] = field(default_factory=list)
    loaded: int = 0
    altered: int = 0
    deleted: int = 0

    def add(self, changes: RowChanges) -> None:
        """Count the changes of a part, and keep them while they are few."""
        self.loaded += changes.inserted.height + changes.updated.height
        self.altered += changes.updated.height
        self.deleted += changes.deleted.height
        if self.is_small:
            self.changes.append(changes)
        else:
            self.changes.clear()

    @property
    def is_small(self) -> bool:
        """Whether merging is cheaper than writing the table anew."""
        return self.loaded + self.deleted <= MERGED_ROWS

    def upserts(self) -> pl.DataFrame:
        """Rows that are new or altered."""
        return pl.concat([part for change in self.changes for part in (change.inserted, change.updated)])

    def gone(self) -> pl.DataFrame:
        """Key columns of rows that are gone."""
        return pl.concat([change.deleted for change in self.changes])


class SiloLoader:
    """Brings tables of silos into the lake.

    Args:
        lake: where the rows go.
        control: how far incremental tables were read.
        run_id: of the run, kept with every row that it changes.
    """

    def __init__(self, lake: Lake, control: ControlDb, run_id: str) -> None:
        self._lake = lake
        self._control = control
        self._run_id = run_id

    def load(self, extract: Extract, snapshot: SiloSnapshot) -> TableCounts:
        """Make the lake table hold what the source has; commits nothing when it does already.

        Raises:
            ContractError: keys that are missing or not unique, or values that the lake can't hold; the lake table
                stays as it was.
            UnavailableError: the source can't be read to its end; the lake table stays as it was.
        """
        incremental = extract.table.snapshot_mode == INCREMENTAL
        position = snapshot.position(extract) if incremental else None
        since = self._since(extract, position) if position else None
        with TemporaryDirectory(prefix="c360-silo-") as folder:
            suppressed = self._control.privacy.suppressed_rows().filter(pl.col("lake_table") == extract.lake_table)
            load = _Load(self._lake, extract, self._run_id, Path(folder), suppressed["row_hash"])
            counts = load.changed(snapshot, since) if since else load.whole(snapshot)
        version = self._lake.versions.version(extract.lake_table)
        if position and version:
            state = ExtractionState(str(version), position.cursor, position.snapshot, _reads(extract))
            self._control.runs.save_extraction_state(extract.table.table_id, state)
        return counts

    def _since(self, extract: Extract, position: Position) -> Position | None:
        """Where the lake table stands; None when that is not known, so that all is read."""
        state = self._control.runs.extraction_state(extract.table.table_id)
        if state is None or state.reads != _reads(extract):
            return None
        if not self._lake.versions.only_maintained_since(extract.lake_table, Version.parse(state.lake_version)):
            return None
        since = Position(state.cursor_value, state.snapshot)
        # A server that counts transactions from lower on is another one: restored from a dump, for example.
        return since if position.next_transaction >= since.horizon else None


def _reads(extract: Extract) -> str:
    document = {name: extract.document[name] for name in ("tenant", "key", "cursor", "reads")}
    document |= {"table": extract.name, "server": extract.server}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


class _Load:
    """One load of one table."""

    def __init__(self, lake: Lake, extract: Extract, run_id: str, folder: Path, suppressed: pl.Series) -> None:
        self._lake = lake
        self._suppressed = suppressed
        self._extract = extract
        self._table = silo_table(extract)
        self._key = self._table.key
        self._folder = folder
        self._stamp = {"extracted_at": datetime.now(UTC), "run_id": run_id}
        self._content = pl.Schema({"tenant_id": pl.String(), **extract.lake_schema})
        self._columns = list(self._content)

    def whole(self, snapshot: SiloSnapshot) -> TableCounts:
        """All rows of the source against all of the lake table."""
        if not self._lake.count(self._table) or self._lake.retyped_columns(self._table):
            return self._first(snapshot)
        is_large = self._lake.stored_bytes(self._table) * BYTES_PER_STORED_BYTE > SPOOL_BYTES
        read = self._spooled("read", self._with_tenant(snapshot.rows(self._extract)), on_disk=is_large)
        held = self._spooled("held", self._held_rows(), on_disk=read.on_disk)
        if held.on_disk and not read.on_disk:
            read.spill()
        difference = _Difference()
        for number in range(PARTS if read.on_disk else 1):
            part = read.part(number)
            self._refuse(unusable_keys(part, self._key))
            before = held.part(number).select(self._columns)
            if unusable_keys(before, self._key):
                return self._first(snapshot)  # the key is another than when these rows were written
            difference.add(compare_rows(before, part, self._key))
        self._write(difference, read, held)
        return TableCounts(FULL, read.rows, difference.loaded, difference.deleted, read.bytes)

    def _first(self, snapshot: SiloSnapshot) -> TableCounts:
        """All rows of the source in place of what there is; keys are held against each other at the end."""
        rows = size = 0
        hashes: list[np.ndarray[tuple[int], np.dtype[np.uint64]]] = []

        def seen() -> Iterator[pl.DataFrame]:
            nonlocal rows, size
            for batch in self._with_tenant(snapshot.rows(self._extract)):
                rows += batch.height
                size += int(batch.estimated_size())
                keys = batch.select(self._key)
                if keys.null_count().sum_horizontal().item():
                    self._refuse(unusable_keys(keys, self._key))
                hashes.append(identity_hash(keys, self._key).to_numpy())
                yield self._stamped(batch)
            together = np.concatenate([np.empty(0, np.uint64), *hashes])
            hashes.clear()
            together.sort()
            if (together[1:] == together[:-1]).any():
                self._refuse(self._repeated(snapshot))

        batches = seen()
        head = next((batch for batch in batches if batch.height), None)
        if head is not None or not self._lake.has_columns(self._table):
            self._lake.commits.overwrite(self._table, chain([] if head is None else [head], batches))
        return TableCounts(FULL, rows, rows, 0, size)

    def _repeated(self, snapshot: SiloSnapshot) -> str | None:
        """Equal hashes of keys are looked at closely."""
        keys = self._spooled("keys", self._with_tenant(snapshot.keys(self._extract)), on_disk=True)
        found = (unusable_keys(keys.part(number), self._key) for number in range(PARTS))
        return next((problem for problem in found if problem), None)

    def changed(self, snapshot: SiloSnapshot, since: Position) -> TableCounts:
        """Rows that may have changed since, and the keys that are gone."""
        read = self._spooled("read", self._with_tenant(snapshot.rows(self._extract, since)))
        held_rows = self._lake.count(self._table)
        difference = _Difference()
        for number in range(PARTS if read.on_disk else 1):
            part = read.part(number)
            self._refuse(unusable_keys(part, self._key))
            held = pl.concat([self._held_like(part), pl.DataFrame(schema=self._content)])
            difference.add(compare_rows(held, part, self._key, is_all=False))
        inserted = sum(change.inserted.height for change in difference.changes)
        # Of a stored table every change was read, so equal counts mean equal keys; a view may hide one behind another.
        count = self._source_count(snapshot)
        if difference.is_small and (not self._extract.is_stored or count != held_rows + inserted):
            nothing = pl.DataFrame(schema=self._content)
            difference.add(RowChanges(nothing, nothing, self._gone(snapshot)))
        if not difference.is_small or count != held_rows + inserted - difference.deleted:
            # So much changed that all may be compared, or rows came that no cursor and no transaction told of.
            return self.whole(snapshot)
        self._merge(difference)
        return TableCounts(INCREMENTAL, read.rows, difference.loaded, difference.deleted, read.bytes)

    def _gone(self, snapshot: SiloSnapshot) -> pl.DataFrame:
        """Keys of the lake table that the source does not have."""
        keys = pl.concat(self._with_tenant(snapshot.keys(self._extract)))
        held = self._lake.scan(self._table).select(self._key)
        return held.join(keys.lazy().select(self._key), on=list(self._key), how="anti").collect(engine="streaming")

    def _held_like(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of the lake table with the keys of these."""
        keys = rows.lazy().select(self._key)
        held = self._lake.scan(self._table).select(self._columns).join(keys, on=list(self._key), how="semi")
        return held.collect(engine="streaming")

    def _held_rows(self) -> Iterator[pl.DataFrame]:
        """The rows of the lake table, with today's columns."""
        return self._lake.batches(self._table)

    def _write(self, difference: _Difference, read: _Spool, held: _Spool) -> None:
        same_columns = self._lake.has_columns(self._table)
        if same_columns and not difference.loaded + difference.deleted:
            return
        if same_columns and difference.is_small:
            self._merge(difference)
        else:
            self._lake.commits.overwrite(self._table, self._rewritten(read, held))

    def _merge(self, difference: _Difference) -> None:
        """Bring few changes into the table: into the files that hold them, or where these are large, batch by batch."""
        upserts, gone = self._stamped(difference.upserts()), difference.gone()
        if not upserts.height + gone.height:
            return
        if not difference.altered and not gone.height:
            self._lake.commits.append(self._table, upserts)
        elif self._lake.stored_bytes(self._table) <= MERGED_BYTES:
            self._lake.commits.merge(self._table, upserts, gone)
        else:
            self._lake.commits.overwrite(self._table, self._with_changes(self._held_rows(), upserts, gone))

    def _with_changes(
        self, held: Iterator[pl.DataFrame], upserts: pl.DataFrame, gone: pl.DataFrame
    ) -> Iterator[pl.DataFrame]:
        touched = pl.concat([upserts.select(self._key), gone.select(self._key)])
        for batch in held:
            yield batch.join(touched, on=list(self._key), how="anti").select(list(self._table.columns))
        yield upserts

    def _rewritten(self, read: _Spool, held: _Spool) -> Iterator[pl.DataFrame]:
        """All rows as they should be; those that did not change keep the time of their last change."""
        for number in range(PARTS if read.on_disk else 1):
            before, now = held.part(number), read.part(number)
            changes = compare_rows(before.select(self._columns), now, self._key)
            touched = pl.concat([changes.updated.select(self._key), changes.deleted])
            yield before.join(touched, on=list(self._key), how="anti").select(list(self._table.columns))
            yield self._stamped(pl.concat([changes.inserted, changes.updated]))

    def _spooled(self, name: str, batches: Iterable[pl.DataFrame], *, on_disk: bool = False) -> _Spool:
        spool: _Spool | None = None
        for batch in batches:
            spool = spool or _Spool(self._folder / f"{name}-{uuid4().hex}", self._key, batch.schema, on_disk=on_disk)
            spool.add(batch)
        spool = spool or _Spool(
            self._folder / f"{name}-{uuid4().hex}", self._key, self._table.empty().schema, on_disk=on_disk
        )
        if spool.on_disk:
            spool.spill()
        return spool

    def _with_tenant(self, batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        for batch in batches:
            rows = batch.select(pl.lit(self._extract.tenant_id).alias("tenant_id"), pl.all())
            yield rows.filter(~self._is_suppressed(rows)) if len(self._suppressed) else rows

    def _is_suppressed(self, rows: pl.DataFrame) -> pl.Series:
        """Whether rows are of people who were erased."""
        return row_name_hash(self._extract.lake_table, rows, self._key).is_in(self._suppressed.implode())

    def _source_count(self, snapshot: SiloSnapshot) -> int:
        """Rows that the source has for us."""
        count = snapshot.count(self._extract)
        if not len(self._suppressed):
            return count
        return sum(batch.height for batch in self._with_tenant(snapshot.keys(self._extract)))

    def _stamped(self, rows: pl.DataFrame) -> pl.DataFrame:
        at = pl.lit(self._stamp["extracted_at"]).cast(pl.Datetime("us", "UTC"))
        stamped = rows.with_columns(extracted_at=at, run_id=pl.lit(self._stamp["run_id"]))
        return stamped.select(list(self._table.columns))

    def _refuse(self, problem: str | None) -> None:
        if problem:
            extract = self._extract
            raise ContractError(
                f"{extract.name} (source_tables row {extract.table.table_id}): {problem}. Name columns in key_columns "
                "that together are unique and never null."
            )
