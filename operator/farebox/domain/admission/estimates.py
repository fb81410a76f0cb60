"""Estimates and bounds of a call's tokens and cost, before the call. Pure.

The estimate is a likely number of tokens, for rate limits and for calls that end early: text counts by its
letters, spaces and signs, and each image, recording or file has a number of tokens of its own (B28). It is
corrected after the call. The bound is a number that the call cannot exceed, for money that must not be
overspent (B17, Hard): a token has at least one byte, the JSON around a text is longer than the markup around
it in a model's prompt, and templates add at most ADDED_TOKENS.
"""

import string
from collections.abc import Sequence
from typing import Final

from farebox.domain.admission.types import DEFAULT_MEDIA_TOKENS, NO_MEDIA, MediaPieces, MediaTokens
from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.billing.pricing import MAX_TOKENS, Tier, highest_input_price

BYTES_PER_TOKEN: Final = 4
"""Of the text between media. For JSON with text, most languages and tokenizers have between 3 and 5."""
_LETTERS: Final = string.ascii_letters.encode()
_ASCII: Final = bytes(range(128))
_LETTER, _SPACE, _SIGN, _OTHER, _ESCAPE = 107, 555, 391, 240, -1200
"""Thousandths of a token for a Latin letter, a space, another sign of ASCII, a byte beyond ASCII, and for an
escape such as \\u4e2d on top of its six signs. Fitted to cl100k_base."""
_LONG: Final = 64 * 1024
_SLICES: Final = 8
_SLICE_BYTES: Final = 4096
ASSUMED_OUTPUT_TOKENS: Final = 1000
"""The assumed maximum of an answer if the caller sets no bound."""

ADDED_TOKENS: Final = 1000
"""The maximum that a chat template or a provider adds to a call, such as a system prompt or instructions for
tools. Those of Llama, Qwen, gpt-oss and Claude have between 20 and 600 tokens."""


def estimate_text(body: bytes) -> int:
    """The likely tokens of a request in JSON without media: within 30 % on prose, code, JSON and tables.

    Four bytes for a token are wrong by up to 47 %. Of a long request, samples are read.

    >>> estimate_text(b'{"content": "one two three"}')
    6
    """
    if len(body) > _LONG:
        step = len(body) // _SLICES
        sample = b"".join(body[at : at + _SLICE_BYTES] for at in range(0, step * _SLICES, step))
        return estimate_text(sample) * len(body) // len(sample)
    signs = body.translate(None, _LETTERS)
    spaces = signs.count(b" ")
    others = len(signs.translate(None, _ASCII))
    thousandths = _LETTER * (len(body) - len(signs)) + _SPACE * spaces
    thousandths += _SIGN * (len(signs) - spaces - others) + _OTHER * others
    if b"\\u" in body:
        thousandths += _ESCAPE * body.count(b"\\u")
    return max(thousandths, 0) // 1000


def estimate_input(
    body_bytes: int,
    context_tokens: int = 0,
    pieces: MediaPieces = NO_MEDIA,
    per_piece: MediaTokens = DEFAULT_MEDIA_TOKENS,
    text_tokens: int | None = None,
) -> int:
    """The likely number of input tokens, at most the model's context (0: unknown).

    Args:
        text_tokens: `estimate_text` of a request without media.

    >>> estimate_input(4001), estimate_input(4_000_000, context_tokens=8192)
    (1001, 8192)
    >>> estimate_input(2_000_400, pieces=MediaPieces(encoded_bytes=2_000_000, images=1))
    1200
    """
    if text_tokens is None:
        text_tokens = -(-(body_bytes - pieces.encoded_bytes) // BYTES_PER_TOKEN)
    tokens = max(1, text_tokens)
    if pieces is not NO_MEDIA:
        tokens += pieces.images * per_piece.image + pieces.audios * per_piece.audio
        tokens += pieces.files * per_piece.file + pieces.videos * per_piece.video
    return min(tokens, context_tokens) if context_tokens else tokens


def bound_input(body_bytes: int, *, text_only: bool, context_tokens: int = 0) -> int | None:
    """A number of tokens that the input cannot exceed; None if there is no bound.

    >>> bound_input(500, text_only=True), bound_input(500, text_only=True, context_tokens=1200)
    (1500, 1200)

    Args:
        text_only: whether the request contains only text. A short reference to an image or a document may
            be many tokens, which only the model's context bounds.
    """
    if text_only:
        most = body_bytes + ADDED_TOKENS
        return min(most, context_tokens) if context_tokens else most
    return context_tokens or None


def bound_output(asked: int | None, choices: int, max_output_tokens: int, context_tokens: int) -> int | None:
    """A number of tokens that all answers together cannot exceed; None if there is no bound.

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
    """The maximum cost of a call within both bounds, in nano-units; None if it does not fit into 64 bits.

    One tier prices a whole call, so a longer call can be cheaper. Therefore every reachable tier is evaluated
    at its upper end, with the highest price that input can have there.
    """
    if max(input_bound, output_bound) > MAX_TOKENS:
        return None
    most, below = 0, -1
    for tier in tiers:
        if below >= input_bound:
            break
        end = input_bound if tier.up_to_input_tokens is None else min(input_bound, tier.up_to_input_tokens)
        most = max(most, end * highest_input_price(tier) + output_bound * tier.output)
        below = end
    return Nano(most) if most <= MAX_NANO else None
