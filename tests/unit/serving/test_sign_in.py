import pytest

from c360_pipeline.errors import ConfigError
from c360_pipeline.serving.sign_in import provider_of, strongest
from c360_pipeline.settings import Settings, load_settings

STORES = {
    "NEO4J_URI": "bolt://h", "NEO4J_PASSWORD": "x", "ETL_DB_HOST": "h", "ETL_DB_USER": "u", "ETL_DB_PASSWORD": "x",
    "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "x",
}  # fmt: skip


def settings(**said: str) -> Settings:
    return load_settings(environ={**STORES, **said})


def test_settings_name_a_provider_whole_or_none() -> None:
    assert provider_of(settings(), "http://pages") is None
    found = provider_of(settings(
        C360_OIDC_ISSUER="https://id.example.org/", C360_OIDC_CLIENT_ID="c", C360_OIDC_CLIENT_SECRET="s3cret",
        C360_OIDC_ROLES="crm-admins=admin, marketing=analyst", C360_OIDC_TENANT="acme",
    ), "https://pages")  # fmt: skip
    assert found is not None
    assert (found.issuer, found.callback, found.host) == (
        "https://id.example.org", "https://pages/app/login/callback", "id.example.org",
    )  # fmt: skip
    assert found.roles == {"crm-admins": "admin", "marketing": "analyst"}
    assert "s3cret" not in repr(found)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"C360_OIDC_ISSUER": "https://id.example.org"}, "needs C360_OIDC_CLIENT_ID"),
        ({"C360_OIDC_ISSUER": "http://id.example.org", "C360_OIDC_CLIENT_ID": "c"}, "has to be an https address"),
        ({"C360_OIDC_ISSUER": "https://id", "C360_OIDC_CLIENT_ID": "c", "C360_OIDC_ROLES": "a=root"}, "a=root"),
        ({"C360_OIDC_ISSUER": "https://id", "C360_OIDC_CLIENT_ID": "c", "C360_OIDC_ROLES": "a=ingest"}, "a=ingest"),
    ],
)
def test_what_is_missing_or_wrong_is_said(said: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        provider_of(settings(**said), "http://pages")


def test_of_several_roles_the_one_counts_that_allows_what_the_others_do() -> None:
    assert strongest(["everybody", "viewer", "analyst"]) == "analyst"
    assert strongest(["analyst", "operator"]) is None
    assert strongest(["analyst", "operator", "admin"]) == "admin"
    assert strongest(["read", "viewer"]) == "viewer"
    assert strongest(["ingest"]) is None
    assert strongest([]) is None
