"""One run over the silos: plan, then every table of a silo in one snapshot of it, then the log and the applied plan."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from c360_pipeline.core.silos.control_rows import ControlRows, FoundTable, SourceDatabase
from c360_pipeline.core.silos.plan import Extract, Plan, make_plan, plan_hash
from c360_pipeline.errors import C360Error, ContractError
from c360_pipeline.stages.silos.load import SiloLoader
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.run_log import RunLog, TableCounts
from c360_pipeline.stores.postgres.silo import Silo, SiloSnapshot

SUMMARY = {"table": pl.String, "rows": pl.Int64, "read": pl.Int64, "changed": pl.Int64, "left_out": pl.String}
OpenSilo = Callable[[SourceDatabase], Silo]


def found_tables(control: ControlRows, open_silo: OpenSilo) -> dict[int, FoundTable]:
    """What the sources have under the names of the control rows, by table_id.

    Raises:
        UnavailableError: a source can't be reached.
    """
    found: dict[int, FoundTable] = {}
    for database in control.databases:
        wanted = [table for table in control.tables if table.database_id == database.database_id]
        if wanted:
            found |= open_silo(database).found(wanted)
    return found


def as_if_readable(found: Mapping[int, FoundTable]) -> dict[int, FoundTable]:
    """The same tables, as a login would see them that may read everything."""
    return {
        table_id: replace(table, columns={name: replace(c, readable=True) for name, c in table.columns.items()})
        for table_id, table in found.items()
    }


def readable_exclusions(control: ControlRows, open_silo: OpenSilo) -> list[str]:
    """Excluded columns that the login of their silo may read all the same."""
    found = found_tables(control, open_silo)
    tables = {table.table_id: table for table in control.tables}
    return sorted(
        f"{control.table_name(tables[table_id])}.{name}"
        for table_id, name in control.excluded
        if table_id in found and name in found[table_id].columns and found[table_id].columns[name].readable
    )


@dataclass(frozen=True)
class Loaded:
    """What a run did.

    Attributes:
        plan: what it was to do.
        extracts: the tables that were read.
        tables: one row per extract, with `SUMMARY`'s columns.
    """

    plan: Plan
    extracts: tuple[Extract, ...]
    tables: pl.DataFrame


@dataclass
class SiloRun:
    """One run.

    Attributes:
        control: the control database.
        lake: where the rows go.
        open_silo: opens a source database.
        run_id: of the run.
        log: its row in the control database.
        report: called with in a line what was done.
    """

    control: ControlDb
    lake: Lake
    open_silo: OpenSilo
    run_id: str
    log: RunLog
    report: Callable[[str], Any]
    failures: dict[str, C360Error] = field(default_factory=dict)

    def load(self, only: Collection[str] | None = None) -> Loaded:
        """Bring tables of the plan into the lake; a table that fails leaves the others alone.

        Args:
            only: names of tables, `database.schema.table`; all if not given.

        Raises:
            ConfigError: the control rows ask for what can't be; nothing was read.
            ContractError: tables that could not be loaded, each with the reason; the others were.
            UnavailableError: a source can't be reached.
        """
        control_rows = self.control.read()
        plan = make_plan(control_rows, found_tables(control_rows, self.open_silo), self.control.runs.applied_plan())
        self.log.note_plan(plan.hash)
        self.report(f"plan {plan.hash}: {len(plan.extracts)} tables, {len(plan.relationships)} relationships")
        summary: list[Mapping[str, Any]] = []
        read: list[Extract] = []
        try:
            self._load_all(control_rows, plan, only, summary, read)
        finally:
            self._keep(plan, {extract.name for extract in read} - set(self.failures))
        if self.failures:
            self._raise()
        return Loaded(plan, tuple(read), pl.DataFrame(summary, schema=SUMMARY))

    def _load_all(
        self,
        control_rows: ControlRows,
        plan: Plan,
        only: Collection[str] | None,
        summary: list[Mapping[str, Any]],
        read: list[Extract],
    ) -> None:
        for database in control_rows.databases:
            of_database = [e for e in plan.extracts if e.table.database_id == database.database_id]
            extracts = [e for e in of_database if only is None or e.name in only]
            if extracts:
                with self.open_silo(database).snapshot() as snapshot:
                    for extract in extracts:
                        summary.append(self._load(extract, snapshot))
                        read.append(extract)

    def _load(self, extract: Extract, snapshot: SiloSnapshot) -> Mapping[str, Any]:
        started, mode = time.monotonic(), extract.table.snapshot_mode
        row = self.log.start_table(extract.db_name, extract.table.table_name, mode)
        counts, error = TableCounts(mode), None
        try:
            counts = SiloLoader(self.lake, self.control, self.run_id).load(extract, snapshot)
        except C360Error as failure:
            self.failures[extract.name], error = failure, str(failure)
        seconds = time.monotonic() - started
        self.log.finish_table(row, counts, seconds, error)
        changed = counts.rows_loaded + counts.rows_deleted
        held = self.lake.stored_table(extract.lake_table, extract.table.key_columns)
        self.report(error or f"{extract.name}: {counts.rows_read:,} rows read, {changed:,} changed, {seconds:.1f} s")
        return {
            "table": extract.name, "rows": self.lake.count(held) if held else 0, "read": counts.rows_read,
            "changed": changed, "left_out": ", ".join(extract.left_out),
        }  # fmt: skip

    def _keep(self, plan: Plan, loaded: Collection[str]) -> None:
        """Note the plan as carried out; of tables that were not loaded, what was carried out before stands.

        Tables that are not in the plan now keep their entry: they may come back, and drift is measured against it.
        """
        before = self.control.runs.applied_plan() or {"tables": {}, "relationships": {}}
        known = {**before.get("paused", {}), **before["tables"]}
        planned = plan.document
        tables = {name: entry if name in loaded else known.get(name) for name, entry in planned["tables"].items()}
        document = {
            "tables": {name: entry for name, entry in tables.items() if entry},
            "relationships": planned["relationships"],
            "paused": {name: entry for name, entry in known.items() if name not in planned["tables"]},
        }
        if document != before:
            self.control.runs.save_applied_plan(plan_hash(document), document, self.run_id)

    def _raise(self) -> None:
        if len(self.failures) == 1:
            raise next(iter(self.failures.values()))
        raise ContractError(
            f"{len(self.failures)} tables could not be loaded:\n- " + "\n- ".join(map(str, self.failures.values()))
        )
