"""Whether a call may be made: one small check for each rule, asked in their order, all in this one place.

`admit` looks at a call and at what is known, and says either a refusal or a grant. A grant has conditions
that only counts can decide: demands on limits, which are taken together or not at all; `limit_refusal` says
what their refusal is. Nothing here does I/O, reads a clock, or knows of HTTP beyond a status (B13-B18).
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache

from farebox.api import StopReason
from farebox.domain.admission.addresses import within
from farebox.domain.admission.cases import AdmissionRequest, Allow, Deny
from farebox.domain.admission.demands import expected_input, expected_output, limit_requests
from farebox.domain.admission.rate_limits import LimitStatus, first_exceeded
from farebox.domain.admission.types import Call, KeyPolicy, ModelPolicy, ServicePolicy, Snapshot
from farebox.domain.billing.money import Nano, format_amount
from farebox.domain.billing.pricing import charge
from farebox.domain.facts import UNKNOWN


def key_known(call: Call, view: Snapshot) -> KeyPolicy | Deny:
    """The token is one of ours (B14)."""
    return view.key(call.key_hash) or Deny(
        401, "invalid_api_key", "the API key is not known: send it as Authorization: Bearer fbx_..."
    )


def key_enabled(key: KeyPolicy) -> Deny | None:
    """The key is not disabled (B14)."""
    if key.disabled:
        return Deny(401, "api_key_disabled", f"the API key {key.key.name} is disabled")
    return None


def key_in_time(key: KeyPolicy, now: datetime) -> Deny | None:
    """The key is not past its date (B14)."""
    expires = key.expires_at
    if expires is not None and now >= expires:
        return Deny(401, "api_key_expired", f"the API key {key.key.name} expired on {expires:%Y-%m-%d}")
    return None


def key_from_address(key: KeyPolicy, call: Call) -> Deny | None:
    """The key may be used from where the call comes (B14)."""
    networks = key.networks
    if networks == () or (networks is not None and within(call.address, networks)):
        return None
    where = call.address or "an unknown address"
    return Deny(403, "address_not_allowed", f"the API key {key.key.name} may not be used from {where}")


def key_bound(key: KeyPolicy, call: Call) -> Deny | None:
    """The key is for this service (B14). Said before it is said whether the service exists."""
    if key.services is None or call.model in key.services:
        return None
    return Deny(403, "service_not_allowed", f"the API key {key.key.name} is not for the model {call.model!r}")


def service_known(key: KeyPolicy, call: Call, view: Snapshot) -> ServicePolicy | Deny:
    """There is a service of that name in the key's namespace (B13)."""
    return view.service(key.key.namespace, call.model) or Deny(
        404, "model_not_found", f"there is no model {call.model!r}: GET /v1/models lists what there is"
    )


def service_from_address(service: ServicePolicy, call: Call) -> Deny | None:
    """The service takes calls from there (B14)."""
    networks = service.networks
    if networks == () or (networks is not None and within(call.address, networks)):
        return None
    where = call.address or "an unknown address"
    return Deny(403, "address_not_allowed", f"the model {call.model!r} takes no calls from {where}")


def service_enabled(service: ServicePolicy) -> Deny | None:
    """Its owner wants it to be called (B13).

    What its owner wrote is believed before the operator has acted on it, so that switching off acts at once.
    """
    if service.postpaid or service.trial or service.reserves:
        return None
    return _inactive(StopReason.POSTPAID_DISABLED)


def model_served(service: ServicePolicy, view: Snapshot) -> ModelPolicy | Deny:
    """Its model is there, and not retired (B13)."""
    model = view.model(service.model)
    if model is None:
        return _inactive(StopReason.MODEL_NOT_FOUND)
    return _inactive(StopReason.MODEL_RETIRED) if model.retired else model


def service_active(service: ServicePolicy) -> Deny | None:
    """It serves, by the operator's word (B13, B18)."""
    return _inactive(service.inactive) if service.inactive else None


def output_within_ceiling(model: ModelPolicy, call: Call) -> Deny | None:
    """The caller asks for no longer answer than the model gives."""
    ceiling, asked = model.max_output_tokens, call.asked_output
    if not ceiling or asked is None or asked <= ceiling:
        return None
    return Deny(
        400,
        "max_tokens_above_ceiling",
        f"the call asks for {asked} output tokens: {ceiling} is the most here",
    )


def money_known(case: AdmissionRequest) -> Deny | None:
    """What is spent is spent on a balance that was heard of recently enough."""
    if case.funds.fresh and case.funds.available is not UNKNOWN:
        return None
    return Deny(503, "balance_unknown", "the balance is not known now: try again in a moment")


def not_overdue(case: AdmissionRequest) -> Deny | None:
    """The account has something left to spend (B3, B17)."""
    return None if case.solvent else _inactive(StopReason.OVERDUE)


def cost_bounded(case: AdmissionRequest) -> Deny | None:
    """What a call can cost at most can be told, where it has to be held (B17, Hard)."""
    if not case.funds.hard or case.most is not None:
        return None
    return Deny(
        400,
        "cost_unbounded",
        "the account pays only for calls whose cost is bounded: set max_tokens and send text alone, "
        "or ask the cluster's admin to set contextTokens and maxOutputTokens of the model",
    )


