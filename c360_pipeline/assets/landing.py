"""Landing: new files of the landing area become events or dead letters, and every line is in the accounting."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

import dagster as dg
import polars as pl

from c360_pipeline.assets.partitions import (
    EVENT_SOURCES,
    LANDING_DATES,
    keep_partitions,
    named_dates,
    note_partitions,
)
from c360_pipeline.assets.plots import lines_per_day
from c360_pipeline.assets.sources import note_source_days
from c360_pipeline.assets.specs import (
    OWNERS,
    SUMMARY,
    WHY,
    asset_check,
    check_spec,
    column_schema,
    found_none,
    lineage,
    preview,
    rows,
    table_spec,
)
from c360_pipeline.core.catalog.tables import (
    CATALOG,
    DAILY_EVENTS,
    DEAD_LETTER_LINES,
    DEAD_LETTERS,
    EVENTS,
    LANDING_FILES,
)
from c360_pipeline.core.landing.accounting import (
    OUTCOMES,
    QUEUE_COUNTED_BY,
    FileAccount,
    misaccounted,
    misaccounted_dead,
    of_older_contracts,
    unbalanced,
)
from c360_pipeline.core.landing.volumes import unusual_volumes
from c360_pipeline.errors import ContractError
from c360_pipeline.resources import ControlResource, LakeResource, LandingResource, MetricsResource
from c360_pipeline.stages.landing.backfill import land
from c360_pipeline.stages.landing.dead_letters import damaged_since, settle_accounting
from c360_pipeline.stages.landing.ingest import Ingest, files_of
from c360_pipeline.stages.monitoring.daily_events import counted_events, publish_daily_events
from c360_pipeline.stages.sources.active import active_sources
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.local.metrics import Figure

GROUP = "landing"
DEAD_SHARE = 0.05
"""More dead records than this share of a source's day, and something is wrong with its mapping or its producer."""


class LandingConfig(dg.Config):
    """`landing_date` reads a day's files again, as its partition does, in a run over assets of other partitions.

    `force_removal` lets a newer version of a file take most of the earlier one's events away.
    """

    landing_date: str | None = None
    force_removal: bool = False


@dg.multi_asset(
    name="landing",
    partitions_def=LANDING_DATES,
    backfill_policy=dg.BackfillPolicy.single_run(),
    specs=[
        table_spec("landed_events", EVENTS, GROUP),
        table_spec("dead_letters", DEAD_LETTERS, GROUP),
        table_spec("landing_files", LANDING_FILES, GROUP),
    ],
    check_specs=[
        check_spec(
            "accounting_adds_up",
            asset="landing_files",
            blocking=True,
            description="For every file, the outcomes of its lines add up to its lines.",
        ),
        check_spec(
            "archive_holds_what_the_accounting_says",
            asset="landed_events",
            blocking=True,
            description="For every file, rows of the archive = `landed` in its accounting.",
        ),
        check_spec(
            "queue_holds_what_the_accounting_says",
            asset="dead_letters",
            blocking=True,
            description="For every file, lines in the dead-letter queue = `dead` in its accounting.",
        ),
        check_spec(
            "every_dead_letter_is_whole",
            asset="dead_letters",
            description="Each new dead letter has the bytes that its id is the hash of, and a class of the contract.",
        ),
        check_spec(
            "every_file_was_read",
            asset="landing_files",
            description="No file broke off because it is damaged, and the store handed every file out.",
        ),
        check_spec(
            "every_file_brings_events",
            asset="landing_files",
            description="Of no file that was read is more dead than alive.",
        ),
        check_spec(
            "every_source_lands",
            asset="landing_files",
            description="Of no source and landing date more than 5 % of the records are dead.",
        ),
        check_spec(
            "every_object_is_an_event_file",
            asset="landing_files",
            description="Nothing lies under landing/events/ that landing passes over because of its folder or ending.",
        ),
    ],
)
def landing_assets(
    context: dg.AssetExecutionContext,
    config: LandingConfig,
    landing: LandingResource,
    lake: LakeResource,
    control: ControlResource,
    metrics: MetricsResource,
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Land every file that is not in the accounting yet; the files of named dates again, under today's rules."""
    tables, area, started = lake.open(), landing.open(), datetime.now(UTC)
    rules = control.open()
    erasure = rules.privacy.unfinished_erasure()
    suppressed, overwrites = rules.privacy.suppressed_users(), rules.overwrite_rules()
    sources, faulty = active_sources(rules)
    ingest = Ingest(area, tables, suppressed, overwrites, force=config.force_removal, sources=sources)
    found, unlisted = files_of(area, sources)
    ingest.unreadable |= faulty | unlisted

    def report(lines: int) -> None:
        context.log.info("batch_landed: %s lines", f"{lines:,}")

    settle_accounting(tables)
    dates = {date.fromisoformat(config.landing_date)} if config.landing_date else named_dates(context)
    # The files that an erasure rewrites wait for its end, and nobody else's.
    held = frozenset() if erasure is None else erasure.files
    ingest.unreadable |= dict.fromkeys(sorted(held), str(erasure))
    accounts = land(ingest, found.files, dates, report, held)
    metrics.open().write("landing", landing_totals(accounts))
    _note_dates(context, tables, dates or {account.landing_date for account in accounts})
    keep_partitions(context.instance, EVENT_SOURCES, rules.sources.active_names())
    note_source_days(context, tables, {(one.source, one.landing_date) for one in accounts if one.source})
    yield from _results(tables, accounts, ingest.unreadable, started, held)
    yield dg.AssetCheckResult(
        asset_key="landing_files",
        check_name="every_object_is_an_event_file",
        passed=not found.unrecognised,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"objects": dg.MetadataValue.json([f.uri for f in found.unrecognised[:100]])},
    )


