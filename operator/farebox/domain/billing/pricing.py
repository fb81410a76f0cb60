"""Prices of a model, and the price of a call: exact integers of nano-units, without rounding.

A price has at most 3 decimals per million tokens, so a token costs a whole number of nano-units (0.001 per
million is exactly 1). This module knows no accounts, events or databases.
"""

import re
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

from farebox.domain.billing.coverage import NOTHING, CallTokens, Coverage, by_price, uncovered
from farebox.domain.billing.money import MAX_NANO, NANO_PER_UNIT, Nano
from farebox.errors import InvalidAmount

TOKENS_PER_PRICE: Final = 1_000_000
"""Prices are written per this many tokens."""
MAX_TOKENS: Final = 1_000_000_000
"""The most input or output tokens of one call; a larger count is an error of the sender."""

_NANO_PER_STEP: Final = NANO_PER_UNIT // TOKENS_PER_PRICE // 1000
_PRICE: Final = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,3}))?")


class Tier(Protocol):
    """What `charge` reads of a tier: prices of a token in nano-units. `cache_write` None: as `input`."""

    @property
    def up_to_input_tokens(self) -> int | None: ...
    @property
    def input(self) -> Nano: ...
    @property
    def cached_input(self) -> Nano: ...
    @property
    def output(self) -> Nano: ...
    @property
    def cache_write(self) -> Nano | None: ...


T = TypeVar("T", bound=Tier)


def parse_price(text: str) -> Nano:
    """Nano-units per token of a price per million tokens, such as "0.500".

    >>> parse_price("0.500"), parse_price("0.001"), parse_price("12")
    (500, 1, 12000)

    Raises:
        InvalidAmount: not of the form D{1,6}(.D{1,3})?.
    """
    match = _PRICE.fullmatch(text)
    if match is None:
        raise InvalidAmount(
            f"{text!r} is not a price per million tokens. Write digits with at most 3 decimals, "
            'such as "0.500"'
        )
    units, decimals = match.groups()
    return Nano((int(units) * 1000 + int((decimals or "").ljust(3, "0"))) * _NANO_PER_STEP)


def format_price(nano_per_token: int) -> str:
    """The price per million tokens as a decimal string with 3 decimals; `parse_price` reads it back.

    >>> format_price(500)
    '0.500'
    """
    units, rest = divmod(nano_per_token // _NANO_PER_STEP, 1000)
    return f"{units}.{rest:03d}"


def tiers_error(tiers: Sequence[Tier]) -> str | None:
    """What is wrong with a list of tiers, or None. Every call must have exactly one price."""
    if not tiers:
        return "No price tier: give at least one"
    if tiers[-1].up_to_input_tokens is not None:
        return "The last tier has upToInputTokens. Leave it out, so that every call has a price"
    bounds = [tier.up_to_input_tokens for tier in tiers[:-1]]
    for below, bound in zip([0, *bounds], bounds, strict=False):
        if bound is None or below is None or bound <= below:
            return (
                "Set upToInputTokens above 0 and rising from tier to tier; leave it out of the last tier only"
            )
    for tier in tiers:
        prices = (tier.input, tier.cached_input, cache_write_price(tier), tier.output)
        if min(prices) < 0:
            return "A price is negative"
        if max(prices) * MAX_TOKENS * 2 > MAX_NANO:
            return "A price is too large: the price of the largest call does not fit into 64 bits"
    return None


def usage_error(tokens: CallTokens) -> str | None:
    """What is wrong with the token counts of a call, or None."""
    total, cached, written, output = tokens
    if cached >= 0 and written >= 0 and cached + written <= total <= MAX_TOKENS and 0 <= output <= MAX_TOKENS:
        return None
    if min(tokens) < 0:
        return "A token count is negative"
    if max(total, output) > MAX_TOKENS:
        return f"A token count is above {MAX_TOKENS}"
    return (
        f"Too many cached tokens: cachedInputTokens ({cached}) and cacheWriteInputTokens ({written}) are "
        f"parts of inputTokens ({total})"
    )


def cache_write_price(tier: Tier) -> Nano:
    """The price of a token that writes a cache: by default the one of input (B41)."""
    return tier.input if tier.cache_write is None else tier.cache_write


def highest_input_price(tier: Tier) -> Nano:
    """The highest price that an input token can have."""
    return max(tier.input, tier.cached_input, cache_write_price(tier))


def tier_of(tiers: Sequence[T], input_tokens: int) -> T | None:
    """The first tier with up_to_input_tokens >= input_tokens, or None if no tier fits."""
    for tier in tiers:
        if tier.up_to_input_tokens is None or tier.up_to_input_tokens >= input_tokens:
            return tier
    return None


def charge(tiers: Sequence[Tier], tokens: CallTokens, coverage: Coverage = NOTHING) -> Nano:
    """The price of a call in nano-units (product.md, "The price of a call").

    The first tier with up_to_input_tokens >= input_tokens prices the whole call: uncached x input + cached x
    cached_input + written x cache_write + output x output, without the tokens in `coverage`. `uncached` is
    the input that is neither read from a cache nor written to one.

    Raises:
        ValueError: the token counts have a `usage_error`.
        InvalidAmount: no tier covers the call, or the charge does not fit into 64 bits.
    """
    fault = usage_error(tokens)
    if fault is not None:
        raise ValueError(fault)
    tier = tier_of(tiers, tokens.input)
    if tier is None:
        raise InvalidAmount(f"No price tier fits a call with {tokens.input} input tokens")
    total, cached, written, output = tokens
    uncached = total - cached - written
    if coverage is not NOTHING:
        written, uncached, cached, output = uncovered(by_price(tokens), coverage)
    nano = uncached * tier.input + cached * tier.cached_input + output * tier.output
    if written:
        nano += written * cache_write_price(tier)
    if nano > MAX_NANO:
        raise InvalidAmount(f"A charge of {nano} nano-units does not fit into 64 bits")
    return Nano(nano)
