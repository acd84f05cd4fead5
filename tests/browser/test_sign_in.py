"""People sign in with their company's accounts: a certified provider, a browser, and those who may not."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import oidc_provider
import pytest
import requests
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from dagster_processes import wait_until
from pictures import Picture
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from c360_pipeline.devstack.service import free_port
from c360_pipeline.serving.app import create_app
from c360_pipeline.serving.backend import Backend
from c360_pipeline.serving.sign_in import Person, Provider, SignIn, SignInError
from c360_pipeline.stores.delta.lake import Lake
from c360_pipeline.stores.neo4j.graph import Graph
from c360_pipeline.stores.postgres.control import ControlDb
from c360_pipeline.stores.s3.landing import Landing

ACCOUNTS: dict[str, dict[str, Any]] = {
    "ana": {"c360_tenant": "acme", "groups": ["everybody", "crm-privacy"], "email": "ana@example.org",
            "email_verified": True},
    "bo": {"c360_tenant": "globex", "groups": ["crm-viewer", "crm-analyst"], "email": "bo@example.org",
           "email_verified": False},
    "no-role": {"c360_tenant": "acme", "groups": ["everybody", "ingest"]},
    "two-roles": {"c360_tenant": "acme", "groups": ["crm-analyst", "crm-operator"]},
    "no-tenant": {"groups": ["crm-admin"]},
    "by-chance": {"c360_tenant": "acme", "groups": ["admin"]},
}  # fmt: skip
ROLES = {f"crm-{role}": role for role in ("viewer", "analyst", "operator", "privacy", "admin")}


def provider_at(issuer: str, callback: str, client: str = oidc_provider.CLIENT) -> Provider:
    secret = SecretStr(oidc_provider.SECRET)
    return Provider(issuer, client, secret, callback, None, "c360_tenant", "groups", ROLES)


@contextmanager
def serving(backend: Backend, port: int, sign_in: SignIn) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(create_app(backend, sign_in=sign_in), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, seconds=30)
        yield
    finally:
        server.should_exit = True
        thread.join(30)


def accessible(page: Page) -> list[str]:
    """What WCAG 2.2 AA would have otherwise."""
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
    return [str(found["id"]) for found in Axe().run(page, options=rules).response["violations"]]


def sign_in_as(page: Page, at: str, account: str) -> None:
    page.goto(f"{at}/app")
    page.get_by_role("link", name="Sign in with localhost").click()
    page.locator("input[name=login]").fill(account)
    page.locator("input[name=password]").fill("any")
    page.get_by_role("button").first.click()
    page.get_by_role("button", name="Continue").click()


@pytest.mark.parametrize("in_token", [True, False])
def test_people_sign_in_with_their_accounts_and_have_the_role_that_these_say(
    graph: Graph, lake: Lake, landing: Landing, control: ControlDb, chromium: Browser, picture: Picture, in_token: bool
) -> None:
    port = free_port(0)
    at = f"http://127.0.0.1:{port}"
    callback = f"{at}/app/login/callback"
    with oidc_provider.running(ACCOUNTS, callback, in_token=in_token) as issuer:
        backend = Backend(graph, lake, landing, control)
        with serving(backend, port, SignIn(provider_at(issuer, callback))):
            context = chromium.new_context()
            page = context.new_page()
            page.goto(f"{at}/app")
            picture(page, "page-login")
            assert accessible(page) == []
            sign_in_as(page, at, "ana")
            page.wait_for_url(f"{at}/app/overview")
            expect(page.locator("form.out")).to_contain_text("acme, privacy")
            held = {cookie["name"]: cookie for cookie in context.cookies(at)}
            assert (held["c360_session"]["sameSite"], held["c360_session"]["httpOnly"]) == ("Strict", True)
            assert "c360_sign_in" not in held
            wait_until(lambda: control.audit.of("acme", 10), 30)
            page.get_by_role("link", name="Audit log").click()
            expect(page.get_by_role("cell", name="person ana@example.org (ana)").first).to_be_visible()
            assert accessible(page) == []
            picture(page, "page-audit")
            assert [(line.actor, line.role) for line in control.audit.of("acme", 10)][-1] == (
                "person ana@example.org (ana)", "privacy",
            )  # fmt: skip
            assert page.goto(f"{at}/app/audiences/new") is not None
            page.get_by_role("button", name="Log out").click()
            page.wait_for_url(f"{at}/app/login")
            page.goto(f"{at}/app/overview")
            page.wait_for_url(f"{at}/app/login")
            context.close()
            refused(chromium, at)


def refused(chromium: Browser, at: str) -> None:
    """Of another tenant, and those whom the provider gives nothing that opens the pages."""
    context = chromium.new_context()
    page = context.new_page()
    sign_in_as(page, at, "bo")
    page.wait_for_url(f"{at}/app/overview")
    expect(page.locator("form.out")).to_contain_text("globex, analyst")
    context.close()
    for account, why in (
        ("no-role", "gives you no role here (claim groups)"),
        ("by-chance", "gives you no role here (claim groups)"),
        ("two-roles", "one that allows what your others do"),
        ("no-tenant", "does not say which tenant you belong to (claim c360_tenant)"),
    ):
        context = chromium.new_context()
        page = context.new_page()
        sign_in_as(page, at, account)
        expect(page.get_by_role("alert")).to_contain_text(why)
        page.goto(f"{at}/app/overview")
        page.wait_for_url(f"{at}/app/login")
        context.close()


def code_of(address: str, account: str) -> str:
    """The query that the provider sends a browser back with, to whom it gave a code."""
    browser = requests.Session()
    page = browser.get(address, timeout=30)
    for form in ({"prompt": "login", "login": account, "password": "any"}, {"prompt": "consent"}):
        answer = browser.post(page.url, data=form, allow_redirects=False, timeout=30)
        while answer.is_redirect and "/app/login/callback" not in answer.headers["location"]:
            answer = browser.get(
                requests.compat.urljoin(answer.url, answer.headers["location"]), allow_redirects=False, timeout=30
            )
        page = answer
        if answer.is_redirect:
            return str(answer.headers["location"]).partition("?")[2]
    raise AssertionError(f"no code: {page.status_code}")


def test_a_sign_in_counts_once_for_the_browser_and_the_client_that_began_it() -> None:
    callback = "http://127.0.0.1:9/app/login/callback"
    with oidc_provider.running(ACCOUNTS, callback) as issuer:
        ours = SignIn(provider_at(issuer, callback))
        begun = ours.begin()
        query = code_of(begun.address, "bo")
        state = begun.kept.split(".", 1)[0]
        for kept in (
            None,
            "",
            "..",
            state,
            f"{state}..",
            f"{state}.x",
            f"{begun.kept}.x",
            ours.begin().kept,
            "x" * 10_000,
        ):
            with pytest.raises(SignInError, match="begun in another window"):
                ours.finish(query, kept)
        # The code is another client's, whose secret is right; the verifier is that of another sign-in; it was used.
        with pytest.raises(SignInError, match="can't be believed"):
            SignIn(provider_at(issuer, callback, "another")).finish(query, begun.kept)
        again = ours.begin()
        query = code_of(again.address, "bo")
        state, nonce, _ = again.kept.split(".")
        with pytest.raises(SignInError, match="can't be believed"):
            ours.finish(query, f"{state}.{nonce}.{begun.kept.rsplit('.', 1)[1]}")
        last = ours.begin()
        query = code_of(last.address, "bo")
        state, _, verifier = last.kept.split(".")
        with pytest.raises(SignInError, match="can't be believed"):
            ours.finish(query, f"{state}.another-nonce.{verifier}")
        whole = ours.begin()
        query = code_of(whole.address, "bo")
        # An address that nobody has verified names nobody.
        assert ours.finish(query, whole.kept) == Person("globex", "analyst", "bo")
        with pytest.raises(SignInError, match="can't be believed"):
            ours.finish(query, whole.kept)
        with pytest.raises(SignInError, match=r"refused the sign-in \(access_denied"):
            ours.finish(f"error=access_denied&state={state}", last.kept)


def test_while_the_provider_is_away_a_key_opens_the_pages(
    graph: Graph, lake: Lake, landing: Landing, control: ControlDb
) -> None:
    port, nobody = free_port(0), free_port(0)
    at = f"http://127.0.0.1:{port}"
    backend = Backend(graph, lake, landing, control)
    with serving(backend, port, SignIn(provider_at(f"http://localhost:{nobody}", f"{at}/app/login/callback"))):
        answer = requests.get(f"{at}/app/login/sign-in", headers={"accept": "text/html"}, timeout=30)
        assert answer.status_code == 503
        assert "localhost does not answer" in answer.text
        key, _ = backend.keys.add("acme", "viewer")
        assert requests.post(f"{at}/app/login", data={"key": key}, timeout=30).url == f"{at}/app/overview"
