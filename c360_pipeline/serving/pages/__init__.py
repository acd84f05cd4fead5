"""Pages for people: the customer, what links two events, the delivery, the comparison, the business queries.

Plain HTML by Jinja, which writes every value as text; htmx loads more of a timeline, cytoscape.js draws the
neighbourhood. Both stand beside this file, so that no page asks another server for anything.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import AfterValidator
from starlette.staticfiles import StaticFiles

from c360_pipeline.core.privacy.audit import Action
from c360_pipeline.core.privacy.roles import Permission
from c360_pipeline.errors import ConflictError, ContractError, UnavailableError
from c360_pipeline.queries import all_queries, find_query
from c360_pipeline.reads.customer_pages import MOST_COUNTED, CustomerPages
from c360_pipeline.reads.customers import Customer
from c360_pipeline.reads.insights import Found, all_insights
from c360_pipeline.reads.overview import OWN_FORM
from c360_pipeline.reads.recommend import RecommendationRequest
from c360_pipeline.serving.models import Id
from c360_pipeline.serving.pages.audiences import AudiencePages
from c360_pipeline.serving.pages.timeline import days_of, weeks_of
from c360_pipeline.serving.security import (
    SESSION_SECONDS,
    SIGN_IN_SECONDS,
    SIGNED_IN_SECONDS,
    Auditor,
    Operator,
    Reader,
    admit_stranger,
    comes_by_tls,
    refuse_other_sites,
    session_name,
    session_of,
    sign_in_name,
)
from c360_pipeline.serving.sign_in import SignIn, SignInError
from c360_pipeline.stages.projection.corrections import block_key
from c360_pipeline.stages.visitors.decisions import Decisions
from c360_pipeline.stores.neo4j.driver_values import instant
from c360_pipeline.stores.postgres.api_keys import ApiKey

if TYPE_CHECKING:
    from c360_pipeline.serving.api import Api

log = logging.getLogger(__name__)

TIMELINE = 40
RECOMMENDED = 6
SHOWN_INSIGHTS = 20
"""Of each kind."""
Text = Annotated[str, Query(max_length=1_024)]
DOTS = (".", "..")
SERVER_ERRORS = 500
"""From this status on the same request may go well later."""


def in_utc(moment: datetime | None) -> datetime | None:
    """A moment in UTC; without a zone it is taken to be there.

    Raises:
        ContractError: it is before or after all that a calendar has.
    """
    try:
        return None if moment is None else instant(moment)
    except OverflowError:
        raise ContractError("There is no such moment in UTC.") from None


def _moment(value: Any) -> str:
    """An instant as people read it."""
    if value is None:
        return ""
    return f"{instant(datetime.fromisoformat(value) if isinstance(value, str) else value):%Y-%m-%d %H:%M:%S}"


SHOWN_AUDIT = 100
SHARES = ("rate", "share", "chance")
"""Columns of insights with these in their names are shares, which people read in per cent."""


def _shown(value: Any, column: str) -> str:
    """A value of a table of insights as people read it."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return _moment(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        is_share = any(part in column for part in SHARES) or column in ("change", "churn_risk", "probability")
        return f"{value:.1%}" if is_share else f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _as_part(value: Any) -> str:
    """A value as a part of a path; browsers take dots alone for folders, however they are quoted."""
    text = str(value)
    return quote(f"~{text}" if text.lstrip("~") in DOTS else text, safe="")


def subjects_of(customer_id: str, found: Customer) -> list[str]:
    """Whom somebody looks at who looks at a customer: by the id that was asked for, and by all that are theirs."""
    return [customer_id, *(user["user_id"] for user in found.users)]


def _sign_in_of(request: Request) -> SignIn:
    sign_in: SignIn | None = request.app.state.sign_in
    if sign_in is None:
        raise HTTPException(404, "Nobody signs in here: a key opens the pages.")
    return sign_in


def _in_session(request: Request, answer: Response, token: str, seconds: int) -> Response:
    """An answer that brings the cookie of a session."""
    answer.set_cookie(
        session_name(request), token, max_age=seconds, httponly=True, samesite="strict", secure=comes_by_tls(request)
    )
    return answer


def _from_part(text: str) -> str:
    return text[1:] if text.startswith("~") and text.lstrip("~") in DOTS else text


CustomerId = Annotated[Id, AfterValidator(_from_part)]
Number = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


def _templates() -> Environment:
    templates = Environment(loader=PackageLoader(__name__), autoescape=True, undefined=StrictUndefined)
    templates.filters |= {"moment": _moment, "part": _as_part, "number": lambda value: f"{value:,}", "shown": _shown}
    templates.globals["Permission"] = Permission
    return templates


