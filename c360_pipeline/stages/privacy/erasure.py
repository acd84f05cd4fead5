"""Erasure of people from every store, with a certificate of what was searched and that nothing is left.

What is to be done is decided once and kept in a plan (`plan`), until the certificate is issued (`certificate`): each
step (`steps`) can be broken off and done again, and a step that removes what tells of a person does not hide the rest.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from c360_pipeline.core.privacy.erasure import Person, SearchTerms, Traces
from c360_pipeline.stages.privacy.certificate import Certificate, certify
from c360_pipeline.stages.privacy.mentions import Companion, Rows, companions, ids_of, mentions_of
from c360_pipeline.stages.privacy.plan import Planner
from c360_pipeline.stages.privacy.search import Searched
from c360_pipeline.stages.privacy.steps import Steps
from c360_pipeline.stages.privacy.stores import Observe, Stores, search_everywhere


class Erasure:
    """Erases people. Nothing else may run meanwhile.

    Args:
        stores: where.
        folder: for the plan, until it is carried out.
        observe: called with what comes next.
    """

    def __init__(self, stores: Stores, folder: Path, observe: Observe = lambda what: None) -> None:
        self._stores = stores
        self._folder = folder
        self._observe = observe
        self._planner = Planner(stores, folder, observe)

    def erase(
        self, people: Iterable[Person], keep: Callable[[Certificate], object], *, redact: bool = False
    ) -> Certificate:
        """Erase people of one or more tenants; done again after a crash, it goes on.

        Args:
            people: who.
            keep: keeps the certificate; what is to be done is forgotten afterwards.
            redact: names of theirs are taken out of events of others, too.

        Raises:
            ConfigError: another erasure was broken off and has to be finished first.
        """
        wanted = sorted({(one.tenant_id, one.user_id) for one in people})
        self._stores.control.privacy.begin_erasure()
        plan = self._planner.plan(wanted, redact=redact)
        self._stores.control.privacy.name_erased_files(plan.addresses)
        steps = Steps(self._stores, self._folder, self._observe)
        steps.carry_out(plan)
        certificate = certify(self._stores, plan, self._observe, steps.untold)
        keep(certificate)
        if certificate.is_clean:
            shutil.rmtree(self._folder)
            self._stores.control.privacy.end_erasure()
        return certificate

    def companions(self, people: Iterable[Person]) -> list[Companion]:
        """The other user ids in the journeys of people; changes nothing."""
        return companions(self._stores.lake, list(people))

    def shared_visitors(self, people: Iterable[Person]) -> list[str]:
        """Anonymous ids that people and others were named with; changes nothing."""
        return [visitor for _, visitor in self._planner.traces_of(list(people)).shared]

    def mentions(self, people: Iterable[Person]) -> dict[str, int]:
        """How many events and rows of others name people, by table; changes nothing."""
        persons = list(people)
        traces = self._planner.traces_of(persons)
        values, _, own = self._planner.known_of(persons, traces)
        return self._mentions(persons, traces, values, own)

    def _mentions(self, persons: list[Person], traces: Traces, values: list[str], own: Rows) -> dict[str, int]:
        lake, control = self._stores.lake, self._stores.control.read()
        return mentions_of(lake, control, persons, ids_of(persons, values), own, traces)

    def is_under_way(self) -> bool:
        """Whether one was broken off, which goes on as it was decided."""
        return self._planner.is_decided

    def look(self, people: Iterable[Person]) -> tuple[list[Searched], dict[str, int]]:
        """What is there of people in each store, and what of others names them; changes nothing."""
        persons = list(people)
        traces = self._planner.traces_of(persons)
        values, _, own = self._planner.known_of(persons, traces)
        found = search_everywhere(self._stores, SearchTerms(values), persons, traces, self._observe)
        return found, self._mentions(persons, traces, values, own)
