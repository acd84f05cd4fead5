"""The project as Dagster's own commands see it, from the repository root."""

import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster_processes import DAGSTER, ROOT, ask, dagster_dev

from c360_pipeline.assets.partitions import LANDING_DATES, SILO_TABLES, keep_partitions
from c360_pipeline.connections import open_control
from c360_pipeline.definitions import defs
from c360_pipeline.devstack import silo_samples
from c360_pipeline.devstack.service import free_port
from c360_pipeline.resources import ControlResource, SilosResource
from c360_pipeline.runs import instance, materialise
from c360_pipeline.settings import Settings, c360_home, postgres_login
from c360_pipeline.stores.neo4j.graph import Graph

ASSETS = """{ assetNodes { assetKey { path } description groupName kinds owners { __typename } hasAssetChecks
  metadataEntries { label } } }"""


GROUPS = {
    "landing",
    "visitors",
    "silos",
    "sources",
    "stitching",
    "graph",
    "reconcile",
    "audiences",
    "features",
    "maintenance",
}


def test_definitions_validate(home: Path) -> None:
    run = subprocess.run([DAGSTER, "definitions", "validate"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_every_asset_says_what_it_is_in_the_ui(home: Path) -> None:
    port = free_port(0)
    with dagster_dev(port):
        nodes = ask(port, ASSETS)["assetNodes"]
        instance = ask(port, "{ instance { daemonHealth { allDaemonStatuses { daemonType } } } }")
    assert {"/".join(node["assetKey"]["path"]) for node in nodes} == {
        key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()
    }
    for node in nodes:
        name = "/".join(node["assetKey"]["path"])
        assert node["description"], name
        assert node["description"].endswith("."), name
        assert node["groupName"] in GROUPS, name
        assert node["kinds"], name
        assert node["owners"], name
    assert len(instance["instance"]["daemonHealth"]["allDaemonStatuses"]) >= 3


def test_every_asset_has_a_check_and_a_table_schema() -> None:
    graph = defs.resolve_asset_graph()
    checked = {key.asset_key for key in graph.asset_check_keys}
    assert checked == set(graph.get_all_asset_keys())
    for key in checked:
        assert "dagster/column_schema" in graph.get(key).metadata, key


def dagster_materialises(*arguments: str) -> str:
    """What `dagster asset materialize` printed."""
    command = [DAGSTER, "asset", "materialize", "-m", "c360_pipeline.definitions", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "RUN_SUCCESS" in run.stderr
    return run.stdout + run.stderr


@pytest.mark.soak
def test_materialise_by_dagsters_own_command(settings: Settings, graph: Graph) -> None:
    login = postgres_login(settings, settings.etl_db_name)
    control = open_control(settings)
    silo_samples.seed(login, control, "sample", lambda _: None)
    with instance(c360_home()) as dagster:
        first, *_, last = keep_partitions(dagster, SILO_TABLES, control.read().table_names)
    printed = dagster_materialises("--select", "silo_tables", "--partition-range", f"{first}...{last}")
    today = LANDING_DATES.get_last_partition_key()
    landed = 'key:"landed_events" or key:"dead_letters" or key:"landing_files"'
    printed += dagster_materialises("--select", landed, "--partition", str(today))
    partitioned = f'{landed} or key:"silo_tables" or group:"features" or group:"sources"'
    printed += dagster_materialises("--select", f"not ({partitioned})")
    assert graph.counts.label_counts()["Account"] == 240
    for secret in (settings.neo4j_password, settings.etl_db_password, settings.aws_secret_access_key):
        assert secret.get_secret_value() not in printed


def test_a_silo_that_is_added_as_rows_is_in_the_ui_and_in_the_graph(settings: Settings, graph: Graph) -> None:
    login = postgres_login(settings, settings.etl_db_name)
    control = open_control(settings)
    silo_samples.seed(login, control, "sample", lambda _: None)
    sensor = defs.resolve_sensor_def("control_rows")
    with instance(c360_home()) as dagster:
        keep_partitions(dagster, SILO_TABLES, control.read().table_names)

        def evaluate() -> Any:
            resources = {"control": ControlResource(), "silos": SilosResource()}
            return sensor(dg.build_sensor_context(instance=dagster, resources=resources))

        assert materialise(c360_home(), "silo_tables", None, lambda _: None).succeeded
        assert isinstance(evaluate(), dg.SkipReason)
        with psycopg.connect(**login) as rows:
            rows.execute(ADD_COMMERCE)
        asked = evaluate()
        assert [request.partition_keys for request in asked.dynamic_partitions_requests] == [
            ["commerce_db.public.users", "commerce_db.public.transactions"]
        ]
        (run,) = asked.run_requests
        dagster.add_dynamic_partitions("silo_table", asked.dynamic_partitions_requests[0].partition_keys)
        done = defs.resolve_job_def("nightly_rebuild").execute_in_process(
            instance=dagster, tags=run.tags, asset_selection=run.asset_selection, raise_on_error=False
        )
        loaded = [e for e in done.get_asset_materialization_events() if e.asset_key == dg.AssetKey("silo_tables")]
        assert sorted(str(e.partition) for e in loaded) == [
            "commerce_db.public.transactions", "commerce_db.public.users"
        ]  # fmt: skip
        assert {e.partition: e.materialization.metadata["dagster/row_count"].value for e in loaded} == {
            "commerce_db.public.users": 240, "commerce_db.public.transactions": 600
        }  # fmt: skip
        assert isinstance(evaluate(), dg.SkipReason)
        with psycopg.connect(**login) as rows:
            rows.execute("DELETE FROM source_databases WHERE db_name = 'commerce_db'")
        assert [r.partition_keys for r in evaluate().dynamic_partitions_requests] == [
            ["commerce_db.public.users", "commerce_db.public.transactions"]
        ]
    assert {"ShopUser": 240, "Purchase": 600}.items() <= graph.counts.label_counts().items()
    assert graph.counts.type_counts()["BOUGHT"] == 600


ADD_COMMERCE = """
    WITH added AS (
        INSERT INTO source_databases (tenant_id, db_name, host, port, db_user, password_ref)
        SELECT tenant_id, 'commerce_db', host, port, 'postgres', 'env:C360_SOURCE_TEST' FROM source_databases
        WHERE db_name = 'profiles_db' RETURNING database_id
    ), users AS (
        INSERT INTO source_tables (database_id, table_name, key_columns)
        SELECT database_id, 'users', '{id}' FROM added RETURNING table_id
    ), transactions AS (
        INSERT INTO source_tables (database_id, table_name, key_columns)
        SELECT database_id, 'transactions', '{id}' FROM added RETURNING table_id
    ), labels AS (
        INSERT INTO node_label_mappings (table_id, node_label)
        SELECT table_id, 'ShopUser' FROM users UNION ALL SELECT table_id, 'Purchase' FROM transactions
    )
    INSERT INTO relationship_mappings (from_label, to_label, relationship_type, join_condition)
    VALUES ('ShopUser', 'Purchase', 'BOUGHT', 'u.id = p.user_id')
"""
