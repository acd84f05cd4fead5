import stat
from pathlib import Path

import pytest

from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import (
    connection_file,
    keep_source_secret,
    load_settings,
    merged_environment,
    source_secret,
    sources_file,
    strictest_sslmode,
)

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


@pytest.fixture
def secrets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of secrets, one in it, one beside it, and variables."""
    inside = folder / "secrets"
    inside.mkdir()
    (inside / "crm").write_text("from-file\nsecond line\n")
    (inside / "crm.host").write_text("db.example:5432\n")
    (inside / "unbound").write_text("nobody's\n")
    (inside / "link").symlink_to(folder / "connection.env")
    (inside / "link.host").write_text("*\n")
    (folder / "beside").write_text("other\n")
    (folder / "beside.host").write_text("*\n")
    monkeypatch.setenv("C360_SECRETS_DIR", str(inside))
    monkeypatch.setenv("C360_SOURCE_CRM", "from-environment")
    monkeypatch.setenv("C360_SOURCE_CRM_HOST", "db.example, *.internal:6432")
    monkeypatch.setenv("C360_SOURCE_UNBOUND", "nobody's")
    monkeypatch.setenv("NEO4J_PASSWORD_HOST", "*")
    monkeypatch.setenv("HUNTER", "hunter2")
    monkeypatch.setenv("HUNTER_HOST", "*")
    return inside


@pytest.mark.parametrize("host", ["db.example", "DB.Example", "a.internal"])
def test_a_secret_of_a_source_is_where_its_reference_points(folder: Path, secrets: Path, host: str) -> None:
    port = 6432 if "internal" in host else 5432
    assert source_secret("env:C360_SOURCE_CRM", host, port, folder).get_secret_value() == "from-environment"
    if host == "db.example":
        assert source_secret(f"file:{secrets}/crm", host, port, folder).get_secret_value() == "from-file"


@pytest.mark.parametrize(
    "reference",
    [
        "env:NEO4J_PASSWORD", "env:HUNTER", "env:C360_SOURCE_NOT_SET", "env:C360_SOURCE_CRM_HOST", "env:", "hunter2",
        "env:C360_SOURCE_UNBOUND", "file:{secrets}/unbound", "file:{secrets}/../beside", "file:{folder}/beside",
        "file:{secrets}/link", "file:{secrets}/crm.host", "file:/proc/self/environ", "file:crm", "file:{secrets}/none",
        "env:C360_SOURCE_CRM\nX", "file:{secrets}",
    ],
)  # fmt: skip
def test_nothing_but_secrets_for_sources_can_be_named_by_a_control_row(
    folder: Path, secrets: Path, reference: str
) -> None:
    named = reference.format(secrets=secrets, folder=folder)
    with pytest.raises(ConfigError, match="Password reference") as caught:
        source_secret(named, "db.example", 5432, folder)
    assert not any(value in str(caught.value) for value in ("neo-secret", "from-", "nobody's"))


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", 5432), ("evil.example", 5432), ("db.example,evil.example", 5432), ("/run/sockets", 5432), ("", 5432),
     ("db.example.evil", 5432), ("a.internal", 5432), ("xdb.example", 5432), ("evil.example,a.internal", 6432),
     ("evil.example a.internal", 6432)],
)  # fmt: skip
def test_a_secret_goes_to_the_server_that_it_is_for_and_to_no_other(
    folder: Path, secrets: Path, host: str, port: int
) -> None:
    with pytest.raises(ConfigError, match=r"names other servers|is not one"):
        source_secret("env:C360_SOURCE_CRM", host, port, folder)


def test_a_secret_that_was_made_is_kept_private_and_follows_its_server(folder: Path) -> None:
    made = keep_source_secret(folder, "C360_SOURCE_SAMPLE", "127.0.0.1", 1)
    assert keep_source_secret(folder, "C360_SOURCE_SAMPLE", "127.0.0.1", 2) == made
    assert source_secret("env:C360_SOURCE_SAMPLE", "127.0.0.1", 2, folder) == made
    with pytest.raises(ConfigError):
        source_secret("env:C360_SOURCE_SAMPLE", "127.0.0.1", 1, folder)
    assert stat.S_IMODE(sources_file(folder).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("asked", "least", "used"),
    [("prefer", None, "prefer"), ("disable", "require", "require"), ("verify-full", "require", "verify-full")],
)
def test_tls_is_as_strict_as_the_stricter_of_row_and_operator_asks(
    monkeypatch: pytest.MonkeyPatch, asked: str, least: str | None, used: str
) -> None:
    if least:
        monkeypatch.setenv("C360_SOURCE_TLS", least)
    assert strictest_sslmode(asked) == used
