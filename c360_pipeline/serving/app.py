"""The API: `create_app` makes it over a backend. Its names are those of the contract."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Response
from fastapi.responses import JSONResponse
from prometheus_client import Histogram, generate_latest
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from c360_pipeline import __version__
from c360_pipeline.core.audiences.definition import NAME_PATTERN, Audience, read_audience
from c360_pipeline.core.privacy.audit import Action
from c360_pipeline.reads.customers import Customer
from c360_pipeline.reads.recommend import RecommendationRequest
from c360_pipeline.serving import models, pages
from c360_pipeline.serving.api import Api
from c360_pipeline.serving.backend import Backend
from c360_pipeline.serving.paths import know_texts
from c360_pipeline.serving.problems import Problem, add_problems, problem_responses
from c360_pipeline.serving.security import Analyst, Auditor, Gate, Guard, Ingester, Reader, admit_stranger, own_tenant
from c360_pipeline.serving.sign_in import SignIn
from c360_pipeline.settings import serving_address
from c360_pipeline.stores.neo4j.driver_values import plain

Limit = Annotated[int, Query(ge=1, le=500)]
TenantId = Annotated[str | None, Query(description="the key's own; another one's answers 404", max_length=1_024)]
AudienceName = Annotated[str, Path(pattern=NAME_PATTERN)]
USUAL = problem_responses(401, 403, 404, 413, 422, 429, 503, 504)
JSON = "application/json"


class Measured:
    """Says how long requests took, by route and status.

    Args:
        app: what answers.
        seconds: by method, route and status.
    """

    def __init__(self, app: ASGIApp, seconds: Histogram) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        began, status = time.perf_counter(), 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            labels = (scope["method"] if route != "none" else "any", route, str(status))
            self._seconds.labels(*labels).observe(time.perf_counter() - began)


def create_app(backend: Backend, rate: str = "1000/second", sign_in: SignIn | None = None) -> FastAPI:
    """The API over a backend.

    Args:
        backend: closed when the app ends.
        rate: requests of a tenant, such as `1000/second`.
        sign_in: by which people open the pages, beside keys.
    """
    know_texts()
    api = Api(backend)

    @asynccontextmanager
    async def until_closed(app: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(api.close)

    app = FastAPI(
        title="Customer 360", version=__version__, lifespan=until_closed, redoc_url=None, docs_url=None,
        description="Recommendations with reasons, journeys and customers of the customer graph. Every route but "
        "health and metrics needs a key; a key belongs to one tenant, and other tenants' data is not there.",
    )  # fmt: skip
    app.state.gate = Gate(backend.keys, rate, by_tls=serving_address().startswith("https:"))
    app.state.api, app.state.sign_in = api, sign_in
    app.add_middleware(Guard)
    add_problems(app)
    app.add_middleware(Measured, seconds=api.metrics.seconds)

    _add_recommendations(app, api)
    _add_products(app, api)
    _add_customers(app, api)
    _add_insights(app, api)
    _add_audiences(app, api)
    _add_making_of_audiences(app, api)
    _add_audit(app, api)
    _add_operations(app, api)
    pages.add_pages(app, api)
    app.openapi_schema = _described(app)
    return app


def _add_recommendations(app: FastAPI, api: Api) -> None:
    @app.post("/recommend/products", response_model=models.Recommendations, responses=USUAL, tags=["recommendations"])
    async def recommend_products(wanted: models.RecommendRequest, key: Reader) -> Response:
        """Products for a user or a visitor, best first, each with its reason.

        An answer may be a minute old, unless the user has acted since.
        """
        tenant = own_tenant(key, wanted.tenant_id)
        context, visitor = wanted.context, None if wanted.user_id else wanted.anonymous_id
        request = RecommendationRequest(
            wanted.user_id, wanted.top_k, context.category, tuple(context.exclude), visitor, context.most_of_category
        )
        return Response(await api.recommend(tenant, request), media_type=JSON)

    @app.post("/graph/track", responses=USUAL, tags=["events"])
    async def track(wanted: models.TrackRequest, key: Ingester) -> models.Tracked:
        """Store what a user did. It is in S3 when this answers, and in the graph in most cases."""
        return await api.track(own_tenant(key, wanted.tenant_id), [wanted])

    @app.post("/graph/track/batch", responses=USUAL, tags=["events"])
    async def track_batch(wanted: models.TrackBatchRequest, key: Ingester) -> models.Tracked:
        """Store what users did, up to 500 at once: all of them or, where one is not valid, none."""
        return await api.track(own_tenant(key, wanted.tenant_id), wanted.interactions)


def _add_products(app: FastAPI, api: Api) -> None:
    @app.get("/products/trending", responses=USUAL, tags=["products"])
    async def trending(
        key: Reader,
        category: Annotated[str | None, Query(max_length=1_024)] = None,
        time_window_hours: Annotated[int, Query(ge=1, le=24 * 366)] = 24,
        limit: Limit = 10,
        tenant_id: TenantId = None,
    ) -> models.Trending:
        """Products by the people who viewed and bought them; the window ends with the tenant's newest event."""
        recommender = api.backend.recommender(own_tenant(key, tenant_id))
        as_of, rows = await api.ask(recommender.trending, timedelta(hours=time_window_hours), category, limit)
        products = [models.TrendingProduct.model_validate(row) for row in rows]
        return models.Trending(as_of=as_of, time_window_hours=time_window_hours, products=products)

    @app.get("/products/{product_id:text}/similar", responses=USUAL, tags=["products"])
    async def similar(
        key: Reader, product_id: models.Id, limit: Limit = 20, tenant_id: TenantId = None
    ) -> models.SimilarProducts:
        """Products with the same customers, and products viewed in the same sessions."""
        recommender = api.backend.recommender(own_tenant(key, tenant_id))
        rows = await api.ask(recommender.similar_products, product_id)
        if rows is None:
            raise HTTPException(404, "There is no such product.")
        found = [models.SimilarProduct.model_validate(row) for row in rows[:limit]]
        return models.SimilarProducts(product_id=product_id, similar=found)

    @app.get("/users/power", responses=USUAL, tags=["customers"])
    async def power_users(
        key: Reader,
        min_products: Annotated[int, Query(ge=1, le=1_000_000)] = 5,
        limit: Limit = 20,
        tenant_id: TenantId = None,
    ) -> models.Rows:
        """Users who bought most different products, by what they spent."""
        given = {"min_products": str(min_products), "limit": str(limit)}
        api.backend.audit.looked(key, Action.LISTED, what="query power_users")
        return models.Rows(rows=await api.ask(api.backend.answer, own_tenant(key, tenant_id), "power_users", given))