def _results(
    lake: Lake, accounts: list[FileAccount], unreadable: Mapping[str, str], started: datetime, held: frozenset[str]
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    files, archived, queued = (
        lake.read(LANDING_FILES),
        lake.count(EVENTS),
        lake.count_by(DEAD_LETTER_LINES, *QUEUE_COUNTED_BY),
    )
    per_tenant = lake.count_by(EVENTS, "tenant_id")
    yield dg.MaterializeResult(
        asset_key="landed_events",
        metadata=rows(archived, per_tenant=preview(per_tenant), lines_per_day=lines_per_day(files)),
    )
    reasons = lake.scan(DEAD_LETTERS).group_by("tenant_id", "error_class", "status").len("letters")
    yield dg.MaterializeResult(
        asset_key="dead_letters",
        metadata=rows(
            lake.count(DEAD_LETTERS),
            per_tenant_and_class=preview(reasons.sort("letters", descending=True).collect()),
        ),
    )
    totals = files.select("lines", *OUTCOMES, "replaced").sum()
    yield dg.MaterializeResult(
        asset_key="landing_files",
        metadata=rows(
            files.height,
            files_in_this_run=len(accounts),
            lines_in_this_run=sum(account.lines for account in accounts),
            files_of_older_contracts=of_older_contracts(files).height,
            accounting=preview(totals),
            **{SUMMARY: landed_summary(accounts)},
        ),
    )
    yield found_none("landing_files", "accounting_adds_up", unbalanced_files=unbalanced(files))
    yield found_none(
        "landed_events",
        "archive_holds_what_the_accounting_says",
        wrong_files=_misaccounted(lake, files, archived).filter(~pl.col("source_uri").is_in(held)),
    )
    yield found_none(
        "dead_letters",
        "queue_holds_what_the_accounting_says",
        wrong_files=misaccounted_dead(files, queued).filter(~pl.col("source_uri").is_in(held)),
    )
    yield found_none("dead_letters", "every_dead_letter_is_whole", damaged=damaged_since(lake, started))
    broken = {account.source_uri: account.damage for account in accounts if account.damage} | dict(unreadable)
    yield dg.AssetCheckResult(
        asset_key="landing_files",
        check_name="every_file_was_read",
        passed=not broken,
        metadata={"damage": dg.MetadataValue.json(broken), WHY: dg.MetadataValue.json(dict(list(broken.items())[:5]))},
    )
    dying = dying_sources(files, accounts)
    yield dg.AssetCheckResult(
        asset_key="landing_files",
        check_name="every_source_lands",
        passed=not dying,
        metadata={"sources": dg.MetadataValue.json(dying), WHY: dg.MetadataValue.json(dict(list(dying.items())[:5]))},
    )
    dead = {account.source_uri: mostly_dead(account, files_letters(lake, account)) for account in accounts
            if 2 * account.dead > account.lines}  # fmt: skip
    yield dg.AssetCheckResult(
        asset_key="landing_files",
        check_name="every_file_brings_events",
        passed=not dead,
        metadata={"files": dg.MetadataValue.json(dead), WHY: dg.MetadataValue.json(dict(list(dead.items())[:5]))},
    )


def dying_sources(files: pl.DataFrame, accounts: Sequence[FileAccount]) -> dict[str, str]:
    """Of the sources and landing dates of a run's files, those of which too much is dead, and what to do."""
    touched = pl.DataFrame(
        list({(account.source, account.landing_date) for account in accounts if account.source}),
        schema={"source": pl.String, "landing_date": pl.Date}, orient="row",
    )  # fmt: skip
    days = files.join(touched, on=["source", "landing_date"], how="semi").group_by("source", "landing_date").agg(
        pl.col("lines", "dead").sum()
    )  # fmt: skip
    dying = days.filter(pl.col("dead") > DEAD_SHARE * pl.col("lines")).sort("source", "landing_date")
    return {
        f"{source} {day}": (
            f"{dead:,} of {lines:,} records are dead letters: `c360 dead-letters list` shows why, and a better mapping "
            f"(`c360 sources plan {source}`) lands them."
        )
        for source, day, lines, dead in dying.iter_rows()
    }


def landing_totals(accounts: Sequence[FileAccount]) -> list[Figure]:
    """What became of the lines of a run's files, and how many bytes they are, to be added to those of earlier runs."""
    outcomes = {name: sum(getattr(account, name) for account in accounts) for name in OUTCOMES}
    return [
        Figure("landing_files_read", "Files that were read.", len(accounts), is_total=True),
        Figure("landing_bytes", "Bytes of them.", sum(account.bytes for account in accounts), is_total=True),
        *(
            Figure("landing_lines", "Lines, by what became of them.", count, {"outcome": name}, is_total=True)
            for name, count in outcomes.items()
        ),
    ]


def landed_summary(accounts: Sequence[FileAccount]) -> str:
    """What became of the lines of the files of a run."""
    if not accounts:
        return "landing: no new file"
    named = [("landing", [a for a in accounts if a.source is None])]
    named += [(f"source {name}", [a for a in accounts if a.source == name])
              for name in sorted({a.source for a in accounts if a.source})]  # fmt: skip
    return "; ".join(_accounted(name, some) for name, some in named if some)


def _accounted(name: str, accounts: Sequence[FileAccount]) -> str:
    total = {outcome: sum(getattr(account, outcome) for account in accounts) for outcome in OUTCOMES}
    shown = [f"{count:,} {outcome}" for outcome, count in total.items() if count or outcome in OUTCOMES[:4]]
    lines = sum(account.lines for account in accounts)
    what = "lines" if name == "landing" else "records"
    return f"{name}: {len(accounts):,} files, {lines:,} {what} = {' + '.join(shown)}"


def files_letters(lake: Lake, account: FileAccount) -> pl.DataFrame:
    """The most frequent reasons of a file's dead lines: error_class, reason, lines."""
    lines = lake.scan(DEAD_LETTER_LINES).filter(
        (pl.col("source_uri") == account.source_uri) & (pl.col("source_etag") == account.etag)
    )
    letters = lake.scan(DEAD_LETTERS).select("dead_letter_id", "error_class", "reason")
    named = lines.select("dead_letter_id").join(letters, on="dead_letter_id")
    counted = named.group_by("error_class").agg(pl.len().alias("lines"), pl.col("reason").first())
    return counted.sort("lines", "error_class", descending=[True, False]).head(3).collect()


def mostly_dead(account: FileAccount, reasons: pl.DataFrame) -> str:
    """What to say of a file of which most is dead: how much, and why; no values of its lines."""
    named = ", ".join(f"{lines:,} {name}" for name, lines in reasons.select("error_class", "lines").iter_rows())
    return (
        f"{account.dead:,} of {account.lines:,} lines are dead letters ({named}). Look at them with `c360 dead-letters "
        "list`; once the producer or the rules are right, `c360 dead-letters replay` lands them."
    )


def _note_dates(context: dg.AssetExecutionContext, lake: Lake, dates: set[date]) -> None:
    """Say of each date how many lines became what."""
    accounts = lake.scan(LANDING_FILES).filter(pl.col("landing_date").is_in(sorted(dates)))
    counted = ("lines", *OUTCOMES, "replaced")
    days = accounts.group_by("landing_date").agg(pl.len().alias("files"), pl.col(counted).sum()).collect()
    # The same bytes on another day are the same letter, and a line of that day all the same.
    of_day = accounts.select("source_uri", source_etag="etag", day=pl.col("landing_date").cast(pl.String))
    lines = lake.scan(DEAD_LETTER_LINES).join(of_day, on=["source_uri", "source_etag"]).select("day", "dead_letter_id")
    letters = lake.scan(DEAD_LETTERS).select("dead_letter_id", "tenant_id", "error_class", "status")
    # Not the reasons in full: they may quote what is personal.
    named = lines.join(letters, on="dead_letter_id")
    reasons = named.group_by("day", "tenant_id", "error_class", "status").len("lines")
    by_reason = reasons.sort("lines", descending=True).collect()
    for asset, count in (("landed_events", "landed"), ("dead_letters", "dead"), ("landing_files", "files")):
        said = {str(day["landing_date"]): rows(day[count], **day | {"landing_date": str(day["landing_date"])})
                for day in days.iter_rows(named=True)}  # fmt: skip
        if asset == "dead_letters":
            for day, facts in said.items():
                said[day] = {"by_reason": preview(by_reason.filter(pl.col("day") == day).drop("day"), 50)} | facts
        note_partitions(context, asset, said)


@asset_check(
    asset="landed_events",
    description="As much lands a day as on the days before: not three times as much, nor a third, of the median of 14.",
)
def volumes_are_as_expected(lake: LakeResource) -> dg.AssetCheckResult:
    """A producer that fell silent, or sends everything twice."""
    accounts = lake.open().scan(LANDING_FILES)
    volumes = accounts.group_by(day="landing_date").agg(rows=pl.col("landed").sum()).collect()
    unusual = unusual_volumes(volumes, datetime.now(UTC).date())
    return dg.AssetCheckResult(
        passed=unusual.is_empty(), severity=dg.AssetCheckSeverity.WARN, metadata={"unusual_days": preview(unusual)}
    )


def _misaccounted(lake: Lake, files: pl.DataFrame, archived: int) -> pl.DataFrame:
    """Files whose rows in the archive are not as many as accounted for; looked for only where the totals differ."""
    if archived == files["landed"].sum():
        return misaccounted(files.clear(), lake.count_by(EVENTS, "source_uri").clear().rename({"len": "archived"}))
    return misaccounted(files, lake.count_by(EVENTS, "source_uri").rename({"len": "archived"}))


@dg.asset(
    description=CATALOG.description,
    owners=OWNERS,
    group_name=GROUP,
    kinds={"deltalake", "csv"},
    metadata={"dagster/column_schema": column_schema(CATALOG), "lake_table": CATALOG.name},
    check_specs=[
        check_spec(
            "every_catalogue_was_read",
            asset="product_catalog",
            description="No catalogue file, and no row of one, was left aside because its columns or prices are wrong.",
        )
    ],
)
def product_catalog(  # with checks of its own, Dagster takes the result type without parameters only
    landing: LandingResource, lake: LakeResource
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    """Read every catalogue file; of a product that stands in several, the last file by name counts.

    What can't be read, a file or a row, leaves what the archive has of it as it is.
    """
    area, tables = landing.open(), lake.open()
    frames, unreadable, held = [CATALOG.empty()], list[str](), tables.read(CATALOG)
    for file in area.catalog_files():
        try:
            read = read_catalog(area.read(file), file.uri)
        except ContractError as error:
            unreadable.append(str(error))
            frames.append(held.filter(pl.col("source_uri") == file.uri))
        else:
            frames += [read.rows, held.join(read.unusable, on=CATALOG.key, how="semi")]
            unreadable += read.problems
    catalog = pl.concat(frames).unique(CATALOG.key, keep="last", maintain_order=True)
    changes = tables.commits.replace(CATALOG, catalog.sort(CATALOG.key))
    return dg.MaterializeResult(
        metadata=rows(catalog.height, changed_rows=changes.count, preview=preview(catalog)),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_catalogue_was_read",
                passed=not unreadable,
                metadata={
                    "unreadable": dg.MetadataValue.json(unreadable[:100]),
                    "rows": len(unreadable),
                    WHY: dg.MetadataValue.json({"product_catalog": "\n".join(unreadable[:5])} if unreadable else {}),
                },
            )
        ],
    )


