"""What follows the end of a call: its commitment becomes what it cost, its demands what it used.

All that is needed travels with the call, in its labels. So calls that an earlier process admitted are settled
as well, as far as they can be: money that was held for them was forgotten with that process.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
import structlog

from farebox.clock import milliseconds
from farebox.domain.admission.cases import Allow
from farebox.domain.admission.demands import amount_used
from farebox.domain.admission.rate_limits import Adjustment, Consumption, corrections, refunds
from farebox.domain.billing.money import MAX_NANO
from farebox.domain.billing.pricing import charge, usage_fault
from farebox.errors import FareboxError
from farebox.gateway.metering.usage import BilledTokens, UsageLine
from farebox.gateway.ratelimit.memory import Counters
from farebox.gateway.request.body import RequestBody
from farebox.gateway.snapshot import GatewaySnapshot
from farebox.gateway.spend.credit_leases import CreditLeases
from farebox.gateway.spend.tracker import SpendTracker
from farebox.meterapi.types import CreditLease

log = structlog.get_logger(__name__)
_encode: Final = msgspec.json.Encoder().encode
_TAKEN: Final = msgspec.json.Decoder(tuple[Consumption, ...])
_BATCH: Final = 500
_REST_SECONDS: Final = 0.02
UNREAD_SECONDS: Final = 10.0
"""The log has a call a few hundredths of a second after its end."""


class Settlement:
    """Settles calls.

    Args:
        clock: the time.
    """

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
        self._changes: list[Adjustment] = []
        self._news = asyncio.Event()

    def admitted(self, request_id: str, taken: tuple[Consumption, ...]) -> None:
        """A call is on its way, and has taken this."""
        if taken:
            self._admitted[request_id] = taken

    def give_back(self, taken: Sequence[Consumption], now: int) -> None:
        """A call that had taken this does not go on its way."""
        self._correct(refunds(taken, now))

    def abandoned(self, request_id: str) -> None:
        """A call may not have gone on its way: what is not in the log in UNREAD_SECONDS did not."""
        asyncio.get_running_loop().call_later(UNREAD_SECONDS, self._not_made, request_id)

    def _not_made(self, request_id: str) -> None:
        if self._spend.is_authorized(request_id):
            self.ended(request_id, self._clock(), {}, None)

    def on_usage(self, line: UsageLine, paid: BilledTokens | None) -> None:
        """A line of the log: a call has ended."""
        tokens = None if paid is None else (paid.input_tokens, paid.cached_tokens, paid.output_tokens)
        self.ended(line.request_id, line.time, line.labels, tokens)

    def ended(
        self, request_id: str, at: datetime, labels: Mapping[str, str], tokens: tuple[int, int, int] | None
    ) -> None:
        """A call has ended.

        Args:
            at: its end.
            labels: of its Route.
            tokens: input (cached included), cached and output; None: it costs nothing.

        Of a call of an earlier process, counts are corrected if it ended after this process began: what ended
        before may have been corrected then.
        """
        inputs, cached, outputs = tokens or (0, 0, 0)
        if tokens is None:
            self._spend.void(request_id)
            self._leases.release([request_id])
        else:
            self._leases.ended(request_id)
            self._spend.capture(request_id, self._cost(labels, inputs, cached, outputs), inputs + outputs)
        taken = self._admitted.pop(request_id, None)
        if taken is None:
            taken = consumption_of(labels) if at >= self._started_at else ()
        for each in taken:
            actual = amount_used(each.counter, inputs, outputs)
            if actual is not None:
                self._correct(corrections(each, actual, milliseconds(at)))

    def acknowledged(
        self, request_ids: Sequence[str], leases: Iterable[CreditLease] = (), sequence: int = 0
    ) -> None:
        """The ledger has charged these calls, or never will: what was held for them is free again.

        Args:
            leases: as its answer told them.
            sequence: the feed has the charges when it was read so far; 0: nobody said.
        """
        self._leases.release(request_ids, leases)
        self._spend.acknowledge(request_ids, sequence)

    async def run(self) -> None:
        """Correct counts as calls end, those of many at once, for ever."""
        while True:
            await self._news.wait()
            await asyncio.sleep(_REST_SECONDS)
            await self.correct()
            self._forget()

    async def correct(self) -> None:
        """Correct counts by what has ended so far."""
        self._news.clear()
        changes, self._changes = self._changes, []
        for begin in range(0, len(changes), _BATCH):
            batch = changes[begin : begin + _BATCH]
            try:
                await self._counters.adjust(batch, milliseconds(self._clock()))
            except FareboxError as error:
                log.warning("counters.not_corrected", error=str(error), changes=len(batch))

    def _correct(self, changes: Sequence[Adjustment]) -> None:
        if changes:
            self._changes += changes
            self._news.set()

    def _forget(self) -> None:
        """Calls that never tell their end are lost; their counts stay as they were estimated."""
        before = milliseconds(self._clock() - timedelta(seconds=self._spend.lost_after))
        for request_id, taken in list(self._admitted.items()):
            if taken[0].at >= before:
                return
            del self._admitted[request_id]

    def _cost(self, labels: Mapping[str, str], inputs: int, cached: int, outputs: int) -> int:
        """What the ledger is going to charge, by the prices of now; nothing where something else pays."""
        model = self._snapshot.model(labels.get("model", ""))
        if model is None or labels.get("paid_by") != "money" or usage_fault(inputs, cached, outputs):
            return 0
        try:
            return charge(model.tiers, inputs, cached, outputs)
        except FareboxError:
            return MAX_NANO


def labels_of(
    grant: Allow, request: RequestBody, taken: Sequence[Consumption], *, continuous: bool
) -> dict[str, str]:
    """What a call carries to its end: for the meter, estimates and settlement. What is not so is left out."""
    labels = {
        "service": str(grant.service.key),
        "model": grant.service.model,
        "api_key": grant.key.key.name,
        "estimate_input": str(grant.input_estimate),
    }
    if request.stream:
        labels["stream"] = "true"
    if continuous:
        labels["continuous_usage"] = "true"
    if grant.hold is not None:
        labels["hold"] = str(grant.hold)
    if grant.hold is not None or (grant.service.postpaid and not grant.covered):
        labels["paid_by"] = "money"
    if grant.output_bound is not None:
        labels["max_output"] = str(grant.output_bound)
    if taken:
        labels["taken"] = _encode(taken).decode()
    return labels


def consumption_of(labels: Mapping[str, str]) -> tuple[Consumption, ...]:
    """What a call took, by its labels."""
    try:
        return _TAKEN.decode(labels.get("taken", "[]"))
    except msgspec.DecodeError:
        return ()
