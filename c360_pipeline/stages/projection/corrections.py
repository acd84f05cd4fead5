"""What people do to journeys: block a key, apply other rules; archive, tables and graph follow at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from c360_pipeline.core.catalog.tables import JOURNEY_KEYS, JOURNEY_LOG
from c360_pipeline.core.projection.statement import Statement
from c360_pipeline.core.stitching.keys import EVERY_TENANT, KeyPolicy, value_hash
from c360_pipeline.core.stitching.log import MERGE, SPLIT
from c360_pipeline.errors import ConfigError
from c360_pipeline.stages.projection.journeys import JourneyGraph
from c360_pipeline.stages.stitching.catch_up import Stitching
from c360_pipeline.stages.stitching.journeys import Journeys
from c360_pipeline.stages.stitching.report import BatchReport, Rebase
from c360_pipeline.stages.stitching.tables import JourneyTables
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb

Told = Callable[[str, str, list[str]], None]
"""Is given the tenant, a key, and users whose events have it, before anything is changed."""
READ_PEOPLE_OF_KEY = Statement("""
    MATCH (:Correlation {tenant_id: $tenant_id, id: $key})<-[:HAS_KEY]-(e:Event {tenant_id: $tenant_id})
    WITH e LIMIT 1000
    WITH coalesce(e.customer_id, e.user_id) AS user_id WHERE user_id IS NOT NULL
    RETURN DISTINCT user_id ORDER BY user_id LIMIT 20
