import re
from importlib import resources

from c360_pipeline.core.privacy.roles import NAMED_ROLES, ROLES, Permission, allowed, who_may


def test_the_control_database_takes_the_roles_that_there_are() -> None:
    script = resources.files("c360_pipeline.ddl").joinpath("control.sql").read_text("utf-8")
    (listed,) = re.findall(r"CONSTRAINT api_keys_role_check\s+CHECK \(role IN \((.+?)\)\)", script)
    assert set(re.findall(r"'(\w+)'", listed)) == set(ROLES)


def test_each_permission_is_some_roles_and_not_all_roles() -> None:
    for permission in Permission:
        having = [role for role in NAMED_ROLES if allowed(role, permission)]
        assert "admin" in having
        assert len(having) < len(NAMED_ROLES)
        assert who_may(permission) == re.sub(r", (\w+)$", r" or \1", ", ".join(having))
    assert not allowed("superuser", Permission.READ)
    assert ROLES["read"] == ROLES["viewer"]
