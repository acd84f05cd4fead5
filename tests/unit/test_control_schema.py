"""The schema of the control database has a version, which every change of it raises."""

import hashlib
from importlib import resources

from c360_pipeline.stores.postgres.control import SCHEMA_VERSION

NOTED = (23, "066305084b80db9f")
"""Of the script that this version is: after a change, the next version, and the new hash."""


def test_a_changed_script_has_another_version() -> None:
    script = resources.files("c360_pipeline.ddl").joinpath("control.sql").read_bytes()
    assert (SCHEMA_VERSION, hashlib.sha256(script).hexdigest()[:16]) == NOTED, (
        "ddl/control.sql was changed: raise SCHEMA_VERSION, or databases that are there never get the change, and note "
        "both here."
    )
