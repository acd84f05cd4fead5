"""Opens what the real-time path speaks with, from the settings."""

from typing import Any

from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import Settings
from c360_pipeline.stores.cassandra.user_events import UserEvents

TOPIC = "user_events"
DEAD_LETTER_TOPIC = "user_events.dead-letters"
GROUP = "c360-user-events"
"""The consumer group whose offsets the job commits with its checkpoints."""
TOPICS_OF_SOURCES = "c360.topics-of-sources"
"""Parameter of the job that says which topics it reads beside that of events."""
JOB = "c360-user-events"
"""What the job is called on its cluster."""

SHADED = "org.apache.flink.kafka.shaded."
"""Where Flink's connector has the classes of Kafka's client."""


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Options of a client of librdkafka; holds the password, so never log it.

    Raises:
        ConfigError: no broker is named.
    """
    if settings.kafka_bootstrap_servers is None:
        raise ConfigError("Kafka is not set: start it with `c360 up --streaming`, or set KAFKA_BOOTSTRAP_SERVERS.")
    options = {
        "bootstrap.servers": settings.kafka_bootstrap_servers, "security.protocol": settings.kafka_security_protocol
    }  # fmt: skip
    if settings.kafka_password is not None:
        options |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism, "sasl.username": settings.kafka_user or "",
            "sasl.password": settings.kafka_password.get_secret_value(),
        }  # fmt: skip
    return options


def java_kafka_options(settings: Settings) -> dict[str, str]:
    """The same for the client in Flink's connector; holds the password, so never log it."""
    options = kafka_options(settings)
    found = {"bootstrap.servers": options["bootstrap.servers"], "security.protocol": options["security.protocol"]}
    if settings.kafka_password is not None:
        module = "plain.PlainLoginModule" if options["sasl.mechanism"] == "PLAIN" else "scram.ScramLoginModule"
        user, password = (_quoted(options[name]) for name in ("sasl.username", "sasl.password"))
        found |= {
            "sasl.mechanism": options["sasl.mechanism"],
            "sasl.jaas.config": f"{SHADED}org.apache.kafka.common.security.{module} required username={user} "
            f"password={password};",
        }
    return found


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def open_user_events(settings: Settings) -> UserEvents:
    """Cassandra's table; to be entered.

    Raises:
        ConfigError: no host is named.
    """
    if settings.cassandra_hosts is None:
        raise ConfigError("Cassandra is not set: start it with `c360 up --streaming`, or set CASSANDRA_HOSTS.")
    password = settings.cassandra_password
    return UserEvents(
        [host.strip() for host in settings.cassandra_hosts.split(",")], settings.cassandra_port,
        settings.cassandra_user, password.get_secret_value() if password else None, settings.cassandra_keyspace,
    )  # fmt: skip


def flink_address(settings: Settings) -> str:
    """The address of Flink's REST interface.

    Raises:
        ConfigError: none is named.
    """
    if settings.flink_rest_url is None:
        raise ConfigError("Flink is not set: start it with `c360 up --streaming`, or set FLINK_REST_URL.")
    return settings.flink_rest_url.rstrip("/")
