"""The sources that are active, as landing needs them."""

from collections.abc import Collection

from c360_pipeline.core.sources.location import Location
from c360_pipeline.core.sources.records import Framing
from c360_pipeline.core.sources.source import Source, Sources
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import bucket_login, load_settings, require_allowed_location, require_allowed_topic
from c360_pipeline.stages.sources.presets import compiled
from c360_pipeline.stages.sources.tables import location_of
from c360_pipeline.stages.sources.topics import location_of_topic
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.event_sources import SourceRow


def framing_of(row: SourceRow) -> Framing:
    """How records stand in the files of a source.

    Raises:
        ConfigError: the row says what no file is.
    """
    columns = tuple(row.columns) if row.columns else None
    return Framing(row.framing, columns, row.records, is_of_messages=bool(row.from_topic or row.from_table))


NO_DOCUMENT = (TypeError, AttributeError, KeyError, ValueError, RecursionError)
"""What a document of other types than a mapping has may lead to."""


def source_of(control: ControlDb, row: SourceRow, version: int, topics: Collection[str] | None = None) -> Source:
    """A source with a version of its mapping.

    Args:
        control: with its mappings.
        row: of the source.
        version: of its mapping.
        topics: that sources may name; as the operator's settings say where it is None.

    Raises:
        ConfigError: the row or the mapping is wrong; the message names the source and the place.
    """
    try:
        document = control.sources.mapping(row, version).document
        location = Location(row.location)
        framing = framing_of(row)
        _require_allowed_place(row, location, topics)
        mapping = compiled(document, row.name, version, tenant_is_given=location.says_tenant)
        login = bucket_login(row.login_ref, location.bucket) if row.login_ref else None
        return Source(row.name, location, framing, mapping, login, row.from_topic)
    except ConfigError as error:
        raise ConfigError(f"source {row.name} v{version}: {error}") from None
    except NO_DOCUMENT as error:
        raise ConfigError(
            f"source {row.name} v{version}: its document is no mapping ({type(error).__name__}). `c360 sources try` "
            "shows what one does."
        ) from None


def _require_allowed_place(row: SourceRow, location: Location, topics: Collection[str] | None) -> None:
    """Whether the row may have its records read from where it says: rows and messages lie in a folder of their own."""
    settings = load_settings()
    own = set[str]()
    if row.from_table is not None:
        own.add(location_of(settings.bucket, row.name))
    if row.from_topic is not None:
        if topics is None:
            require_allowed_topic(row.from_topic)
        elif row.from_topic not in topics:
            raise ConfigError(f"the topic {row.from_topic} was not allowed when the real-time path was started.")
        own.add(location_of_topic(settings.bucket, row.from_topic))
    if row.location not in own:
        require_allowed_location(location.beginning, settings)


def active_sources(control: ControlDb, topics: Collection[str] | None = None) -> tuple[Sources, dict[str, str]]:
    """All active sources, and by location what is wrong with those that can't be: the others go on.

    Args:
        control: with the rows.
        topics: that sources may name; as the operator's settings say where it is None.
    """
    found, faulty = list[Source](), dict[str, str]()
    for row in control.sources.rows():
        if row.is_active and row.active_version is not None:
            try:
                found.append(source_of(control, row, row.active_version, topics))
            except ConfigError as error:
                faulty[row.location] = f"{error} Its files wait."
    return Sources(tuple(found)), faulty