def _add_customers(app: FastAPI, api: Api) -> None:
    @app.get("/customers/{customer_id:text}", response_model=Customer, responses=USUAL, tags=["customers"])
    async def customer(
        key: Reader,
        customer_id: models.Id,
        limit: Limit = 100,
        before: Annotated[datetime | None, Query(description="entries of earlier moments only")] = None,
        tenant_id: TenantId = None,
    ) -> dict[str, Any]:
        """All that is known of a customer, by a user's id or an account's e-mail address."""
        tenant = own_tenant(key, tenant_id)
        found = await api.ask(api.backend.customers(tenant).find, customer_id, limit, pages.in_utc(before))
        if found is None:
            raise HTTPException(404, "There is no such customer.")
        api.backend.audit.looked(key, Action.LOOKED_AT, pages.subjects_of(customer_id, found))
        document: dict[str, Any] = plain(asdict(found))
        return document

    @app.get("/journeys/explain", responses=USUAL, tags=["journeys"])
    async def explain(
        key: Reader,
        first: Annotated[str, Query(min_length=1, max_length=1_024)],
        second: Annotated[str, Query(min_length=1, max_length=1_024)],
        tenant_id: TenantId = None,
    ) -> models.Explanation:
        """The shortest chain of events and keys that links two events; empty when nothing does."""
        api.backend.audit.looked(key, Action.LISTED, what="identity explorer")
        chain = await api.ask(api.backend.explanation, own_tenant(key, tenant_id), first, second)
        return models.Explanation(chain=chain)

    @app.get("/journeys/{event_id:text}", responses=USUAL, tags=["journeys"])
    async def journey(key: Reader, event_id: models.Id, tenant_id: TenantId = None) -> models.Journey:
        """The journey that an event belongs to."""
        events = await api.ask(api.backend.journey, own_tenant(key, tenant_id), event_id)
        if not events:
            raise HTTPException(404, "There is no such event, or it has no journey yet.")
        people = {event["user_id"] for event in events if event["user_id"]}
        api.backend.audit.looked(key, Action.LOOKED_AT, sorted(people) or [None], "a journey")
        return models.Journey(journey_id=events[0]["journey_id"], events=events)


