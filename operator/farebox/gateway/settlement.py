"""Settlement: what a call held and counted becomes what it used. The other end of what `handler` reserves.

    admitted -> ended (its line in Envoy's log, or abandoned) -> acknowledged (the ledger has charged it)
    void: the call is denied after something was reserved for it

Everything that settlement needs travels with the call in its labels. So it also settles the counts of calls
that an earlier process admitted. The money that such a call held was released when that process ended.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from farebox.clock import milliseconds
from farebox.domain.admission.rate_limits import (
    Adjustment,
    Consumption,
    amount_used,
    corrections,
    refunds,
)
from farebox.domain.admission.types import DEFAULT_MEDIA_TOKENS, Allow
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.pricing import charge, usage_error
from farebox.errors import FareboxError
from farebox.gateway.metering.dialects import MAX_REPORTED_TOKENS
from farebox.gateway.metering.usage import BilledTokens, UsageLine
from farebox.gateway.ratelimit.base import Counters
from farebox.gateway.request.body import RequestBody
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.credit_leases import CreditLeases
from farebox.gateway.spend.tracker import SpendTracker
from farebox.meterapi.types import CreditLease

log = structlog.get_logger(__name__)
_encode: Final = msgspec.json.Encoder().encode
_CONSUMPTION: Final = msgspec.json.Decoder(tuple[Consumption, ...])
_BATCH: Final = 500
_BATCH_SECONDS: Final = 0.02
"""Adjustments are collected for this time before they are sent."""
_MAX_CALLERS: Final = 10_000
"""Pairs of service and key whose share of cached input is remembered."""
ABANDONED_SECONDS: Final = 10.0
"""A call that Envoy forwarded is in its log a few hundredths of a second after the call ends."""


class Settlement:
    """Settles calls. Make it in a running event loop; `run` sends the adjustments of counts."""

    def __init__(
        self,
        snapshot: GatewaySnapshot,
        spend: SpendTracker,
        leases: CreditLeases,
        counters: Counters,
        clock: Callable[[], datetime],
    ) -> None:
        self._snapshot = snapshot
        self._spend = spend
        self._leases = leases
        self._counters = counters
        self._clock = clock
        self._started_at = clock()
        self._admitted: dict[str, tuple[Consumption, ...]] = {}
        self._adjustments: list[Adjustment] = []
        self._pending = asyncio.Event()
        self._cached_shares: dict[tuple[str, str], int] = {}

    def labels_of(
        self, allow: Allow, request: RequestBody, consumption: Sequence[Consumption]
    ) -> dict[str, str]:
        """The labels that a call carries to its end, for the meter, estimates and settlement.

        A label that would be false or unknown is left out.
        """
        service, api_key = str(allow.service.key), allow.key.key.name
        labels = {
            "service": service,
            "model": allow.service.model,
            "api_key": api_key,
            "source": self._leases.source,
            "dialect": request.endpoint.dialect,
            "estimate_input": str(allow.input_estimate),
        }
        if allow.hold is not None or (allow.service.postpaid and not allow.covered):
            labels["paid_by"] = "money"
        if allow.input_bound is not None:
            labels["max_input"] = str(allow.input_bound)
        if allow.output_bound is not None:
            labels["max_output"] = str(allow.output_bound)
        if allow.output_ceiling != allow.output_bound:
            labels["output_ceiling"] = str(allow.output_ceiling or MAX_REPORTED_TOKENS)
        if request.inputs > 1:
            labels["inputs"] = str(request.inputs)
        if allow.model.media.image != DEFAULT_MEDIA_TOKENS.image:
            labels["image_tokens"] = str(allow.model.media.image)
        share = self._cached_shares.get((service, api_key))
        if share is not None:
            labels["cached_share"] = str(share)
        if consumption:
            labels["taken"] = _encode(consumption).decode()
        return labels

    def admitted(self, request_id: str, consumption: tuple[Consumption, ...]) -> None:
        """Remember what an admitted call was counted for."""
        if consumption:
            self._admitted[request_id] = consumption

    def void(self, request_id: str, consumption: Sequence[Consumption], now: int) -> None:
        """Return the money and the counts of a call that is denied. `now` is milliseconds."""
        self._release(request_id)
        self._adjust(refunds(consumption, now))

    def abandoned(self, request_id: str) -> None:
        """The client left during the decision, so the call was made only if the log has it soon."""
        asyncio.get_running_loop().call_later(ABANDONED_SECONDS, self._settle_if_unlogged, request_id)

    def _settle_if_unlogged(self, request_id: str) -> None:
        if self._spend.is_authorized(request_id):
            self.settle(request_id, self._clock(), {}, None)

    def on_usage(self, line: UsageLine, billed: BilledTokens | None) -> None:
        """Settle the call of a line of Envoy's log."""
        self.settle(line.request_id, line.time, line.labels, None if billed is None else billed.tokens)
        if billed is not None and not billed.estimated and (billed.cached_tokens or self._cached_shares):
            self._remember_cached_share(line.labels, billed)

    def _remember_cached_share(self, labels: Mapping[str, str], billed: BilledTokens) -> None:
        """Most servers report cached input at the end of an answer only, which some calls do not reach."""
        caller = (labels.get("service", ""), labels.get("api_key", ""))
        share = billed.cached_tokens * 1000 // max(billed.input_tokens, 1)
        if share:
            if len(self._cached_shares) >= _MAX_CALLERS and caller not in self._cached_shares:
                self._cached_shares.clear()
            self._cached_shares[caller] = share
        else:
            self._cached_shares.pop(caller, None)

    def settle(
        self, request_id: str, at: datetime, labels: Mapping[str, str], tokens: CallTokens | None
    ) -> None:
        """Replace estimates by the actual use of a call that has ended.

        Args:
            at: its end. Counts of a call that an earlier process admitted are corrected only if it ended
                after this process started, because that process may have corrected them already.
            labels: of its Route.
            tokens: None: the call costs nothing.
        """
        used = tokens or CallTokens()
        if tokens is None:
            self._release(request_id)
        else:
            self._leases.ended(request_id)
            self._spend.capture(request_id, self._cost(labels, used), used.input + used.output)
        consumption = self._admitted.pop(request_id, None)
        if consumption is None:
            consumption = consumption_of(labels) if at >= self._started_at else ()
        for each in consumption:
            actual = amount_used(each.counter, used.input, used.output)
            if actual is not None:
                self._adjust(corrections(each, actual, milliseconds(at)))

    def acknowledged(
        self, request_ids: Sequence[str], leases: Iterable[CreditLease] = (), sequence: int = 0
    ) -> None:
        """The ledger has charged these calls, or never will: release what they hold.

        Args:
            leases: the state of leases after the charges.
            sequence: the sequence of the feed that includes the charges; 0: unknown.
        """
        self._leases.release(request_ids, leases)
        self._spend.acknowledge(request_ids, sequence)

    async def run(self) -> None:
        """Send adjustments in batches. Never returns."""
        while True:
            await self._pending.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            await self.correct()
            self._forget_lost_calls()

    async def correct(self) -> None:
        """Send the adjustments collected so far."""
        self._pending.clear()
        adjustments, self._adjustments = self._adjustments, []
        for begin in range(0, len(adjustments), _BATCH):
            batch = adjustments[begin : begin + _BATCH]
            try:
                await self._counters.adjust(batch, milliseconds(self._clock()))
            except FareboxError as error:
                log.warning("counters.adjustment_failed", error=str(error), adjustments=len(batch))

    def _release(self, request_id: str) -> None:
        """Return the money and free tokens of a call that costs nothing."""
        self._spend.void(request_id)
        self._leases.release([request_id])

    def _adjust(self, adjustments: Sequence[Adjustment]) -> None:
        if adjustments:
            self._adjustments += adjustments
            self._pending.set()

    def _forget_lost_calls(self) -> None:
        """Forget calls whose end was never logged; their counts stay as estimated."""
        before = milliseconds(self._clock() - timedelta(seconds=self._spend.lost_after))
        for request_id, consumption in list(self._admitted.items()):
            if consumption[0].at >= before:
                return
            del self._admitted[request_id]

    def _cost(self, labels: Mapping[str, str], tokens: CallTokens) -> int:
        """The expected charge at the current prices; 0 if something other than money pays."""
        model = self._snapshot.model(labels.get("model", ""))
        if model is None or labels.get("paid_by") != "money" or usage_error(tokens):
            return 0
        try:
            return charge(model.tiers, tokens)
        except FareboxError:
            return MAX_NANO


def consumption_of(labels: Mapping[str, str]) -> tuple[Consumption, ...]:
    """What a call was counted for, from its labels; nothing if the label is unreadable."""
    try:
        return _CONSUMPTION.decode(labels.get("taken", "[]"))
    except msgspec.DecodeError:
        return ()
