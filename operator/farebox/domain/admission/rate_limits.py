"""Rate limits: which limits a call counts on, how much of each is used, and when more will fit. Pure.

Requests and tokens per minute are counted in a sliding window of 61 slots of one second, so no period of 60
seconds exceeds the limit, wherever it begins. Quotas and reservations are counted in calendar periods of UTC.
Times are milliseconds since 1970 UTC; slots are seconds. Counts are stored elsewhere (`gateway/ratelimit`).

Before a call, tokens are counted by an estimate; after it, the count is corrected. The output that the caller
asks for must fit. An answer of unknown length is assumed to have some length, and uses the room there is.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from farebox.domain.admission.estimates import ASSUMED_OUTPUT_TOKENS, estimate_input
from farebox.domain.admission.types import (
    SLIDING,
    Call,
    KeyPolicy,
    LimitRequest,
    LimitStatus,
    ModelPolicy,
    ReservedThroughput,
    ServicePolicy,
    Window,
)
from farebox.domain.billing.pricing import MAX_TOKENS
from farebox.domain.keys import ObjectKey

SLIDING_SECONDS: Final = 60
_PERIOD_SECONDS: Final = {Window.MINUTE: 60, Window.DAY: 86_400}
"""Periods of a fixed length in UTC, which has no daylight saving time."""


class Consumption(Struct, frozen=True, array_like=True):
    """The amount that a call added to one count, and when (milliseconds). A list in JSON."""

    counter: str
    window: Window
    at: int
    amount: int


class Adjustment(Struct, frozen=True):
    """An amount to add to one bucket of a count: the slot of a window, or the start of a period."""

    counter: str
    window: Window
    bucket: int
    amount: int


def effective_limit(limit: int, ceiling: int) -> int:
    """The smaller limit of the service and its model, where 0 means no limit (B8)."""
    return min(limit or ceiling, ceiling or limit)


def expected_input(call: Call, model: ModelPolicy) -> int:
    """The estimated tokens of all inputs of a call."""
    context = model.context_tokens * call.inputs
    return estimate_input(call.body_bytes, context, call.media, model.media, call.text_tokens)


def expected_output(call: Call, model: ModelPolicy) -> int:
    """The estimated maximum of tokens of all answers of a call.

    At most MAX_TOKENS, the most that one call can be charged, because counts are 64-bit integers.
    """
    if call.asked_output is not None:
        return min(call.asked_output * call.choices, MAX_TOKENS)
    return min(ASSUMED_OUTPUT_TOKENS, model.max_output_tokens or ASSUMED_OUTPUT_TOKENS) * call.choices


def limit_requests(
    call: Call,
    key: KeyPolicy,
    service: ServicePolicy,
    model: ModelPolicy,
    reservation: ReservedThroughput | None,
    inputs: int,
    outputs: int,
    *,
    enforced: bool,
) -> tuple[LimitRequest, ...]:
    """All limit requests of a call, in the order in which they refuse it (B15).

    Args:
        reservation: the one in force, or None.
        inputs, outputs: estimated tokens.
        enforced: whether the reservation refuses excess because nothing else pays for it (B9).

    The namespace is in braces in every counter's name, so a Valkey cluster stores the counters of a call
    together (hash tags).
    """
    asked = outputs if call.asked_output is not None else 0
    assumed = outputs - asked
    name, requests = f"{{{service.key.namespace}}}/{service.key.name}", []
    if rpm := effective_limit(service.rpm, model.rpm):
        requests.append(LimitRequest("rpm", f"rpm:{name}", SLIDING, rpm, 1))
    if tpm := effective_limit(service.tpm, model.tpm):
        requests.append(LimitRequest("tpm", f"tpm:{name}", SLIDING, tpm, inputs + asked, assumed))
    if key.quota is not None:
        quota, window = key.quota.tokens, key.quota.window
        counter = key_counter(key.key, window)
        requests.append(LimitRequest(f"key_quota_{window}", counter, window, quota, inputs + asked, assumed))
    if reservation is not None:
        parts = (
            ("input", reservation.input_tpm, inputs, 0),
            ("output", reservation.output_tpm, asked or min(1, assumed), max(0, assumed - 1)),
        )
        for part, tokens, required, optional in parts:
            if tokens and required:
                dimension, counter = f"reservation_{part}", f"reservation-{part}:{name}"
                requests.append(
                    LimitRequest(dimension, counter, Window.MINUTE, tokens, required, optional, enforced)
                )
    return tuple(requests)


def key_counter(key: ObjectKey, window: Window) -> str:
    """The name of the count of a key's tokens."""
    return f"key-{window}:{{{key.namespace}}}/{key.name}"


def amount_used(counter: str, input_tokens: int, output_tokens: int) -> int | None:
    """The amount that a finished call used of a counter; None where the counted amount is right already."""
    match counter.partition(":")[0]:
        case "rpm":
            return None
        case "reservation-input":
            return input_tokens
        case "reservation-output":
            return output_tokens
        case _:
            return input_tokens + output_tokens