INSIGHTS: dict[str, tuple[type[BaseModel], str]] = {
    "now": (models.Surprising, "Sessions that are unlike the past, seconds after their events."),
    "anomalies": (models.Anomalies, "Sessions of the last seven days whose path is unlike the past."),
    "drop-offs": (models.DropOffs, "Where a funnel loses sessions, this week and before."),
    "before-tickets": (
        models.TicketPaths,
        "What users do in the half hour before a ticket more often than elsewhere.",
    ),
    "churn": (models.Churn, "Accounts by how likely they leave, with the reasons."),
    "leaving": (models.Leaving, "Customers by how likely they are not seen again soon, with the reasons."),
    "values": (models.Values, "Customers by what they may be expected to pay in a year."),
    "recommended": (models.Recommended, "What came of recommendations, by day, version and source."),
    "models": (models.Models, "How well what is said of customers was foreseen on the newest past."),
}
"""By kind of `reads.insights`: what the API answers, and what it is."""


def _add_insights(app: FastAPI, api: Api) -> None:
    def read_of(name: str) -> Callable[..., Awaitable[dict[str, Any]]]:
        async def read(key: Reader, limit: Limit = 50, tenant_id: TenantId = None) -> dict[str, Any]:
            tenant = own_tenant(key, tenant_id)
            told = await api.page(tenant, f"{name} {limit}", partial(api.backend.insights, tenant, name, limit))
            api.backend.audit.looked(key, Action.LISTED, what=f"insights {name}")
            none = None if told.rows else told.why_none
            return {"changed_at": told.changed_at, "total": told.total, "none": none, "rows": told.rows}

        return read

    for name, (answer, description) in INSIGHTS.items():
        app.get(
            f"/insights/{name}", response_model=answer, responses=USUAL, tags=["insights"],
            name=name.replace("-", "_"), description=description,
        )(read_of(name))  # fmt: skip


def _audience(tenant: str, name: str, document: models.AudienceDocument) -> Audience:
    return read_audience({"audience": name, "tenant": tenant, **document.model_dump(exclude={"note"})})


def _add_audiences(app: FastAPI, api: Api) -> None:
    @app.get("/audiences", responses=USUAL, tags=["audiences"])
    async def audiences(key: Reader, tenant_id: TenantId = None) -> models.AudienceList:
        """The tenant's audiences: who is in them, and how many."""
        reads = api.backend.audiences(own_tenant(key, tenant_id))
        found = await api.page(key.tenant_id, "audiences", partial(reads.summaries, datetime.now(UTC)))
        return models.AudienceList(audiences=found)

    @app.get("/audiences/{audience}/members", responses=USUAL, tags=["audiences"])
    async def members(
        key: Reader,
        audience: AudienceName,
        limit: Limit = 100,
        after: Annotated[str | None, Query(max_length=1_024, description="user id; only later ones")] = None,
        tenant_id: TenantId = None,
    ) -> models.AudienceMembers:
        """Who is in an audience, by user id, as the last run found."""
        reads = api.backend.audiences(own_tenant(key, tenant_id))
        if await api.ask(reads.version, audience) is None:
            raise HTTPException(404, "There is no such audience.")
        api.backend.audit.looked(key, Action.LISTED, what=f"audience {audience}")
        total, found = await api.ask_heavy(reads.members, audience, limit, after)
        more = found[-1]["user_id"] if len(found) == limit else None
        shown = [models.AudienceMember.model_validate(one) for one in found]
        return models.AudienceMembers(audience=audience, total=total, members=shown, next=more)

    @app.post("/audiences/size", responses=USUAL, tags=["audiences"])
    async def size(key: Reader, document: models.AudienceDocument, tenant_id: TenantId = None) -> models.AudienceSize:
        """How many would be in an audience now; nothing is kept."""
        asked = _audience(own_tenant(key, tenant_id), "tried", document)
        tried = await api.ask_heavy(api.backend.try_audience, asked)
        return models.AudienceSize(customers=tried["customers"], each=tried["each"], members=tried["sizes"]["members"])


