"""Presets as they come with the package: mappings of sources that many teams have."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from c360_pipeline.core.sources.mapping import SourceMapping, resolved
from c360_pipeline.core.sources.records import Framing


@dataclass(frozen=True)
class Preset:
    """A mapping that others extend.

    Attributes:
        name: with its version, `segment@1`; a preset is never changed under its name.
        title: whose files these are.
        framing: how records usually stand in them.
        known_by: paths that tell a record of it, and how much each tells.
        document: of the mapping, without a tenant.
    """

    name: str
    title: str
    framing: Framing
    known_by: Mapping[str, int]
    document: Mapping[str, Any]


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    found = {}
    for file in sorted(resources.files("c360_pipeline.presets").iterdir(), key=lambda path: path.name):
        if file.name.endswith(".json"):
            said = json.loads(file.read_text(encoding="utf-8"))
            name = file.name.removesuffix(".json")
            columns = tuple(said["columns"]) if "columns" in said else None
            framing = Framing(said["framing"], columns, said.get("records"))
            found[name] = Preset(name, said["title"], framing, said["known_by"], said["mapping"])
    return found


def newest_of(name: str) -> str:
    """The newest preset of a name without a version; one with a version is itself."""
    named = [one for one in presets() if one.partition("@")[0] == name]
    return max(named, key=lambda one: int(one.partition("@")[2])) if named else name


def compiled(document: Mapping[str, Any], source: str, version: int, *, tenant_is_given: bool = False) -> SourceMapping:
    """A mapping with the preset that it extends, compiled.

    Raises:
        ConfigError: it is no mapping; the message says where.
    """
    known = {name: preset.document for name, preset in presets().items()}
    return SourceMapping(resolved(document, known), source, version, tenant_is_given=tenant_is_given)
