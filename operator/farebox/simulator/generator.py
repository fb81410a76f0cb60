"""The simulated model: an answer, its number of tokens, and its pace. No HTTP.

Answers repeat a fixed list of short words. Every word is one token by the rule in `tokens`, and equal
requests get equal answers.
"""

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from farebox.errors import ConfigurationError

WORDS = ("this", "is", "a", "text", "of", "no", "use", "but", "each", "word", "in", "it", "is", "paid", "for")
NATURAL_TOKENS = 64
"""The length of an answer if the request sets neither a minimum nor a lower limit."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of an answer.

    Args:
        ttft_ms: time to the first token, in milliseconds.
        tokens_per_second: of each stream; 0 means without pauses.

    Raises:
        ConfigurationError: a value is negative.
    """

    ttft_ms: float
    tokens_per_second: float

    def __post_init__(self) -> None:
        if self.ttft_ms < 0 or self.tokens_per_second < 0:
            raise ConfigurationError("the time to first token and the tokens per second must not be negative")

    def due(self, index: int) -> float:
        """Seconds from the start of the request to token `index`, counted from 0."""
        between = index / self.tokens_per_second if self.tokens_per_second else 0.0
        return self.ttft_ms / 1000 + between


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete answer; `finish_reason` is "length" if the limit cut it."""

    tokens: tuple[str, ...]
    finish_reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        """The text, one word per token."""
        return " ".join(self.tokens)


def compose(limit: int | None, at_least: int) -> Completion:
    """An answer of NATURAL_TOKENS tokens, or `at_least` if that is more, cut at `limit`."""
    natural = max(NATURAL_TOKENS, at_least)
    length = natural if limit is None else min(natural, limit)
    tokens = tuple(WORDS[index % len(WORDS)] for index in range(length))
    return Completion(tokens=tokens, finish_reason="length" if length < natural else "stop")


async def paced(answer: Completion, pace: Pace) -> AsyncIterator[str]:
    """The pieces of the answer's text, each when it is due; joined, they are `answer.text`.

    Each is timed from the start, so that a late piece does not delay the others.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    for index, token in enumerate(answer.tokens):
        await asyncio.sleep(max(0.0, start + pace.due(index) - loop.time()))
        yield f" {token}" if index else token


def embed(tokens: Sequence[str], dimensions: int) -> list[float]:
    """A vector of numbers in [-1, 1] that depends only on the tokens. It has no meaning."""
    digest = hashlib.shake_128("\0".join(tokens).encode()).digest(2 * dimensions)
    return [number / 32768 for number in struct.unpack(f"<{dimensions}h", digest)]
