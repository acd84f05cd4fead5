"""What conditions ask for beside events: the catalogue, communities, accounts and nodes of silos."""

import hashlib
from collections.abc import Iterable
from typing import Any

import polars as pl

from c360_pipeline.core.audiences.definition import (
    AccountValue,
    Audience,
    Community,
    Did,
    Events,
    Label,
    Leaf,
    Leaving,
    Risk,
    Sequence,
    YearlyValue,
    leaves_of,
)
from c360_pipeline.core.audiences.members import Facts, label_key
from c360_pipeline.core.catalog.feature_tables import (
    ACCOUNT_VALUES,
    CUSTOMER_CHURN,
    CUSTOMER_VALUES,
    USER_COMMUNITIES,
)
from c360_pipeline.core.catalog.tables import CATALOG
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.errors import ConfigError
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.cypher import linked_users_statement
from c360_pipeline.stores.neo4j.driver_values import Read

READ_ACCOUNTS_OF_USERS = Statement("""
    MATCH (a:Account {tenant_id: $tenant_id})<-[:IS_ACCOUNT]-(u:User {tenant_id: $tenant_id})
    RETURN u.id AS user_id, toString(a.account_id) AS account_id ORDER BY user_id, account_id
""")


class FactsOfTenants:
    """Reads what audiences ask for.

    Args:
        lake: with the catalogue and the features.
        read: runs a statement in the graph; None where there is none, and conditions that need one are refused.
    """

    def __init__(self, lake: Lake, read: Read | None = None) -> None:
        self._lake = lake
        self._read = read

    def of(self, tenant: str, audiences: Iterable[Audience]) -> Facts:
        """What some audiences of a tenant ask for, and no more.

        Raises:
            ConfigError: a condition needs the graph, and there is none.
        """
        leaves = [leaf for one in audiences for leaf in leaves_of(one.who)]
        known = Facts()
        labels = {label_key(leaf) for leaf in leaves if isinstance(leaf, Label)}
        return Facts(
            self._of(CATALOG, tenant, "id", "category") if any(map(_asks_categories, leaves)) else known.categories,
            self._of(USER_COMMUNITIES, tenant, "user_id", "community") if _has(leaves, Community)
            else known.communities,
            self._accounts(tenant) if _has(leaves, Risk, AccountValue) else known.accounts,
            self._customers(tenant) if _has(leaves, Leaving, YearlyValue) else known.customers,
            {key: self._linked(tenant, *key) for key in sorted(labels, key=str)},
        )  # fmt: skip

    def _of(self, table: Any, tenant: str, *columns: str) -> pl.DataFrame:
        rows = self._lake.scan(table).filter(pl.col("tenant_id") == tenant).select(columns)
        return rows.collect(engine="streaming").sort(columns)

    def _asked(self, statement: Statement, tenant: str, **values: Any) -> list[dict[str, Any]]:
        if self._read is None:
            raise ConfigError("Conditions on label, risk and monthly_value need the graph.")
        return self._read(statement, tenant_id=tenant, **values)

    def _accounts(self, tenant: str) -> pl.DataFrame:
        schema = {"user_id": pl.String, "account_id": pl.String}
        users = pl.DataFrame(self._asked(READ_ACCOUNTS_OF_USERS, tenant), schema=schema)
        values = self._of(ACCOUNT_VALUES, tenant, "account_id", "risk_level", "monthly_value")
        return users.join(values, on="account_id").drop("account_id").sort(pl.all())

    def _customers(self, tenant: str) -> pl.DataFrame:
        levels = self._of(CUSTOMER_CHURN, tenant, "user_id", "level")
        values = self._of(CUSTOMER_VALUES, tenant, "user_id", "value_in_a_year")
        return levels.join(values, on="user_id", how="full", coalesce=True).sort("user_id")

    def _linked(self, tenant: str, label: str, name: str | None) -> pl.DataFrame:
        rows = self._asked(linked_users_statement(label), tenant, property=name or "tenant_id")
        return pl.DataFrame(rows, schema={"user_id": pl.String, "value": pl.String})


def digest_of(audience: Audience, facts: Facts, purposes: Iterable[str]) -> str:
    """What tells apart two moments at which an audience, by the same events, may hold others.

    Args:
        audience: of the facts' tenant.
        facts: those that it asks for at least.
        purposes: that members must not have refused.
    """
    found = hashlib.sha256(audience.who.model_dump_json(by_alias=True, exclude_none=True).encode())
    found.update("\x1f".join(sorted(purposes)).encode())
    leaves = list(leaves_of(audience.who))
    used = [facts.categories] if any(map(_asks_categories, leaves)) else []
    used += [facts.communities] if _has(leaves, Community) else []
    used += [facts.accounts] if _has(leaves, Risk, AccountValue) else []
    used += [facts.customers] if _has(leaves, Leaving, YearlyValue) else []
    used += [facts.labels[label_key(leaf)] for leaf in leaves if isinstance(leaf, Label)]
    for frame in used:
        found.update(frame.hash_rows().to_numpy().tobytes())
        found.update(str(frame.height).encode())
    return found.hexdigest()


def _has(leaves: Iterable[Leaf], *kinds: type) -> bool:
    return any(isinstance(leaf, kinds) for leaf in leaves)


def _asks_categories(leaf: Leaf) -> bool:
    steps: list[Events] = leaf.sequence if isinstance(leaf, Sequence) else [leaf] if isinstance(leaf, Did) else []
    return any(step.category is not None for step in steps)
