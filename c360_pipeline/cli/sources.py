"""`c360 sources …`: files of producers that write events in a form of their own."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, as_date, err, exclusive, out, print_json
from c360_pipeline.errors import ConfigError, ConflictError, ContractError, UnreadableError
from c360_pipeline.settings import bucket_login, load_settings, require_allowed_location, require_allowed_topic

if TYPE_CHECKING:
    from c360_pipeline.core.sources.location import Location
    from c360_pipeline.core.sources.source import Source
    from c360_pipeline.settings import Settings
    from c360_pipeline.stages.sources.compare import Changes
    from c360_pipeline.stores.postgres.control import ControlDb
    from c360_pipeline.stores.s3.landing import Landing

sources_app = typer.Typer(help="Events of any producer: detect, try, add and map their files.", no_args_is_help=True)
SURE = 0.5
"""A preset of which a file has less is a guess."""
PLANNED_FILES = 20
PLANNED_RECORDS = 100_000
TRIED_RECORDS = 100_000
A_TENANT = "tenant-of-the-path"
"""Stands for what the path of a file would say, where a file is tried that is not in its place."""
FileName = Annotated[Path, typer.Argument(help="a file of the producer, as it is", exists=True, dir_okay=False)]
SourceName = Annotated[str, typer.Argument(help="name of the source, as `list` shows it")]
MappingFile = Annotated[Path | None, typer.Option("--mapping", help="JSON file with a mapping", exists=True)]
PresetName = Annotated[str | None, typer.Option("--preset", help="as `sources presets` names it, such as segment")]
TenantName = Annotated[str | None, typer.Option("--tenant", help="whose events these are, where no record says it")]
FramingName = Annotated[str | None, typer.Option("--framing", help="how records stand in its files; the preset's")]
RecordsPath = Annotated[
    str | None,
    typer.Option("--records", help="path to the records within one value: batch[], a[x].b[] carries x of a along"),
]
ColumnNames = Annotated[
    str | None, typer.Option("--columns", help="of a tsv or csv without a header, with commas between them")
]


@sources_app.command("presets")
def list_presets(as_json: AsJson = False) -> None:
    """Show the mappings that come with the package."""
    from c360_pipeline.stages.sources.presets import presets

    if as_json:
        print_json([{"name": p.name, "title": p.title, "framing": p.framing.kind} for p in presets().values()])
        return
    table = Table("preset", "framing", "whose files")
    for preset in presets().values():
        table.add_row(preset.name, preset.framing.kind, preset.title)
    out.print(table)


@sources_app.command("detect")
def detect(file: FileName, as_json: AsJson = False) -> None:
    """Say which preset a file is of, by what its records have."""
    from c360_pipeline.stages.sources.detect import OWN
    from c360_pipeline.stages.sources.detect import detect as guessed

    guesses = guessed(file)
    if as_json:
        print_json(
            [{"preset": g.preset, "share": g.share, "framing": g.framing.kind, "found": list(g.found)} for g in guesses]
        )
        return
    for guess in guesses[:3]:
        found = ", ".join(guess.found[:5])
        out.print(f"{guess.preset} ({guess.share:.2f}): {found}; framing {guess.framing.kind}", highlight=False)
    best = guesses[0]
    if best.preset == OWN:
        err.print(f"These are events in the project's own form: `c360 land {file}`.", soft_wrap=True)
    elif best.share < SURE:
        err.print(
            "No preset is sure. Write a mapping (docs/mappings.md has the words), and look what the records become: "
            f"`c360 sources try {file} --mapping FILE --tenant TENANT`.", soft_wrap=True,
        )  # fmt: skip
    else:
        err.print(
            f"Look what they become: `c360 sources try {file} --preset {best.preset} --tenant TENANT`.", soft_wrap=True
        )


@sources_app.command("try")
def try_file(
    file: FileName,
    source: Annotated[str | None, typer.Option("--source", help="a source that there is")] = None,
    preset: PresetName = None,
    mapping: MappingFile = None,
    tenant: TenantName = None,
    version: Annotated[int | None, typer.Option("--as", help="version of the source's mapping; the newest")] = None,
    framing: FramingName = None,
    records: RecordsPath = None,
    columns: ColumnNames = None,
    limit: Annotated[int, typer.Option(help="records to look at")] = TRIED_RECORDS,
    as_json: AsJson = False,
) -> None:
    """Say what the records of a file would become; nothing is written, and no service is needed for a preset."""
    from c360_pipeline.stages.sources.reading import record_lines
    from c360_pipeline.stages.sources.trial import try_records

    compiled, framed, rules, given = _mapping_of(file, source, preset, mapping, tenant, version)
    chosen = _with_options(framed, framing, records, columns)
    trial = try_records(islice(record_lines(file, chosen), limit), compiled, rules, given)
    if as_json:
        print_json(trial.as_dict())
    else:
        _show_trial(trial, compiled.name)
    if not trial.events:
        raise typer.Exit(1)


def _mapping_of(
    file: Path, source: str | None, preset: str | None, mapping: Path | None, tenant: str | None, version: int | None
) -> tuple[Any, Any, Any, dict[str, str]]:
    """The mapping that a file is tried with, the framing of the file, the rules for keys, and what its path says."""
    from c360_pipeline.core.stitching.keys import KeyRule
    from c360_pipeline.stages.sources.presets import compiled

    if source is not None:
        from c360_pipeline.connections import open_control
        from c360_pipeline.core.sources.location import Location
        from c360_pipeline.stages.sources.active import framing_of

        control = open_control(load_settings())
        row = control.sources.row(source)
        rules = control.key_rules.policy().rules
        says_tenant = Location(row.location).says_tenant
        given = {"tenantId": tenant or A_TENANT} if says_tenant else {}
        number = 0 if mapping is not None else version or row.newest_version or 0
        document = (
            _document(mapping, preset, None if says_tenant else tenant)
            if mapping is not None
            else control.sources.mapping(row, number).document
        )
        return compiled(document, source, number, tenant_is_given=says_tenant), framing_of(row), rules, given
    if preset is None and mapping is None:
        raise ConfigError("Say --source, --preset or --mapping: `c360 sources detect FILE` finds a preset.")
    document = _document(mapping, preset, tenant)
    rules = (KeyRule("*", "user", "userId"), KeyRule("*", "session", "sessionId"), KeyRule("*", "v", "anonymousId"))
    return compiled(document, "trial", 0), _framing_of(document, file), rules, {}


def _with_options(found: Any, kind: str | None, records: str | None, columns: str | None) -> Any:
    """A framing with what options say otherwise."""
    from c360_pipeline.core.sources.records import Framing

    names = tuple(name.strip() for name in columns.split(",")) if columns else None
    own = found.columns if kind in (None, found.kind) else None
    return Framing(kind or found.kind, names or own, records or found.records)


def _framing_of(document: Mapping[str, Any], file: Path) -> Any:
    from c360_pipeline.core.sources.records import PARQUET, Framing
    from c360_pipeline.stages.sources.presets import presets
    from c360_pipeline.stages.sources.reading import first_bytes

    if first_bytes(file, 4) == b"PAR1":
        return Framing(PARQUET)
    known = presets().get(str(document.get("extends")))
    return known.framing if known else Framing()


def _document(mapping: Path | None, preset: str | None, tenant: str | None) -> dict[str, Any]:
    """The document of a mapping: of a file, of a preset, or a preset with what the file says of its own."""
    from c360_pipeline.stages.sources.presets import newest_of

    document: dict[str, Any] = {}
    if mapping is not None:
        try:
            document = json.loads(mapping.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{mapping} is no JSON: {error}.") from None
        if not isinstance(document, dict):
            raise ConfigError(f"{mapping} holds no object: a mapping is one.")
    if preset is not None:
        document = {"extends": newest_of(preset), **document}
    if tenant is not None:
        document = {**document, "tenant": {"const": tenant}}
    return document


def _show_trial(trial: Any, name: str) -> None:
    from c360_pipeline.core.landing.accounting import OUTCOMES

    total = " + ".join(f"{trial.counts[o]:,} {o}" for o in OUTCOMES if trial.counts[o] or o in OUTCOMES[:3])
    out.print(f"{trial.records:,} records = {total} ({name})", highlight=False)
    table = Table("field", "events", "from")
    for field, events in trial.filled.items():
        paths = [(path, n) for (one, path), n in trial.by_path.most_common() if one == field]
        said = ", ".join(f"{path} ({count:,})" for path, count in paths[:3])
        table.add_row(field, f"{events / trial.events:.0%}" if trial.events else "-", said)
    out.print(table)
    out.print("actions: " + ", ".join(f"{a} {n:,}" for a, n in trial.actions.most_common(12)), highlight=False)
    for raw, event in trial.examples:
        out.print("record: " + raw.decode("utf-8", "backslashreplace")[:400], highlight=False, markup=False)
        out.print("event:  " + json.dumps(event, ensure_ascii=False), highlight=False, markup=False, soft_wrap=True)
    for (kind, reason), (count, line) in sorted(trial.reasons.items(), key=lambda one: -one[1][0])[:10]:
        out.print(f"dead: {count:,} {kind}, first in line {line}: {reason}", highlight=False, markup=False)
    if trial.unread:
        unread = ", ".join(f"{path} ({count:,})" for path, count in trial.unread.most_common(10))
        out.print(f"not read: {unread}", highlight=False, markup=False, soft_wrap=True)
    for warning in trial.warnings:
        err.print(f"warning: {warning}", highlight=False, markup=False, soft_wrap=True)


@sources_app.command("add")
def add(
    name: SourceName,
    location: Annotated[str | None, typer.Option(help="s3://bucket/folder/{any}/{received:epoch_ms}/*.gz")] = None,
    table: Annotated[
        str | None, typer.Option(help="database.schema.table of the silos, whose rows are the records")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="topic of Kafka, whose messages are the records")] = None,
    preset: PresetName = None,
    mapping: MappingFile = None,
    tenant: TenantName = None,
    framing: FramingName = None,
    records: RecordsPath = None,
    columns: ColumnNames = None,
    login: Annotated[
        str | None, typer.Option("--login", help="login for another bucket: env:C360_SOURCE_NAME or file:/path")
    ] = None,
    fresh_within: Annotated[
        int,
        typer.Option(help="days without a file after which a check warns; 0 for a source that is loaded once", min=0),
    ] = 1,
    note: Annotated[str, typer.Option(help="why, for those who look at it later")] = "",
) -> None:
    """Make a source whose files are read from the next run on; of one that is there, add a version of the mapping."""
    from c360_pipeline.connections import open_control
    from c360_pipeline.core.sources.records import Framing
    from c360_pipeline.stages.sources.presets import compiled, presets

    if preset is None and mapping is None:
        raise ConfigError("Say --preset or --mapping: `c360 sources detect FILE` finds a preset.")
    document = _document(mapping, preset, tenant)
    known = presets().get(str(document.get("extends")))
    chosen = _with_options(known.framing if known else Framing(), framing, records, columns)
    settings = load_settings()
    control = open_control(settings)
    place = _place_of(control, name, location, table, topic, login)
    chosen = replace(chosen, is_of_messages=bool(topic or table))
    location = place.text
    compiled(document, name, 1, tenant_is_given=place.says_tenant)
    others = [row.name for row in control.sources.rows() if row.location == location and row.name != name]
    if others:
        raise ConfigError(f"{others[0]} has its files at {location} already: a file is of one source.")
    names = list(chosen.columns) if chosen.columns else None
    made = control.sources.add(
        name,
        location,
        chosen.kind,
        names,
        chosen.records,
        table,
        from_topic=topic,
        login_ref=login,
        fresh_within_days=fresh_within or None,
    )
    version = control.sources.add_mapping(name, document, note)
    if not made:
        err.print(f"{name} was there: its mapping is v{version}, not applied. `c360 sources plan {name}` compares.")
        return
    control.sources.apply(name, version)
    tenant_said = document.get("tenant")
    if isinstance(tenant_said, dict) and "const" in tenant_said and not place.says_tenant:
        _keep_users_apart(control, settings, str(tenant_said["const"]))
    if topic is not None:
        err.print(
            f"{name} v{version}: `c360 stream start` reads {topic} from now on. Its messages are in the graph within a "
            "second, and land from files with the next run after a minute.", highlight=False,
        )  # fmt: skip
        return
    err.print(f"{name} v{version}: its files land with the next run (`c360 run`).", highlight=False)
    if table is None:
        _say_what_waits(control, name)


def _keep_users_apart(control: "ControlDb", settings: "Settings", tenant_id: str) -> None:
    """Make users of a new tenant one only by what says so: its producers name those who logged in, and visitors."""
    import polars as pl

    from c360_pipeline.connections import open_lake
    from c360_pipeline.core.catalog.tables import EVENTS

    rows = open_lake(settings).scan(EVENTS).filter(pl.col("tenant_id") == tenant_id)
    if rows.head(1).collect().is_empty():
        if control.key_rules.keep_users_apart(tenant_id):
            err.print(f"Users of {tenant_id} stay apart: only an alias or merge call makes two of them one.",
                      highlight=False)  # fmt: skip
    elif not any(rule.is_unique and rule.key_type == "user" for rule in control.key_rules.policy().rules_of(tenant_id)):
        err.print(
            f"{tenant_id} has events already, and a device or an order may make two of its users one. To keep users "
            "apart: docs/journeys.md.", highlight=False,
        )  # fmt: skip


def _place_of(
    control: "ControlDb", name: str, location: str | None, table: str | None, topic: str | None, login: str | None
) -> "Location":
    """Where the files of a new source are: at a location that is allowed, or those of a table's rows or of messages.

    Raises:
        ConfigError: at no such place, or by no such login.
    """
    from c360_pipeline.core.sources.location import Location
    from c360_pipeline.stages.sources.tables import location_of
    from c360_pipeline.stages.sources.topics import location_of_topic, require_topic_of_producer

    settings = load_settings()
    if sum(one is not None for one in (location, table, topic)) > 1:
        raise ConfigError("Say one of --location, --table and --topic: a source has its records from one place.")
    if login is not None and location is None:
        raise ConfigError("--login is for the bucket of --location.")
    if topic is not None:
        require_topic_of_producer(topic)
        require_allowed_topic(topic)
        return Location(location_of_topic(settings.bucket, topic))
    if table is not None:
        known_tables = control.read().table_names
        if table not in known_tables:
            raise ConfigError(f"There is no table {table!r} in source_tables: there are {', '.join(known_tables)}.")
        return Location(location_of(settings.bucket, name))
    if location is None:
        raise ConfigError(
            "Say --location, where its files lie, --table, whose rows are its records, or --topic, whose messages are."
        )
    place = Location(location)
    require_allowed_location(place.beginning, settings)
    if login is not None:
        bucket_login(login, place.bucket)
    return place


def _say_what_waits(control: "ControlDb", name: str) -> None:
    """How many files lie at the place of a source: none may be a misspelt location."""
    from c360_pipeline.connections import open_landing
    from c360_pipeline.stages.sources.active import source_of

    row = control.sources.row(name)
    try:
        found = len(open_landing(load_settings()).source_files(source_of(control, row, row.active_version or 1)))
    except UnreadableError as error:
        err.print(f"warning: {error}", highlight=False, markup=False, soft_wrap=True)
        return
    said = f"{found:,} files are there." if found else f"warning: no file is at {row.location} yet; is it spelt right?"
    err.print(said, highlight=False, markup=False, soft_wrap=True)


@sources_app.command("put")
def put(name: SourceName, file: FileName, tenant: TenantName = None) -> None:
    """Upload a file to where the source has its files; the next run takes it up."""
    from c360_pipeline.connections import open_control, open_landing
    from c360_pipeline.core.sources.location import Location

    settings = load_settings()
    row = open_control(settings).sources.row(name)
    if origin := row.from_table or row.from_topic:
        raise ConfigError(f"{name} has its records from {origin}: what is put there becomes events of it.")
    location = Location(row.location)
    if location.bucket != settings.bucket:
        raise ConfigError(
            f"{name} has its files in the bucket {location.bucket}: put them there as their producer does."
        )
    folder = location.folder_for(file.name, datetime.now(UTC), tenant)
    err.print(open_landing(settings).put_file(file, folder), highlight=False)


@sources_app.command("list")
def show(as_json: AsJson = False) -> None:
    """Show the sources, and what landed of each."""
    from c360_pipeline.connections import open_control, open_lake
    from c360_pipeline.core.landing.accounting import OUTCOMES
    from c360_pipeline.reads.deliveries import by_source

    settings = load_settings()
    rows = open_control(settings).sources.rows()
    counted = by_source(open_lake(settings)).select("source", "files", "lines", *OUTCOMES)
    of = {row["source"]: row for row in counted.iter_rows(named=True)}
    if as_json:
        print_json([{**vars(row), "accounting": of.get(row.name, {})} for row in rows])
        return
    if not rows:
        err.print("There is no source yet: `c360 sources detect FILE`, then `c360 sources add`.")
        return
    table = Table("source", "mapping", "location", "files", "records", *OUTCOMES)
    for row in rows:
        found = of.get(row.name, {})
        version = f"v{row.active_version}" if row.is_active else "paused"
        numbers = (f"{found.get(name) or 0:,}" for name in ("files", "lines", *OUTCOMES))
        table.add_row(row.name, version, row.location, *numbers)
    out.print(table)


def _changes(landing: "Landing", before: "Source", after: "Source", files: int = PLANNED_FILES) -> "Changes":
    """What another version of a source's mapping changes, over its newest files."""
    from c360_pipeline.stages.sources.compare import compare_versions

    return compare_versions(
        islice(_stored_lines(landing, after, files), PLANNED_RECORDS), before.mapping, after.mapping
    )  # fmt: skip


