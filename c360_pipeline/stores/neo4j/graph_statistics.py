"""How writing to the graph went: what "Apache AGE Journey Stitching" watches."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

LOG = structlog.get_logger("c360.graph")
SLOW_SECONDS = 1.0
NAME_CHARACTERS = 60


class GraphStatistics:
    """Counts of one process; safe to use from several threads.

    Args:
        pool_size: connections that there may be.
    """

    def __init__(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self._lock = threading.Lock()
        self._in_use = 0
        self.statements = 0
        self.failed = 0
        self.retries = 0
        self.seconds = 0.0
        self.slowest = 0.0
        self.most_in_use = 0
        self.slow: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def measured(self, statement: str, attempts: Callable[[], int]) -> Iterator[None]:
        """Count one statement; `attempts` says how often it was tried, once it is over."""
        with self._lock:
            self._in_use += 1
            self.most_in_use = max(self.most_in_use, self._in_use)
        began = time.perf_counter()
        failed = ""
        try:
            yield
        except BaseException as error:
            # The server's class where it has one, `Neo.ClientError.Schema.ConstraintValidationFailed`.
            failed = str(getattr(error, "code", None) or type(error).__name__)
            raise
        finally:
            seconds = time.perf_counter() - began
            with self._lock:
                self._in_use -= 1
                self.statements += 1
                self.failed += bool(failed)
                if failed:
                    self.failures[failed, named(statement)] += 1
                    LOG.warning("statement_failed", error=failed, statement=named(statement))
                self.retries += max(attempts() - 1, 0)
                self.seconds += seconds
                self.slowest = max(self.slowest, seconds)
                if seconds > SLOW_SECONDS:
                    self.slow[named(statement)] += 1
                    LOG.warning("slow_statement", statement=named(statement), seconds=round(seconds, 3))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for metadata."""
        return {
            "statements": self.statements,
            "failed_statements": self.failed,
            "failures": [
                {"error": error, "statement": statement, "times": times}
                for (error, statement), times in self.failures.items()
            ],
            "retries": self.retries,
            "statement_seconds": round(self.seconds, 3),
            "slowest_statement_seconds": round(self.slowest, 3),
            "slow_statements": dict(self.slow),
            "connections_in_use": f"{self.most_in_use} of {self.pool_size}",
        }


def named(statement: str) -> str:
    """The beginning of a statement, which tells it from others; it holds no values, for these are parameters."""
    text = " ".join(statement.split())
    return text if len(text) <= NAME_CHARACTERS else text[: NAME_CHARACTERS - 1] + "…"
