"""The embedded services of the real-time path: Kafka, Cassandra and Flink, for `c360 up --streaming`.

Kafka and Cassandra ask for a password; Flink's REST interface knows none and listens on loopback only.
"""

import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import structlog

from c360_pipeline.devstack.distributions import cassandra_jars, flink_environment, flink_home, flink_jars, kafka_jars
from c360_pipeline.devstack.service import LOOPBACK, Service, free_port, with_parent
from c360_pipeline.errors import UnavailableError
from c360_pipeline.settings import write_private

USER = "c360"
KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=CLIENT
listener.security.protocol.map=CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config={login} required username="{user}" password="{password}" \
user_{user}="{password}";
log.dirs={data}
num.partitions=4
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.retention.hours=168
message.max.bytes=1100000
num.network.threads=2
num.io.threads=2
"""
KAFKA_LOGGING = """\
appender.c.type=Console
appender.c.name=C
appender.c.layout.type=PatternLayout
appender.c.layout.pattern=%d %p %c - %m%n
rootLogger.level=warn
rootLogger.appenderRef.c.ref=C
"""
CASSANDRA_YAML = """\
cluster_name: c360
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [ {{ seeds: "127.0.0.1:{storage}" }} ]
listen_address: 127.0.0.1
rpc_address: 127.0.0.1
storage_port: {storage}
native_transport_port: {port}
start_native_transport: true
data_file_directories: [ "{home}/data" ]
commitlog_directory: "{home}/commitlog"
saved_caches_directory: "{home}/saved_caches"
hints_directory: "{home}/hints"
cdc_raw_directory: "{home}/cdc_raw"
# An acknowledged write is on the disk: what is lost with a process is what nobody was told is there.
commitlog_sync: batch
commitlog_segment_size: 16MiB
commitlog_total_space: 256MiB
memtable_heap_space: 128MiB
memtable_offheap_space: 64MiB
key_cache_size: 8MiB
networking_cache_size: 32MiB
file_cache_size: 32MiB
concurrent_reads: 8
# Each waits until the log is on the disk.
concurrent_writes: 128
concurrent_compactors: 1
disk_optimization_strategy: ssd
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
auto_snapshot: false
dynamic_snitch: false
"""
CASSANDRA_LOGGING = """\
<configuration><appender name="C" class="ch.qos.logback.core.ConsoleAppender"><encoder>
<pattern>%date{ISO8601} %level %logger{20} - %msg%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="C"/></root></configuration>
"""
CASSANDRA_OPENS = tuple(
    f"--add-{kind}={package}=ALL-UNNAMED"
    for kind, packages in {
        "exports": (
            "java.base/jdk.internal.misc", "java.management.rmi/com.sun.jmx.remote.internal.rmi",
            "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.sql/java.sql", "java.base/java.lang.ref",
            "jdk.unsupported/sun.misc", "jdk.attach/sun.tools.attach",
        ),
        "opens": (
            "java.base/java.lang.module", "java.base/jdk.internal.loader", "java.base/jdk.internal.ref",
            "java.base/jdk.internal.reflect", "java.base/jdk.internal.math", "java.base/jdk.internal.module",
            "java.base/jdk.internal.util.jar", "jdk.management/com.sun.management.internal", "java.base/sun.nio.ch",
            "java.base/java.io", "java.base/java.lang.reflect", "java.base/java.lang", "java.base/java.util",
            "java.base/java.nio",
        ),
    }.items()
    for package in packages
)  # fmt: skip
FLINK_OPENS = " ".join(
    f"--add-{kind}={package}=ALL-UNNAMED"
    for kind, packages in {
        "exports": (
            "java.rmi/sun.rmi.registry", "jdk.compiler/com.sun.tools.javac.api",
            "jdk.compiler/com.sun.tools.javac.code", "jdk.compiler/com.sun.tools.javac.file",
            "jdk.compiler/com.sun.tools.javac.parser", "jdk.compiler/com.sun.tools.javac.tree",
            "jdk.compiler/com.sun.tools.javac.util", "java.security.jgss/sun.security.krb5",
        ),
        "opens": (
            "java.base/java.lang", "java.base/java.net", "java.base/java.io", "java.base/java.nio",
            "java.base/sun.nio.ch", "java.base/java.lang.reflect", "java.base/java.text", "java.base/java.time",
            "java.base/java.util", "java.base/java.util.concurrent", "java.base/java.util.concurrent.atomic",
            "java.base/java.util.concurrent.locks",
        ),
    }.items()
    for package in packages
)  # fmt: skip
CHECKPOINT_SECONDS = 5


def kafka(home: Path, port: int, password: str) -> Service:
    """One Kafka broker that is its own controller (KRaft)."""
    folder = home / "kafka"
    java = ["java", "-Xms256m", "-Xmx384m", "-XX:+UseSerialGC", "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={folder}/log4j2.properties", "-cp", f"{kafka_jars()}/*"]  # fmt: skip

    def prepare() -> list[tuple[list[str], dict[str, str]]]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log4j2.properties").write_text(KAFKA_LOGGING, encoding="utf-8")
        write_private(folder / "kafka.properties", KAFKA_PROPERTIES.format(
            port=port, controller=free_port(0), data=folder / "data", user=USER, password=password,
            login="org.apache.kafka.common.security.plain.PlainLoginModule",
        ))  # fmt: skip
        if (folder / "data" / "meta.properties").exists():
            return []
        cluster = "YzM2MGM2MGMzNjBjMzYwYw"
        arguments = ["format", "--cluster-id", cluster, "--config", str(folder / "kafka.properties")]
        return [([*with_parent(signal.SIGTERM), *java, "kafka.tools.StorageTool", *arguments], {})]

    def probe() -> str:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        options = kafka_options(f"{LOOPBACK}:{port}", password)
        client = AdminClient({**options, "socket.timeout.ms": 5_000}, logger=_silent())
        try:
            described = client.list_topics(timeout=5)
        except KafkaException as error:
            raise UnavailableError(f"Kafka does not answer: {error}") from error
        return f"{kafka_jars().name.removeprefix('kafka-')}, {len(described.brokers)} broker"

    return Service(
        name="kafka", port=port, prepare=prepare,
        command=[*with_parent(signal.SIGTERM), *java, "kafka.Kafka", str(folder / "kafka.properties")],
        environment={}, probe=probe, stop_signal=signal.SIGTERM,
        connection={
            "KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{port}", "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_USER": USER, "KAFKA_PASSWORD": password,
        },
    )  # fmt: skip


def kafka_options(servers: str, password: str) -> dict[str, Any]:
    """How a client of librdkafka opens the embedded broker; holds the password, so never log it."""
    return {
        "bootstrap.servers": servers, "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN",
        "sasl.username": USER, "sasl.password": password,
    }  # fmt: skip


def _silent() -> Any:
    """While a server starts, that nobody answers is no news."""
    import logging

    logger = logging.getLogger("c360.devstack.kafka")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def cassandra(home: Path, port: int, password: str) -> Service:
    """One Cassandra node."""
    folder = home / "cassandra"
    conf = folder / "conf"
    java = ["java", "-Xms384m", "-Xmx384m", "-XX:MaxDirectMemorySize=256m", "-XX:+UseG1GC", "-Xss384k",
            "-Djdk.attach.allowAttachSelf=true", "-Dio.netty.tryReflectionSetAccessible=true",
            *CASSANDRA_OPENS]  # fmt: skip

    def prepare() -> list[tuple[list[str], dict[str, str]]]:
        conf.mkdir(parents=True, exist_ok=True)
        yaml = CASSANDRA_YAML.format(home=folder, port=port, storage=free_port(0))
        (conf / "cassandra.yaml").write_text(yaml, encoding="utf-8")
        (conf / "logback.xml").write_text(CASSANDRA_LOGGING, encoding="utf-8")
        return []

    def probe() -> str:
        return _cassandra_version(port, password)

    agent = next(cassandra_jars().glob("jamm-*.jar"), None)
    return Service(
        name="cassandra", port=port, prepare=prepare,
        command=[
            *with_parent(signal.SIGTERM), *java, *([f"-javaagent:{agent}"] if agent else []),
            f"-Dcassandra.config=file://{conf / 'cassandra.yaml'}", f"-Dcassandra.storagedir={folder}",
            f"-Dcassandra.logdir={home / 'logs'}", "-Dlogback.configurationFile=logback.xml",
            "-Dcassandra-foreground=yes", "-Dcassandra.superuser_setup_delay_ms=0",
            "-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.ring_delay_ms=1",
            "-cp", f"{conf}:{cassandra_jars()}/*", "org.apache.cassandra.service.CassandraDaemon",
        ],
        environment={}, probe=probe, stop_signal=signal.SIGTERM,
        connection={
            "CASSANDRA_HOSTS": LOOPBACK, "CASSANDRA_PORT": str(port), "CASSANDRA_USER": USER,
            "CASSANDRA_PASSWORD": password,
        },
    )  # fmt: skip


def _cassandra_version(port: int, password: str) -> str:
    """What the server says; the first time the login that every Cassandra begins with is replaced by ours."""
    from cassandra import AuthenticationFailed
    from cassandra.cluster import NoHostAvailable

    try:
        return _asked(port, USER, password)
    except NoHostAvailable as error:
        if not any(isinstance(reason, AuthenticationFailed) for reason in error.errors.values()):
            raise UnavailableError("Cassandra does not answer.") from error
    quoted = password.replace("'", "''")
    statements = (f"CREATE ROLE IF NOT EXISTS {USER} WITH SUPERUSER = true AND LOGIN = true AND PASSWORD = '{quoted}'",)
    try:
        _asked(port, "cassandra", "cassandra", statements)
        return _asked(port, USER, password, ("ALTER ROLE cassandra WITH SUPERUSER = false AND LOGIN = false",))
    except NoHostAvailable as error:
        raise UnavailableError("Cassandra takes no login yet.") from error


def _asked(port: int, user: str, password: str, statements: tuple[str, ...] = ()) -> str:
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import Cluster
    from cassandra.io.asyncioreactor import AsyncioConnection

    login = PlainTextAuthProvider(user, password)
    with Cluster(
        [LOOPBACK], port=port, auth_provider=login, connect_timeout=5, connection_class=AsyncioConnection
    ) as opened:
        session = opened.connect()
        for statement in statements:
            session.execute(statement)
        return str(session.execute("SELECT release_version FROM system.local").one().release_version)


def flink_settings(home: Path, rest: int, s3: Mapping[str, str]) -> dict[str, Any]:
    """Flink's configuration, in its own nested form; holds the keys of S3."""
    python = str(flink_environment() / "bin" / "python")
    state = f"s3://{s3['C360_BUCKET']}/flink"
    return {
        "jobmanager": {"bind-host": LOOPBACK, "rpc": {"address": LOOPBACK, "port": free_port(0)},
                       "memory": {"process": {"size": "1024m"}}},
        "taskmanager": {"bind-host": LOOPBACK, "host": LOOPBACK, "numberOfTaskSlots": 4,
                        "memory": {"process": {"size": "1600m"}, "managed": {"size": "256m"},
                                   "jvm-metaspace": {"size": "320m"}}},
        "blob": {"server": {"port": free_port(0)}},
        "rest": {"address": LOOPBACK, "bind-address": LOOPBACK, "port": rest},
        "parallelism": {"default": 2},
        "io": {"tmp": {"dirs": str(home / "flink" / "scratch")}},
        "env": {"java": {"opts": {"all": FLINK_OPENS}}},
        "execution": {"buffer-timeout": {"interval": "20 ms"}, "checkpointing": {
            "interval": f"{CHECKPOINT_SECONDS} s", "mode": "EXACTLY_ONCE", "dir": f"{state}/checkpoints",
            "savepoint-dir": f"{state}/savepoints", "externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
            "timeout": "10 min", "tolerable-failed-checkpoints": 100, "min-pause": "1 s",
        }},
        "state": {"backend": {"type": "rocksdb", "incremental": True}},
        "restart-strategy": {"type": "exponential-delay", "exponential-delay": {
            "initial-backoff": "1 s", "max-backoff": "30 s", "backoff-multiplier": 1.5,
            "attempts-before-reset-backoff": 2_147_483_647, "reset-backoff-threshold": "5 min",
        }},
        "heartbeat": {"timeout": 10_000, "interval": 2_000},
        # What comes is handed on at once: by default a second is waited for at each Python operator.
        "python": {"executable": python, "client": {"executable": python},
                   "fn-execution": {"bundle": {"size": 1_000, "time": 50}}},
        "s3": {"endpoint": s3["AWS_ENDPOINT_URL"], "path": {"style": {"access": "true"}},
               "access-key": s3["AWS_ACCESS_KEY_ID"], "secret-key": s3["AWS_SECRET_ACCESS_KEY"],
               "endpoint.region": s3["AWS_REGION"], "region": s3["AWS_REGION"]},
        # A gateway over folders does not delete folders that hold something, which s3a asks of it otherwise.
        "fs": {"s3a": {"directory": {"marker": {"retention": "keep"}}}},
        "metrics": {"fetcher": {"update-interval": 1_000}},
    }  # fmt: skip


