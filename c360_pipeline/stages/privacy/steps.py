"""The steps of an erasure: each can be broken off and done again.

Lines of landing files become blank, so that the numbers of the others stay; the accounting follows the file's new etag,
and the archive is compared with the files as a backfill compares them. What the archive does not hold any more leaves
journeys and graph as anything else does. Earlier versions of the tables that were touched are forgotten.
"""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from c360_pipeline.core.arrays.row_hashes import row_name_hash
from c360_pipeline.core.catalog.audience_tables import (
    AUDIENCE_DEAD_LETTERS,
    AUDIENCE_DELIVERED,
    AUDIENCE_MEMBERS,
    AUDIENCES,
)
from c360_pipeline.core.catalog.changes import Version
from c360_pipeline.core.catalog.feature_tables import ACCOUNT_VALUES, FEATURES
from c360_pipeline.core.catalog.recommendation_tables import RECOMMENDATIONS_GIVEN
from c360_pipeline.core.catalog.table import Table
from c360_pipeline.core.catalog.tables import (
    DEAD_LETTER_LINES,
    DEAD_LETTERS,
    EVENTS,
    JOURNEY_LOG,
    LANDING_FILES,
    RECONCILIATION_FINDINGS,
    SESSIONS,
    USER_CONSENTS,
    USER_TRAITS,
    VISITOR_DECISIONS,
    VISITOR_USER,
)
from c360_pipeline.core.landing.dead_letters import emptied
from c360_pipeline.core.privacy.erasure import (
    SearchTerms,
    is_overwritable,
    theirs,
    users_frame,
)
from c360_pipeline.core.privacy.retention import ACTION, expired
from c360_pipeline.core.silos.control_rows import LINEAGE
from c360_pipeline.errors import ContractError
from c360_pipeline.stages.audiences.deliver import held_by_destinations, tell
from c360_pipeline.stages.audiences.sinks import folder_of, write_members
from c360_pipeline.stages.landing.backfill import backfill
from c360_pipeline.stages.landing.blanking import blank_lines, rename_deliveries
from c360_pipeline.stages.landing.event_removal import remove_events
from c360_pipeline.stages.landing.ingest import Ingest
from c360_pipeline.stages.privacy.plan import REASON, Plan, own_sources
from c360_pipeline.stages.privacy.search import (
    overwrite,
    overwrite_rows,
    search_database,
    search_folder,
    search_objects,
)
from c360_pipeline.stages.privacy.stores import SILOS, ErasureError, Observe, Stores
from c360_pipeline.stages.projection.everything import project_all, stitch_all
from c360_pipeline.stages.projection.silos import label_tables
from c360_pipeline.stages.recovery.cypher_script import SCRIPTS_PREFIX
from c360_pipeline.stages.stitching.catch_up import Stitching
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.tables import PUBLISHED
from c360_pipeline.stages.visitors.tables import VisitorTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.s3.landing import EventFile, dead_letter_key

TOUCHED = (EVENTS, LANDING_FILES, DEAD_LETTERS, DEAD_LETTER_LINES, RECONCILIATION_FINDINGS, JOURNEY_LOG,
           VISITOR_DECISIONS, VISITOR_USER, SESSIONS, USER_TRAITS, USER_CONSENTS, RECOMMENDATIONS_GIVEN, *FEATURES,
           *AUDIENCES, *PUBLISHED)  # fmt: skip
"""Tables that an erasure writes, beside those of silos."""
REDACTED = b"x"
"""Stands for each byte of a name that is taken out of a line of somebody else."""
LOGS = ("public.etl_run_logs", "public.etl_table_logs", "public.event_logs", "public.runs", "public.run_tags",
        "public.asset_check_executions", "public.asset_keys", "public.asset_event_tags", "public.job_ticks",
        "public.bulk_actions", "public.audit_log", "public.page_sessions")  # fmt: skip
"""Tables of databases that tell what happened."""


