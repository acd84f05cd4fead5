"""The one place that reads the environment.

Three sources, the first that knows a group of settings wins it whole: environment variables, the `.env` file
of the working folder, and what `c360 up` wrote for the embedded services. Groups are never mixed, so the
password of an embedded server is not sent to a server that you named. Secrets of the sample silos come last.
"""

import fcntl
import json
import os
import re
import secrets
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from c360_pipeline.core.contract.identifier_secrets import parsed_secrets
from c360_pipeline.core.sources.login import BucketLogin
from c360_pipeline.errors import ConfigError

OWNERS: dict[str, tuple[str, ...]] = {
    "Neo4j": ("NEO4J_URI", "NEO4J_USER", "NEO4J_USERNAME", "NEO4J_PASSWORD"),
    "Postgres": ("ETL_DB_HOST", "ETL_DB_PORT", "ETL_DB_USER", "ETL_DB_PASSWORD"),
    "S3": ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "Kafka": (
        "KAFKA_BOOTSTRAP_SERVERS",
        "KAFKA_SECURITY_PROTOCOL",
        "KAFKA_SASL_MECHANISM",
        "KAFKA_USER",
        "KAFKA_PASSWORD",
    ),
    "Cassandra": ("CASSANDRA_HOSTS", "CASSANDRA_PORT", "CASSANDRA_USER", "CASSANDRA_PASSWORD"),
}
"""Variables that together say which server and which login: always taken from one source."""
SOURCE_VARIABLE = re.compile(r"C360_SOURCE_[A-Z0-9_]+")
BOUND_TO = "_HOST"
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
"""Of libpq, the laxest first."""


def c360_home() -> Path:
    """The folder of embedded state: `C360_HOME`, or `.c360` beside the nearest project file."""
    if configured := os.environ.get("C360_HOME"):
        return Path(configured).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / ".c360").is_dir() or (folder / "workspace.yaml").is_file():
            return folder / ".c360"
    return here / ".c360"


def first_landing_date() -> str:
    """Where the calendar of landing dates begins, `C360_FIRST_LANDING_DATE`; files of earlier dates land, too."""
    return merged_environment(c360_home()).get("C360_FIRST_LANDING_DATE", "2025-01-01")


def is_automation_on() -> bool:
    """Whether schedules and sensors run from the start; `C360_AUTOMATION=off` leaves them to a person."""
    return merged_environment(c360_home()).get("C360_AUTOMATION", "on").lower() != "off"


def logs_are_json() -> bool:
    """Whether logs are for machines: `C360_LOG_FORMAT=json`; else they are text for people."""
    return merged_environment(c360_home()).get("C360_LOG_FORMAT", "text").lower() == "json"


def runbook_entry(name: str) -> str:
    """The runbook's entry for a check or an alert; `C360_RUNBOOK_URL` says where the runbook is published."""
    return f"{merged_environment(c360_home()).get('C360_RUNBOOK_URL', 'docs/runbook.md')}#{name}"


def lake_address() -> str:
    """Where the Delta tables lie."""
    bucket = merged_environment(c360_home()).get("C360_BUCKET", Settings.model_fields["bucket"].default)
    return f"s3://{bucket}/lake"


def serving_address() -> str:
    """Where the pages for people are, `C360_API_URL`."""
    return merged_environment(c360_home()).get("C360_API_URL", "http://127.0.0.1:8000").rstrip("/")


def sources_file(home: Path) -> Path:
    """Secrets of sources that this installation made itself, such as the samples; readable by the owner only."""
    return home / "sources.env"


def connection_file(home: Path) -> Path:
    """Where the embedded services leave their addresses and passwords, readable by the owner only."""
    return home / "connection.env"


def project_path(name: str) -> Path:
    """A file or folder that stands beside the package in the repository, and inside it once installed."""
    package = Path(__file__).parent
    return next(path for path in (package / name, package.parent / name) if path.exists())


def _address(*schemes: str) -> AfterValidator:
    """An address with one of these schemes, as the clients of a service take it."""

    def checked(value: str) -> str:
        found = urlsplit(value)
        if found.scheme not in schemes or not found.netloc:
            raise ValueError(f"is no address of it: {schemes[0]}://host:port is right, with {', '.join(schemes)}")
        return value

    return AfterValidator(checked)