class CatalogRows(NamedTuple):
    """What a catalogue file says.

    Attributes:
        rows: of `CATALOG`.
        unusable: tenant_id and id of rows that say something that can't be.
        problems: of each such row, which, what and where.
    """

    rows: pl.DataFrame
    unusable: pl.DataFrame
    problems: list[str]


def read_catalog(content: bytes, uri: str) -> CatalogRows:
    """Read a file with the header tenant_id,id,name,category,price.

    Raises:
        ContractError: it is no such file; the message names it.
    """
    columns = ["tenant_id", "id", "name", "category", "price"]
    try:
        frame = pl.read_csv(content, infer_schema=False).select(columns)
    except pl.exceptions.PolarsError as error:
        raise ContractError(f"{uri} is not a catalogue with the columns {', '.join(columns)}: {error}") from None
    # Composed, as the strings of events are: an item must be the same text on both sides.
    composed = frame.with_columns(pl.all().str.normalize("NFC")).with_row_index("row", offset=2)
    price = pl.col("price").str.strip_chars().cast(pl.Float64, strict=False)
    is_wrong = (price.is_null() & pl.col("price").is_not_null()) | ~price.is_finite().fill_null(value=True)
    is_keyless = pl.any_horizontal(pl.col("tenant_id", "id").is_null())
    wrong = composed.filter(is_wrong & ~is_keyless)
    problems = [
        f"{uri} row {row}: the price of product {product!r} is {text!r}, which is no number"
        for row, product, text in wrong.select("row", "id", "price").iter_rows()
    ] + [f"{uri} row {row}: a product needs a tenant_id and an id" for row in composed.filter(is_keyless)["row"]]
    good = composed.filter(~is_wrong & ~is_keyless).with_columns(price=price, source_uri=pl.lit(uri))
    return CatalogRows(good.drop("row"), wrong.select(CATALOG.key), problems)