def add_pages(app: FastAPI, api: "Api") -> None:
    """Add the pages to an app."""
    pages, strangers = Pages(api), [Depends(admit_stranger)]
    router = APIRouter(prefix="/app", include_in_schema=False)
    router.add_api_route("", pages.home, methods=["GET"])
    router.add_api_route("/login", pages.login, methods=["GET"])
    router.add_api_route("/login", pages.log_in, methods=["POST"])
    router.add_api_route("/login/sign-in", pages.begin_sign_in, methods=["GET"], dependencies=strangers)
    router.add_api_route("/login/callback", pages.finish_sign_in, methods=["GET"], dependencies=strangers)
    router.add_api_route("/logout", pages.log_out, methods=["POST"])
    router.add_api_route("/overview", pages.overview, methods=["GET"])
    router.add_api_route("/customers", pages.customers, methods=["GET"])
    router.add_api_route("/search", pages.found, methods=["GET"])
    router.add_api_route("/customers/{customer_id:text}/timeline", pages.timeline, methods=["GET"])
    router.add_api_route("/customers/{customer_id:text}/activity", pages.activity, methods=["GET"])
    router.add_api_route("/customers/{customer_id:text}/history", pages.history, methods=["GET"])
    router.add_api_route("/customers/{customer_id:text}/neighbourhood", pages.neighbourhood, methods=["GET"])
    # After those that begin like it: an id may hold slashes.
    router.add_api_route("/customers/{customer_id:text}", pages.customer, methods=["GET"])
    router.add_api_route("/explore", pages.explore, methods=["GET"])
    router.add_api_route("/delivery", pages.delivery, methods=["GET"])
    router.add_api_route("/delivery/stream", pages.stream, methods=["GET"])
    router.add_api_route("/insights", pages.insights, methods=["GET"])
    router.add_api_route("/reconciliation", pages.reconciliation, methods=["GET"])
    router.add_api_route("/audit", pages.audit, methods=["GET"])
    router.add_api_route("/queries", pages.queries, methods=["GET"])
    router.add_api_route("/queries/{name}", pages.query, methods=["GET"])
    router.add_api_route("/journeys/unmerge", pages.unmerge, methods=["POST"])
    router.add_api_route("/visitors/split", pages.split, methods=["POST"])
    AudiencePages(api, pages).add(router)
    app.include_router(router)
    app.state.problem_page = pages.problem
    app.mount("/static", StaticFiles(packages=[(__name__, "static")]), name="static")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return pages.api_document(app.openapi())

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/app")


