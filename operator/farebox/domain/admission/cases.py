"""A call with all that is known about it, and what is said of it in the end. Pure values: no rule is here."""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from msgspec import Struct

from farebox.domain.admission.estimates import bound_input, bound_output, most_expensive
from farebox.domain.admission.rate_limits import LimitRequest, LimitStatus
from farebox.domain.admission.types import (
    AvailableFunds,
    Call,
    FreeTokens,
    KeyPolicy,
    ModelPolicy,
    ServicePolicy,
    Snapshot,
)
from farebox.domain.billing.money import Nano
from farebox.domain.facts import UNKNOWN, Unknown


@dataclass(frozen=True, slots=True)
class Deny:
    """Why a call is refused.

    Args:
        status: of HTTP.
        code: a word for machines.
        message: a sentence for people.
        limit_statuses: of all limits that the call would have counted on, where one refused it.
        exceeded: that one.
    """

    status: int
    code: str
    message: str
    limit_statuses: tuple[LimitStatus, ...] = ()
    exceeded: LimitStatus | None = None


class Allow(Struct, frozen=True):
    """A call that may be made as soon as its demands are met and its commitment is made.

    Args:
        demands: on limits, taken together or not at all.
        hold: money that the account must have beforehand, all of it (Hard); None: nothing is held.
        committed: money that is spent for sure, and counts as spent until the call's usage is known.
        covered: free tokens or a reservation pay for the call, as it seems.
        free_tokens: of the account's free quota, that count as used until the call's usage is known.
        input_estimate: tokens.
        output_bound: tokens of all answers together; None: nothing bounds them.
    """

    key: KeyPolicy
    service: ServicePolicy
    model: ModelPolicy
    limit_requests: tuple[LimitRequest, ...]
    hold: Nano | None
    committed: Nano
    covered: bool
    free_tokens: int
    input_estimate: int
    output_bound: int | None


class AdmissionRequest(Struct, frozen=True, dict=True):
    """A call with its key, service and model, and what there is to pay it with.

    `reserved` says that a reservation is in force: it is paid, and outlives an empty account (B9).
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
    def of(
        cls,
        call: Call,
        key: KeyPolicy,
        service: ServicePolicy,
        model: ModelPolicy,
        view: Snapshot,
        now: datetime,
    ) -> "AdmissionRequest":
        """With what is known now of the money."""
        reservation = service.reservation
        return cls(
            call,
            now,
            key,
            service,
            model,
            view.funds(service.account),
            view.free_tokens(service.account, service.model),
            reservation is not None and reservation.in_force(now),
        )

    @property
    def needs_money(self) -> bool:
        """Whether nothing but money, in the end, pays for the call."""
        return self.service.postpaid and not self.reserved

    @property
    def on_trial(self) -> bool:
        """Whether nothing but the free quota pays for the call."""
        service = self.service
        return service.trial and not service.postpaid and not service.reserves

    @property
    def solvent(self) -> bool:
        """Whether it is known that the account has something left to spend."""
        funds = self.funds
        return funds.fresh and funds.available is not UNKNOWN and funds.available > 0

    @property
    def can_hold(self) -> bool:
        """Whether the account has what has to be held of it before the call: nothing, if it is Soft."""
        funds = self.funds
        if not funds.hard:
            return True
        most = self.most
        return most is not None and funds.available is not UNKNOWN and most <= funds.available

    @property
    def excess_is_paid(self) -> bool:
        """Whether something pays for what a reservation in force does not cover (B9)."""
        if self.service.postpaid:
            return self.solvent and self.can_hold
        return self.funds.fresh and self.free is not UNKNOWN and self.free.usable(self.now) > 0

    @property
    def output_bound(self) -> int | None:
        """What all answers of the call together cannot exceed."""
        call, model = self.call, self.model
        return bound_output(call.asked_output, call.choices, model.max_output_tokens, model.context_tokens)

    @cached_property
    def most(self) -> Nano | None:
        """The most that the call can cost; None where nothing bounds it."""
        call, context = self.call, self.model.context_tokens * self.call.inputs
        inputs = bound_input(call.body_bytes, text_only=call.text_only(), context_tokens=context)
        outputs = self.output_bound
        if inputs is None or outputs is None:
            return None
        return most_expensive(self.model.tiers, inputs, outputs)
