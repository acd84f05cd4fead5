"""Waits for a line of stdin, then lands, backfills or replays: so it can be killed without waiting for imports."""

import sys
from datetime import date

from c360_pipeline.connections import open_control, open_lake, open_landing
from c360_pipeline.settings import load_settings
from c360_pipeline.stages.landing import ingest as ingesting
from c360_pipeline.stages.landing.backfill import land
from c360_pipeline.stages.landing.dead_letters import DeadLetters, Selection, settle_accounting
from c360_pipeline.stages.landing.ingest import Ingest


def work(command: str, *arguments: str) -> None:
    """Do one thing."""
    settings = load_settings()
    ingest = Ingest(open_landing(settings), open_lake(settings), open_control(settings).privacy.suppressed_users())
    if command == "replay":
        DeadLetters(ingest).replay(Selection(), dry_run=False)
        return
    settle_accounting(ingest.lake)
    dates = {date.fromisoformat(day) for day in arguments} or None
    land(ingest, ingest.landing.event_files(), dates, lambda lines: None)


# Several commits per file, so that a kill has many places to hit.
ingesting.BATCH_BYTES = ingesting.PIECE_BYTES = 16 * 1024
sys.stdout.write("ready\n")
sys.stdout.flush()
work(*sys.stdin.readline().split())