class Settings(BaseSettings):
    """Addresses and credentials of the services, read once and never changed.

    Secrets are `SecretStr`: they do not show in a log, a traceback or the Dagster UI.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    neo4j_uri: Annotated[str, _address("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")] = Field(
        alias="NEO4J_URI"
    )
    neo4j_user: str = Field("neo4j", validation_alias=AliasChoices("NEO4J_USER", "NEO4J_USERNAME"))
    neo4j_password: SecretStr = Field(alias="NEO4J_PASSWORD")
    neo4j_database: str = Field("neo4j", alias="NEO4J_DATABASE")
    etl_db_host: str = Field(alias="ETL_DB_HOST")
    etl_db_port: int = Field(5432, alias="ETL_DB_PORT")
    etl_db_name: str = Field("etl_control_db", alias="ETL_DB_NAME")
    etl_db_user: str = Field(alias="ETL_DB_USER")
    etl_db_password: SecretStr = Field(alias="ETL_DB_PASSWORD")
    dagster_db_name: str = Field("dagster", alias="C360_DAGSTER_DB")
    aws_endpoint_url: Annotated[str, _address("http", "https")] | None = Field(None, alias="AWS_ENDPOINT_URL")
    aws_access_key_id: str = Field(alias="AWS_ACCESS_KEY_ID")
    aws_secret_access_key: SecretStr = Field(alias="AWS_SECRET_ACCESS_KEY")
    aws_region: str = Field("us-east-1", alias="AWS_REGION")
    kafka_bootstrap_servers: str | None = Field(None, alias="KAFKA_BOOTSTRAP_SERVERS")
    kafka_security_protocol: str = Field("PLAINTEXT", alias="KAFKA_SECURITY_PROTOCOL")
    kafka_sasl_mechanism: str = Field("PLAIN", alias="KAFKA_SASL_MECHANISM")
    kafka_user: str | None = Field(None, alias="KAFKA_USER")
    kafka_password: SecretStr | None = Field(None, alias="KAFKA_PASSWORD")
    cassandra_hosts: str | None = Field(None, alias="CASSANDRA_HOSTS")
    cassandra_port: int = Field(9042, alias="CASSANDRA_PORT")
    cassandra_user: str | None = Field(None, alias="CASSANDRA_USER")
    cassandra_password: SecretStr | None = Field(None, alias="CASSANDRA_PASSWORD")
    cassandra_keyspace: str = Field("c360", alias="CASSANDRA_KEYSPACE", pattern=r"^[a-z][a-z0-9_]{0,47}$")
    flink_rest_url: Annotated[str, _address("http", "https")] | None = Field(None, alias="FLINK_REST_URL")
    stream_shards: int = Field(1, ge=1, le=64, alias="C360_STREAM_SHARDS")
    spark_master: str = Field("local[*]", alias="C360_SPARK_MASTER")
    spark_jars: Path | None = Field(None, alias="C360_SPARK_JARS")
    api_rate: str = Field("1000/second", alias="C360_API_RATE")
    api_connections: int = Field(1_000, ge=1, alias="C360_API_CONNECTIONS")
    oidc_issuer: Annotated[str, _address("https", "http")] | None = Field(None, alias="C360_OIDC_ISSUER")
    oidc_client_id: str | None = Field(None, alias="C360_OIDC_CLIENT_ID")
    oidc_client_secret: SecretStr | None = Field(None, alias="C360_OIDC_CLIENT_SECRET")
    oidc_tenant: str | None = Field(None, alias="C360_OIDC_TENANT")
    oidc_tenant_claim: str = Field("c360_tenant", alias="C360_OIDC_TENANT_CLAIM")
    oidc_role_claim: str = Field("c360_role", alias="C360_OIDC_ROLE_CLAIM")
    oidc_roles: str | None = Field(None, alias="C360_OIDC_ROLES")
    notify_webhook: SecretStr | None = Field(None, alias="C360_NOTIFY_WEBHOOK")
    dagster_url: Annotated[str, _address("http", "https")] = Field("http://127.0.0.1:3000", alias="C360_DAGSTER_URL")
    bucket: str = Field("c360-lake", alias="C360_BUCKET", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what `load_settings` passes: it has merged the sources group by group."""
        return (init_settings,)


def postgres_login(settings: Settings, database: str) -> dict[str, Any]:
    """Host, port, user, password and dbname as psycopg takes them; holds the password, so never log it."""
    return {
        "host": settings.etl_db_host,
        "port": settings.etl_db_port,
        "dbname": database,
        "user": settings.etl_db_user,
        "password": settings.etl_db_password.get_secret_value(),
    }