class Pages:
    """The pages.

    Args:
        api: what they ask.
    """

    def __init__(self, api: "Api") -> None:
        self._api = api
        self._templates = _templates()

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page by its template."""
        return HTMLResponse(self._templates.get_template(template).render(**values), status)

    def problem(self, request: Request, status: int, title: str, detail: str) -> HTMLResponse:
        """What went wrong, for a person, with a retry where it may go well later; of a part of a page, a part."""
        query = f"?{request.url.query}" if request.url.query else ""
        again = f"{request.url.path}{query}" if request.method == "GET" and status >= SERVER_ERRORS else None
        is_part = "hx-request" in request.headers
        return self.page(
            "problem_part.html" if is_part else "problem.html",
            status,
            key=None,
            title=title,
            detail=detail,
            again=again,
        )

    def _shown(self, key: ApiKey) -> CustomerPages:
        return CustomerPages(self._api.backend.graph, self._api.backend.lake, key.tenant_id)

    def api_document(self, document: dict[str, Any]) -> HTMLResponse:
        """The OpenAPI document for people, without a script of anybody's."""

        def example(body: dict[str, Any]) -> str:
            schema = next(iter(body["content"].values()))["schema"]
            name = schema.get("$ref", "").rpartition("/")[2]
            found = document["components"]["schemas"].get(name, schema)
            shown = found.get("examples", [found.get("properties", {})])[0]
            return json.dumps(shown, indent=2, ensure_ascii=False)

        return self.page("api.html", key=None, document=document, example=example)

    async def home(self, request: Request) -> RedirectResponse:
        """The overview, for who is logged in; else where to log in."""
        return RedirectResponse("/app/overview" if session_of(request) else "/app/login")

    async def overview(self, key: Reader) -> HTMLResponse:
        """How much came, whether it is where it should be, and what needs a look."""
        read = self._api.backend.overview(key.tenant_id).read
        seen = await self._api.page(key.tenant_id, "overview", partial(read, datetime.now(UTC)))
        return self.page("overview.html", key=key, seen=seen, own_form=OWN_FORM)

    async def login(self, request: Request) -> HTMLResponse:
        """Where a key is shown, or somebody signs in elsewhere."""
        return self._login(request)

    def _login(self, request: Request, status: int = 200, *, wrong: bool = False, refused: str = "") -> HTMLResponse:
        sign_in: SignIn | None = request.app.state.sign_in
        host = sign_in.provider.host if sign_in else None
        return self.page("login.html", status, key=None, wrong=wrong, refused=refused, provider=host)

    async def begin_sign_in(self, request: Request) -> Response:
        """Send somebody to the provider of the company's accounts."""
        if token := session_of(request):
            # Here, for the provider's answer does not bring a strict cookie.
            await request.app.state.gate.log_out(token)
        try:
            begun = await request.app.state.gate.signing_in(request, _sign_in_of(request).begin)
        except UnavailableError as error:
            return self._login(request, 503, refused=str(error))
        answer = RedirectResponse(begun.address, 303)
        # Lax: the provider sends the browser back, and a cookie that is strict would not come with it.
        answer.set_cookie(
            sign_in_name(request), begun.kept, max_age=SIGN_IN_SECONDS, httponly=True, samesite="lax",
            secure=comes_by_tls(request),
        )  # fmt: skip
        return answer

    async def finish_sign_in(self, request: Request) -> Response:
        """Begin the session of who comes back from there."""
        kept = request.cookies.get(sign_in_name(request))
        try:
            finish = partial(_sign_in_of(request).finish, request.url.query, kept)
            person = await request.app.state.gate.signing_in(request, finish)
        except SignInError as refused:
            log.warning("A sign-in was refused: %r", refused.__cause__ or refused)
            return self._login(request, 401, refused=str(refused))
        except UnavailableError as error:
            return self._login(request, 503, refused=str(error))
        token = await request.app.state.gate.sign_in(person)
        key = await request.app.state.gate.look_up_session(token)
        self._api.backend.audit.looked(key, Action.LOGGED_IN)
        # By a page of ours: what another site leads to gets no strict cookie.
        answer = self.page("signed_in.html", key=None)
        answer.delete_cookie(sign_in_name(request), secure=comes_by_tls(request), httponly=True, samesite="lax")
        return _in_session(request, answer, token, SIGNED_IN_SECONDS)

    async def log_in(self, request: Request) -> Response:
        """Begin a session; its cookie says nothing of the key, and scripts and other sites do not get it."""
        refuse_other_sites(request)
        sent = parse_qs((await request.body()).decode("utf-8", "replace")).get("key", [""])[0].strip()
        address = request.client.host if request.client else ""
        logged_in = await request.app.state.gate.log_in(sent, session_of(request), address)
        if logged_in is None:
            return self._login(request, 401, wrong=True)
        token, key = logged_in
        self._api.backend.audit.looked(key, Action.LOGGED_IN)
        return _in_session(request, RedirectResponse("/app/overview", 303), token, SESSION_SECONDS)

    async def log_out(self, request: Request) -> RedirectResponse:
        """End the session."""
        refuse_other_sites(request)
        if token := session_of(request):
            await request.app.state.gate.log_out(token)
        answer = RedirectResponse("/app/login", 303)
        answer.delete_cookie(session_name(request), secure=comes_by_tls(request), httponly=True, samesite="strict")
        return answer

    async def customers(self, key: Reader, q: Text = "") -> HTMLResponse:
        """Customers by what was typed; those who were seen last before anything was."""
        self._api.backend.audit.looked(key, Action.LISTED, what="search")
        found = await self._api.ask(self._api.backend.search(key.tenant_id).find, q)
        return self.page("customers.html", key=key, q=q, found=found)

    async def found(self, key: Reader, q: Text = "") -> HTMLResponse:
        """The same as a part of the page, while somebody types."""
        self._api.backend.audit.looked(key, Action.LISTED, what="search")
        found = await self._api.ask(self._api.backend.search(key.tenant_id).find, q)
        return self.page("customers_found.html", q=q, found=found)

    async def customer(self, key: Reader, customer_id: CustomerId) -> HTMLResponse:
        """Profile, timeline, identity and recommendations of a customer."""
        found = await self._api.ask(self._api.backend.customers(key.tenant_id).find, customer_id, TIMELINE)
        if found is None:
            return self.page("missing.html", 404, key=key, what=f"customer {customer_id}")
        self._api.backend.audit.looked(key, Action.LOOKED_AT, subjects_of(customer_id, found))
        ids = [user["user_id"] for user in found.users]
        wanted = RecommendationRequest(customer_id if customer_id in ids or not ids else ids[0], RECOMMENDED)
        recommended = await self._api.ask(self._api.backend.recommender(key.tenant_id).recommend, wanted)
        try:
            foreseen = await self._api.ask(self._shown(key).foreseen, ids or [customer_id])
        except (UnavailableError, TimeoutError):
            foreseen = None  # the graph has the rest of the page, which says that the lake does not answer
        days = days_of(found.timeline)
        return self.page(
            "customer.html", key=key, customer=found, days=days, recommended=recommended, foreseen=foreseen
        )

    async def activity(self, key: Reader, customer_id: CustomerId) -> HTMLResponse:
        """How much a customer did, week by week; a part of the page."""
        users, journeys = await self._members(key, customer_id)
        days = await self._api.ask_heavy(self._shown(key).activity, users, journeys)
        return self.page("activity.html", weeks=weeks_of(days), is_part=sum(days.values()) >= MOST_COUNTED)

    async def history(self, key: Reader, customer_id: CustomerId) -> HTMLResponse:
        """What was merged and split; the page asks for it when it is shown, for it is the lake that knows."""
        _, journeys = await self._members(key, customer_id)
        merges, splits = await self._api.ask_heavy(self._shown(key).history, journeys)
        return self.page("history.html", merges=merges, splits=splits)

    async def timeline(self, key: Reader, customer_id: CustomerId, before: datetime) -> HTMLResponse:
        """More of a timeline."""
        customers = self._api.backend.customers(key.tenant_id)
        found = await self._api.ask(customers.timeline, customer_id, TIMELINE, in_utc(before))
        if found is None:
            raise HTTPException(404, "There is no such customer.")
        self._api.backend.audit.looked(key, Action.LOOKED_AT, [customer_id])
        timeline, is_more = found
        days = days_of(timeline, in_utc(before))
        return self.page("timeline.html", customer_id=customer_id, timeline=timeline, days=days, is_more=is_more)

    async def neighbourhood(self, key: Reader, customer_id: CustomerId) -> JSONResponse:
        """The graph around a customer."""
        users, journeys = await self._members(key, customer_id)
        return JSONResponse(await self._api.ask(self._shown(key).neighbourhood, users[:10], journeys[:3]))

    async def _members(self, key: ApiKey, customer_id: str) -> tuple[list[str], list[str]]:
        found = await self._api.ask(self._api.backend.customers(key.tenant_id).members, customer_id)
        if found is None:
            raise HTTPException(404, "There is no such customer.")
        self._api.backend.audit.looked(key, Action.LOOKED_AT, [customer_id])
        return found

    async def explore(self, key: Reader, first: Text = "", second: Text = "") -> HTMLResponse:
        """What links two events."""
        if first or second:
            self._api.backend.audit.looked(key, Action.LISTED, what="identity explorer")
        asked = bool(first and second)
        backend = self._api.backend
        chain = await self._api.ask(backend.explanation, key.tenant_id, first, second) if asked else []
        return self.page("explore.html", key=key, first=first, second=second, asked=asked, chain=chain)

    async def delivery(self, key: Reader) -> HTMLResponse:
        """What became of what was sent."""
        found = await self._api.page(key.tenant_id, "delivery", partial(self._delivery, key))
        return self.page("delivery.html", key=key, has_stream=self._api.backend.stream is not None, **found)

    def _delivery(self, key: ApiKey) -> dict[str, Any]:
        """What was delivered, and that files wait for an erasure, which names nobody."""
        try:
            found = self._api.backend.control.privacy.unfinished_erasure()
            erasure = str(found) if found else None
        except ConflictError as error:
            erasure = str(error)
        return {**self._shown(key).delivery(), "erasure": erasure, "sources": self._api.backend.sources(key.tenant_id)}

    async def stream(self, key: Reader) -> HTMLResponse:
        """The real-time path now; a part of the page before."""
        if self._api.backend.stream is None:
            raise HTTPException(404, "No real-time path is set up.")
        try:
            seen = await self._api.ask(self._api.backend.stream, key.tenant_id)
        except (UnavailableError, TimeoutError):
            return self.page("stream.html", seen=None)
        return self.page("stream.html", seen=seen)

    async def insights(self, key: Reader) -> HTMLResponse:
        """What the nightly features found: odd sessions, the funnel, paths before tickets, accounts at risk."""
        self._api.backend.audit.looked(key, Action.LISTED, what="insights")
        found = await self._api.page(key.tenant_id, "insights", partial(self._insights, key.tenant_id))
        return self.page("insights.html", key=key, found=found)

    def _insights(self, tenant_id: str) -> list[Found]:
        return all_insights(lambda name: self._api.backend.insights(tenant_id, name, SHOWN_INSIGHTS))

    async def reconciliation(self, key: Reader) -> HTMLResponse:
        """Where graph and archive are equal."""
        found = await self._api.page(key.tenant_id, "reconciliation", self._shown(key).comparison)
        return self.page("reconciliation.html", key=key, **found)

    async def queries(self, key: Reader) -> HTMLResponse:
        """The business queries."""
        return self.page("queries.html", key=key, queries=list(all_queries().values()))

    async def query(self, request: Request, key: Reader, name: Id) -> HTMLResponse:
        """The answer to a business query, as a chart and a table, with the statement."""
        chosen = find_query(name)
        self._api.backend.audit.looked(key, Action.LISTED, what=f"query {chosen.name}")
        given = {k: v for k, v in request.query_params.items() if v and k in {"limit", *chosen.parameters}}
        rows = await self._api.ask_heavy(self._api.backend.answer, key.tenant_id, name, given)
        return self.page("query.html", key=key, query=chosen, rows=rows, given=given, bars=bars(chosen.chart, rows))

    async def audit(self, key: Auditor, person: Text = "", before: Number = None) -> HTMLResponse:
        """Who looked at whom, and who changed what."""
        lines = await self._api.ask(
            self._api.backend.control.audit.of, key.tenant_id, SHOWN_AUDIT, person or None, before
        )
        self._api.backend.audit.looked(key, Action.READ_AUDIT, [person or None])
        return self.page("audit.html", key=key, person=person, lines=lines, is_more=len(lines) == SHOWN_AUDIT)

    async def unmerge(self, request: Request, key: Operator) -> Response:
        """Take apart what a key has linked, for good: the key goes on the list of those that never link."""
        return await self._changed(request, key, "key", self._unmerge)

    async def split(self, request: Request, key: Operator) -> Response:
        """Let what a visitor did before logins count for nobody, from the next run on."""
        return await self._changed(request, key, "visitor", self._split)

    async def _changed(
        self, request: Request, key: ApiKey, field: str, change: Callable[[ApiKey, str], None]
    ) -> Response:
        """Carry out what a form of a customer's page asks for, and show the page again."""
        refuse_other_sites(request)
        sent = parse_qs((await request.body()).decode("utf-8", "replace"))
        asked, customer_id = sent.get(field, [""])[0], sent.get("customer", [""])[0]
        await self._api.ask(change, key, asked)
        return Response(headers={"HX-Redirect": f"/app/customers/{_as_part(customer_id)}"})

    def _split(self, key: ApiKey, anonymous_id: str) -> None:
        """Note the decision; the next run brings graph and journeys up, for a page must not write beside a run."""
        backend = self._api.backend
        with backend.control.locks.command_run():
            decisions = Decisions(backend.lake)
            visitor = decisions.visitor(anonymous_id, key.tenant_id)
            backend.audit.changes(key, Action.SPLIT_VISITOR, [anonymous_id, *visitor.users])
            decisions.split(visitor, "split on the page", undo=False)

    def _unmerge(self, key: ApiKey, asked: str) -> None:
        backend = self._api.backend
        with backend.control.locks.command_run():

            def told(_: str, name: str, people: list[str]) -> None:
                backend.audit.changes(key, Action.BLOCKED_KEY, people or [None], name)

            block_key(
                backend.control, backend.lake, backend.graph, asked, key.tenant_id, "undone on the page", undo=False,
                told=told,
            )  # fmt: skip


def bars(chart: tuple[str, str] | None, rows: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """What a chart shows: names, numbers, and lengths of bars from 0 to 100; the twenty longest.

    Args:
        chart: the column of names and that of numbers, `count` for the number of rows.
        rows: of the query.
    """
    if chart is None or not rows:
        return []
    name, number = chart
    totals: dict[str, float] = {}
    for row in rows:
        added = 1.0 if number == "count" else float(row[number] or 0)
        label = str(row[name])
        totals[label] = totals.get(label, 0.0) + added
    ordered = list(totals.items()) if name == "hour" else sorted(totals.items(), key=lambda p: (-p[1], p[0]))[:20]
    most = max(totals.values()) or 1.0
    return [(label, total, round(100 * total / most)) for label, total in ordered]