def _add_making_of_audiences(app: FastAPI, api: Api) -> None:
    @app.put("/audiences/{audience}", responses=USUAL, tags=["audiences"])
    async def apply(
        key: Analyst,
        audience: AudienceName,
        document: models.AudienceDocument,
        tenant_id: TenantId = None,
    ) -> models.AudienceApplied:
        """Let a document say who is in an audience, from the next run on."""
        asked = _audience(own_tenant(key, tenant_id), audience, document)
        version, is_new = await api.apply_audience(key, asked, document.note)
        return models.AudienceApplied(audience=audience, version=version, changed=is_new)

    @app.delete("/audiences/{audience}", status_code=204, response_class=Response, responses=USUAL, tags=["audiences"])
    async def end(key: Analyst, audience: AudienceName, tenant_id: TenantId = None) -> Response:
        """Let nobody be in an audience: the next run closes it, and where it is sent is told that all left."""
        own_tenant(key, tenant_id)
        await api.end_audience(key, audience)
        return Response(status_code=204)


def _add_audit(app: FastAPI, api: Api) -> None:
    @app.get("/audit", responses=USUAL, tags=["audit"])
    async def audit(
        key: Auditor,
        person: Annotated[
            str | None, Query(max_length=1_024, description="only what is about this user, visitor or account")
        ] = None,
        limit: Limit = 100,
        before: Annotated[int | None, Query(ge=1, le=2**63 - 1, description="only entries with a lower number")] = None,
        tenant_id: TenantId = None,
    ) -> models.AuditEntries:
        """Who looked at whom, and who changed what, the newest first. A person is named by a hash alone."""
        lines = await api.ask(api.backend.control.audit.of, own_tenant(key, tenant_id), limit, person, before)
        api.backend.audit.looked(key, Action.READ_AUDIT, [person])
        more = lines[-1].audit_id if len(lines) == limit else None
        return models.AuditEntries(entries=[models.AuditEntry(**asdict(line)) for line in lines], next=more)


def _add_operations(app: FastAPI, api: Api) -> None:
    strangers = [Depends(admit_stranger)]

    @app.get("/health/live", tags=["operations"], dependencies=strangers)
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "live"}

    @app.get("/health", response_model=models.Health, responses={503: {"model": models.Health}}, tags=["operations"],
             dependencies=strangers)  # fmt: skip
    async def health() -> JSONResponse:
        """Whether requests can be served: each service is asked."""
        services = await api.services()
        ready = all(services.values())
        return JSONResponse({"status": "ready" if ready else "not ready", "services": services}, 200 if ready else 503)

    @app.get("/metrics", tags=["operations"], response_class=Response, dependencies=strangers)
    async def metrics() -> Response:
        """Figures of this process for Prometheus."""
        return Response(generate_latest(api.metrics.registry), media_type="text/plain; version=0.0.4")


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the form of errors."""
    document = app.openapi()
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = document["components"]["schemas"]
    schemas |= {**schema.pop("$defs", {}), "Problem": schema}
    return document