""")


@dataclass(frozen=True)
class BlockedKey:
    """What blocking a key, or letting it link again, did; or parting two.

    Attributes:
        tenant_id: whose key.
        key: `type:hash`; of two that were parted the first.
        report: of the batch that found its journeys again.
        is_still_one: of two that were parted, whether something else holds them together.
        merges: tenant_id, survivor, loser.
        splits: tenant_id, journey_id, split_off, event_count.
    """

    tenant_id: str
    key: str
    report: BatchReport
    merges: pl.DataFrame
    splits: pl.DataFrame
    is_still_one: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "tenant_id": self.tenant_id, "key": self.key, "events": self.report.reread,
            "merges": self.merges.to_dicts(), "splits": self.splits.to_dicts(), "is_still_one": self.is_still_one,
        }  # fmt: skip


def block_key(
    control: ControlDb, lake: Lake, graph: Graph, key: str, tenant: str | None, reason: str, *, undo: bool,
    told: Told = lambda tenant_id, key, people: None,
) -> BlockedKey:  # fmt: skip
    """Put a key on the list of those that never link, or take it off, and bring journeys and graph up to it.

    Args:
        control: holds the list.
        lake: holds the journeys.
        graph: shows them.
        key: `type:hash` or `type=value`.
        tenant: whose; None where only one has the key.
        reason: kept with the control row.
        undo: whether the key is to link again.
        told: is given whose key it is, the key and its people before anything is changed.

    Raises:
        ConfigError: there is no such key, or several tenants have it.
    """
    owner, key_type, key_hash = _found_key(lake, control.key_rules.policy(), key, tenant)
    name = f"{key_type}:{key_hash}"
    told(owner, name, _people_of_key(graph, owner, name))
    if undo:
        control.key_rules.unblock(owner, key_type, key_hash)
    else:
        control.key_rules.block(owner, key_type, key_hash, reason)
    cause = f"{name} links again" if undo else f"{name} was blocked"
    return _restitched(control, lake, graph, owner, [name], cause)


def part_keys(
    control: ControlDb, lake: Lake, graph: Graph, key: str, other: str, tenant: str | None, reason: str, *, undo: bool,
    told: Told = lambda tenant_id, key, people: None,
) -> BlockedKey:  # fmt: skip
    """Note that two users are not one person, whatever events say; or let events say it again.

    Args:
        control: holds the list.
        lake: holds the journeys.
        graph: shows them.
        key: `type:hash` or `type=value`, of a unique type.
        other: the same, of the other user.
        tenant: whose; None where only one has the key.
        reason: kept with the control row.
        undo: whether events may say again that they are one.
        told: the same, of the first key.

    Raises:
        ConfigError: there is no such key, several tenants have it, they are of two types, or their type is not unique.
    """
    policy = control.key_rules.policy()
    owner, key_type, key_hash = _found_key(lake, policy, key, tenant)
    _, other_type, other_hash = _found_key(lake, policy, other, owner)
    if (key_type, key_hash) == (other_type, other_hash):
        raise ConfigError(f"{key!r} and {other!r} are one key: name two.")
    is_unique = any(rule.is_unique and rule.key_type == key_type for rule in policy.rules_of(owner))
    if other_type != key_type or not is_unique:
        raise ConfigError(
            "Only two keys of one unique type are said to be one person (is_unique in correlation_key_rules): "
            f"{key_type!r} and {other_type!r} are not. `c360 journey unmerge KEY` lets a key link nothing."
        )
    names = [f"{key_type}:{key_hash}", f"{key_type}:{other_hash}"]
    told(owner, names[0], _people_of_key(graph, owner, names[0]))
    if undo:
        control.key_rules.unpart(owner, key_type, key_hash, other_hash)
    else:
        control.key_rules.part(owner, key_type, key_hash, other_hash, reason)
    cause = f"{' and '.join(names)} {'may be one again' if undo else 'are two'}"
    done = _restitched(control, lake, graph, owner, names, cause)
    held = lake.scan(JOURNEY_KEYS).filter((pl.col("tenant_id") == owner) & (pl.col("key_type") == key_type))
    journeys = held.filter(pl.col("key_hash").is_in([key_hash, other_hash])).select("key_hash", "journey_id").collect()
    is_one = journeys["key_hash"].n_unique() == len(names) and journeys["journey_id"].n_unique() == 1
    return replace(done, is_still_one=is_one and not undo)


def _people_of_key(graph: Graph, tenant_id: str, key: str) -> list[str]:
    """Users whose events have a key (`type:hash`), twenty at most."""
    return [row["user_id"] for row in graph.run(READ_PEOPLE_OF_KEY, tenant_id=tenant_id, key=key)]


def _restitched(control: ControlDb, lake: Lake, graph: Graph, owner: str, names: list[str], cause: str) -> BlockedKey:
    """Find the journeys of keys again, and bring tables and graph up to them."""
    journeys, policy = Journeys(lake), control.key_rules.policy()
    before = JourneyTables(lake).target()
    report = journeys.restitch(journeys.with_keys(owner, names), policy, owner, cause)
    bring_up(lake, graph)
    found = JourneyTables(lake).between(before, {owner: journeys.log.state(owner).seq})
    rows = found.rows.collect(engine="streaming")
    merges = rows.filter(pl.col("kind") == MERGE).select("tenant_id", survivor="journey_id", loser="other_journey_id")
    splits = rows.filter(pl.col("kind") == SPLIT).select(
        "tenant_id", "journey_id", "event_count", split_off="other_journey_id"
    )
    return BlockedKey(owner, names[0], report, merges, splits)


def bring_up(lake: Lake, graph: Graph) -> None:
    """Bring the tables of journeys and the graph up to the log."""
    JourneyTables(lake).publish_all()
    JourneyGraph(lake, graph).project()


def _found_key(lake: Lake, policy: KeyPolicy, key: str, tenant: str | None) -> tuple[str, str, str]:
    """Tenant, type and hash of a key that some event has."""
    said = lake.scan(JOURNEY_LOG).filter(pl.col("key_type").is_not_null())
    if "=" in key:
        key_type, _, value = key.partition("=")
        if any(rule.key_type == key_type and rule.window_seconds for rule in policy.rules):
            raise ConfigError(
                f"{key_type!r} has a window: a value makes a key per window. Name the one that is meant as type:hash, "
                "as `c360 journey explain A B` shows it."
            )
        tenants = said.select("tenant_id").unique().collect(engine="streaming")["tenant_id"]
        hashes = {t: value_hash(t, key_type, value, policy.identifiers) for t in tenants if tenant in (None, t)}
    else:
        key_type, _, digits = key.rpartition(":")
        hashes = dict.fromkeys([tenant] if tenant else said.select("tenant_id").unique().collect()["tenant_id"], digits)
    wanted = [h for h in hashes.values() if h]
    held = said.filter((pl.col("key_type") == key_type) & pl.col("key_hash").is_in(wanted))
    rows = held.select("tenant_id", "key_hash").unique().collect(engine="streaming")
    owners = [(t, h) for t, h in rows.iter_rows() if hashes.get(t) == h]
    if not owners:
        raise ConfigError(
            f"No event has the key {key!r}. `c360 journey explain A B` names keys as type:hash; type=value is right "
            "too, with the type as correlation_key_rules has it."
        )
    if len(owners) > 1:
        raise ConfigError(f"{', '.join(sorted(t for t, _ in owners))} have that key: choose one with --tenant.")
    return owners[0][0], key_type, owners[0][1]


def rebase_plans(control: ControlDb, lake: Lake, tenant: str | None) -> list[Rebase]:
    """What today's rules make of the events of each tenant, or of one."""
    journeys = Journeys(lake)
    tenants = sorted(name for name in journeys.log.states() if name != EVERY_TENANT)
    if tenant is not None and tenant not in tenants:
        raise ConfigError(f"There is no journey of {tenant!r}; there are some of {', '.join(tenants) or 'nobody'}.")
    stitching = Stitching(lake, journeys, control.key_rules.policy())
    return [stitching.plan(name) for name in tenants if tenant in (None, name)]


def apply_rules(control: ControlDb, lake: Lake, graph: Graph, plans: list[Rebase]) -> None:
    """Carry plans out, and bring the tables and the graph up to them."""
    journeys, policy = Journeys(lake), control.key_rules.policy()
    for plan in plans:
        journeys.apply(plan, policy)
    bring_up(lake, graph)
