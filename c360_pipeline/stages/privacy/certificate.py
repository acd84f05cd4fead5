"""The certificate of an erasure: what was searched, that nothing of theirs is left, and who else names them."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from c360_pipeline.core.privacy.erasure import SearchTerms
from c360_pipeline.stages.privacy.mentions import mentions_of
from c360_pipeline.stages.privacy.plan import Plan
from c360_pipeline.stages.privacy.stores import Observe, Stores, hashed, search_everywhere
from c360_pipeline.stages.reconciliation.expected import Archive
from c360_pipeline.stages.reconciliation.reconcile import reconcile
from c360_pipeline.stages.reconciliation.results import drift, graph_digest

NOTES = [
    "Backups that were taken before hold what they held: erase again after a restore.",
    "The source databases are not ours: what they still hold of the person is not read again.",
    "What others' data holds, too, is not looked for as theirs: `mentions` counts what names them, and stays.",
    "Databases are searched row by row. A bucket that keeps old versions of objects keeps them: let these expire.",
]
STREAM_NOTES = [
    "Kafka keeps messages until its retention ends; what is read of these people until then is suppressed.",
    "Cassandra keeps what was deleted on its disks until it compacts, and in backups of its own.",
]


@dataclass(frozen=True)
class Certificate:
    """What an erasure did, without naming anybody.

    Attributes:
        certificate_id: random.
        issued_at: ISO 8601, UTC.
        people: tenant_id and user_hash of each, as the list of the suppressed has them.
        values_searched: how many distinctive values were looked for, as words in all bytes.
        visitors: how many visitors were theirs alone, and what they did before they were known is erased, too.
        shared_visitors: how many they share with others: what nobody known did there stays, but for visits of theirs.
        removed: how many events, lines of landing files, dead letters, and rows of silos by table.
        stores: of each what was searched, and the hits before and after.
        graph_digest: of the graph afterwards.
        findings: differences between graph and archive of their tenants afterwards.
        differing: the same by what differs and how, without values.
        mentions: how many events, and rows of silos by table, are of others and name them: a gift, a referral. They
            stay.
        redacted: from how many events of others their name was taken out.
        same_journeys: how many other user ids were in their journeys, and stay: ids of the same person, maybe.
        is_clean: whether nothing of theirs is left, and the graph of their tenants is what the archive says.
        notes: what the search can't see.
    """

    certificate_id: str
    issued_at: str
    people: list[dict[str, str]]
    visitors: int
    shared_visitors: int
    values_searched: int
    removed: dict[str, Any]
    stores: list[dict[str, Any]]
    graph_digest: str
    findings: int
    differing: dict[str, int]
    mentions: dict[str, int]
    redacted: int
    same_journeys: int
    is_clean: bool
    notes: list[str]

    @property
    def hits_left(self) -> dict[str, int]:
        """How often something of theirs was found afterwards, by store."""
        return {one["store"]: one["hits_after"] for one in self.stores if one["hits_after"]}

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def kinds_that_differ(found: Iterable[Mapping[str, Any]], tenants: Collection[str]) -> Counter[str]:
    """Differences between graph and archive by what differs and how; what they hold may be personal, and stays out.

    Args:
        found: entity, kind and tenant_id of each difference, among others.
        tenants: of these.
    """
    return Counter(f"{one['entity']} {one['kind']}" for one in found if one["tenant_id"] in tenants)


def certify(
    stores: Stores, plan: Plan, observe: Observe, untold: Mapping[str, str] = MappingProxyType({})
) -> Certificate:
    """Search every store again, compare graph and archive, and say what was found.

    Args:
        stores: where.
        plan: that was carried out.
        observe: called with which store comes next.
        untold: destinations of audiences that did not hear that people left, by name, and why.
    """
    mentions = mentions_of(stores.lake, stores.control.read(), plan.persons, plan.ids, traces=plan.traces)
    # Where no other names them, their ids are nowhere at all.
    searched = plan.values if mentions else [*plan.values, *plan.ids]
    after = [
        found.as_dict()
        for found in search_everywhere(stores, SearchTerms(searched), plan.persons, plan.traces, observe)
    ]
    earlier = {one["store"]: one for one in plan.before}
    compared = [
        {"store": one["store"], "what": one["what"], "searched": one["searched"], "bytes": one["bytes"],
         "hits_before": earlier.get(one["store"], {}).get("hits", 0), "hits_after": one["hits"],
         "left_in": one["places"]}
        for one in after
    ]  # fmt: skip
    with stores.open_graph() as graph:
        results = reconcile(Archive(stores.lake, stores.control.read()), graph)
    users = stores.control.privacy.covered(hashed(plan.persons))
    removed = {
        "events": len(plan.events), "landing_lines": sum(len(lines) for _, lines in plan.files.values()),
        "dead_letters": len(plan.letters), "silo_rows": {name: len(keys) for name, keys in plan.rows.items()},
    }  # fmt: skip
    differing = kinds_that_differ(drift(results), {person.tenant_id for person in plan.persons})
    findings = differing.total()
    redacted = sum(len(lines) for _, lines in plan.redacted.values())
    is_clean = findings == 0 and not any(one["hits_after"] for one in compared)
    notes = NOTES + (STREAM_NOTES if stores.open_user_events is not None else [])
    notes += [f"{name} has them still and was not told to forget them: {why} Tell it." for name, why in untold.items()]
    return Certificate(
        str(uuid4()), datetime.now(UTC).isoformat(), users.to_dicts(), len(plan.traces.visitors),
        len(plan.traces.shared), len(searched), removed, compared,
        graph_digest(results), findings, dict(differing), mentions, redacted, len(plan.companions), is_clean, notes,
    )  # fmt: skip
