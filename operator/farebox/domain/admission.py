"""Whether a call may be made: one small check for each rule, read as a list, all rules in this one place.

`admit` looks at a call and at what is known, and says either a refusal or a grant. A grant has conditions
that only counts can decide: demands on limits, which are taken together or not at all; `limit_refusal` says
what their refusal is. Nothing here does I/O, reads a clock, or knows of HTTP beyond a status (B13-B18).
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Final

from farebox.api import Enforcement, StopReason
from farebox.domain.addresses import within
from farebox.domain.caller import Call, KeyTerms, ServiceTerms, View
from farebox.domain.cases import Case, Grant, Refusal
from farebox.domain.demands import demands, expected_input, expected_output
from farebox.domain.facts import UNKNOWN
from farebox.domain.limits import Standing, first_exceeded
from farebox.domain.money import Nano, format_amount
from farebox.domain.pricing import charge

Check = Callable[[Case], Refusal | None]


def key_known(case: Case) -> Refusal | None:
    """The token is one of ours (B14)."""
    if case.key_ is None:
        return Refusal(
            401, "invalid_api_key", "the API key is not known: send it as Authorization: Bearer fbx_..."
        )
    return None


def key_enabled(case: Case) -> Refusal | None:
    """The key is not disabled (B14)."""
    if case.key.disabled:
        return Refusal(401, "api_key_disabled", f"the API key {case.key.key.name} is disabled")
    return None


def key_in_time(case: Case) -> Refusal | None:
    """The key is not past its date (B14)."""
    expires = case.key.expires_at
    if expires is not None and case.now >= expires:
        return Refusal(
            401, "api_key_expired", f"the API key {case.key.key.name} expired on {expires:%Y-%m-%d}"
        )
    return None


def key_from_address(case: Case) -> Refusal | None:
    """The key may be used from where the call comes (B14)."""
    networks = case.key.networks
    if networks == () or (networks is not None and within(case.call.address, networks)):
        return None
    where = case.call.address or "an unknown address"
    return Refusal(
        403, "address_not_allowed", f"the API key {case.key.key.name} may not be used from {where}"
    )


def key_bound(case: Case) -> Refusal | None:
    """The key is for this service (B14). Said before it is said whether the service exists."""
    if case.key.services is None or case.call.model in case.key.services:
        return None
    return Refusal(
        403,
        "service_not_allowed",
        f"the API key {case.key.key.name} is not for the model {case.call.model!r}",
    )


def service_known(case: Case) -> Refusal | None:
    """There is a service of that name in the key's namespace (B13)."""
    if case.service_ is not None:
        return None
    return Refusal(
        404, "model_not_found", f"there is no model {case.call.model!r}: GET /v1/models lists what there is"
    )


def service_from_address(case: Case) -> Refusal | None:
    """The service takes calls from there (B14)."""
    networks = case.service.networks
    if networks == () or (networks is not None and within(case.call.address, networks)):
        return None
    where = case.call.address or "an unknown address"
    return Refusal(403, "address_not_allowed", f"the model {case.call.model!r} takes no calls from {where}")


def service_active(case: Case) -> Refusal | None:
    """The service serves, by its owner's wish and the operator's word (B13, B18).

    What its owner wrote is believed before the operator has acted on it, so that switching off acts at once.
    """
    service = case.service
    if not (service.postpaid or service.trial or service.reserves):
        return _inactive(StopReason.POSTPAID_DISABLED)
    if case.model_ is None:
        return _inactive(StopReason.MODEL_NOT_FOUND)
    if case.model.retired:
        return _inactive(StopReason.MODEL_RETIRED)
    return _inactive(service.inactive) if service.inactive else None


def output_within_ceiling(case: Case) -> Refusal | None:
    """The caller asks for no longer answer than the model gives."""
    ceiling, asked = case.model.max_output_tokens, case.call.asked_output
    if not ceiling or asked is None or asked <= ceiling:
        return None
    return Refusal(
        400,
        "max_tokens_above_ceiling",
        f"the call asks for {asked} output tokens: {ceiling} is the most here",
    )


def money_known(case: Case) -> Refusal | None:
    """What is spent is spent on a balance that was heard of recently enough."""
    if not case.needs_money or (case.funds.fresh and case.funds.available is not UNKNOWN):
        return None
    return Refusal(503, "balance_unknown", "the balance is not known now: try again in a moment")


def not_overdue(case: Case) -> Refusal | None:
    """The account has something left to spend (B3, B17)."""
    if case.needs_money and not case.solvent:
        return _inactive(StopReason.OVERDUE)
    return None


def free_tokens_known(case: Case) -> Refusal | None:
    """What a trial uses is used on figures that were heard of recently enough."""
    if not case.on_trial or case.funds.fresh:
        return None
    return Refusal(503, "quota_unknown", "the free quota is not known now: try again in a moment")


def free_tokens_in_time(case: Case) -> Refusal | None:
    """The free quota of a trial is not past its date (B6)."""
    free = case.free
    if case.on_trial and free is not UNKNOWN and case.now >= free.expires_at:
        return _inactive(StopReason.FREE_QUOTA_EXPIRED)
    return None


def free_tokens_left(case: Case) -> Refusal | None:
    """Some of the free quota of a trial is left: a call that crosses the line finishes (B6)."""
    free = case.free
    if case.on_trial and free is not UNKNOWN and free.left <= 0:
        return _inactive(StopReason.FREE_QUOTA_EXHAUSTED)
    return None


