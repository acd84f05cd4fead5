"""What a command says of errors that libraries raise."""

import errno
from itertools import pairwise

import neo4j.exceptions
import psycopg
import pytest
from botocore.exceptions import EndpointConnectionError

from c360_pipeline.errors import ConfigError, TableError, UnavailableError, named


def chained(*errors: BaseException) -> BaseException:
    """The last of some errors, each raised from the one before it."""
    for cause, error in pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError('connection to server at "127.0.0.1" failed: Connection refused\nIs it running?'),
        psycopg.errors.AdminShutdown("terminating connection due to administrator command"),
        neo4j.exceptions.ServiceUnavailable("Couldn't connect to localhost:7687"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        OSError("Kernel error: Error performing GET http://127.0.0.1:1/b: 503 Service Unavailable after 10 retries"),
    ],
)
def test_a_service_that_does_not_answer_is_one_line_and_exit_code_3(error: BaseException) -> None:
    for raised in (error, chained(error, RuntimeError("a wrapper"))):
        found = named(raised)
        assert isinstance(found, UnavailableError)
        assert "\n" not in str(found)
        assert "c360 up" in str(found)
        assert found.exit_code == 3


def test_a_full_disk_is_named_as_such() -> None:
    found = named(OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    assert str(found).startswith("A disk is full: [Errno 28] No space left on device: '/data/x'.")


def test_what_was_raised_on_purpose_stands_for_what_caused_it() -> None:
    ours = TableError("the table t")
    assert named(chained(psycopg.OperationalError("x"), ours, RuntimeError("a wrapper"))) is ours
    assert named(chained(ConfigError("deeper"), ours)) is ours


def test_what_nobody_foresaw_is_left_to_developers() -> None:
    assert named(chained(KeyError("a"), RuntimeError("b"))) is None
