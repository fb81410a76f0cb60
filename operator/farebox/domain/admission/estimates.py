"""What a call may use and cost, before it is made. Pure; corrected by what it did use, afterwards.

Two figures, for two purposes. The estimate is a likely count of tokens, for limits that smooth traffic: four
bytes of the request are a token. The bound is a count that a call cannot exceed, for money that must not be
overspent (B17, Hard): a token has at least one byte, what encloses a text in JSON is longer than what
encloses it in a model's prompt, and what stands around all of them is ADDED_TOKENS at most.
"""

from collections.abc import Sequence
from typing import Final

from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.billing.pricing import MAX_TOKENS, Tier

BYTES_PER_TOKEN: Final = 4
"""Of JSON with text in most languages and tokenizers: between 3 and 5."""
ASSUMED_OUTPUT_TOKENS: Final = 1000
"""What an answer is expected to have at most when the caller does not say."""

ADDED_TOKENS: Final = 1000
"""What a chat template or a provider adds to the texts of a call: a system prompt of its own, instructions
for tools. Those of Llama, Qwen, gpt-oss and Claude are between 20 and 600 tokens."""


def estimate_input(body_bytes: int, context_tokens: int = 0) -> int:
    """A likely count of input tokens of a request, at most the model's context (0: not known).

    >>> estimate_input(4001), estimate_input(4_000_000, context_tokens=8192)
    (1001, 8192)
    """
    tokens = max(1, -(-body_bytes // BYTES_PER_TOKEN))
    return min(tokens, context_tokens) if context_tokens else tokens


def bound_input(body_bytes: int, *, text_only: bool, context_tokens: int = 0) -> int | None:
    """A count that the input cannot exceed, or None where nothing bounds it.

    >>> bound_input(500, text_only=True), bound_input(500, text_only=True, context_tokens=1200)
    (1500, 1200)

    Args:
        text_only: everything that the model will see is text in the request. An image or a document is not:
            a short reference to it may be many tokens, and only the model's context bounds those.
    """
    if text_only:
        most = body_bytes + ADDED_TOKENS
        return min(most, context_tokens) if context_tokens else most
    return context_tokens or None


def bound_output(asked: int | None, choices: int, max_output_tokens: int, context_tokens: int) -> int | None:
    """A count that all answers of a call together cannot exceed, or None where nothing bounds it.

    Args:
        asked: the caller's own bound on each answer.
        choices: how many answers the caller wants.
    """
    bound = asked
    for each in (max_output_tokens, context_tokens):
        if each and (bound is None or each < bound):
            bound = each
    return None if bound is None else bound * choices


def most_expensive(tiers: Sequence[Tier], input_bound: int, output_bound: int) -> Nano | None:
    """The most that a call within both bounds can cost, in nano-units; None if it does not fit into 64 bits.

    A longer call may be cheaper, since one tier prices a call whole: every tier that it can reach is looked
    at, at its upper end. Cached input counts as whichever price is higher.
    """
    if max(input_bound, output_bound) > MAX_TOKENS:
        return None
    most, below = 0, -1
    for tier in tiers:
        if below >= input_bound:
            break
        end = input_bound if tier.up_to_input_tokens is None else min(input_bound, tier.up_to_input_tokens)
        most = max(most, end * max(tier.input, tier.cached_input) + output_bound * tier.output)
        below = end
    return Nano(most) if most <= MAX_NANO else None
