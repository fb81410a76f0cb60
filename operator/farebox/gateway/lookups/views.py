"""The JSON of look-ups. Pure. Names are in snake case, as in OpenAI's API; unknown values are null.

Prices and amounts are decimal strings. Prices are per token, as clients of `pricing` expect them.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from farebox.clock import from_micros
from farebox.domain.admission.service_state import ServiceState
from farebox.domain.admission.types import KeyPolicy, LimitStatus, ModelPolicy, ServicePolicy
from farebox.domain.billing.money import NANO_PER_UNIT, format_amount
from farebox.domain.billing.pricing import Tier
from farebox.meterapi.calls import Call, CallPage
from farebox.meterapi.reports import Group, UsageReport, UsageRow

JSONObject = dict[str, Any]


def model_view(service: ServicePolicy, model: ModelPolicy | None, state: ServiceState) -> JSONObject:
    """A service as an OpenAI model object, with what it can do and costs."""
    created = service.created_at
    return {
        "id": service.key.name,
        "object": "model",
        "created": 0 if created is None else int(created.timestamp()),
        "owned_by": service.key.namespace,
        "active": state.state != "inactive",
        "state": state.state,
        "reason": state.reason or None,
        "context_length": (model.context_tokens or None) if model else None,
        "max_output_tokens": (model.max_output_tokens or None) if model else None,
        "pricing": None if model is None or not model.tiers else _pricing(model.tiers, model.currency),
    }


def key_view(
    key: KeyPolicy, services: Sequence[JSONObject], quota: LimitStatus | None, now: int
) -> JSONObject:
    """A key; `services` are `service_view`s."""
    return {
        "object": "key",
        "name": key.key.name,
        "namespace": key.key.namespace,
        "created_at": _time(key.created_at),
        "expires_at": _time(key.expires_at),
        "all_services": key.services is None,
        "quota": None if quota is None else _limit(quota, now),
        "services": list(services),
    }


def service_view(
    service: ServicePolicy, state: ServiceState, account: str, limits: Iterable[LimitStatus], now: int
) -> JSONObject:
    """A service that a key may call; `account` says whether its account can pay."""
    return {
        "id": service.key.name,
        "state": state.state,
        "reason": state.reason or None,
        "account": account,
        "limits": [_limit(each, now) for each in limits],
    }


def usage_view(report: UsageReport) -> JSONObject:
    """A page of usage."""
    return {
        "object": "list",
        "from": _time(report.start),
        "to": _time(report.end),
        "pending_calls": report.pending,
        "data": [_usage(row, report.group_by) for row in report.rows],
        "next": report.next,
    }


def calls_view(page: CallPage) -> JSONObject:
    """A page of calls."""
    return {
        "object": "list",
        "from": _time(page.start),
        "to": _time(page.end),
        "data": [call_view(call) for call in page.calls],
        "next": page.next,
    }


def call_view(call: Call) -> JSONObject:
    """A call that was served."""
    price = call.price
    return {
        "id": call.request_id,
        "object": "call",
        "time": _time(call.time),
        "service": call.service.name,
        "model": call.model,
        "key": call.api_key,
        "status": call.status,
        "input_tokens": call.input_tokens,
        "cached_input_tokens": call.cached_input_tokens,
        "cache_write_input_tokens": call.cache_write_input_tokens,
        "output_tokens": call.output_tokens,
        "estimated": call.estimated,
        "reservation_input_tokens": call.reservation_input_tokens,
        "reservation_output_tokens": call.reservation_output_tokens,
        "free_quota_tokens": call.free_quota_tokens,
        "charge": None if call.charge is None else format_amount(call.charge),
        "currency": call.currency,
        "price": None if price is None else {"version": price.version, **_prices(price)},
        "pending_reason": call.pending_reason,
        "duration_ms": call.duration_ms,
        "first_byte_ms": call.first_byte_ms,
    }


def _usage(row: UsageRow, groups: Sequence[Group]) -> JSONObject:
    grouped: Mapping[Group, tuple[str, str | None]] = {
        Group.MODEL: ("model", row.model),
        Group.API_KEY: ("key", row.api_key or None),
        Group.SERVICE: ("service", row.service and row.service.partition("/")[2]),
    }
    return {
        **({} if row.start is None else {"day": f"{row.start:%Y-%m-%d}"}),
        **dict(grouped[group] for group in groups),
        "calls": row.calls,
        "input_tokens": row.input_tokens,
        "cached_input_tokens": row.cached_input_tokens,
        "cache_write_input_tokens": row.cache_write_input_tokens,
        "output_tokens": row.output_tokens,
        "reservation_input_tokens": row.reservation_input_tokens,
        "reservation_output_tokens": row.reservation_output_tokens,
        "free_quota_tokens": row.free_quota_tokens,
        "charge": format_amount(row.charge),
        "currency": row.currency,
        "estimated_calls": row.estimated_calls,
        "estimated_tokens": row.estimated_tokens,
        "estimated_charge": format_amount(row.estimated_charge),
    }


def _limit(status: LimitStatus, now: int) -> JSONObject:
    """A limit and what it has left. `reset_at` is when nothing of the current use counts any more."""
    return {
        "dimension": status.request.dimension,
        "limit": status.request.limit,
        "used": status.used,
        "remaining": status.remaining,
        "reset_at": None if status.reset_ms is None else _time(from_micros((now + status.reset_ms) * 1000)),
    }


def _pricing(tiers: Sequence[Tier], currency: str) -> JSONObject:
    """The prices of the first tier, where clients look for them, and those of all."""
    return {
        "currency": currency,
        **_prices(tiers[0]),
        "tiers": [{"up_to_input_tokens": tier.up_to_input_tokens, **_prices(tier)} for tier in tiers],
    }


def _prices(tier: Tier) -> JSONObject:
    """Prices of a token by the names that OpenRouter's clients know."""
    write = tier.input if tier.cache_write is None else tier.cache_write
    return {
        "prompt": price_of_token(tier.input),
        "completion": price_of_token(tier.output),
        "input_cache_read": price_of_token(tier.cached_input),
        "input_cache_write": price_of_token(write),
    }


def price_of_token(nano: int) -> str:
    """Nano-units as a decimal string without an exponent.

    >>> price_of_token(500), price_of_token(0), price_of_token(2_000_000_000)
    ('0.0000005', '0', '2')
    """
    units, rest = divmod(nano, NANO_PER_UNIT)
    return f"{units}.{rest:09d}".rstrip("0").rstrip(".")


def _time(moment: datetime | None) -> str | None:
    """RFC 3339 in whole seconds, UTC."""
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
