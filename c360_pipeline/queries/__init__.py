"""The business queries: one Cypher file each, its question and parameters in the comments above the statement.

Sources of the questions: "Customer 360 Graph Pipeline" (ten of them), "Neo4j Integration Guide" (power users). Every
statement names the tenant, and orders its rows so that two runs give the same answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError

_NUMBERS = ("limit", "min_products")
_COMMENT = re.compile(r"// (?P<name>\w+)(?: = (?P<default>[^:]+))?: (?P<text>.+)")
DEFAULT_LIMIT = 20


@dataclass(frozen=True)
class Query:
    """A business query.

    Attributes:
        name: as `c360 query` takes it.
        question: what it answers.
        columns: what a row is.
        statement: the Cypher; its parameters are tenant_id, limit and those of `parameters`.
        parameters: meaning of each parameter that may be set, by name.
        defaults: values of parameters that have one; `now` is the tenant's newest event, which an archive of last year
            is about as much as one of today.
        chart: the column to draw and the one that says how much (`count` for the number of rows); None for no chart.
    """

    name: str
    question: str
    columns: str
    statement: Statement
    parameters: Mapping[str, str]
    defaults: Mapping[str, str]
    chart: tuple[str, str] | None

    def needs_now(self, given: Mapping[str, str]) -> bool:
        """Whether the answer depends on a moment that was not given."""
        return "now" in self.parameters and "now" not in given

    def values(self, given: Mapping[str, str], now: datetime) -> dict[str, Any]:
        """Values of all parameters but the tenant.

        Args:
            given: texts by name.
            now: the tenant's newest event; the present where it has none.

        Raises:
            ConfigError: a parameter that the query does not have, or a value that is none for it.
        """
        known = {"limit": "rows at most", **self.parameters}
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(f"{self.name} has no parameter {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        texts = {"limit": str(DEFAULT_LIMIT), **self.defaults, **given}
        values: dict[str, Any] = {"now": now} if "now" in self.parameters else {}
        return values | {name: _value(name, text) for name, text in texts.items()}


LARGEST = 1_000_000
"""That a parameter may be."""


def _value(name: str, text: str) -> Any:
    try:
        if name in _NUMBERS:
            number = int(text)
            if not 0 <= number <= LARGEST:
                raise ConfigError(f"{name} lies between 0 and {LARGEST:,}.")
            return number
        if name == "now":
            at = datetime.fromisoformat(text)
            return at if at.tzinfo else at.replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError(f"{name}={text!r} is no {'whole number' if name in _NUMBERS else 'date or time'}.") from None
    return text


@cache
def all_queries() -> Mapping[str, Query]:
    """Every query, by name."""
    files = sorted(resources.files(__name__).iterdir(), key=lambda file: file.name)
    queries = [_read(f.name.removesuffix(".cypher"), f.read_text("utf-8")) for f in files if f.name.endswith(".cypher")]
    return {query.name: query for query in queries}


def find_query(name: str) -> Query:
    """A query by its name; a hyphen is as good as an underscore.

    Raises:
        ConfigError: there is none; the message lists those that there are.
    """
    found = all_queries().get(name.replace("-", "_"))
    if found is None:
        raise ConfigError(f"There is no query {name!r}. There are: {', '.join(all_queries())}.")
    return found


def _read(name: str, text: str) -> Query:
    lines = text.splitlines()
    head = [match for line in lines if line.startswith("//") and (match := _COMMENT.fullmatch(line))]
    notes = {match["name"]: match["text"] for match in head}
    chart = notes.pop("chart", None)
    question, columns = notes.pop("question"), notes.pop("columns")
    return Query(
        name,
        question,
        columns,
        Statement("\n".join(line for line in lines if not line.startswith("//")).strip() + "\n"),
        notes,
        {match["name"]: match["default"] for match in head if match["default"]},
        (chart.split()[0], chart.split()[1]) if chart else None,
    )
