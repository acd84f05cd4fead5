"""A source as landing knows it: where its files lie, how records stand in them, and what they become."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from c360_pipeline.core.sources.location import Location
from c360_pipeline.core.sources.login import BucketLogin
from c360_pipeline.core.sources.mapping import SourceMapping
from c360_pipeline.core.sources.programs import RecordProgram, record_program
from c360_pipeline.core.sources.records import Framing


@dataclass(frozen=True)
class Source:
    """An active row of `event_sources` with its active mapping.

    Attributes:
        name: of the source.
        location: of its files.
        framing: of their records.
        mapping: of each record; its version is the active one.
        login: for its bucket; None for the product's own.
        topic: of Kafka, whose messages are its records; None where these are files or rows.
    """

    name: str
    location: Location
    framing: Framing
    mapping: SourceMapping
    login: BucketLogin | None = None
    topic: str | None = None

    @cached_property
    def program(self) -> RecordProgram | None:
        """The mapping for the scanner; None where the scanner has no table for it."""
        return record_program(self.mapping.document)

    def given(self, uri: str) -> dict[str, str]:
        """What the address of a file says of each of its records, by names of the contract."""
        found = self.location.match(uri)
        return {"tenantId": found.tenant_id} if found and found.tenant_id else {}


@dataclass(frozen=True)
class Sources:
    """The active sources."""

    all: tuple[Source, ...] = ()

    def __iter__(self) -> Iterator[Source]:
        return iter(self.all)

    def of_topic(self, topic: str) -> Source | None:
        """The source whose records are the messages of a topic."""
        return next((source for source in self.all if source.topic == topic), None)

    def of(self, uri: str) -> Source | None:
        """The source that a file is of by its address; of several the one whose location says most of it."""
        fitting = [source for source in self.all if source.location.match(uri)]
        return max(fitting, key=lambda source: (len(source.location.prefix), source.name), default=None)


NO_SOURCES = Sources()
"""Where all events are as the contract has them."""