def cost_bounded(case: Case) -> Refusal | None:
    """What a call can cost at most can be told, where it has to be held (B17, Hard)."""
    if not case.needs_money or case.funds.enforcement is not Enforcement.HARD or case.most is not None:
        return None
    return Refusal(
        400,
        "cost_unbounded",
        "the account pays only for calls whose cost is bounded: set max_tokens and send text alone, "
        "or ask the cluster's admin to set contextTokens and maxOutputTokens of the model",
    )


def hold_covered(case: Case) -> Refusal | None:
    """The account has the most that the call can cost (B17, Hard)."""
    if not case.needs_money or case.can_hold:
        return None
    most, available = case.most, case.funds.available
    assert most is not None, "money_known and cost_bounded come before"
    assert available is not UNKNOWN, "money_known and cost_bounded come before"
    return Refusal(
        402,
        "insufficient_balance",
        f"the call may cost {format_amount(most)}, and {format_amount(available)} is available: "
        "lower max_tokens, or top up the account",
    )


def reservation_covers(case: Case) -> Refusal | None:
    """Where a reservation alone pays, it has tokens of both sorts that the call needs (B9).

    How many are left of its minute is a demand: see `farebox.domain.demands`.
    """
    if not case.reserved or case.excess_is_paid:
        return None
    reservation = case.service.reservation
    assert reservation is not None, "it is in force"
    for sort, tokens, needed in (
        ("input", reservation.input_tpm, True),
        ("output", reservation.output_tpm, case.call.asked_output != 0),
    ):
        if needed and not tokens:
            return Refusal(
                402,
                "reservation_exceeded",
                f"no {sort} tokens are reserved, and nothing else pays for them now",
            )
    return None


KEY_CHECKS: Final[tuple[Check, ...]] = (
    key_known,
    key_enabled,
    key_in_time,
    key_from_address,
)
"""What is asked of the key alone."""
NAMING_CHECKS: Final[tuple[Check, ...]] = (
    key_bound,
    service_known,
    service_from_address,
)
"""What is asked of the key with the service that is named."""
SERVICE_CHECKS: Final[tuple[Check, ...]] = (
    *NAMING_CHECKS,
    service_active,
    output_within_ceiling,
    money_known,
    not_overdue,
    free_tokens_known,
    free_tokens_in_time,
    free_tokens_left,
    cost_bounded,
    hold_covered,
    reservation_covers,
)
"""What is asked of the key with the service, the model and the money."""
CHECKS: Final = (*KEY_CHECKS, *SERVICE_CHECKS)
"""Every rule that looks at no count, in the order in which it is asked: the first that refuses speaks."""


def admit(call: Call, view: View, now: datetime) -> Grant | Refusal:
    """Whether a call may be made, and on which conditions (B13-B18)."""
    key = identify(call, view, now)
    return key if isinstance(key, Refusal) else admit_known(call, key, view, now)


def identify(call: Call, view: View, now: datetime) -> KeyTerms | Refusal:
    """Who calls: the checks of the key alone (B14). Asked before a body is read, and where none is."""
    case = Case.of_caller(call, view, now)
    return _first_refusal(KEY_CHECKS, case) or case.key


def admit_known(call: Call, key: KeyTerms, view: View, now: datetime) -> Grant | Refusal:
    """The rest of `admit`, for a call whose key was identified."""
    case = Case.of(call, key, view, now)
    return _first_refusal(SERVICE_CHECKS, case) or _grant(case)


def look_up(call: Call, key: KeyTerms, view: View, now: datetime) -> ServiceTerms | Refusal:
    """The service that is named, if the key may learn of it: what it may call, active or not."""
    case = Case.of(call, key, view, now)
    return _first_refusal(NAMING_CHECKS, case) or case.service


def limit_refusal(standings: Sequence[Standing]) -> Refusal | None:
    """The refusal of a call whose demands do not all fit (B15); None if they do."""
    exceeded = first_exceeded(standings)
    if exceeded is None:
        return None
    message = f"rate limit exceeded on dimension: {exceeded.demand.dimension}"
    return Refusal(429, "rate_limit_exceeded", message, tuple(standings), exceeded)


def _first_refusal(checks: Sequence[Check], case: Case) -> Refusal | None:
    for check in checks:
        refusal = check(case)
        if refusal is not None:
            return refusal
    return None


def _inactive(reason: str) -> Refusal:
    return Refusal(402, "endpoint_inactive", f"endpoint is inactive: {_upper_snake(reason)}")


@cache
def _upper_snake(word: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).upper()


def _grant(case: Case) -> Grant:
    call, model = case.call, case.model
    inputs = expected_input(call, model)
    outputs = expected_output(call, model)
    excess_is_paid = case.reserved and case.excess_is_paid
    pays_money = case.service.postpaid and (not case.reserved or excess_is_paid)
    hold = case.most if pays_money and case.funds.enforcement is Enforcement.HARD else None
    free = case.free
    free_covers = free is not UNKNOWN and free.usable(case.now) >= inputs + outputs
    covered = case.reserved or free_covers
    committed = charge(model.tiers, inputs, 0, 0) if pays_money and not covered else Nano(0)
    reservation = case.service.reservation if case.reserved else None
    return Grant(
        key=case.key,
        service=case.service,
        model=model,
        demands=demands(call, case.key, case.service, model, reservation, binding=not excess_is_paid),
        hold=hold,
        committed=committed,
        covered=covered,
        free_tokens=inputs if not case.reserved and (free_covers or case.on_trial) else 0,
        input_estimate=inputs,
        output_bound=case.output_bound,
    )
