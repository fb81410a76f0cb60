"""The rules of admission: one small check for each, all in this file. Pure (B13-B18).

`admit` evaluates a call against a snapshot. It returns the conditions under which the call may proceed, or
raises Denied. Limits are counted elsewhere; `check_limits` then raises Denied for a limit that is exceeded.
Nothing here does I/O, reads a clock, or knows HTTP beyond a status.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache, cached_property

from msgspec import Struct

from farebox.api import StopReason
from farebox.domain.admission.addresses import within
from farebox.domain.admission.estimates import bound_input, bound_output, most_expensive
from farebox.domain.admission.rate_limits import (
    expected_input,
    expected_output,
    first_exceeded,
    limit_requests,
)
from farebox.domain.admission.types import (
    Allow,
    AvailableFunds,
    Call,
    Denied,
    FreeTokens,
    KeyPolicy,
    LimitStatus,
    ModelPolicy,
    ServicePolicy,
    Snapshot,
)
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import Nano, format_amount
from farebox.domain.billing.pricing import charge
from farebox.domain.facts import UNKNOWN, Unknown


class AdmissionRequest(Struct, frozen=True, dict=True):
    """A call with its key, service and model, and the funds that can pay for it.

    `reserved` says that a reservation is in force. It is prepaid, so it outlives an empty account (B9).
    """

    call: Call
    now: datetime
    key: KeyPolicy
    service: ServicePolicy
    model: ModelPolicy
    funds: AvailableFunds
    free: FreeTokens | Unknown
    reserved: bool

    @classmethod
    def of_served(
        cls, call: Call, key: KeyPolicy, service: ServicePolicy, snapshot: Snapshot, now: datetime
    ) -> "AdmissionRequest":
        """The request of a call of a service that serves. Raises Denied if the service does not."""
        service_enabled(service)
        model = model_served(service, snapshot)
        service_active(service)
        reservation = service.reservation
        return cls(
            call,
            now,
            key,
            service,
            model,
            snapshot.funds(service.account),
            snapshot.free_tokens(service.account, service.model),
            reservation is not None and reservation.in_force(now),
        )

    @property
    def needs_money(self) -> bool:
        """Whether money must be able to pay for the call."""
        return self.service.postpaid and not self.reserved

    @property
    def on_trial(self) -> bool:
        """Whether only the free quota pays for the call."""
        service = self.service
        return service.trial and not service.postpaid and not service.reserves

    @property
    def solvent(self) -> bool:
        """Whether the account is known to have money left."""
        funds = self.funds
        return funds.fresh and funds.available is not UNKNOWN and funds.available > 0

    @property
    def can_hold(self) -> bool:
        """Whether the account has the amount to hold before the call. Soft accounts hold nothing."""
        funds = self.funds
        if not funds.hard:
            return True
        most = self.most
        return most is not None and funds.available is not UNKNOWN and most <= funds.available

    @property
    def excess_is_paid(self) -> bool:
        """Whether other funds pay for use beyond the reservation in force (B9)."""
        if self.service.postpaid:
            return self.solvent and self.can_hold
        return self.funds.fresh and self.free is not UNKNOWN and self.free.usable(self.now) > 0

    @property
    def output_bound(self) -> int | None:
        """The maximum of tokens of all answers together; None: no bound."""
        return self._bound_output(self.call.asked_output)

    @property
    def output_ceiling(self) -> int | None:
        """The same whatever the caller asks for, unless there is no answer."""
        return self._bound_output(None) if self.call.asked_output != 0 else self.output_bound

    def _bound_output(self, asked: int | None) -> int | None:
        model = self.model
        return bound_output(asked, self.call.choices, model.max_output_tokens, model.context_tokens)

    @property
    def context(self) -> int:
        """The context of the model in tokens, for all inputs of the call together; 0: unknown."""
        return self.model.context_tokens * self.call.inputs

    @cached_property
    def input_bound(self) -> int | None:
        """The maximum of input tokens by the length of the request; None: no bound."""
        call = self.call
        return bound_input(call.body_bytes, text_only=call.text_only, context_tokens=self.context)

    @cached_property
    def most(self) -> Nano | None:
        """The maximum cost of the call in nano-units; None: no bound."""
        inputs, outputs = self.input_bound, self.output_bound
        if inputs is None or outputs is None:
            return None
        return most_expensive(self.model.tiers, inputs, outputs)


def key_known(call: Call, snapshot: Snapshot) -> KeyPolicy:
    """The token belongs to an APIKey (B14)."""
    key = snapshot.key(call.key_hash)
    if key is None:
        raise Denied(
            401, "invalid_api_key", "Unknown API key. Send a valid key as Authorization: Bearer fbx_..."
        )
    return key


def key_enabled(key: KeyPolicy) -> None:
    """The key is not disabled (B14)."""
    if key.disabled:
        raise Denied(401, "api_key_disabled", f"API key {key.key.name} is disabled")


def key_in_time(key: KeyPolicy, now: datetime) -> None:
    """The key has not expired (B14)."""
    expires = key.expires_at
    if expires is not None and now >= expires:
        raise Denied(401, "api_key_expired", f"API key {key.key.name} expired on {expires:%Y-%m-%d}")


def key_from_address(key: KeyPolicy, call: Call) -> None:
    """The key may be used from the client's address (B14)."""
    networks = key.networks
    if networks != () and (networks is None or not within(call.address, networks)):
        where = call.address or "an unknown address"
        raise Denied(403, "address_not_allowed", f"API key {key.key.name} may not be used from {where}")