def merged_environment(home: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of the environment, `.env` and the embedded services; the first that has one wins.

    Returns:
        Variable names to values, every group of `OWNERS` from a single source.
    """
    sources: list[dict[str, str]] = [
        {k: v for k, v in source.items() if v}
        for source in (
            os.environ if environ is None else environ,
            dotenv_values(Path.cwd() / ".env"),
            dotenv_values(connection_file(home)),
            dotenv_values(sources_file(home)),
        )
    ]
    merged: dict[str, str] = {}
    for source in reversed(sources):
        merged |= source
    for names in OWNERS.values():
        owner = next((s for s in sources if any(n in s for n in names)), {})
        for name in names:
            merged.pop(name, None)
        merged |= {n: owner[n] for n in names if n in owner}
    return merged


def load_settings(home: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises:
        ConfigError: a service has no address or credentials; the message names the variables that are missing.
    """
    home = home or c360_home()
    try:
        return Settings(**merged_environment(home, environ))  # type: ignore[arg-type]  # aliases
    except ValidationError as error:
        problems = ", ".join(
            f"{e['loc'][0]} ({e['msg'].removeprefix('Value error, ').lower()})"
            for e in error.errors(include_input=False)
        )
        raise ConfigError(
            f"Settings are incomplete or wrong: {problems}. Start the embedded services with `c360 up`, "
            "or set these variables in the environment or in .env (see .env.example)."
        ) from None


def source_secret(reference: str, host: str, port: int | None, home: Path | None = None) -> SecretStr:
    """The secret that a control row points at, if its operator meant it for the row's server.

    Who may write a control row must not get other secrets of this machine by naming them, nor send one to a server of
    theirs. So only variables called `C360_SOURCE_…` and files below `C360_SECRETS_DIR` can be named, and each has a
    companion that says which servers it is for: the variable `…_HOST`, the file `….host`, with `host` or `host:port`,
    several with commas between them; `*` stands for any characters.

    Args:
        reference: `env:NAME` for an environment variable, `file:/path` for a file's first line.
        host: of the server that it would be sent to.
        port: of that server; None for a bucket, which has none.
        home: state folder whose variables count too.

    Raises:
        ConfigError: it is no such reference, nothing is there, or it is not for this server. What is there is not told.
    """
    environment = merged_environment(home or c360_home())
    kind, _, name = reference.partition(":")
    where, server = f"Password reference {reference!r}", host if port is None else f"{host}:{port}"
    if "," in host or host != "".join(host.split()):
        # libpq takes a list and tries each: one that the companion names would let all others in.
        raise ConfigError(f"{where}: a row names one server, and {host!r} is not one.")
    if kind == "env" and SOURCE_VARIABLE.fullmatch(name) and not name.endswith(BOUND_TO):
        secret, bound, companion = environment.get(name), environment.get(f"{name}{BOUND_TO}"), f"{name}{BOUND_TO}"
    elif kind == "file" and (path := _secrets_file(name, environment)) is not None:
        secret, bound, companion = _first_line(path), _first_line(path.with_name(f"{path.name}.host")), f"{name}.host"
    else:
        raise ConfigError(
            f"{where} is not for sources: env:C360_SOURCE_NAME, or file:/path of a file in the folder that "
            "C360_SECRETS_DIR names, is right (docs/security.md)."
        )
    if not secret:
        raise ConfigError(f"{where} leads nowhere: set the variable, or write the file.")
    if not bound:
        raise ConfigError(f"{where} says no server that it is for: set {companion} to {server} if that is meant.")
    allowed = [one.strip().lower() for one in bound.split(",")]
    named = (host.lower(), server.lower())
    if not any(fnmatchcase(name, one) for name in named for one in allowed if one):
        raise ConfigError(f"{where} is not for {server}: {companion} names other servers.")
    return SecretStr(secret)


def bucket_login(reference: str, bucket: str, home: Path | None = None) -> BucketLogin:
    """The login for the bucket of a source, which its control row points at: one line of JSON.

    `{"access_key_id": …, "secret_access_key": …}`, with `region` and `endpoint_url` where they are not those of the
    product's own bucket. Its companion names the buckets that it is for.

    Raises:
        ConfigError: as `source_secret`; or it is no such line. What is there is not told.
    """
    secret = source_secret(reference, bucket, None, home).get_secret_value()
    names = {"access_key_id", "secret_access_key"}, {"region", "endpoint_url"}
    try:
        said = json.loads(secret)
    except ValueError:
        said = None
    if not isinstance(said, dict) or not names[0] <= said.keys() <= names[0] | names[1] or not all(
        isinstance(value, str) and value for value in said.values()
    ):  # fmt: skip
        raise ConfigError(
            f"Login reference {reference!r} holds no login for a bucket: one line of JSON is right, with "
            "access_key_id and secret_access_key, and region and endpoint_url where they differ (docs/security.md)."
        ) from None
    return BucketLogin(**said | {"secret_access_key": SecretStr(said["secret_access_key"])})


def _secrets_file(name: str, environment: Mapping[str, str]) -> Path | None:
    """A file that really lies in the folder of secrets, whatever links and dots its name has."""
    folder = environment.get("C360_SECRETS_DIR")
    if not folder or not Path(name).is_absolute():
        return None
    path = Path(name).resolve()
    return path if path.is_relative_to(Path(folder).resolve()) and path.suffix != ".host" else None


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    return next(iter(path.read_text(encoding="utf-8", errors="replace").splitlines()), "").strip()


def strictest_sslmode(asked: str) -> str:
    """How a source's connection is encrypted: as its control row asks, or `C360_SOURCE_TLS` where that is stricter.

    Raises:
        ConfigError: `C360_SOURCE_TLS` is no mode of libpq.
    """
    least = merged_environment(c360_home()).get("C360_SOURCE_TLS", SSL_MODES[0])
    if least not in SSL_MODES:
        raise ConfigError(f"C360_SOURCE_TLS {least!r}: {', '.join(SSL_MODES)} are right.")
    return max(asked, least, key=SSL_MODES.index)


OWN_FOLDERS = (
    "lake/",
    "audiences/",
    "landing/",
    "dead-letters/",
    "cypher/",
    "flink/",
    "table-events/",
    "topic-events/",
)
"""Of the product's bucket: what lies there is of all tenants, and no source's."""


def require_allowed_location(location: str, settings: "Settings") -> None:
    """Whether a control row may have files read at a place.

    Who may write a control row must not get what lies elsewhere by naming it: of the product's own bucket the folders
    that nobody else writes are closed, and other buckets are open where `C360_SOURCE_LOCATIONS` names them, as
    beginnings of addresses with commas between them.

    Args:
        location: s3://bucket/key, up to its first place that may be anything.
        settings: of the product.

    Raises:
        ConfigError: it may not.
    """
    bucket, _, key = location.removeprefix("s3://").partition("/")
    allowed = _named_by("C360_SOURCE_LOCATIONS")
    if bucket == settings.bucket:
        if any(key.startswith(folder) or folder.startswith(key) for folder in OWN_FOLDERS):
            raise ConfigError(f"{location} is a folder of the product's own: put files of sources beside it.")
        return
    if not any(location.startswith(one) for one in allowed):
        raise ConfigError(
            f"{location} is not named by C360_SOURCE_LOCATIONS, which says where sources may be read from: whoever "
            "operates the product adds it there."
        )


def _named_by(variable: str) -> list[str]:
    """What a variable names, with commas between."""
    named = merged_environment(c360_home()).get(variable, "")
    return [one.strip() for one in named.split(",") if one.strip()]


def require_allowed_host(host: str, port: int, *, is_inside: bool) -> None:
    """Go on only where an audience may be sent to a server.

    Who may write an audience's document must not get the product to call whatever this machine can reach: servers are
    open where `C360_ACTIVATION_HOSTS` names them, as `host` or `host:port` with commas between them; `*` stands for any
    characters, but for no address inside: one of this machine, or of a private network, is named as it is.

    Args:
        host: of the server.
        port: of the server.
        is_inside: whether the host is, or leads to, an address of this machine or of a private network.

    Raises:
        ConfigError: it may not.
    """
    said = (host.lower(), f"{host.lower()}:{port}")
    named = [one.lower() for one in _named_by("C360_ACTIVATION_HOSTS")]
    by_pattern = not is_inside and any(fnmatchcase(name, one) for name in said for one in named)
    if not by_pattern and not is_named_as_it_is(host, port):
        raise ConfigError(
            f"{host}:{port} is not named by C360_ACTIVATION_HOSTS, which says where members of audiences may be sent"
            f"{'; an address inside must be named as it is' if is_inside else ''}: whoever operates the product adds "
            "it there (docs/security.md)."
        )


def is_named_as_it_is(host: str, port: int) -> bool:
    """Whether `C360_ACTIVATION_HOSTS` names a server without a pattern."""
    named = {one.lower() for one in _named_by("C360_ACTIVATION_HOSTS") if "*" not in one}
    return bool({host.lower(), f"{host.lower()}:{port}"} & named)


def is_allowed_topic(topic: str) -> bool:
    """Whether a control row may have messages of a topic read.

    The login of the real-time path may read more than the author of a control row: topics are open where
    `C360_SOURCE_TOPICS` names them, with commas between them; one that ends with `*` is the beginning of names.
    """
    allowed = _named_by("C360_SOURCE_TOPICS")
    return any(topic.startswith(one[:-1]) if one.endswith("*") else topic == one for one in allowed)


def require_allowed_topic(topic: str) -> None:
    """Go on only where `is_allowed_topic` says so.

    Raises:
        ConfigError: it does not.
    """
    if not is_allowed_topic(topic):
        raise ConfigError(
            f"the topic {topic} is not named by C360_SOURCE_TOPICS, which says what sources may be read from Kafka: "
            "whoever operates the product adds it there."
        )


def operator_secret(reference: str) -> SecretStr:
    """The secret that whoever runs a command points at: `env:NAME`, or `file:/path` for a file's first line.

    Raises:
        ConfigError: the reference has another form, or nothing is there.
    """
    kind, _, name = reference.partition(":")
    found = merged_environment(c360_home()).get(name, "") if kind == "env" else ""
    if kind == "file" and name:
        found = _first_line(Path(name))
    if not found:
        raise ConfigError(f"Password reference {reference!r} leads nowhere: env:NAME or file:/path is right.")
    return SecretStr(found)


IDENTIFIER_KEYS = "C360_IDENTIFIER_KEYS"


def _identifier_keys() -> tuple[str | None, Path]:
    """What `C360_IDENTIFIER_KEYS` says, and the file that is read where it says nothing."""
    home = c360_home()
    environment = merged_environment(home)
    # A path that is absolute stays as it is.
    return environment.get(IDENTIFIER_KEYS), home / environment.get(f"{IDENTIFIER_KEYS}_FILE", "identifier-keys")


def identifier_keys_place() -> str:
    """What the secrets that identifiers are hashed with are read from, in words."""
    given, path = _identifier_keys()
    return f"the variable {IDENTIFIER_KEYS}" if given else str(path)


def identifier_secrets() -> dict[int, SecretStr]:
    """The secrets that identifiers are hashed with, by version, as they are now; none where nobody gave any.

    Raises:
        ConfigError: they are not written as they should be.
    """
    given, path = _identifier_keys()
    if given:
        return parsed_secrets(given, IDENTIFIER_KEYS)
    try:
        return parsed_secrets(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror if isinstance(error, OSError) else 'it is no text'}. Whoever runs "
            "the product needs it, and nobody else (docs/security.md)."
        ) from None


