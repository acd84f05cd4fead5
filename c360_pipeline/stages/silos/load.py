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
from uuid import uuid4

import numpy as np
import polars as pl

from c360_pipeline.core.arrays.row_hashes import identity_hash
from c360_pipeline.core.catalog.changes import Changes, Version, difference
from c360_pipeline.core.catalog.table import SILO_RETENTION, Table
from c360_pipeline.core.landing.suppressed import SuppressedRows
from c360_pipeline.core.projection.removal_limit import REMOVAL_SHARE, is_beyond_removal_limit
from c360_pipeline.core.silos.control_rows import FULL, INCREMENTAL, unusable_keys
from c360_pipeline.core.silos.plan import Extract
from c360_pipeline.errors import ContractError, RemovalLimitError
from c360_pipeline.stores.delta.commits import MERGED_BYTES
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.scratch import scratch_folder
from c360_pipeline.stores.local.spill import Spill
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.run_log import ExtractionState, TableCounts
from c360_pipeline.stores.postgres.silo import Position, SiloSnapshot

SPOOL_BYTES = 96 * 1024 * 1024
"""Rows up to this size, as Arrow holds them, are compared in memory."""
MERGED_ROWS = 200_000
"""Up to so many changed rows are merged into the files that hold them; for more, the table is rewritten."""
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


