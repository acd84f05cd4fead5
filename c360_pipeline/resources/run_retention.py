"""How long Dagster keeps what it notes of runs: its open-source version keeps everything for ever.

A run that starts every half minute notes some two million events a day. What people look for stays: runs of the last
days, failures of a month, and of whatever age the newest materialisation of each asset and partition and the newest
result of each check, for these are what the UI, sensors and freshness checks tell the state of an asset by.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunRecord
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks
from dagster._core.storage.event_log.schema import AssetEventTagsTable as Tags
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from dagster._core.storage.tags import BACKFILL_ID_TAG
from sqlalchemy import delete, func, or_, select

from c360_pipeline.errors import ConfigError

SUCCEEDED_FOR, OTHERS_FOR = timedelta(days=7), timedelta(days=30)
SUCCEEDED_RUNS = 2_000
"""Of runs that succeeded, so many stay at most."""
AT_ONCE = 500
ENDED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
GOING_ON = (BulkActionStatus.REQUESTED, BulkActionStatus.CANCELING, BulkActionStatus.FAILING)
STATES = (DagsterEventType.ASSET_MATERIALIZATION.value, DagsterEventType.ASSET_OBSERVATION.value)
ENDS = tuple(
    one.value
    for one in (
        DagsterEventType.RUN_START, DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE,
        DagsterEventType.RUN_CANCELED,
    )
)  # fmt: skip


@dataclass(frozen=True)
class Pruned:
    """What was removed.

    Attributes:
        runs: that are gone, with their events and compute logs.
        thinned: runs of which only what tells the state of assets is left.
        kept_runs: that there are now.
        events: rows of the event log that there are now.
    """

    runs: int
    thinned: int
    kept_runs: int
    events: int


def prune(
    dagster: DagsterInstance, now: datetime | None = None, observe: Callable[[int], None] = lambda done: None
) -> Pruned:
    """Remove what nobody looks for any more; broken off anywhere, the next call goes on.

    Args:
        dagster: with its storage in a SQL database.
        now: UTC.
        observe: called with how many runs are done, every 500.

    Raises:
        ConfigError: the instance has another storage of events.
    """
    storage = _storage(dagster)
    old = _old_runs(dagster, now or datetime.now(UTC))
    needed = _newest_states(storage)
    runs_of_states, checks = _runs_of(storage, needed), _newest_checks(storage)
    removed = thinned = 0
    for start in range(0, len(old), AT_ONCE):
        some = old[start : start + AT_ONCE]
        gone = [run_id for run_id in some if run_id not in runs_of_states]
        _forget_checks(storage, some, checks)
        thinned += _thin(storage, [run_id for run_id in some if run_id in runs_of_states], needed)
        for run_id in gone:
            dagster.compute_log_manager.delete_logs(prefix=[run_id])
            storage.delete_events(run_id)  # first: without the run, nobody would look for them
            dagster.delete_run(run_id)
        removed += len(gone)
        observe(start + len(some))
    with storage.index_connection() as connection:
        events = connection.execute(select(func.count()).select_from(Events)).scalar_one()
    return Pruned(removed, thinned, dagster.get_runs_count(), int(events))


def overdue(dagster: DagsterInstance, now: datetime | None = None) -> int:
    """Runs that should have been gone yesterday."""
    storage = _storage(dagster)
    needed = _runs_of(storage, _newest_states(storage))
    yesterday = (now or datetime.now(UTC)) - timedelta(days=1)
    return sum(run_id not in needed for run_id in _old_runs(dagster, yesterday, by_number=False))


def _storage(dagster: DagsterInstance) -> SqlEventLogStorage:
    storage = dagster.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise ConfigError(f"Runs are kept for ever: events are in {type(storage).__name__}, which is no SQL database.")
    return storage


def _old_runs(dagster: DagsterInstance, now: datetime, *, by_number: bool = True) -> list[str]:
    """Ids of runs that ended and that nobody looks for any more, whatever state of assets they made.

    Runs of a backfill that goes on stay, for its page shows them; and runs that others were tried again from.
    """
    backfills = {one.backfill_id for one in dagster.get_backfills() if one.status in GOING_ON}
    old: list[str] = []
    roots: set[str | None] = set()
    succeeded = 0
    for record in _records(dagster):
        run, is_success = record.dagster_run, record.dagster_run.status is DagsterRunStatus.SUCCESS
        succeeded += is_success
        is_beyond = by_number and is_success and succeeded > SUCCEEDED_RUNS
        is_old = record.create_timestamp < now - (SUCCEEDED_FOR if is_success else OTHERS_FOR)
        stays = run.status not in ENDED or run.tags.get(BACKFILL_ID_TAG) in backfills
        if (is_beyond or is_old) and not stays:
            old.append(run.run_id)
        else:
            roots |= {run.root_run_id, run.parent_run_id}
    return [run_id for run_id in old if run_id not in roots]


def _records(dagster: DagsterInstance) -> Iterator[RunRecord]:
    """All runs, the newest first, page by page."""
    cursor: str | None = None
    while some := dagster.get_run_records(limit=AT_ONCE, cursor=cursor):
        yield from some
        cursor = some[-1].dagster_run.run_id


def _newest_states(storage: SqlEventLogStorage) -> frozenset[int]:
    """Numbers of the newest materialisation and observation of each asset and partition."""
    newest = (
        select(func.max(Events.c.id))
        .where(Events.c.dagster_event_type.in_(STATES))
        .group_by(Events.c.asset_key, Events.c.partition, Events.c.dagster_event_type)
    )
    with storage.index_connection() as connection:
        return frozenset(connection.execute(newest).scalars())


def _runs_of(storage: SqlEventLogStorage, events: frozenset[int]) -> frozenset[str]:
    numbers, found = sorted(events), set[str]()
    with storage.index_connection() as connection:
        for start in range(0, len(numbers), AT_ONCE):
            some = numbers[start : start + AT_ONCE]
            found |= set(connection.execute(select(Events.c.run_id).where(Events.c.id.in_(some))).scalars())
    return frozenset(found)


def _thin(storage: SqlEventLogStorage, runs: Sequence[str], needed: frozenset[int]) -> int:
    """Leave of runs how they ended, and the states that are the newest."""
    if not runs:
        return 0
    with storage.index_connection() as connection:
        of_runs = select(Events.c.id).where(Events.c.run_id.in_(runs), Events.c.dagster_event_type.in_(STATES))
        older = [number for number in connection.execute(of_runs).scalars() if number not in needed]
        rest = or_(Events.c.dagster_event_type.is_(None), Events.c.dagster_event_type.not_in((*STATES, *ENDS)))
        done = connection.execute(delete(Events).where(Events.c.run_id.in_(runs), rest))
        connection.execute(delete(Tags).where(Tags.c.event_id.in_(older)))
        connection.execute(delete(Events).where(Events.c.id.in_(older)))
    return len(runs) if done.rowcount or older else 0


def _newest_checks(storage: SqlEventLogStorage) -> frozenset[int]:
    """Numbers of the newest result of each check; what was planned and never came is none."""
    newest = (
        select(func.max(Checks.c.id))
        .where(Checks.c.execution_status != AssetCheckExecutionRecordStatus.PLANNED.value)
        .group_by(Checks.c.asset_key, Checks.c.check_name, Checks.c.partition)
    )
    with storage.index_connection() as connection:
        return frozenset(connection.execute(newest).scalars())


def _forget_checks(storage: SqlEventLogStorage, runs: Sequence[str], newest: frozenset[int]) -> None:
    """Remove the results of checks of runs, but the newest of each check."""
    with storage.index_connection() as connection:
        of_runs = connection.execute(select(Checks.c.id).where(Checks.c.run_id.in_(runs))).scalars()
        older = [number for number in of_runs if number not in newest]
        connection.execute(delete(Checks).where(Checks.c.id.in_(older)))