def keep_identifier_secret(version: int) -> SecretStr:
    """The secret of a version, made where it is missing, and kept in the file.

    Raises:
        ConfigError: the secrets come from the environment, and this one is not among them.
    """
    known = identifier_secrets()
    if version in known:
        return known[version]
    given, path = _identifier_keys()
    if given:
        raise ConfigError(
            f"{IDENTIFIER_KEYS} has no secret of version {version}: add {version}:SECRET to it, with a secret that "
            "`c360 keys new` prints, wherever the product runs."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.with_name(f"{path.name}.lock")).open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        known = identifier_secrets()
        known.setdefault(version, SecretStr(secrets.token_hex(32)))
        lines = (f"{number}:{secret.get_secret_value()}\n" for number, secret in sorted(known.items()))
        write_private(path, "".join(lines))
    return known[version]


def write_private(path: Path, text: str) -> None:
    """Write a file that only the owner can read, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def keep_source_secret(home: Path, name: str, host: str, port: int) -> SecretStr:
    """The secret of a source that this installation made itself, made where it is missing, and bound to its server."""
    path = sources_file(home)
    kept = {key: value or "" for key, value in dotenv_values(path).items()}
    kept.setdefault(name, secrets.token_hex(24))
    kept[f"{name}{BOUND_TO}"] = f"{host}:{port}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, "".join(f"{key}={value}\n" for key, value in kept.items()))
    return SecretStr(kept[name])