def hold_covered(case: AdmissionRequest) -> Deny | None:
    """The account has the most that the call can cost (B17, Hard)."""
    if case.can_hold:
        return None
    most, available = case.most, case.funds.available
    assert most is not None, "money_known and cost_bounded come before"
    assert available is not UNKNOWN, "money_known and cost_bounded come before"
    return Deny(
        402,
        "insufficient_balance",
        f"the call may cost {format_amount(most)}, and {format_amount(available)} is available: "
        "lower max_tokens, or top up the account",
    )


def free_tokens_known(case: AdmissionRequest) -> Deny | None:
    """What a trial uses is used on figures that were heard of recently enough."""
    if case.funds.fresh:
        return None
    return Deny(503, "quota_unknown", "the free quota is not known now: try again in a moment")


def free_tokens_in_time(case: AdmissionRequest) -> Deny | None:
    """The free quota of a trial is not past its date (B6)."""
    free = case.free
    if free is not UNKNOWN and case.now >= free.expires_at:
        return _inactive(StopReason.FREE_QUOTA_EXPIRED)
    return None


def free_tokens_left(case: AdmissionRequest) -> Deny | None:
    """Some of the free quota of a trial is left: a call that crosses the line finishes (B6)."""
    free = case.free
    if free is not UNKNOWN and free.left <= 0:
        return _inactive(StopReason.FREE_QUOTA_EXHAUSTED)
    return None


def reservation_covers(case: AdmissionRequest) -> Deny | None:
    """Where a reservation alone pays, it has tokens of both sorts that the call needs (B9).

    How many are left of its minute is a demand: see `farebox.domain.admission.demands`.
    """
    if case.excess_is_paid:
        return None
    reservation = case.service.reservation
    assert reservation is not None, "it is in force"
    for sort, tokens, needed in (
        ("input", reservation.input_tpm, True),
        ("output", reservation.output_tpm, case.call.asked_output != 0),
    ):
        if needed and not tokens:
            return Deny(
                402,
                "reservation_exceeded",
                f"no {sort} tokens are reserved, and nothing else pays for them now",
            )
    return None


def admit(call: Call, view: Snapshot, now: datetime) -> Allow | Deny:
    """Whether a call may be made, and on which conditions (B13-B18): the first rule that refuses speaks."""
    key = identify(call, view, now)
    return key if isinstance(key, Deny) else admit_known(call, key, view, now)


def identify(call: Call, view: Snapshot, now: datetime) -> KeyPolicy | Deny:
    """Who calls: what is asked of the key alone (B14), before a body is read, and where none is."""
    key = key_known(call, view)
    if isinstance(key, Deny):
        return key
    return key_enabled(key) or key_in_time(key, now) or key_from_address(key, call) or key


def look_up(call: Call, key: KeyPolicy, view: Snapshot) -> ServicePolicy | Deny:
    """The service that is named, if the key may learn of it: what it may call, active or not."""
    service = key_bound(key, call) or service_known(key, call, view)
    if isinstance(service, Deny):
        return service
    return service_from_address(service, call) or service


def admit_known(call: Call, key: KeyPolicy, view: Snapshot, now: datetime) -> Allow | Deny:
    """The rest of `admit`, for a call whose key was identified."""
    service = look_up(call, key, view)
    if isinstance(service, Deny):
        return service
    model = service_enabled(service) or model_served(service, view)
    if isinstance(model, Deny):
        return model
    refusal = service_active(service) or output_within_ceiling(model, call)
    if refusal is not None:
        return refusal
    case = AdmissionRequest.of(call, key, service, model, view, now)
    return _unpaid(case) or _grant(case)


def _unpaid(case: AdmissionRequest) -> Deny | None:
    """What is asked of whatever pays for the call in the end."""
    if case.needs_money:
        return money_known(case) or not_overdue(case) or cost_bounded(case) or hold_covered(case)
    if case.on_trial:
        return free_tokens_known(case) or free_tokens_in_time(case) or free_tokens_left(case)
    return reservation_covers(case) if case.reserved else None


def limit_refusal(limit_statuses: Sequence[LimitStatus]) -> Deny | None:
    """The refusal of a call whose demands do not all fit (B15); None if they do."""
    exceeded = first_exceeded(limit_statuses)
    if exceeded is None:
        return None
    message = f"rate limit exceeded on dimension: {exceeded.request.dimension}"
    return Deny(429, "rate_limit_exceeded", message, tuple(limit_statuses), exceeded)


def _inactive(reason: str) -> Deny:
    return Deny(402, "endpoint_inactive", f"endpoint is inactive: {_upper_snake(reason)}")


@cache
def _upper_snake(word: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).upper()


def _grant(case: AdmissionRequest) -> Allow:
    call, model = case.call, case.model
    inputs = expected_input(call, model)
    outputs = expected_output(call, model)
    excess_is_paid = case.reserved and case.excess_is_paid
    pays_money = case.service.postpaid and (not case.reserved or excess_is_paid)
    hold = case.most if pays_money and case.funds.hard else None
    free = case.free
    free_covers = free is not UNKNOWN and free.usable(case.now) >= inputs + outputs
    covered = case.reserved or free_covers
    committed = charge(model.tiers, inputs, 0, 0) if pays_money and not covered else Nano(0)
    reservation = case.service.reservation if case.reserved else None
    return Allow(
        key=case.key,
        service=case.service,
        model=model,
        limit_requests=limit_requests(
            call, case.key, case.service, model, reservation, inputs, outputs, enforced=not excess_is_paid
        ),
        hold=hold,
        committed=committed,
        covered=covered,
        free_tokens=inputs if not case.reserved and (free_covers or case.on_trial) else 0,
        input_estimate=inputs,
        output_bound=case.output_bound,
    )
