"""Pages of audiences: which there are, who is in one, and a form that says how many would be."""

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from c360_pipeline.core.audiences.definition import Audience, read_audience
from c360_pipeline.core.audiences.form import FIELDS, JOINS, KINDS, Row, condition_of, rows_of
from c360_pipeline.core.audiences.told import told
from c360_pipeline.core.privacy.audit import Action
from c360_pipeline.errors import ConfigError
from c360_pipeline.reads.audiences import read_or_none
from c360_pipeline.serving.models import Id
from c360_pipeline.serving.security import Analyst, Reader, refuse_other_sites
from c360_pipeline.stores.postgres.api_keys import ApiKey

if TYPE_CHECKING:
    from c360_pipeline.serving.api import Api
    from c360_pipeline.serving.pages import Pages

SHOWN_MEMBERS = 100
SHOWN_REFUSED = 20
UNNAMED = "new-audience"
NEW = {"did": "purchase", "within_days": 30}
"""The condition that a new audience's form begins with."""


class AudiencePages:
    """The pages.

    Args:
        api: what they ask.
        pages: their layout.
    """

    def __init__(self, api: "Api", pages: "Pages") -> None:
        self._api = api
        self._pages = pages

    def add(self, router: APIRouter) -> None:
        """Add them to a router."""
        router.add_api_route("/audiences", self.audiences, methods=["GET"])
        router.add_api_route("/audiences/new", self.new, methods=["GET"])
        router.add_api_route("/audiences/size", self.size, methods=["POST"])
        router.add_api_route("/audiences/apply", self.apply, methods=["POST"])
        router.add_api_route("/audiences/{name}/end", self.end, methods=["POST"])
        router.add_api_route("/audiences/{name}/edit", self.edit, methods=["GET"])
        router.add_api_route("/audiences/{name}", self.audience, methods=["GET"])

    async def audiences(self, key: Reader) -> HTMLResponse:
        """All audiences of the tenant."""
        reads = self._api.backend.audiences(key.tenant_id)
        found = await self._api.page(key.tenant_id, "audiences", partial(reads.summaries, datetime.now(UTC)))
        return self._pages.page("audiences.html", key=key, found=found)

    async def audience(self, key: Reader, name: Id) -> HTMLResponse:
        """Who is in an audience, how it grew, and where it is sent."""
        found = await self._api.ask_heavy(self._found, key.tenant_id, name)
        if found is None:
            return self._pages.page("missing.html", 404, key=key, what=f"audience {name}")
        self._api.backend.audit.looked(key, Action.LISTED, what=f"audience {name}")
        return self._pages.page("audience.html", key=key, **found)

    def _found(self, tenant_id: str, name: str) -> dict[str, Any] | None:
        reads = self._api.backend.audiences(tenant_id)
        version = reads.version(name)
        if version is None:
            return None
        audience, who = read_or_none(version)
        total, members = reads.members(name, SHOWN_MEMBERS)
        refused, letters = reads.refused(name, SHOWN_REFUSED)
        flow = reads.flow(name, datetime.now(UTC))
        return {
            "version": version, "audience": audience, "who": who, "total": total, "members": members, "flow": flow,
            "most": max([1, *(day.members for day in flow)]),
            "most_moved": max([1, *(max(day.entered, day.left) for day in flow)]),
            "deliveries": {one["destination"]: one for one in reads.deliveries(name)}, "refused": refused,
            "letters": letters, "versions": reads.versions(name),
            "document": json.dumps(version.document, indent=2, ensure_ascii=False),
        }  # fmt: skip

    async def new(self, key: Reader) -> HTMLResponse:
        """A form for a new audience."""
        return await self._form(key, None)

    async def edit(self, key: Reader, name: Id) -> HTMLResponse:
        """The same for one that there is."""
        version = await self._api.ask(self._api.backend.audiences(key.tenant_id).version, name)
        if version is None:
            return self._pages.page("missing.html", 404, key=key, what=f"audience {name}")
        return await self._form(key, version.document)

    async def _form(self, key: ApiKey, document: Any) -> HTMLResponse:
        offered = await self._api.ask_heavy(self._api.backend.trials.offered, key.tenant_id)
        said = document or {"audience": "", "title": "", "description": "", "who": {"all": [NEW]}, "deliver": {}}
        text = json.dumps(
            {name: value for name, value in said.items() if name != "tenant"}, indent=2, ensure_ascii=False
        )
        return self._pages.page(
            "audience_form.html", key=key, document=said, offered=offered, joins=JOINS, kinds=KINDS, row=Row(),
            is_new=not document, rows=rows_of(said["who"]), text=text,
        )  # fmt: skip

    async def size(self, request: Request, key: Reader) -> HTMLResponse:
        """How many would be in what a form says; a part of the page."""
        refuse_other_sites(request)
        try:
            audience = _sent((await request.body()).decode("utf-8", "replace"), key.tenant_id)
        except ConfigError as error:
            return self._pages.page("audience_size.html", error=str(error))
        tried = await self._api.ask_heavy(self._api.backend.try_audience, audience)
        is_named = audience.audience != UNNAMED
        return self._pages.page("audience_size.html", error=None, **tried, who=told(audience.who), held=is_named)

    async def apply(self, request: Request, key: Analyst) -> Response:
        """Let what a form says be who is in an audience, from the next run on."""
        refuse_other_sites(request)
        try:
            audience = _sent((await request.body()).decode("utf-8", "replace"), key.tenant_id)
            _require_name(audience)
            await self._api.apply_audience(key, audience, "made on the page")
        except ConfigError as error:
            return self._pages.page("audience_size.html", error=str(error))
        return Response(headers={"HX-Redirect": f"/app/audiences/{audience.audience}"})

    async def end(self, request: Request, key: Analyst, name: Id) -> Response:
        """Let nobody be in an audience, from the next run on."""
        refuse_other_sites(request)
        await self._api.end_audience(key, name)
        return Response(headers={"HX-Redirect": f"/app/audiences/{name}"})


def _require_name(audience: Audience) -> None:
    if audience.audience == UNNAMED:
        raise ConfigError("Say a name.")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"This is no JSON: {error}.") from None


def _sent(body: str, tenant_id: str) -> Audience:
    """What a form, or the document in it, says.

    Raises:
        ConfigError: it is no audience.
    """
    sent = parse_qs(body, keep_blank_values=True, max_num_fields=1_000)

    def said(name: str) -> str:
        return sent.get(name, [""])[0].strip()

    if "document" in sent:
        document = _json(said("document"))
        if not isinstance(document, dict):
            raise ConfigError("An audience is one JSON object.")
    else:
        lists = [sent.get(field, []) for field in FIELDS]
        rows = [Row(*values) for values in zip(*lists, strict=False)]
        kept = {"deliver": _json(said("deliver") or "{}")}
        document = {
            "audience": said("audience"), "title": said("title"), "description": said("description"),
            "who": condition_of(said("join"), rows), **kept,
        }  # fmt: skip
    # A form that is being filled in has no name yet, and its size is asked for all the same.
    named = {"audience": UNNAMED, **{k: v for k, v in document.items() if v != "" or k != "audience"}}
    return read_audience({**named, "tenant": tenant_id})
