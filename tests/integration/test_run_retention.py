"""What Dagster notes of runs goes after its time; what tells the state of assets stays."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from c360_pipeline.resources.run_retention import OTHERS_FOR, SUCCEEDED_FOR, overdue, prune
from c360_pipeline.runs import instance

DATES = dg.StaticPartitionsDefinition(["a", "b"])
FAILS: list[bool] = []


@dg.asset(partitions_def=DATES)
def pruned_files(context: dg.AssetExecutionContext) -> None:
    context.log.info("a line that nobody needs in a week")


@dg.asset
def pruned_table() -> None:
    if FAILS:
        raise ValueError("on purpose")


@dg.asset_check(asset=pruned_table)
def it_is_right() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


def run(dagster: dg.DagsterInstance, asset: str, partition: str | None = None) -> str:
    job = dg.Definitions([pruned_files, pruned_table], asset_checks=[it_is_right])
    keys = [dg.AssetKey(asset)]
    made = job.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=dagster, asset_selection=keys, partition_key=partition, raise_on_error=False
    )
    return made.run_id


def test_what_nobody_looks_for_goes_and_the_state_of_assets_stays(home: Path) -> None:
    with instance(home) as dagster:
        prune(dagster, datetime.now(UTC) + timedelta(days=365))  # what other tests have left
        first, second, other = (run(dagster, "pruned_files", partition) for partition in ("a", "a", "b"))
        table, again = run(dagster, "pruned_table"), run(dagster, "pruned_table")
        FAILS.append(True)
        failed = run(dagster, "pruned_table")
        FAILS.clear()
        mine = {first, second, other, table, again, failed}

        def kept() -> set[str]:
            return mine & {record.run_id for record in dagster.get_runs()}

        def events(run_id: str) -> int:
            return len(dagster.all_logs(run_id))

        assert prune(dagster).runs == 0
        assert kept() == mine
        in_a_week = datetime.now(UTC) + SUCCEEDED_FOR + timedelta(hours=1)
        assert overdue(dagster, in_a_week) == 0  # within a day, the nightly job has time for it
        assert overdue(dagster, in_a_week + timedelta(days=1)) == 2
        whole = events(second)
        done = prune(dagster, in_a_week)
        assert (done.runs, overdue(dagster, in_a_week + timedelta(days=1))) == (2, 0)
        assert kept() == {second, other, again, failed}
        assert 0 < events(second) < whole / 2
        assert events(failed) > 5
        assert prune(dagster, in_a_week).runs == 0
        assert prune(dagster, datetime.now(UTC) + OTHERS_FOR + timedelta(hours=1)).runs == 1
        assert kept() == {second, other, again}
        # The UI knows what it knew.
        assert dagster.get_materialized_partitions(dg.AssetKey("pruned_files")) == {"a", "b"}
        newest = dagster.get_latest_materialization_event(dg.AssetKey("pruned_table"))
        assert newest is not None
        assert newest.run_id == again
        key = dg.AssetCheckKey(dg.AssetKey("pruned_table"), "it_is_right")
        checked = dagster.event_log_storage.get_latest_asset_check_execution_by_key([key])
        assert checked[key].run_id == again
