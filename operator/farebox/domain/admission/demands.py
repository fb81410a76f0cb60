"""What a call wants of the limits that count: requests, tokens, a key's quota, a reservation. Pure.

Tokens are demanded by an estimate before the call and corrected after it. What the caller asks for has to
fit; an answer whose length the caller leaves open is assumed to have some, and takes what room there is.
"""

from farebox.domain.admission.estimates import ASSUMED_OUTPUT_TOKENS, estimate_input
from farebox.domain.admission.rate_limits import WINDOW, Demand, Span
from farebox.domain.admission.types import Call, KeyTerms, ModelTerms, ReservationTerms, ServiceTerms
from farebox.domain.billing.pricing import MAX_TOKENS
from farebox.domain.keys import ObjectKey


def tightest(limit: int, ceiling: int) -> int:
    """The limit that applies to a service: its own or its model's, whichever is less; 0: none (B8)."""
    return min(limit or ceiling, ceiling or limit)


def expected_input(call: Call, model: ModelTerms) -> int:
    """Tokens that all inputs of a call are expected to have."""
    return estimate_input(call.body_bytes, model.context_tokens * call.inputs)


def expected_output(call: Call, model: ModelTerms) -> int:
    """Tokens that all answers of a call are expected to have at most.

    No more than one call can be charged: who counts them has but 64 bits for the calls of a minute.
    """
    if call.asked_output is not None:
        return min(call.asked_output * call.choices, MAX_TOKENS)
    return min(ASSUMED_OUTPUT_TOKENS, model.max_output_tokens or ASSUMED_OUTPUT_TOKENS) * call.choices


def demands(
    call: Call,
    key: KeyTerms,
    service: ServiceTerms,
    model: ModelTerms,
    reservation: ReservationTerms | None,
    inputs: int,
    outputs: int,
    *,
    binding: bool,
) -> tuple[Demand, ...]:
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
    if rpm := tightest(service.rpm, model.rpm):
        wanted.append(Demand("rpm", f"rpm:{name}", WINDOW, rpm, 1))
    if tpm := tightest(service.tpm, model.tpm):
        wanted.append(Demand("tpm", f"tpm:{name}", WINDOW, tpm, inputs + asked, assumed))
    if key.quota is not None:
        quota, span = key.quota.tokens, key.quota.span
        counter = key_counter(key.key, span)
        wanted.append(Demand(f"key_quota_{span}", counter, span, quota, inputs + asked, assumed))
    if reservation is not None:
        sorts = (
            ("input", reservation.input_tpm, inputs, 0),
            ("output", reservation.output_tpm, asked or min(1, assumed), max(0, assumed - 1)),
        )
        for sort, tokens, must, may in sorts:
            if tokens and must:
                dimension, counter = f"reservation_{sort}", f"reservation-{sort}:{name}"
                wanted.append(Demand(dimension, counter, Span.MINUTE, tokens, must, may, binding))
    return tuple(wanted)


def key_counter(key: ObjectKey, span: Span) -> str:
    """Where a key's tokens are counted."""
    return f"key-{span}:{{{key.namespace}}}/{key.name}"


def used_of(counter: str, input_tokens: int, output_tokens: int) -> int | None:
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
