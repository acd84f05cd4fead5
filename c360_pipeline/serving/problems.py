"""Errors as problem documents (RFC 9457): one form for all routes, without a word of the body that was sent."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from neo4j.exceptions import DriverError, Neo4jError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from c360_pipeline.errors import ConfigError, ConflictError, ContractError, UnavailableError
from c360_pipeline.serving.models import FIELDS

PROBLEM_JSON = "application/problem+json"
TITLES = {
    400: "Bad request", 401: "Not authenticated", 403: "Not allowed", 404: "Not found", 405: "Method not allowed",
    409: "Conflict", 413: "Too large", 415: "Unsupported media type", 422: "Not valid", 429: "Too many requests",
    500: "Internal error", 503: "Unavailable", 504: "Timed out",
}  # fmt: skip
STATUS_OF = {ConfigError: 422, ContractError: 422, ConflictError: 409, UnavailableError: 503, TimeoutError: 504}


_QUOTED = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?!\w)""")
"""A value in a message, as `repr` writes it: what was sent may be personal."""
ProblemPage = Callable[[Request, int, str, str], Response]
"""Shows a status, its title and what is to be said as a page."""


class InvalidPart(BaseModel):
    """A part of a request that is not valid."""

    location: str
    problem: str


class Problem(BaseModel):
    """What went wrong."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    invalid: list[InvalidPart] | None = None


def problem(
    status: int, detail: str, invalid: Sequence[InvalidPart] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A response that says what went wrong."""
    said = Problem(title=TITLES.get(status, "Error"), status=status, detail=detail,
                   invalid=None if invalid is None else list(invalid))  # fmt: skip
    return JSONResponse(said.model_dump(exclude_none=True), status, headers, PROBLEM_JSON)


def answer(
    request: Request,
    status: int,
    detail: str,
    invalid: Sequence[InvalidPart] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """The same, or where a person looks at a page, a page that says it and can be tried again."""
    page: ProblemPage | None = getattr(request.app.state, "problem_page", None)
    if page is not None and request.url.path.startswith("/app"):
        shown = page(request, status, TITLES.get(status, "Error"), detail)
        shown.headers.update(headers or {})
        return shown
    return problem(status, detail, invalid, headers)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of errors."""
    content = {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": TITLES[status], "content": content} for status in statuses}


def add_problems(app: FastAPI) -> None:
    """Make every error of an app a problem document."""

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        # Without the input: it may be personal, and a log of responses must not hold it.
        parts = [InvalidPart(location=_place(e["loc"]), problem=e["msg"]) for e in error.errors()]
        return answer(request, 422, "The request is not valid.", parts)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 401 and request.url.path.startswith("/app"):
            return RedirectResponse("/app/login", 303)  # nothing is posted there again
        return answer(request, error.status_code, str(error.detail), headers=dict(error.headers or {}))

    for kind in STATUS_OF:
        app.add_exception_handler(kind, _known)
    for kind in (DriverError, Neo4jError):
        app.add_exception_handler(kind, _graph_failed)


def unforeseen(error: Exception, request: Request) -> Response:
    """The answer to an error that nobody has thought of; the log says where it came from, not what was asked for."""
    route = getattr(request.scope.get("route"), "path", "none")
    structlog.get_logger("c360.api").error("unforeseen", route=route, exc_info=error)
    return answer(request, 500, "This should not have happened; it is in the log.")


def _place(parts: Sequence[str | int]) -> str:
    """Where in a request, in names of ours; a name that was sent is a star."""
    first, *rest = parts
    named = rest if first != "body" else [p if isinstance(p, int) or p in FIELDS else "*" for p in rest]
    return ".".join(map(str, [first, *named]))


async def _known(request: Request, error: Exception) -> Response:
    status = next(code for kind, code in STATUS_OF.items() if isinstance(error, kind))
    detail = "It took too long; try again." if status == 504 else _QUOTED.sub("…", str(error))
    if status == 503:
        structlog.get_logger("c360.api").warning("unavailable", error=str(error))
        detail = "A service that this needs does not answer; try again."
    return answer(request, status, detail, headers={"Retry-After": "1"} if status in (503, 504) else None)


async def _graph_failed(request: Request, error: Exception) -> Response:
    structlog.get_logger("c360.api").warning("graph_failed", error=type(error).__name__)
    code = str(getattr(error, "code", ""))
    if code.startswith("Neo.ClientError.Statement"):
        return unforeseen(error, request)
    status = 504 if "TransactionTimedOut" in code else 503
    return answer(request, status, "The graph does not answer; try again.", headers={"Retry-After": "1"})