def key_bound(key: KeyPolicy, call: Call) -> None:
    """The key may call the service (B14). Checked first, so the key does not learn which services exist."""
    if key.services is not None and call.model not in key.services:
        raise Denied(403, "service_not_allowed", f"API key {key.key.name} may not call model {call.model!r}")


def service_known(key: KeyPolicy, call: Call, snapshot: Snapshot) -> ServicePolicy:
    """The key's namespace has a service of that name (B13)."""
    service = snapshot.service(key.key.namespace, call.model)
    if service is None:
        raise Denied(
            404,
            "model_not_found",
            f"Model {call.model!r} does not exist. GET /v1/models lists the available models",
        )
    return service


def service_from_address(service: ServicePolicy, call: Call) -> None:
    """The service accepts calls from the client's address (B14)."""
    networks = service.networks
    if networks != () and (networks is None or not within(call.address, networks)):
        where = call.address or "an unknown address"
        raise Denied(403, "address_not_allowed", f"Model {call.model!r} may not be called from {where}")


def service_enabled(service: ServicePolicy) -> None:
    """The spec lets something pay for calls (B13).

    The spec is checked before the operator has acted on it, so switching a service off acts immediately.
    """
    if not (service.postpaid or service.trial or service.reserves):
        raise _inactive(StopReason.POSTPAID_DISABLED)


def model_served(service: ServicePolicy, snapshot: Snapshot) -> ModelPolicy:
    """The model exists and is not retired (B13)."""
    model = snapshot.model(service.model)
    if model is None:
        raise _inactive(StopReason.MODEL_NOT_FOUND)
    if model.retired:
        raise _inactive(StopReason.MODEL_RETIRED)
    return model


def service_active(service: ServicePolicy) -> None:
    """The operator reports that the service serves (B13, B18)."""
    if service.inactive:
        raise _inactive(service.inactive)


def output_within_ceiling(model: ModelPolicy, call: Call) -> None:
    """The caller asks for no more output than the model allows."""
    ceiling, asked = model.max_output_tokens, call.asked_output
    if ceiling and asked is not None and asked > ceiling:
        raise Denied(
            400,
            "max_tokens_above_ceiling",
            f"The call asks for {asked} output tokens, and the model allows at most {ceiling}",
        )


def money_known(request: AdmissionRequest) -> None:
    """The balance is known and recent enough to spend on."""
    if not request.funds.fresh or request.funds.available is UNKNOWN:
        raise balance_unknown()


def not_overdue(request: AdmissionRequest) -> None:
    """The account has money left (B3, B17)."""
    if not request.solvent:
        raise _inactive(StopReason.OVERDUE)


def cost_bounded(request: AdmissionRequest) -> None:
    """The maximum cost is known where it must be held (B17, Hard)."""
    if request.funds.hard and request.most is None:
        raise Denied(
            400,
            "cost_unbounded",
            "The account pays only for calls of bounded cost. Set max_tokens and send only text, or ask the "
            "cluster administrator to set contextTokens and maxOutputTokens of the model",
        )


def hold_covered(request: AdmissionRequest) -> None:
    """The account has the maximum cost of the call (B17, Hard)."""
    if request.can_hold:
        return
    most, available = request.most, request.funds.available
    assert most is not None, "cost_bounded runs before"
    assert available is not UNKNOWN, "money_known runs before"
    raise Denied(
        402,
        "insufficient_balance",
        f"The call can cost up to {format_amount(most)}, and {format_amount(available)} is available. "
        "Lower max_tokens or top up the account",
    )


def free_tokens_known(request: AdmissionRequest) -> None:
    """The figures of the free quota are recent enough for a trial to use it."""
    if not request.funds.fresh:
        raise Denied(503, "quota_unknown", "The free quota is temporarily unknown. Retry later")


def free_tokens_in_time(request: AdmissionRequest) -> None:
    """The free quota of a trial has not expired (B6)."""
    free = request.free
    if free is not UNKNOWN and request.now >= free.expires_at:
        raise _inactive(StopReason.FREE_QUOTA_EXPIRED)