def bucket_start(window: Window, now: int) -> int:
    """The bucket in which an amount is counted at `now`: the second, or the first second of the period."""
    second = now // 1000
    if window is SLIDING:
        return second
    length = _PERIOD_SECONDS.get(window)
    if length is not None:
        return second - second % length
    if window is Window.LIFETIME:
        return 0
    moment = datetime.fromtimestamp(second, UTC).replace(day=1, hour=0, minute=0, second=0)
    return int(moment.timestamp())


def period_end(window: Window, now: int) -> int | None:
    """The end of the calendar period of `now`; None: never."""
    length = _PERIOD_SECONDS.get(window)
    if length is not None:
        return (now // 1000 // length + 1) * length * 1000
    if window is Window.LIFETIME:
        return None
    later = datetime.fromtimestamp(bucket_start(window, now), UTC) + timedelta(days=32)
    return int(later.replace(day=1).timestamp()) * 1000


def first_slot(now: int) -> int:
    """The oldest slot that still counts: that of the moment 60 seconds ago."""
    return now // 1000 - SLIDING_SECONDS


def sliding_used(slots: Mapping[int, int], now: int) -> int:
    """The sum of a window; older slots do not count."""
    first = first_slot(now)
    return sum(amount for slot, amount in slots.items() if slot >= first)


def sliding_status(request: LimitRequest, slots: Mapping[int, int], now: int) -> LimitStatus:
    """The status of a limit that is counted in a sliding window."""
    used = sliding_used(slots, now)
    live = sorted((slot, amount) for slot, amount in slots.items() if slot >= first_slot(now) and amount)
    excess = used + request.required - request.limit
    retry: int | None = 0
    if request.required > request.limit:
        retry = None
    elif excess > 0:
        retry = _until_freed(live, excess, now)
    return LimitStatus(request, used, retry, _expires_in(live[-1][0], now) if live else 0)


def period_status(request: LimitRequest, used: int, now: int) -> LimitStatus:
    """The status of a limit that is counted in a calendar period."""
    end = period_end(request.window, now)
    reset = None if end is None else end - now
    retry: int | None = 0
    if used + request.required > request.limit:
        retry = None if request.required > request.limit else reset
    return LimitStatus(request, used, retry, reset)


def counted_status(request: LimitRequest, total: int, now: int) -> LimitStatus:
    """The status of a limit right after a call was counted on it at `now`: `total` includes the call."""
    if request.window is SLIDING:
        reset: int | None = (SLIDING_SECONDS + 1) * 1000 - now % 1000
    else:
        end = period_end(request.window, now)
        reset = None if end is None else end - now
    return LimitStatus(request, total, 0, reset)


def amount_to_take(request: LimitRequest, used: int) -> int:
    """The amount to add to a count: the required part, and as much of the optional part as fits."""
    if not request.enforced:
        return request.required + request.optional
    room = request.limit - used - request.required
    assert room >= 0, "the caller checks that the required part fits"
    return request.required + min(request.optional, room)


def first_exceeded(limit_statuses: Sequence[LimitStatus]) -> LimitStatus | None:
    """The first limit that refuses a call, if one does."""
    for limit_status in limit_statuses:
        if limit_status.exceeded:
            return limit_status
    return None


def corrections(taken: Consumption, actual: int, now: int) -> list[Adjustment]:
    """The adjustments of a count when the actual use of a call is known.

    In a window, an excess is returned to the slot that it was counted in, and a shortfall counts now. In a
    period, the use of a call counts in the period in which the call ended.
    """
    assert actual >= 0
    before, after = bucket_start(taken.window, taken.at), bucket_start(taken.window, now)
    difference = actual - taken.amount
    if taken.window is SLIDING:
        moves = [(before if difference < 0 else after, difference)]
    elif before == after:
        moves = [(before, difference)]
    else:
        moves = [(before, -taken.amount), (after, actual)]
    return [Adjustment(taken.counter, taken.window, where, amount) for where, amount in moves if amount]


def refunds(taken: Sequence[Consumption], now: int) -> list[Adjustment]:
    """The adjustments that undo the counts of a call that is not made."""
    return [change for each in taken for change in corrections(each, 0, now)]


def _until_freed(live: Sequence[tuple[int, int]], excess: int, now: int) -> int:
    """Milliseconds until slots with `excess` in them have left the window."""
    for slot, amount in live:
        excess -= amount
        if excess <= 0:
            return _expires_in(slot, now)
    # Slots can be negative if counts were lost and corrected later. The whole window is safe.
    return (SLIDING_SECONDS + 1) * 1000


def _expires_in(slot: int, now: int) -> int:
    """Milliseconds until a slot stops counting."""
    return max(0, (slot + SLIDING_SECONDS + 1) * 1000 - now)
