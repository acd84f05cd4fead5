"""Audiences: who is a member, in lake and graph, and what destinations were told."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from c360_pipeline.assets.specs import (
    NEO4J_WRITES,
    all_went,
    asset_check,
    check_spec,
    lineage,
    preview,
    rows,
    table_spec,
)
from c360_pipeline.core.catalog.audience_tables import (
    AUDIENCE_DEAD_LETTERS,
    AUDIENCE_DELIVERIES,
    AUDIENCE_MEMBERS,
    IS_MEMBER,
)
from c360_pipeline.resources import ControlResource, GraphResource, LakeResource
from c360_pipeline.settings import load_settings
from c360_pipeline.stages.audiences.deliver import Deliveries
from c360_pipeline.stages.audiences.sinks import OpenSink
from c360_pipeline.stages.projection.audiences import bring_up_audiences

GROUP = "audiences"


@dg.multi_asset(
    name="members_of_audiences",
    specs=[
        table_spec(
            AUDIENCE_MEMBERS.name, AUDIENCE_MEMBERS, GROUP,
            deps=["event_graph", "user_consents", "mapped_relationships"],
        )
    ],
    check_specs=[
        check_spec(
            "every_audience_can_be_read",
            asset=AUDIENCE_MEMBERS.name,
            description="The document of every audience is one that this release understands; of others the members "
            "stay as they were.",
        )
    ],
    pool=NEO4J_WRITES,
)  # fmt: skip
def members_of_audiences(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource, graph: GraphResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Work out who entered and who left, and write both to the graph."""
    tables, rules = lake.open(), control.open()
    with graph.open() as neo4j:
        done, faults = bring_up_audiences(tables, rules, neo4j, datetime.now(UTC))
    for name, (entered, left) in done.moved.items():
        context.log.info("%s: %s entered, %s left", name, f"{entered:,}", f"{left:,}")
    inside = tables.scan(AUDIENCE_MEMBERS).filter(IS_MEMBER)
    sizes = inside.group_by("tenant_id", "audience").len("members").sort("tenant_id", "audience").collect()
    said = {
        "audiences": sizes.height, "entered": sum(done.entered.values()), "left": sum(done.left.values()),
        "worked_out_anew": len(done.worked_out), "members": preview(sizes, 100), **lineage(AUDIENCE_MEMBERS),
    }  # fmt: skip
    yield dg.MaterializeResult(asset_key=AUDIENCE_MEMBERS.name, metadata=rows(int(sizes["members"].sum()), **said))
    yield all_went(faults, "every_audience_can_be_read", asset=AUDIENCE_MEMBERS.name)


@asset_check(
    asset=AUDIENCE_MEMBERS.name, description="Nobody is twice in an audience at one time, and nobody left before."
)
def members_enter_before_they_leave(lake: LakeResource) -> dg.AssetCheckResult:
    """Look for times of members that lie over each other."""
    held = lake.open().scan(AUDIENCE_MEMBERS)
    key = ["tenant_id", "audience", "user_id"]
    following = pl.col("entered_at").shift(-1).over(key)
    spans = held.sort(*key, "entered_at").with_columns(following=following, left=pl.col("left_at"))
    is_open_before_another = pl.col("left").is_null() & pl.col("following").is_not_null()
    wrong = is_open_before_another | (pl.col("left") < pl.col("entered_at")) | (pl.col("following") < pl.col("left"))
    found = spans.filter(wrong.fill_null(value=False)).select("tenant_id", "audience").collect(engine="streaming")
    return dg.AssetCheckResult(passed=found.is_empty(), metadata={"rows": found.height, "first": preview(found)})


@asset_check(
    asset=AUDIENCE_MEMBERS.name, description="Every audience has a member: one that nobody is in is asked for."
)
def every_audience_has_members(control: ControlResource, lake: LakeResource) -> dg.AssetCheckResult:
    """Look for audiences that nobody is in: most often a name in the document is another in the events."""
    active, _ = control.open().audiences.active()
    held = lake.open().scan(AUDIENCE_MEMBERS).filter(IS_MEMBER)
    some = {*held.select("tenant_id", "audience").unique().collect(engine="streaming").rows()}
    empty = sorted(f"{one.tenant}/{one.audience}" for one in active if (one.tenant, one.audience) not in some)
    return dg.AssetCheckResult(
        passed=not empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "empty": dg.MetadataValue.json(empty),
            "what_to_do": "c360 audiences size NAME --each says how many customers each condition holds for.",
        },
    )


@dg.multi_asset(
    name="deliveries_of_audiences",
    specs=[
        table_spec(
            AUDIENCE_DELIVERIES.name, AUDIENCE_DELIVERIES, GROUP, deps=[AUDIENCE_MEMBERS.name, "reconciliations"]
        )
    ],
    check_specs=[
        check_spec(
            "every_destination_takes_members",
            asset=AUDIENCE_DELIVERIES.name,
            description="Every destination of every audience answered; of one that did not, the changes wait.",
        ),
        check_spec(
            "no_destination_refuses_members",
            asset=AUDIENCE_DELIVERIES.name,
            description="No change of a member was refused by a destination: refused ones wait for a person.",
        ),
    ],
)
def deliveries_of_audiences(
    context: dg.AssetExecutionContext, control: ControlResource, lake: LakeResource
) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Tell every destination who entered and who left."""
    tables, rules = lake.open(), control.open()
    active, unread = rules.audiences.active()
    deliveries = Deliveries(tables, OpenSink(load_settings(), rules))
    done = []
    for one in deliveries.all(active, rules.audiences.versions(), rules.locks.named, unread):
        done.append(one)
        context.log.info("%s: %s", one.name, one.told)
    sent = sum(one.entered + one.left for one in done)
    said = {"destinations": len(done), "changes_sent": sent, "withheld": sum(one.withheld for one in done)}
    yield dg.MaterializeResult(
        asset_key=AUDIENCE_DELIVERIES.name, metadata=rows(tables.count(AUDIENCE_DELIVERIES), **said)
    )
    waiting = {one.name: f"{one.waiting:,} changes wait: {one.error}" for one in done if one.error}
    yield all_went(waiting, "every_destination_takes_members", asset=AUDIENCE_DELIVERIES.name)
    yield _refused(tables.count(AUDIENCE_DEAD_LETTERS), {one.name: one.dead + one.refused for one in done})


def _refused(letters: int, by_destination: Mapping[str, int]) -> dg.AssetCheckResult:
    found = {name: count for name, count in by_destination.items() if count}
    return dg.AssetCheckResult(
        asset_key=AUDIENCE_DELIVERIES.name,
        check_name="no_destination_refuses_members",
        passed=not letters,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"refused": dg.MetadataValue.json(found), "letters": letters},
    )