def free_tokens_left(request: AdmissionRequest) -> None:
    """The free quota of a trial is not used up. The call that crosses the line finishes (B6)."""
    free = request.free
    if free is not UNKNOWN and free.left <= 0:
        raise _inactive(StopReason.FREE_QUOTA_EXHAUSTED)


def reservation_covers(request: AdmissionRequest) -> None:
    """Where only a reservation pays, it has input and output tokens as the call needs them (B9).

    The tokens left in its minute are a limit request: see `farebox.domain.admission.rate_limits`.
    """
    if request.excess_is_paid:
        return
    reservation = request.service.reservation
    assert reservation is not None, "it is in force"
    for part, tokens, needed in (
        ("input", reservation.input_tpm, True),
        ("output", reservation.output_tpm, request.call.asked_output != 0),
    ):
        if needed and not tokens:
            raise Denied(
                402,
                "reservation_exceeded",
                f"The reservation has no {part} tokens, and no other funds can pay for them",
            )


def admit(call: Call, snapshot: Snapshot, now: datetime) -> Allow:
    """The conditions under which a call may proceed (B13-B18).

    Raises:
        Denied: by the first rule that refuses the call.
    """
    return admit_known(call, identify(call, snapshot, now), snapshot, now)


def identify(call: Call, snapshot: Snapshot, now: datetime) -> KeyPolicy:
    """The caller's key, by the rules of the key alone (B14). They need no body. Raises Denied."""
    key = key_known(call, snapshot)
    key_enabled(key)
    key_in_time(key, now)
    key_from_address(key, call)
    return key


def look_up(call: Call, key: KeyPolicy, snapshot: Snapshot) -> ServicePolicy:
    """The service of the call, active or not. Raises Denied if the key may not call it."""
    key_bound(key, call)
    service = service_known(key, call, snapshot)
    service_from_address(service, call)
    return service


def admit_known(call: Call, key: KeyPolicy, snapshot: Snapshot, now: datetime) -> Allow:
    """The rest of `admit`, for a call whose key is identified. Raises Denied."""
    request = AdmissionRequest.of_served(call, key, look_up(call, key, snapshot), snapshot, now)
    output_within_ceiling(request.model, call)
    _check_payment(request)
    return _allow(request)


def _check_payment(request: AdmissionRequest) -> None:
    """The rules of whatever pays for the call. Raises Denied."""
    if request.needs_money:
        money_known(request)
        not_overdue(request)
        cost_bounded(request)
        hold_covered(request)
    elif request.on_trial:
        free_tokens_known(request)
        free_tokens_in_time(request)
        free_tokens_left(request)
    elif request.reserved:
        reservation_covers(request)


def check_limits(limit_statuses: Sequence[LimitStatus]) -> None:
    """Every limit of the call has room (B15). Raises Denied for the first that is exceeded."""
    exceeded = first_exceeded(limit_statuses)
    if exceeded is not None:
        message = f"rate limit exceeded on dimension: {exceeded.request.dimension}"
        raise Denied(429, "rate_limit_exceeded", message, tuple(limit_statuses), exceeded)


def balance_unknown() -> Denied:
    """The denial while the ledger's figures are missing or too old."""
    return Denied(503, "balance_unknown", "The account balance is temporarily unknown. Retry later")


def _inactive(reason: str) -> Denied:
    return Denied(402, "endpoint_inactive", f"endpoint is inactive: {_upper_snake(reason)}")


@cache
def _upper_snake(word: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word).upper()


def _allow(request: AdmissionRequest) -> Allow:
    call, service, model, reserved = request.call, request.service, request.model, request.reserved
    inputs = expected_input(call, model)
    outputs = expected_output(call, model)
    excess_is_paid = reserved and request.excess_is_paid
    pays_money = service.postpaid and (not reserved or excess_is_paid)
    free = request.free
    free_covers = free is not UNKNOWN and free.usable(request.now) >= inputs + outputs
    covered = reserved or free_covers
    reservation = service.reservation if reserved else None
    hold = request.most if pays_money and request.funds.hard else None
    return Allow(
        key=request.key,
        service=service,
        model=model,
        limit_requests=limit_requests(
            call, request.key, service, model, reservation, inputs, outputs, enforced=not excess_is_paid
        ),
        hold=hold,
        committed=charge(model.tiers, CallTokens(input=inputs)) if pays_money and not covered else Nano(0),
        covered=covered,
        free_tokens=inputs if not reserved and (free_covers or request.on_trial) else 0,
        input_estimate=inputs,
        input_bound=(request.context or None) if hold is None else request.input_bound,
        output_bound=request.output_bound,
        output_ceiling=request.output_ceiling if hold is None else request.output_bound,
    )
