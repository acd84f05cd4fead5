"""`c360 dead-letters …`: the queue of rejected lines."""

import base64
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from c360_pipeline.cli.output import AsJson, as_date, err, exclusive, out, print_json
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import load_settings

SHOWN_BYTES = 4096
letters_app = typer.Typer(help="Dead letters: list, show, replay or discard rejected lines.", no_args_is_help=True)


def _open_queue() -> Any:
    from c360_pipeline.connections import open_control, open_lake, open_landing
    from c360_pipeline.stages.landing.dead_letters import DeadLetters
    from c360_pipeline.stages.landing.ingest import Ingest
    from c360_pipeline.stages.sources.active import active_sources

    settings = load_settings()
    control = open_control(settings)
    suppressed, (sources, _) = control.privacy.suppressed_users(), active_sources(control)
    return DeadLetters(Ingest(open_landing(settings), open_lake(settings), suppressed, sources=sources))


def _selection(
    reason: str | None, tenant: str | None, file: str | None, day: str | None, status: str, ids: list[str] | None
) -> Any:
    from c360_pipeline.core.landing.dead_letters import LETTER_CLASSES, STATUSES
    from c360_pipeline.stages.landing.dead_letters import Selection

    if reason is not None and reason not in LETTER_CLASSES:
        raise ConfigError(f"--reason {reason!r}: one of {', '.join(LETTER_CLASSES)} is right.")
    if status not in (*STATUSES, "all"):
        raise ConfigError(f"--status {status!r}: one of {', '.join(STATUSES)}, all is right.")
    return Selection(
        reason, tenant, file, as_date(day, "--day") if day else None, None if status == "all" else status,
        tuple(ids or ()),
    )  # fmt: skip


Reason = Annotated[str | None, typer.Option(help="class of the error, such as bad_timestamp")]
Tenant = Annotated[str | None, typer.Option(help="tenant that the line names")]
File = Annotated[str | None, typer.Option(help="part of the address of a file that holds the line")]
Day = Annotated[str | None, typer.Option(help="landing date of such a file, YYYY-MM-DD")]
Status = Annotated[str, typer.Option(help="open, replayed, discarded or all")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="beginning of a dead letter's id; can be repeated")]


@letters_app.command("list")
def list_letters(
    reason: Reason = None, tenant: Tenant = None, file: File = None, day: Day = None, status: Status = "open",
    ids: Ids = None, limit: Annotated[int, typer.Option(help="dead letters to show")] = 50, as_json: AsJson = False,
) -> None:  # fmt: skip
    """List rejected lines, by the time at which they were first seen."""
    found = _open_queue().find(_selection(reason, tenant, file, day, status, ids))
    if as_json:
        print_json(found.head(limit).to_dicts())
        return
    out.print(letters_table(found.head(limit)))
    classes = found["error_class"].value_counts(sort=True).iter_rows()
    counted = ", ".join(f"{count:,} {error_class}" for error_class, count in classes)
    err.print(f"{found.height:,} letters{': ' + counted if counted else ''}", highlight=False)


@letters_app.command("show")
def show_letter(
    letter: Annotated[str, typer.Argument(help="beginning of the dead letter's id")],
    raw: Annotated[bool, typer.Option("--raw", help="write the bytes themselves, and nothing else")] = False,
    as_json: AsJson = False,
) -> None:
    """Show one rejected line: why, where it was found, and its bytes."""
    found = _open_queue().one(letter)
    content: bytes = found.pop("raw")
    if raw:
        sys.stdout.buffer.write(content)
    elif as_json:
        print_json({**found, "raw_base64": base64.b64encode(content).decode()})
    else:
        print_letter(found, content)


@letters_app.command("replay")
def replay_letters(
    reason: Reason = None, tenant: Tenant = None, file: File = None, day: Day = None, status: Status = "open",
    ids: Ids = None, dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would land")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Land rejected lines that pass under today's rules; `c360 run` then takes them into the graph."""
    selection = _selection(reason, tenant, file, day, status, ids)
    with exclusive(), err.status("reading the dead letters"):
        done = _open_queue().replay(selection, dry_run=dry_run)
    counts = dict(done["outcome"].value_counts(sort=True).iter_rows())
    if as_json:
        print_json({"dry_run": dry_run, "letters": done.height, "outcomes": counts, "details": done.to_dicts()})
        return
    out.print(outcomes_table(done))
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items()) or "none"
    err.print(f"{done.height:,} dead letters {'would be' if dry_run else 'are'} replayed: {said}", highlight=False)


@letters_app.command("discard")
def discard_letters(
    note: Annotated[str, typer.Option(help="why, for those who look at them later")],
    reason: Reason = None, tenant: Tenant = None, file: File = None, day: Day = None, ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="every open dead letter")] = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Discard rejected lines: they keep their bytes and stay accounted for, and are not replayed any more."""
    if not everything and not any((reason, tenant, file, day, ids)):
        raise ConfigError("Which letters? Give --id, --reason, --tenant, --file or --day, or --all.")
    with exclusive():
        done = _open_queue().discard(_selection(reason, tenant, file, day, "open", ids), note)
    print_json({"discarded": done["dead_letter_id"].to_list()}) if as_json else err.print(
        f"{done.height:,} letters discarded", highlight=False
    )


def letters_table(letters: Any) -> Table:
    """Dead letters, one a row."""
    table = Table("id", "class", "tenant", "file", "line", "status", "reason")
    for row in letters.iter_rows(named=True):
        table.add_row(
            row["dead_letter_id"][:12], row["error_class"], row["tenant_id"] or "", Path(row["source_uri"]).name,
            "" if row["source_line"] is None else f"{row['source_line']:,}", row["status"], row["reason"],
        )  # fmt: skip
    return table


def print_letter(letter: dict[str, Any], content: bytes) -> None:
    """Everything about one dead letter; bytes that are no text are escaped."""
    places = letter.pop("places")
    for name, value in letter.items():
        out.print(f"{name:15} {'' if value is None else value}", highlight=False)
    for place in places:
        out.print(
            "found in        {source_uri} line {source_line:,} at byte {byte_offset:,}: {outcome}".format(**place),
            highlight=False,
        )
    out.print(f"{len(content):,} bytes:", highlight=False)
    shown = content[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
    out.print(shown + ("" if len(content) <= SHOWN_BYTES else " …"), highlight=False, soft_wrap=True)


def outcomes_table(done: Any) -> Table:
    """What became of letters, counted by outcome and class."""
    table = Table("outcome", "class", "letters")
    for outcome, error_class, count in (
        done.group_by("outcome", "error_class").len().sort("len", descending=True).rows()
    ):
        table.add_row(outcome, error_class or "", f"{count:,}")
    return table
