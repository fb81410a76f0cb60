"""What all routes of the meter's API share: authorization, parameters, answers and errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from aiohttp import web
from pydantic import ValidationError

from farebox.domain.keys import ObjectKey
from farebox.ledger.engine import Ledger
from farebox.meter.auth import Authenticator, Decision, Permission
from farebox.meter.metrics import MeterMetrics
from farebox.meterapi.scalars import parse_key
from farebox.meterapi.schema import fault, to_json

T = TypeVar("T")


@dataclass(slots=True)
class Meter:
    """The dependencies of the routes. `ledger` is None until the database is open."""

    authenticator: Authenticator
    metrics: MeterMetrics
    ledger: Ledger | None = None


METER: Final = web.AppKey("meter", Meter)


class ApiError(Exception):
    """An error answer: its HTTP status, a CamelCase reason, and a message that says what to do."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


def json_response(value: object, **headers: str) -> web.Response:
    """An answer with a value of `meterapi`."""
    return web.Response(
        body=to_json(value), headers={"Content-Type": "application/json; charset=utf-8"} | headers
    )


POST_USAGE: Final = Permission("create", "usageevents")
"""The right of a gateway."""


async def authorized(request: web.Request, permission: Permission) -> Ledger:
    """The ledger, if the caller has the permission.

    Raises:
        ApiError: 401, 403, or 503 while the API server or the database is unavailable.
    """
    meter = request.app[METER]
    review = await meter.authenticator.review(bearer_token(request), permission)
    if review.decision is not Decision.ALLOWED:
        raise ApiError(review.decision.value, review.decision.name.capitalize(), review.message)
    if meter.ledger is None:
        raise ApiError(503, "NotReady", "The ledger's database is not open yet: try again")
    return meter.ledger


def bearer_token(request: web.Request) -> str:
    """The caller's token, not reviewed yet. Raises ApiError 401 without one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise ApiError(401, "Unauthenticated", "Send a token: Authorization: Bearer <token>")
    return token.strip()


async def read_body(request: web.Request, read: Callable[[bytes], T]) -> T:
    """The JSON body as a value. Raises ApiError 400 or 415."""
    if request.content_type != "application/json":
        raise ApiError(415, "UnsupportedMediaType", "Content-Type must be application/json")
    payload = await request.read()
    try:
        return read(payload)
    except ValidationError as invalid:
        raise ApiError(400, "InvalidBody", fault(invalid)) from invalid


def account_of_path(request: web.Request) -> ObjectKey:
    """The account in the path. Raises ApiError 404 if no account can have that name."""
    try:
        return parse_key("{namespace}/{name}".format_map(request.match_info))
    except ValueError as error:
        raise ApiError(404, "AccountNotFound", str(error)) from error


def found(account: ObjectKey, value: T | None) -> T:
    """What the ledger has of an account. Raises ApiError 404 if it has no such account."""
    if value is None:
        raise ApiError(404, "AccountNotFound", f"The ledger has no account {account}")
    return value


def integer(
    request: web.Request, name: str, default: int, *, at_least: int = 0, at_most: int = 2**63 - 1
) -> int:
    """An integer parameter of the query. Raises ApiError 400."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or not at_least <= int(text[:20]) <= at_most:
        raise ApiError(400, "InvalidParameter", f"{name} must be an integer from {at_least} to {at_most}")
    return int(text)