class Steps:
    """Carries out a plan.

    Args:
        stores: where.
        folder: of the plan.
        observe: called with what comes next.
    """

    def __init__(self, stores: Stores, folder: Path, observe: Observe) -> None:
        self._stores = stores
        self._untold = folder / "untold.json"
        self._observe = observe

    def carry_out(self, plan: Plan) -> None:
        """Take all steps, in their order."""
        for step in (
            self._erase_letters, self._erase_lines, self._erase_events, self._erase_rows, self._erase_user_events,
            self._tell_destinations, self._follow, self._erase_traces, self._forget,
        ):  # fmt: skip
            step(plan)

    def _erase_letters(self, plan: Plan) -> None:
        """Letters lose their bytes and what was said of them; the accounting goes on counting their lines."""
        self._observe("dead letters")
        stores = self._stores
        ids = pl.DataFrame({"dead_letter_id": plan.letters}, schema={"dead_letter_id": pl.String})
        held = stores.lake.held(DEAD_LETTERS, ids, list(DEAD_LETTERS.columns))
        without = emptied(held, REASON, datetime.now(UTC)).with_columns(reason=pl.lit(REASON))
        stores.lake.commits.merge(DEAD_LETTERS, without)
        stores.bucket.delete(key for key in map(dead_letter_key, plan.letters) if stores.bucket.has(key))

    def _erase_lines(self, plan: Plan) -> None:
        """Lines of landing files become blank; accounts, queue and archive follow the new files."""
        stores = self._stores
        terms = SearchTerms(one.user_id for one in plan.persons)
        renamed: dict[tuple[str, str], str] = {}
        nothing: tuple[str, list[int]] = ("", [])
        sources = own_sources(stores)
        for uri in sorted(plan.addresses):
            (of_files, numbers), (of_redacted, redacted) = plan.files.get(uri, nothing), plan.redacted.get(uri, nothing)
            etag = of_files or of_redacted
            self._observe(f"lines of {uri}")
            if not stores.bucket.has(uri.removeprefix(f"s3://{stores.bucket.name}/")):
                continue  # somebody removed it since
            file = stores.landing.named(uri)
            if file.etag != etag:
                renamed[uri, etag] = file.etag
                continue
            try:
                renamed[uri, etag] = blank_lines(
                    stores.landing, file, set(numbers), set(redacted), lambda line: terms.replaced(line, REDACTED),
                    sources.of(uri),
                )  # fmt: skip
            except ContractError as error:
                raise ErasureError(
                    f"{error} What is behind the damage can't be searched: remove {uri} from the landing area, "
                    "and erase again."
                ) from None
        self._observe("accounts and archive")
        rename_deliveries(stores.lake, renamed)
        again: list[EventFile] = [file for file in stores.landing.event_files() if file.uri in plan.addresses]
        suppressed = stores.control.privacy.suppressed_users()
        backfill(Ingest(stores.landing, stores.lake, suppressed), again, lambda _: None)
        self._remove_expired(plan)

    def _remove_expired(self, plan: Plan) -> None:
        """A backfill lands again what a retention has removed: that goes again."""
        lake, rules = self._stores.lake, self._stores.control.privacy.retention_rules()
        since = lake.versions.still_there(EVENTS, Version.parse(plan.archive)) if plan.archive else None
        if since is None or not plan.addresses:
            return
        held = lake.scan(EVENTS, since.number).select(EVENTS.key)
        new = (
            lake.scan(EVENTS)
            .filter(pl.col("source_uri").is_in(sorted(plan.addresses)))
            .join(held, on=list(EVENTS.key), how="anti")
        )
        remove_events(lake, expired(new, rules, ACTION, datetime.now(UTC), "action", "ts").collect(engine="streaming"))

    def _erase_events(self, plan: Plan) -> None:
        """Events whose landing files are gone leave the archive too; the accounting counts them as suppressed."""
        self._observe("events")
        lake = self._stores.lake
        left = theirs(lake.scan(EVENTS), plan.persons, plan.traces)
        remove_events(lake, left.collect(engine="streaming"))
        visitors = plan.traces.frames()[0].lazy()
        for table in (VISITOR_DECISIONS, RECOMMENDATIONS_GIVEN):
            named = lake.scan(table).join(visitors, on=["tenant_id", "anonymous_id"], how="semi")
            lake.commits.merge(table, table.empty(), named.select(table.key).collect())

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
            control.privacy.suppress_rows(name, row_name_hash(name, gone, key))
            lake.commits.merge(table, table.empty(), gone, on=key)
        self._erase_unlabelled(plan)
        self._remove_users(plan, *FEATURES, AUDIENCE_MEMBERS, RECOMMENDATIONS_GIVEN)

    def _remove_users(self, plan: Plan, *tables: Table) -> None:
        """Rows of users leave tables that name one in each."""
        lake, users = self._stores.lake, users_frame(plan.persons).lazy()
        for table in tables:
            if "user_id" in table.columns:
                theirs = lake.scan(table).join(users, on=["tenant_id", "user_id"], how="semi").select(table.key)
                lake.commits.merge(table, table.empty(), theirs.collect())

    def _tell_destinations(self, plan: Plan) -> None:
        """Destinations of audiences hear that they left; then it is forgotten that these had them."""
        stores = self._stores
        held = held_by_destinations(stores.lake, users_frame(plan.persons))
        versions = stores.control.audiences.versions()
        for name in held:
            self._observe(f"telling {'/'.join(name)}")
            why = tell(stores.lake, stores.open_sink, versions, name, stores.control.locks.named)
            if why:
                self._untold.write_text(json.dumps({**self.untold, "/".join(name): why}))
        self._remove_users(plan, AUDIENCE_DELIVERED, AUDIENCE_DEAD_LETTERS)
        # Whoever was a member once may be in a file: of changes, of another format, of an audience that ended.
        active, _ = stores.control.audiences.active()
        for tenant in sorted({one.tenant_id for one in plan.persons}):
            self._observe(f"files of audiences of {tenant}")
            kept = write_members(stores.lake, stores.open_sink, [one for one in active if one.tenant == tenant])
            files = (one.path for one in stores.bucket.objects(folder_of(tenant)))
            stores.bucket.delete([path for path in files if path not in kept])

    @property
    def untold(self) -> dict[str, str]:
        """Destinations of audiences that did not hear that people left, by name, and why; of tries before, too."""
        found: dict[str, str] = json.loads(self._untold.read_text()) if self._untold.is_file() else {}
        return found

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
        VisitorTables(stores.lake).publish_all()
        with stores.open_graph() as graph:
            project_all(stores.lake, stores.control.read(), graph, self._observe, force=True)
        events = pl.DataFrame(plan.events, schema={"tenant_id": pl.String, "event_id": pl.String}, orient="row")
        if events.height:
            Journeys(stores.lake).purge(events)

    def _erase_traces(self, plan: Plan) -> None:
        """What tables, databases and files of ours say of them in passing."""
        # What others say of them is data of others; what we tell of them in passing is not.
        known, stores = [*plan.values, *plan.ids], self._stores
        terms = SearchTerms(known)
        self._observe("traces")
        for table in (RECONCILIATION_FINDINGS, ACCOUNT_VALUES):
            _remove_rows_with(stores.lake, table, terms)
        # A decision about a shared device stays; why it was made is told without names.
        decisions = stores.lake.read(VISITOR_DECISIONS)
        named = decisions.filter(terms.are_in(decisions["reason"]))
        stores.lake.commits.merge(VISITOR_DECISIONS, named.with_columns(reason=pl.lit("")))
        # Scripts that rebuild the silos' graph hold its rows; the next run writes one of what is left.
        stores.bucket.delete(search_objects("scripts", stores.bucket, SCRIPTS_PREFIX, terms).places)
        # Only where something is told of what happened, and only what can't be a word of that.
        ids = SearchTerms(filter(is_overwritable, known))
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
            self._observe("rebuilding the graph's store")
            stores.remake_graph()


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


def _remove_rows_with(lake: Lake, table: Table, terms: SearchTerms) -> None:
    """Remove rows that hold a value in one of their texts."""
    for rows in lake.batches(table):
        texts = [name for name, dtype in rows.schema.items() if dtype == pl.String]
        hits = pl.select(pl.any_horizontal(terms.are_in(rows[name]) for name in texts)).to_series()
        lake.commits.merge(table, table.empty(), rows.filter(hits).select(table.key))
