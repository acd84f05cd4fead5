from pathlib import Path

import pytest

from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import connection_file, load_settings, merged_environment, resolve_secret

EMBEDDED = """NEO4J_URI=bolt://embedded
NEO4J_PASSWORD=neo-secret
ETL_DB_HOST=embedded
ETL_DB_USER=postgres
ETL_DB_PASSWORD=pg-secret
AWS_ACCESS_KEY_ID=c360
AWS_SECRET_ACCESS_KEY=s3-secret
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    connection_file(tmp_path).write_text(EMBEDDED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_embedded_services_are_used_when_nothing_is_set(folder: Path) -> None:
    settings = load_settings(folder, {})
    assert (settings.neo4j_uri, settings.etl_db_port, settings.bucket) == ("bolt://embedded", 5432, "c360-lake")


def test_a_group_comes_from_one_source_only(folder: Path) -> None:
    # Otherwise the embedded password would be sent to somebody's server.
    found = merged_environment(folder, {"NEO4J_URI": "bolt://mine"})
    assert "NEO4J_PASSWORD" not in found
    assert found["ETL_DB_PASSWORD"] == "pg-secret"
    with pytest.raises(ConfigError, match="NEO4J_PASSWORD"):
        load_settings(folder, {"NEO4J_URI": "bolt://mine"})


def test_dot_env_stands_between_environment_and_embedded(folder: Path) -> None:
    (folder / ".env").write_text("ETL_DB_HOST=from-file\nETL_DB_USER=u\nETL_DB_PASSWORD=p\nC360_BUCKET=from-file\n")
    found = merged_environment(folder, {"C360_BUCKET": "from-environment"})
    assert (found["ETL_DB_HOST"], found["C360_BUCKET"]) == ("from-file", "from-environment")


def test_secrets_do_not_show(folder: Path) -> None:
    settings = load_settings(folder, {})
    for secret in ("neo-secret", "pg-secret", "s3-secret"):
        assert secret not in repr(settings)
        assert secret not in settings.model_dump_json()


def test_the_other_name_of_the_user_is_known(folder: Path) -> None:
    environment = {"NEO4J_URI": "bolt://mine", "NEO4J_USERNAME": "me", "NEO4J_PASSWORD": "x"}
    assert load_settings(folder, environment).neo4j_user == "me"


def test_a_secret_is_where_its_reference_points(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").write_text("from-file\n")
    monkeypatch.setenv("SILO_PASSWORD", "from-environment")
    assert resolve_secret(f"file:{folder}/secret", folder).get_secret_value() == "from-file"
    assert resolve_secret("env:SILO_PASSWORD", folder).get_secret_value() == "from-environment"


@pytest.mark.parametrize("reference", ["env:NOT_SET_ANYWHERE", "file:/nowhere", "hunter2", "env:"])
def test_a_reference_that_leads_nowhere_is_refused(folder: Path, reference: str) -> None:
    with pytest.raises(ConfigError, match="Password reference"):
        resolve_secret(reference, folder)