def _stored_lines(landing: "Landing", source: "Source", files: int) -> Iterator[tuple[bytes, Mapping[str, str]]]:
    """Records of the newest files of a source, with what their path says."""
    from c360_pipeline.stages.sources.reading import lines_of

    for file in sorted(landing.source_files(source), key=lambda one: (one.landing_date, one.key))[-files:]:
        # What a damaged file has before the damage is looked at, too.
        with suppress(ContractError, ConflictError, UnreadableError):
            yield from ((line, source.given(file.uri)) for line in lines_of(landing.pieces(file, 1024 * 1024)))


@sources_app.command("plan")
def plan(
    name: SourceName,
    version: Annotated[int | None, typer.Option("--as", help="version to compare with; the newest")] = None,
    files: Annotated[int, typer.Option(help="newest files to look at")] = PLANNED_FILES,
    as_json: AsJson = False,
) -> None:
    """Compare a version of the mapping with the one that is active, over stored files; exit code 1 beyond the brake."""
    from c360_pipeline.connections import open_control, open_landing
    from c360_pipeline.stages.sources.active import source_of

    settings = load_settings()
    control = open_control(settings)
    row = control.sources.row(name)
    if row.active_version is None or row.newest_version is None:
        raise ConfigError(f"{name} has no mapping that is active: `c360 sources apply {name} VERSION`.")
    before, after = (source_of(control, row, v) for v in (row.active_version, version or row.newest_version))
    changes = _changes(open_landing(settings), before, after, files)
    said = {
        "from": before.mapping.version, "to": after.mapping.version,
        "records": changes.records, "events": changes.events,
        "outcomes": {
            outcome: {action: n for (one, action), n in changes.outcomes.most_common() if one == outcome}
            for outcome in ("appear", "alter", "vanish", "die", "same")
        },
        "altered": dict(changes.altered.most_common()),
        "reasons": dict(changes.reasons.most_common(10)),
    }  # fmt: skip
    if as_json:
        print_json(said)
    else:
        out.print(f"{name} v{said['from']} -> v{said['to']}, {changes.records:,} records", highlight=False)
        for outcome, actions in said["outcomes"].items():  # type: ignore[attr-defined]  # of the object above
            shown = ", ".join(f"{action} {count:,}" for action, count in actions.items())
            out.print(f"{outcome}: {changes.count(outcome):,} {shown}".rstrip(), highlight=False, markup=False)
        for field, count in changes.altered.most_common():
            out.print(f"  {field} differs in {count:,}", highlight=False)
        for reason, count in changes.reasons.most_common(10):
            out.print(f"dead: {count:,} {reason}", highlight=False, markup=False, soft_wrap=True)
    if not changes.records:
        raise ConfigError(f"{name} has no stored record: look at its location with `c360 sources list`.")
    if changes.is_beyond_brake:
        raise typer.Exit(1)


