"""How long Dagster keeps what it notes of runs: its open-source version keeps everything for ever.

A run that starts every half minute notes some two million events a day. What people look for stays: runs of the last
days, failures of a month, and of whatever age the newest materialisation of each asset and partition and the newest
result of each check, for these are what the UI, sensors and freshness checks tell the state of an asset by.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus, RunRecord, RunsFilter
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events
from sqlalchemy import delete, func, or_, select

from c360_pipeline.errors import ConfigError

SUCCEEDED_FOR, OTHERS_FOR = timedelta(days=7), timedelta(days=30)
SUCCEEDED_RUNS = 2_000
"""Of runs that succeeded, so many stay at most."""
AT_ONCE = 500
ENDED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
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
    old = list(_old_runs(dagster, now or datetime.now(UTC)))
    needed = _newest_states(storage)
    runs_of_states = _runs_of(storage, needed)
    removed = thinned = 0
    for start in range(0, len(old), AT_ONCE):
        some = [record.dagster_run.run_id for record in old[start : start + AT_ONCE]]
        gone = [run_id for run_id in some if run_id not in runs_of_states]
        _forget_checks(storage, some)
        thinned += _thin(storage, [run_id for run_id in some if run_id in runs_of_states], needed)
        for run_id in gone:
            dagster.compute_log_manager.delete_logs(prefix=[run_id])
            dagster.delete_run(run_id)
        removed += len(gone)
        observe(start + len(some))
    with storage.index_connection() as connection:
        events = connection.execute(select(func.count()).select_from(Events)).scalar_one()
    return Pruned(removed, thinned, dagster.get_runs_count(), int(events))


def overdue(dagster: DagsterInstance, now: datetime | None = None) -> int:
    """Runs that should be gone, whatever kept them."""
    storage = _storage(dagster)
    needed = _runs_of(storage, _newest_states(storage))
    return sum(record.dagster_run.run_id not in needed for record in _old_runs(dagster, now or datetime.now(UTC)))


def _storage(dagster: DagsterInstance) -> SqlEventLogStorage:
    storage = dagster.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise ConfigError(f"Runs are kept for ever: events are in {type(storage).__name__}, which is no SQL database.")
    return storage


def _old_runs(dagster: DagsterInstance, now: datetime) -> Iterator[RunRecord]:
    """Runs that ended and that nobody looks for any more, whatever state of assets they made."""
    succeeded = dagster.get_run_records(RunsFilter(statuses=[DagsterRunStatus.SUCCESS]))
    for number, record in enumerate(succeeded):  # the newest first
        if number >= SUCCEEDED_RUNS or record.create_timestamp < now - SUCCEEDED_FOR:
            yield record
    others = [status for status in ENDED if status is not DagsterRunStatus.SUCCESS]
    yield from dagster.get_run_records(RunsFilter(statuses=others, created_before=now - OTHERS_FOR))


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
        connection.execute(delete(Events).where(Events.c.id.in_(older)))
    return len(runs) if done.rowcount or older else 0


def _forget_checks(storage: SqlEventLogStorage, runs: Sequence[str]) -> None:
    """Remove the results of checks of runs, but the newest of each check; what was planned and never came is none."""
    newest = (
        select(func.max(Checks.c.id))
        .where(Checks.c.execution_status != AssetCheckExecutionRecordStatus.PLANNED.value)
        .group_by(Checks.c.asset_key, Checks.c.check_name, Checks.c.partition)
    )
    with storage.index_connection() as connection:
        connection.execute(delete(Checks).where(Checks.c.run_id.in_(runs), Checks.c.id.not_in(newest)))