def flink_variables(home: Path) -> dict[str, str]:
    """The environment of Flink's processes and of its command line."""
    folder = home / "flink"
    return {
        "FLINK_HOME": str(flink_home()), "FLINK_CONF_DIR": str(folder / "conf"),
        "FLINK_LOG_DIR": str(home / "logs"), "FLINK_PLUGINS_DIR": str(folder / "plugins"),
        "FLINK_LIB_DIR": str(folder / "lib"),
        "PATH": f"{flink_environment() / 'bin'}:{os.environ.get('PATH', '')}", "C360_HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip


def flink_jobmanager(home: Path, port: int, s3: Mapping[str, str]) -> Service:
    """Flink's session cluster: what takes jobs."""
    folder = home / "flink"

    def prepare() -> list[tuple[list[str], dict[str, str]]]:
        for name in ("conf", "scratch", "lib", "plugins/s3-fs-hadoop"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("log4j-console.properties", "log4j-cli.properties"):
            (folder / "conf" / name).write_bytes((flink_home() / "conf" / name).read_bytes())
        plugin = next(flink_jars().glob("flink-s3-fs-hadoop-*.jar"))
        _link(folder / "plugins" / "s3-fs-hadoop", [plugin])
        # What every start of the job would load again, and never give back: the connector, and what runs Python.
        connector = flink_jars().glob("flink-sql-connector-kafka-*.jar")
        python = (flink_home() / "opt").glob("flink-python-*.jar")
        _link(folder / "lib", [*(flink_home() / "lib").glob("*.jar"), *connector, *python])
        # JSON is YAML.
        write_private(folder / "conf" / "config.yaml", json.dumps(flink_settings(home, port, s3), indent=2))
        return []

    def probe() -> str:
        return str(_overview(port)["flink-version"])

    return Service(
        name="flink-jobmanager", port=port, prepare=prepare,
        command=[*with_parent(signal.SIGTERM), str(flink_home() / "bin" / "jobmanager.sh"), "start-foreground"],
        environment=flink_variables(home), probe=probe, stop_signal=signal.SIGTERM, needs_settings=True,
        connection={"FLINK_REST_URL": f"http://{LOOPBACK}:{port}"},
    )  # fmt: skip


def _link(folder: Path, jars: Iterable[Path]) -> None:
    """Make a folder hold links to these jars and no others."""
    wanted = {jar.name: jar for jar in jars}
    for linked in folder.iterdir():
        if linked.name not in wanted or linked.readlink() != wanted[linked.name]:
            linked.unlink()
    for name, jar in wanted.items():
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(jar)


def flink_taskmanager(home: Path, port: int, rest: int) -> Service:
    """Where the tasks of Flink's jobs run, each Python operator in a process of its own."""

    def probe() -> str:
        seen = _overview(rest)
        if not seen["taskmanagers"]:
            raise UnavailableError("Flink has no task manager yet.")
        return f"{seen['flink-version']}, {seen['slots-total']} slots"

    return Service(
        name="flink-taskmanager", port=port, prepare=list,
        command=[*with_parent(signal.SIGTERM), str(flink_home() / "bin" / "taskmanager.sh"), "start-foreground",
                 f"-Dtaskmanager.rpc.port={port}"],
        environment=flink_variables(home), probe=probe, stop_signal=signal.SIGTERM, connection={},
        needs_settings=True,
    )  # fmt: skip


def services_at(
    home: Path, ports: Mapping[str, int], secret: Mapping[str, str], connections: Mapping[str, Mapping[str, str]]
) -> list[Service]:
    """The services of the real-time path that have a port, in the order of their start.

    Args:
        home: state folder.
        ports: by name of service.
        secret: passwords by name of service.
        connections: of the services that are not of the real-time path.
    """
    found = []
    if "kafka" in ports:
        found.append(kafka(home, ports["kafka"], secret["kafka"]))
    if "cassandra" in ports:
        found.append(cassandra(home, ports["cassandra"], secret["cassandra"]))
    if "flink-jobmanager" in ports:
        found.append(flink_jobmanager(home, ports["flink-jobmanager"], connections["s3"]))
        found.append(flink_taskmanager(home, ports["flink-taskmanager"], ports["flink-jobmanager"]))
    return found


def _overview(rest: int) -> dict[str, Any]:
    try:
        with urlopen(f"http://{LOOPBACK}:{rest}/overview", timeout=5) as answer:
            seen: dict[str, Any] = json.load(answer)
            return seen
    except (URLError, OSError) as error:
        structlog.get_logger().debug("flink_does_not_answer", error=str(error))
        raise UnavailableError("Flink does not answer.") from error
