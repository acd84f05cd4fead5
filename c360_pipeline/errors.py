"""Every exception of the project, grouped by what the operator should do about it.

    C360Error
    ├── ConfigError       fix a setting, an argument or a control row
    ├── ContractError     fix the data at its producer
    ├── UnreadableError   one object of many can't be had: the others go on
    ├── TableError        a table of the lake is not as it was left: see the runbook
    ├── UnavailableError  a service does not answer: start it or wait, the run can be retried
    ├── ConflictError     another worker was faster: reload and redo the pure work
    ├── RemovalLimitError  more would be removed than is usual: look, then say so
    └── InvariantError    stop: what must always hold does not, never retried

A message says what was seen, what would be right, and the next step.
"""

from collections.abc import Iterable

UNREACHABLE = frozenset({
    "OperationalError", "InterfaceError", "ConnectionTimeout", "AdminShutdown", "CrashShutdown", "CannotConnectNow",
    "PoolTimeout", "ServiceUnavailable", "SessionExpired", "ConnectionAcquisitionTimeoutError",
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError",
    "ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "NoHostAvailable", "TransportError",
})  # fmt: skip
"""Classes by which clients of Postgres, Neo4j, S3, Cassandra and Kafka say that their server does not answer."""
AWAY = ("Service Unavailable", "Connection refused", "error sending request", "after 10 retries")
"""What object stores' clients say, whose errors are of no class of their own."""
FULL = ("No space left on device", "could not extend file", "disk full")


class C360Error(Exception):
    """The root of every error that this project raises on purpose."""

    exit_code = 1


class ConfigError(C360Error):
    """A setting, an argument or a control row is wrong; nothing was changed."""

    exit_code = 2


class ContractError(C360Error):
    """Data breaks its contract in a way that can't be set aside line by line."""

    exit_code = 2


class UnavailableError(C360Error):
    """A service can't be reached; the message names it and how to start it."""

    exit_code = 3


class UnreadableError(C360Error):
    """One object can't be had, for a reason of its own; the message names it. It is tried again with the next run."""


class TableError(C360Error):
    """A table of the lake can't be read or written, most often as another engine left it; the message names it."""


class ConflictError(C360Error):
    """Another worker committed first, more often than the retries allow."""


class RemovalLimitError(C360Error):
    """More would be removed than the removal limit lets pass; nothing was."""


class InvariantError(C360Error):
    """The accounting does not add up or the graph differs from its archive."""


def of_library(class_names: Iterable[str], message: str) -> C360Error | None:
    """What a library's error means for the operator; None where only a developer can tell.

    Args:
        class_names: of the error and of what it is derived from.
        message: what it says.
    """
    said = message.strip().partition("\n")[0].rstrip(".")
    if any(text in message for text in FULL):
        return UnavailableError(f"A disk is full: {said}. Make room (docs/operations.md), then do the same again.")
    if UNREACHABLE.intersection(class_names) or any(text in message for text in AWAY):
        return UnavailableError(
            f"A service does not answer: {said}. See which one with `c360 status`, start embedded ones with `c360 up`, "
            "then do the same again."
        )
    return None


def named(error: BaseException) -> C360Error | None:
    """The first error of a chain that says what to do; None where there is none.

    An error that this project raised on purpose stands for what caused it.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, C360Error):
            return link
        if found := of_library((kind.__name__ for kind in type(link).__mro__), str(link)):
            return found
        link = link.__cause__ or link.__context__
    return None