@sources_app.command("apply")
def apply(
    name: SourceName,
    version: Annotated[str, typer.Argument(help="version of its mapping, such as v2")],
    since: Annotated[
        str | None, typer.Option("--from", help="landing date from which files are read again, YYYY-MM-DD")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="although more than 5 % of the events go")] = False,
) -> None:
    """Read new files by a version from now on, and with --from those that landed, too; what died may land then."""
    from c360_pipeline.connections import open_control, open_lake, open_landing
    from c360_pipeline.stages.landing.backfill import backfill
    from c360_pipeline.stages.landing.dead_letters import DeadLetters, Selection
    from c360_pipeline.stages.landing.ingest import Ingest
    from c360_pipeline.stages.sources.active import active_sources, source_of

    settings = load_settings()
    control = open_control(settings)
    number = int(version.removeprefix("v")) if version.removeprefix("v").isdigit() else 0
    row = control.sources.row(name)
    after, landing = source_of(control, row, number), open_landing(settings)
    if row.active_version not in (None, number) and not force:
        changes = _changes(landing, source_of(control, row, row.active_version or 0), after)
        if changes.is_beyond_brake:
            raise ConfigError(
                f"{changes.count('vanish') + changes.count('die'):,} of {changes.events:,} events would go. Look at "
                f"`c360 sources plan {name} --as {number}`; if it is right, apply with --force."
            )
    control.sources.apply(name, number)
    err.print(f"New files of {name} are read by v{number}.", highlight=False)
    if since is None:
        return
    first = as_date(since, "--from")
    with exclusive():
        suppressed, (sources, _) = control.privacy.suppressed_users(), active_sources(control)
        ingest = Ingest(landing, open_lake(settings), suppressed, control.overwrite_rules(), sources=sources)
        source = next(one for one in sources if one.name == name)
        files = [file for file in landing.source_files(source, sources) if file.landing_date >= first]
        if not files:
            raise ConfigError(
                f"{name} has no file that came on {first} or later: nothing was read again. `c360 sources list` shows "
                "its location; say an earlier --from."
            )
        accounts = backfill(ingest, files, lambda _: None)
        letters = Selection(file=f"s3://{source.location.bucket}/{source.location.prefix}")
        replayed = DeadLetters(ingest).replay(letters, dry_run=False)
    landed = replayed.filter(replayed["outcome"] == "landed").height
    records = sum(account.lines for account in accounts)
    err.print(
        f"{len(accounts):,} files, {records:,} records were read again; {landed:,} dead letters landed. "
        "`c360 run` brings them to journeys and graph.", highlight=False, soft_wrap=True,
    )  # fmt: skip


@sources_app.command("pause")
def pause(name: SourceName) -> None:
    """Land no more files of a source; what landed stays."""
    from c360_pipeline.connections import open_control

    control = open_control(load_settings())
    control.sources.row(name)
    control.sources.pause(name)
    err.print(f"{name} is paused: `c360 sources apply {name} VERSION` goes on.", highlight=False)
