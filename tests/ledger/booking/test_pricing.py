"""The price of a call, to the last nano-unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import MAX_NANO, Nano
from farebox.domain.billing.pricing import MAX_TOKENS, charge, format_price, parse_price, tiers_error
from farebox.errors import InvalidAmount
from farebox.meterapi.types import TokenPriceTier

TWO_TIERS = (
    TokenPriceTier(1_000, Nano(500), Nano(50), Nano(1_500)),
    TokenPriceTier(None, Nano(800), Nano(80), Nano(2_400)),
)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("0.001", 1),
        ("0.5", 500),
        ("0.500", 500),
        ("1", 1_000),
        ("12.34", 12_340),
        ("999999.999", 999_999_999),
    ],
)
def test_a_price_per_million_tokens_is_whole_nano_units_per_token(text: str, nano: int) -> None:
    assert parse_price(text) == nano
    assert parse_price(format_price(nano)) == nano


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0001", "1e3", ".5", "1.", "1000000", "1,5", " 1", "٣"])
def test_an_invalid_price_is_refused(text: str) -> None:
    with pytest.raises(InvalidAmount):
        parse_price(text)


@pytest.mark.parametrize(
    ("tokens", "nano"),
    [
        ((0, 0, 0), 0),
        ((1_000, 0, 0), 1_000 * 500),
        ((1_001, 0, 0), 1_001 * 800),
        ((1_000, 0, 5), 1_000 * 500 + 5 * 1_500),
        ((1_001, 0, 5), 1_001 * 800 + 5 * 2_400),
        ((1_000, 400, 0), 600 * 500 + 400 * 50),
        ((1_000, 1_000, 1), 1_000 * 50 + 1_500),
        ((0, 0, 7), 7 * 1_500),
    ],
)
def test_the_first_tier_that_covers_the_input_prices_the_whole_call(
    tokens: tuple[int, int, int], nano: int
) -> None:
    of_input, cached, output = tokens
    assert charge(TWO_TIERS, CallTokens(input=of_input, cached_input=cached, output=output)) == nano


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        (CallTokens(input=1, cached_input=2), "cachedInputTokens"),
        (CallTokens(input=1, cache_write_input=2), "cacheWriteInputTokens"),
        (CallTokens(input=3, cached_input=2, cache_write_input=2), r"cacheWriteInputTokens \(2\)"),
        (CallTokens(input=-1), "negative"),
        (CallTokens(cached_input=-1), "negative"),
        (CallTokens(cache_write_input=-1), "negative"),
        (CallTokens(input=9, cached_input=2, cache_write_input=-1), "negative"),
        (CallTokens(output=-1), "negative"),
        (CallTokens(input=MAX_TOKENS + 1), "above"),
        (CallTokens(output=MAX_TOKENS + 1), "above"),
    ],
)
def test_impossible_token_counts_are_refused(tokens: CallTokens, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        charge(TWO_TIERS, tokens)


def test_a_charge_beyond_64_bits_is_refused() -> None:
    dear = (TokenPriceTier(None, Nano(MAX_NANO), Nano(0), Nano(0)),)
    assert charge(dear, CallTokens(input=1)) == MAX_NANO
    with pytest.raises(InvalidAmount, match="64 bits"):
        charge(dear, CallTokens(input=2))


def test_a_call_that_no_tier_covers_is_refused() -> None:
    with pytest.raises(InvalidAmount, match="No price tier fits"):
        charge(TWO_TIERS[:1], CallTokens(input=1_001))


@pytest.mark.parametrize(
    ("bounds", "good"),
    [
        ((None,), True),
        ((10, None), True),
        ((10, 20, None), True),
        ((), False),
        ((10,), False),
        ((None, None), False),
        ((20, 10, None), False),
        ((10, 10, None), False),
        ((0, None), False),
    ],
)
def test_tiers_must_give_every_call_exactly_one_price(bounds: tuple[int | None, ...], good: bool) -> None:
    tiers = [TokenPriceTier(bound, Nano(1), Nano(1), Nano(1)) for bound in bounds]
    assert (tiers_error(tiers) is None) is good


def test_tiers_with_impossible_prices_are_faults() -> None:
    assert tiers_error([TokenPriceTier(None, Nano(-1), Nano(0), Nano(0))])
    assert tiers_error([TokenPriceTier(None, Nano(0), Nano(0), Nano(MAX_NANO // MAX_TOKENS))])
    assert tiers_error([TokenPriceTier(None, Nano(0), Nano(0), Nano(0), cache_write=Nano(-1))])
    dear = Nano(MAX_NANO // MAX_TOKENS)
    assert tiers_error([TokenPriceTier(None, Nano(0), Nano(0), Nano(0), cache_write=dear)])


prices = st.integers(0, 999_999_999).map(Nano)
tokens = st.integers(0, MAX_TOKENS)


@given(st.tuples(prices, prices, prices, st.none() | prices), tokens, tokens, tokens, tokens)
def test_a_charge_is_exact_and_always_fits_in_price_bounds(
    tier: tuple[Nano, Nano, Nano, Nano | None], uncached: int, cached: int, written: int, output: int
) -> None:
    cached = min(cached, MAX_TOKENS - uncached)
    written = min(written, MAX_TOKENS - uncached - cached)
    tiers = (TokenPriceTier(None, *tier),)
    of_input, of_cached, of_output, of_write = tier
    assert tiers_error(tiers) is None
    due = uncached * of_input + cached * of_cached + output * of_output
    due += written * (of_input if of_write is None else of_write)
    assert charge(tiers, CallTokens(uncached + cached + written, cached, written, output)) == due <= MAX_NANO


@given(tokens, tokens, tokens)
def test_more_output_never_costs_less(of_input: int, output: int, more: int) -> None:
    output, more = sorted((output, more))
    less_output, more_output = (CallTokens(input=of_input, output=each) for each in (output, more))
    assert charge(TWO_TIERS, less_output) <= charge(TWO_TIERS, more_output)
