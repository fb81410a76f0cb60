"""What a call wants of the limits that count: requests, tokens, a key's quota, a reservation. Pure.

Tokens are demanded by an estimate before the call and corrected after it. What the caller asks for has to
fit; an answer whose length the caller leaves open is assumed to have some, and takes what room there is.
"""

from farebox.domain.admission.estimates import ASSUMED_OUTPUT_TOKENS, estimate_input
from farebox.domain.admission.rate_limits import SLIDING, LimitRequest, Window
from farebox.domain.admission.types import Call, KeyPolicy, ModelPolicy, ReservedThroughput, ServicePolicy
from farebox.domain.billing.pricing import MAX_TOKENS
from farebox.domain.keys import ObjectKey


def effective_limit(limit: int, ceiling: int) -> int:
    """The limit that applies to a service: its own or its model's, whichever is less; 0: none (B8)."""
    return min(limit or ceiling, ceiling or limit)


def expected_input(call: Call, model: ModelPolicy) -> int:
    """Tokens that all inputs of a call are expected to have."""
    return estimate_input(call.body_bytes, model.context_tokens * call.inputs)


def expected_output(call: Call, model: ModelPolicy) -> int:
    """Tokens that all answers of a call are expected to have at most.

    No more than one call can be charged: who counts them has but 64 bits for the calls of a minute.
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
    """All demands of a call, in the order in which they refuse it (B15).

    Args:
        reservation: the one in force, or None.
        inputs, outputs: what the call is expected to have of each.
        binding: it alone pays: what is beyond it is refused (B9).

    Counters are named so that all of a call's are of one namespace, in braces: a cluster of Valkey servers
    keeps what is in braces together.
    """
    asked = outputs if call.asked_output is not None else 0
    assumed = outputs - asked
    name, wanted = f"{{{service.key.namespace}}}/{service.key.name}", []
    if rpm := effective_limit(service.rpm, model.rpm):
        wanted.append(LimitRequest("rpm", f"rpm:{name}", SLIDING, rpm, 1))
    if tpm := effective_limit(service.tpm, model.tpm):
        wanted.append(LimitRequest("tpm", f"tpm:{name}", SLIDING, tpm, inputs + asked, assumed))
    if key.quota is not None:
        quota, window = key.quota.tokens, key.quota.window
        counter = key_counter(key.key, window)
        wanted.append(LimitRequest(f"key_quota_{window}", counter, window, quota, inputs + asked, assumed))
    if reservation is not None:
        sorts = (
            ("input", reservation.input_tpm, inputs, 0),
            ("output", reservation.output_tpm, asked or min(1, assumed), max(0, assumed - 1)),
        )
        for sort, tokens, must, may in sorts:
            if tokens and must:
                dimension, counter = f"reservation_{sort}", f"reservation-{sort}:{name}"
                wanted.append(LimitRequest(dimension, counter, Window.MINUTE, tokens, must, may, enforced))
    return tuple(wanted)


def key_counter(key: ObjectKey, window: Window) -> str:
    """Where a key's tokens are counted."""
    return f"key-{window}:{{{key.namespace}}}/{key.name}"


def amount_used(counter: str, input_tokens: int, output_tokens: int) -> int | None:
    """What a call did use of a count that `demands` named; None where it is what was taken."""
    match counter.partition(":")[0]:
        case "rpm":
            return None
        case "reservation-input":
            return input_tokens
        case "reservation-output":
            return output_tokens
        case _:
            return input_tokens + output_tokens