@dataclass
class _Changed:
    """What is to be written, in memory when it is little."""

    changes: list[Changes] = field(default_factory=list)
    loaded: int = 0
    altered: int = 0
    deleted: int = 0

    def add(self, changes: Changes) -> None:
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
        """Whether merging is cheaper than writing the table again."""
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
        force: whether more rows may leave a table than the removal limit lets pass.
    """

    def __init__(self, lake: Lake, control: ControlDb, run_id: str, *, force: bool = False) -> None:
        self._lake = lake
        self._control = control
        self._run_id = run_id
        self._force = force

    def load(self, extract: Extract, snapshot: SiloSnapshot) -> TableCounts:
        """Make the lake table hold what the source has; commits nothing when it does already.

        Raises:
            ContractError: keys that are missing or not unique, or values that the lake can't hold; the lake table
                stays as it was.
            UnavailableError: the source can't be read to its end; the lake table stays as it was.
            RemovalLimitError: the source has so many rows less than it would have to be looked at; the lake table stays
                as it was.
        """
        incremental = extract.table.snapshot_mode == INCREMENTAL
        position = snapshot.position(extract) if incremental else None
        since = self._since(extract, position) if position else None
        with scratch_folder() as folder:
            suppressed = self._control.privacy.suppressed_rows().of(extract.lake_table)
            load = _Load(self._lake, extract, self._run_id, folder, suppressed, force=self._force)
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

    def __init__(
        self, lake: Lake, extract: Extract, run_id: str, folder: Path, suppressed: SuppressedRows, *, force: bool
    ) -> None:
        self._lake = lake
        self._force = force
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
            read.to_disk()
        found = _Changed()
        for number in range(read.parts):
            part = read.part(number)
            self._refuse(unusable_keys(part, self._key))
            before = held.part(number).select(self._columns)
            if unusable_keys(before, self._key):
                return self._first(snapshot)  # the key is another than when these rows were written
            found.add(difference(before, part, self._key))
        self._check_removal_limit(found.deleted, read.rows, self._lake.count(self._table))
        self._write(found, read, held)
        return TableCounts(FULL, read.rows, found.loaded, found.deleted, read.bytes)

    def _first(self, snapshot: SiloSnapshot) -> TableCounts:
        """All rows of the source in place of what there is; keys are held against each other at the end."""
        rows = size = 0
        held = self._lake.count(self._table)
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
            self._check_removal_limit(held - rows, rows, held)
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
        found = (unusable_keys(keys.part(number), self._key) for number in range(keys.parts))
        return next((problem for problem in found if problem), None)

    def changed(self, snapshot: SiloSnapshot, since: Position) -> TableCounts:
        """Rows that may have changed since, and the keys that are gone."""
        read = self._spooled("read", self._with_tenant(snapshot.rows(self._extract, since)))
        held_rows = self._lake.count(self._table)
        found = _Changed()
        for number in range(read.parts):
            part = read.part(number)
            self._refuse(unusable_keys(part, self._key))
            held = pl.concat([self._held_like(part), pl.DataFrame(schema=self._content)])
            found.add(difference(held, part, self._key, is_all=False))
        inserted = sum(change.inserted.height for change in found.changes)
        # Of a stored table every change was read, so equal counts mean equal keys; a view may hide one behind another.
        count = self._source_count(snapshot)
        if found.is_small and (not self._extract.is_stored or count != held_rows + inserted):
            nothing = pl.DataFrame(schema=self._content)
            found.add(Changes(nothing, nothing, self._gone(snapshot)))
        if not found.is_small or count != held_rows + inserted - found.deleted:
            # So much changed that all may be compared, or rows came that no cursor and no transaction told of.
            return self.whole(snapshot)
        self._check_removal_limit(found.deleted, count, held_rows)
        self._merge(found)
        return TableCounts(INCREMENTAL, read.rows, found.loaded, found.deleted, read.bytes)

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

    def _write(self, found: _Changed, read: Spill, held: Spill) -> None:
        same_columns = self._lake.has_columns(self._table)
        if same_columns and not found.loaded + found.deleted:
            return
        if same_columns and found.is_small:
            self._merge(found)
        else:
            self._lake.commits.overwrite(self._table, self._rewritten(read, held))

    def _merge(self, found: _Changed) -> None:
        """Bring few changes into the table: into the files that hold them, or where these are large, batch by batch."""
        upserts, gone = self._stamped(found.upserts()), found.gone()
        if not upserts.height + gone.height:
            return
        if not found.altered and not gone.height:
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

    def _rewritten(self, read: Spill, held: Spill) -> Iterator[pl.DataFrame]:
        """All rows as they should be; those that did not change keep the time of their last change."""
        for number in range(read.parts):
            before, now = held.part(number), read.part(number)
            changes = difference(before.select(self._columns), now, self._key)
            touched = pl.concat([changes.updated.select(self._key), changes.deleted])
            yield before.join(touched, on=list(self._key), how="anti").select(list(self._table.columns))
            yield self._stamped(pl.concat([changes.inserted, changes.updated]))

    def _spooled(self, name: str, batches: Iterable[pl.DataFrame], *, on_disk: bool = False) -> Spill:
        waiting = iter(batches)
        first = next(waiting, self._table.empty())
        spill = Spill(
            self._folder / f"{name}-{uuid4().hex}", self._key, first.schema, memory_bytes=0 if on_disk else SPOOL_BYTES
        )
        return spill.filled([first]).filled(waiting)

    def _with_tenant(self, batches: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        for batch in batches:
            rows = batch.select(pl.lit(self._extract.tenant_id).alias("tenant_id"), pl.all())
            yield rows if self._suppressed.is_empty else rows.filter(~self._is_suppressed(rows))

    def _is_suppressed(self, rows: pl.DataFrame) -> pl.Series:
        """Whether rows are of people who were erased."""
        return self._suppressed.among(self._extract.lake_table, rows, self._key)

    def _source_count(self, snapshot: SiloSnapshot) -> int:
        """Rows that the source has for us."""
        count = snapshot.count(self._extract)
        if self._suppressed.is_empty:
            return count
        return sum(batch.height for batch in self._with_tenant(snapshot.keys(self._extract)))

    def _stamped(self, rows: pl.DataFrame) -> pl.DataFrame:
        at = pl.lit(self._stamp["extracted_at"]).cast(pl.Datetime("us", "UTC"))
        stamped = rows.with_columns(extracted_at=at, run_id=pl.lit(self._stamp["run_id"]))
        return stamped.select(list(self._table.columns))

    def _check_removal_limit(self, deleted: int, left: int, held: int) -> None:
        """Fewer rows without an error are looked at before they are believed."""
        extract = self._extract
        if self._force or not is_beyond_removal_limit(deleted, held):
            return
        raise RemovalLimitError(
            f"{extract.name} (source_tables row {extract.table.table_id}) has {left:,} rows now, and {deleted:,} of "
            f"the {held:,} that the archive holds are not among them, more than {REMOVAL_SHARE:.0%}. That is what a "
            "restore into an empty database, a view or search path that changed, or a policy that hides rows looks "
            "like. The archive keeps what it has; if the rows are gone on purpose, run again with `c360 run "
            "--force-removal`, or in the UI with force_removal: true."
        )

    def _refuse(self, problem: str | None) -> None:
        if problem:
            extract = self._extract
            raise ContractError(
                f"{extract.name} (source_tables row {extract.table.table_id}): {problem}. Name columns in key_columns "
                "that together are unique and never null."
            )
