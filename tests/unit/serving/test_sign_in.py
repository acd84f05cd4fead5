import pytest

from c360_pipeline.errors import ConfigError
from c360_pipeline.serving.sign_in import Person, SignIn, SignInError, provider_of, strongest
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
        ({"C360_OIDC_ISSUER": "https://id", "C360_OIDC_CLIENT_ID": "c", "C360_OIDC_ROLES": "a:admin"}, "a:admin="),
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


def person_of(roles: str = "crm=viewer", **claims: object) -> Person:
    said = settings(C360_OIDC_ISSUER="https://id", C360_OIDC_CLIENT_ID="c", C360_OIDC_ROLES=roles,
                    C360_OIDC_ROLE_CLAIM="groups", C360_OIDC_TENANT="acme")  # fmt: skip
    provider = provider_of(said, "http://pages")
    assert provider is not None
    return SignIn(provider)._person({"sub": "s-1", "groups": ["crm"], **claims})


@pytest.mark.parametrize("verified", [None, False, "false", "true", 1])
def test_an_address_that_is_not_said_to_be_verified_names_nobody(verified: object) -> None:
    said = {} if verified is None else {"email_verified": verified}
    assert person_of(email="boss@example.org", **said).name == "s-1"
    assert person_of(email="ana@example.org", email_verified=True).name == "ana@example.org (s-1)"


def test_where_groups_are_mapped_the_mapping_alone_counts() -> None:
    assert person_of(groups=["crm", "admin"]).role == "viewer"
    with pytest.raises(SignInError, match="gives you no role here"):
        person_of(groups=["admin"])
    assert person_of(roles="", groups="analyst").role == "analyst"
