"""One run over the silos: plan, then every table of a silo in one snapshot of it, then the log and the applied plan."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from c360_pipeline.core.silos.control_rows import ControlRows, FoundTable, SourceDatabase
from c360_pipeline.core.silos.plan import Extract, Plan, plan_hash, plan_what_can_be
from c360_pipeline.errors import C360Error, ConfigError, ContractError, UnavailableError
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
    found, unreachable = look_at_sources(control, open_silo)
    if unreachable:
        raise UnavailableError("\n".join(unreachable.values()))
    return found


def look_at_sources(control: ControlRows, open_silo: OpenSilo) -> tuple[dict[int, FoundTable], dict[int, str]]:
    """What the sources have, by table_id; and by database_id why one can't be asked."""
    found: dict[int, FoundTable] = {}
    unreachable: dict[int, str] = {}
    for database in control.databases:
        wanted = [table for table in control.tables if table.database_id == database.database_id]
        if wanted:
            try:
                for table_id, table in open_silo(database).found(wanted).items():
                    names = {name: new for (of, name), new in control.renamed.items() if of == table_id}
                    found[table_id] = table.renamed(names) if names else table
            except C360Error as error:
                unreachable[database.database_id] = str(error)
    return found, unreachable


def as_if_readable(found: Mapping[int, FoundTable]) -> dict[int, FoundTable]:
    """The same tables, as a login would see them that may read everything."""
    return {
        table_id: replace(table, columns={name: replace(c, readable=True) for name, c in table.columns.items()})
        for table_id, table in found.items()
    }


def readable_exclusions(control: ControlRows, open_silo: OpenSilo) -> list[str]:
    """Excluded columns that the login of their silo may read all the same; of silos that can be asked."""
    found, _ = look_at_sources(control, open_silo)
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
        failures: by the name of a table or mapping that was wanted and not carried out, why; what the lake held of it
            stays.
    """

    plan: Plan
    extracts: tuple[Extract, ...]
    tables: pl.DataFrame
    failures: Mapping[str, str]


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
        force: whether more rows may leave a lake table than the removal limit lets pass.
    """

    control: ControlDb
    lake: Lake
    open_silo: OpenSilo
    run_id: str
    log: RunLog
    report: Callable[[str], Any]
    force: bool = False
    failures: dict[str, C360Error] = field(default_factory=dict)

    def load(self, only: Collection[str] | None = None) -> Loaded:
        """Bring tables of the plan into the lake; a table or silo that fails leaves the others alone.

        Args:
            only: names of tables, `database.schema.table`; all if not given.

        Raises:
            C360Error: not one table could be loaded, with the reason of each.
        """
        control_rows = self.control.read()
        found, unreachable = look_at_sources(control_rows, self.open_silo)
        plan = plan_what_can_be(control_rows, found, self.control.runs.applied_plan(), unreachable)
        tables = {control_rows.table_name(table): table for table in control_rows.tables}
        for name, problems in plan.set_aside.items():
            if only is None or name in only:
                table = tables.get(name)
                is_away = table is not None and table.database_id in unreachable
                self.failures[name] = (UnavailableError if is_away else ConfigError)("\n".join(problems))
                self.report(f"{name} is set aside: {problems[0]}")
                if table:
                    mode, db_name = table.snapshot_mode, control_rows.database_of(table).db_name
                    row = self.log.start_table(db_name, table.table_name, mode)
                    self.log.finish_table(row, TableCounts(mode), 0.0, "\n".join(problems))
        self.log.note_plan(plan.hash)
        self.report(f"plan {plan.hash}: {len(plan.extracts)} tables, {len(plan.relationships)} relationships")
        summary: list[Mapping[str, Any]] = []
        read: list[Extract] = []
        try:
            self._load_all(control_rows, plan, only, summary, read)
        finally:
            self._keep(plan, {extract.name for extract in read} - set(self.failures))
        if self.failures and set(self.failures) >= {extract.name for extract in read}:
            self._raise()
        failures = {name: str(error) for name, error in self.failures.items()}
        self.log.set_aside |= failures
        return Loaded(plan, tuple(read), pl.DataFrame(summary, schema=SUMMARY), failures)

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
            waiting = [e for e in of_database if only is None or e.name in only]
            tried: set[str] = set()
            while waiting:
                try:
                    with self.open_silo(database).snapshot() as snapshot:
                        while waiting and snapshot.is_whole:
                            extract = waiting.pop(0)
                            done = self._load(extract, snapshot)
                            ended = isinstance(self.failures.get(extract.name), UnavailableError)
                            if ended and extract.name not in tried:
                                # The server ended the session, or the statement: often a time-out, or a restart.
                                self.report(f"{extract.name} is read again, in a new snapshot of its database")
                                del self.failures[extract.name]
                                waiting.insert(0, extract)
                                tried.add(extract.name)
                                continue
                            summary.append(done)
                            read.append(extract)
                except UnavailableError as error:
                    self.failures |= {extract.name: error for extract in waiting}
                    self.report(str(error))
                    waiting = []

    def _load(self, extract: Extract, snapshot: SiloSnapshot) -> Mapping[str, Any]:
        started, mode = time.monotonic(), extract.table.snapshot_mode
        row = self.log.start_table(extract.db_name, extract.table.table_name, mode)
        counts, error = TableCounts(mode), None
        try:
            counts = SiloLoader(self.lake, self.control, self.run_id, force=self.force).load(extract, snapshot)
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
        kinds = {type(error) for error in self.failures.values()}
        reasons = dict.fromkeys(map(str, self.failures.values()))
        if len(reasons) == 1:
            raise next(iter(self.failures.values()))
        kind = kinds.pop() if len(kinds) == 1 else ContractError
        raise kind("No table of the silos could be loaded:\n- " + "\n- ".join(reasons))
