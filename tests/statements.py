"""Every Cypher statement of the package, found by its type: nobody has to remember to put a new one under test."""

import ast
import importlib.util
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import c360_pipeline
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.queries import all_queries

PACKAGE = Path(c360_pipeline.__file__).parent
RUN_ELSEWHERE = ("c360_pipeline.streaming.job", "c360_pipeline.streaming.entry", "c360_pipeline.cli.__main__")
"""Modules that run when they are imported, or need Flink's environment."""
MADE_IN = ("stores/neo4j/cypher.py", "stores/neo4j/schema.py", "queries/__init__.py")
"""Where statements are made by functions: from kinds, from the script of constraints, from files of queries."""


@cache
def constants() -> Mapping[str, Statement]:
    """By module and name, the statements that modules hold, each where it is written; queries by their name."""
    found = {f"queries.{query.name}": query.statement for query in all_queries().values()}
    for module in pkgutil.walk_packages(c360_pipeline.__path__, "c360_pipeline."):
        if module.name.startswith(RUN_ELSEWHERE):
            continue
        written = set(written_in(Path(importlib.util.find_spec(module.name).origin or "")))  # type: ignore[union-attr]
        for name in sorted(written):
            statement = getattr(importlib.import_module(module.name), name)
            assert isinstance(statement, Statement), f"{module.name}.{name} holds no statement"
            found[f"{module.name.removeprefix('c360_pipeline.')}.{name}"] = statement
    return found


def written_in(file: Path) -> Iterator[str]:
    """Names of a module's constants that are made by `Statement(…)`."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and _makes_statement(node.value):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _makes_statement(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Statement"


def made_elsewhere() -> list[str]:
    """Places where a statement is made inside a function, where no test would find it."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        name = str(file.relative_to(PACKAGE))
        if name in MADE_IN:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        at_the_top = {id(node.value) for node in tree.body if isinstance(node, ast.Assign)}
        found += [f"{name}:{n.lineno}" for n in ast.walk(tree) if _makes_statement(n) and id(n) not in at_the_top]
    return found