@asset_check(asset=product_catalog, description="Every price is a number that is not negative.")
def prices_are_not_negative(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for products that would pay the customer."""
    wrong = lake.open().scan(CATALOG).filter(pl.col("price") < 0).collect()
    return dg.AssetCheckResult(passed=wrong.is_empty(), metadata={"products": preview(wrong)})


@dg.multi_asset(
    name="days_of_events", specs=[table_spec(DAILY_EVENTS.name, DAILY_EVENTS, GROUP, deps=["landed_events"])]
)
def days_of_events(lake: LakeResource) -> Iterator[dg.MaterializeResult[None]]:
    """Count the days of tenants whose events changed."""
    tables = lake.open()
    changed = publish_daily_events(tables).count
    said = rows(tables.count(DAILY_EVENTS), changed_rows=changed, **lineage(DAILY_EVENTS))
    yield dg.MaterializeResult(asset_key=DAILY_EVENTS.name, metadata=said)


@asset_check(asset=DAILY_EVENTS.name, description="Days hold as many events as the archive did when they were counted.")
def days_hold_every_event(lake: LakeResource) -> dg.AssetCheckResult:
    """Count both, the archive by its log."""
    held, archived = counted_events(lake.open())
    return dg.AssetCheckResult(passed=held == archived, metadata={"counted": held, "archived": archived})
