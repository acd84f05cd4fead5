"""The sources that are active, as landing needs them."""

from c360_pipeline.core.sources.location import Location
from c360_pipeline.core.sources.records import Framing
from c360_pipeline.core.sources.source import Source, Sources
from c360_pipeline.errors import ConfigError
from c360_pipeline.settings import bucket_login, load_settings, require_allowed_location
from c360_pipeline.stages.sources.presets import compiled
from c360_pipeline.stages.sources.tables import location_of
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.postgres.event_sources import SourceRow


def framing_of(row: SourceRow) -> Framing:
    """How records stand in the files of a source.

    Raises:
        ConfigError: the row says what no file is.
    """
    return Framing(row.framing, tuple(row.columns) if row.columns else None, row.records)


def source_of(control: ControlDb, row: SourceRow, version: int) -> Source:
    """A source with a version of its mapping.

    Raises:
        ConfigError: the row or the mapping is wrong; the message names the source and the place.
    """
    try:
        document = control.sources.mapping(row, version).document
        location = Location(row.location)
        settings = load_settings()
        if row.from_table is None or row.location != location_of(settings.bucket, row.name):
            require_allowed_location(location.beginning, settings)
        framing = framing_of(row)
        mapping = compiled(document, row.name, version, tenant_is_given=location.says_tenant)
        login = bucket_login(row.login_ref, location.bucket) if row.login_ref else None
        return Source(row.name, location, framing, mapping, login)
    except ConfigError as error:
        raise ConfigError(f"source {row.name} v{version}: {error}") from None


def active_sources(control: ControlDb) -> tuple[Sources, dict[str, str]]:
    """All active sources, and by location what is wrong with those that can't be: the others go on."""
    found, faulty = list[Source](), dict[str, str]()
    for row in control.sources.rows():
        if row.is_active and row.active_version is not None:
            try:
                found.append(source_of(control, row, row.active_version))
            except ConfigError as error:
                faulty[row.location] = f"{error} Its files wait."
    return Sources(tuple(found)), faulty
