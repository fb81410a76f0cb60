"""The coverage of a call: reservation, then quota, then money; uncached input first (B6, B9)."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.billing.coverage import NOTHING, CallTokens, Coverage, Tokens, by_price, cover, uncovered
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import charge
from farebox.meterapi.types import TokenPriceTier
from tests.domain.strategies import THOROUGH

count = st.integers(0, 3_000)
calls = st.builds(Tokens, count, count, count, count)
PRICES = (TokenPriceTier(None, Nano(500), Nano(50), Nano(1_500)),)


@pytest.mark.parametrize(
    ("reserved", "quota", "coverage", "to_pay"),
    [
        ((0, 0), 0, Coverage(0, 0, 0), (60, 40, 20)),
        # The reservation: uncached input first; input and output separately.
        ((50, 0), 0, Coverage(50, 0, 0), (10, 40, 20)),
        ((70, 5), 0, Coverage(70, 5, 0), (0, 30, 15)),
        ((900, 0), 0, Coverage(100, 0, 0), (0, 0, 20)),
        ((0, 900), 0, Coverage(0, 20, 0), (60, 40, 0)),
        ((900, 900), 0, Coverage(100, 20, 0), (0, 0, 0)),
        # The quota: uncached, then cached, then output.
        ((0, 0), 59, Coverage(0, 0, 59), (1, 40, 20)),
        ((0, 0), 61, Coverage(0, 0, 61), (0, 39, 20)),
        ((0, 0), 101, Coverage(0, 0, 101), (0, 0, 19)),
        ((0, 0), 900, Coverage(0, 0, 120), (0, 0, 0)),
        # Both: the quota covers what the reservation leaves.
        ((50, 10), 15, Coverage(50, 10, 15), (0, 35, 10)),
        ((70, 20), 900, Coverage(70, 20, 30), (0, 0, 0)),
        ((900, 900), 900, Coverage(100, 20, 0), (0, 0, 0)),
    ],
)
def test_a_call_of_60_uncached_40_cached_and_20_out(
    reserved: tuple[int, int], quota: int, coverage: Coverage, to_pay: tuple[int, int, int]
) -> None:
    call = Tokens(0, 60, 40, 20)
    assert cover(call, *reserved, quota) == coverage
    assert uncovered(call, coverage) == (0, *to_pay)
    assert (
        charge(PRICES, CallTokens(input=100, cached_input=40, output=20), coverage)
        == to_pay[0] * 500 + to_pay[1] * 50 + to_pay[2] * 1_500
    )


@THOROUGH
@given(calls, count, count, count)
def test_every_token_is_covered_once_or_paid(call: Tokens, of_input: int, output: int, quota: int) -> None:
    coverage = cover(call, of_input, output, quota)
    left = uncovered(call, coverage)
    assert sum(coverage) + left.total == call.total
    assert min(*coverage, *left) >= 0
    assert coverage.reservation_input <= of_input
    assert coverage.reservation_output <= output
    assert coverage.quota <= quota


@THOROUGH
@given(calls, count, count, count)
def test_nothing_is_paid_while_a_quota_is_left(call: Tokens, of_input: int, output: int, quota: int) -> None:
    coverage = cover(call, of_input, output, quota)
    assert coverage.quota == quota or uncovered(call, coverage).total == 0


@THOROUGH
@given(calls, count, count, count)
def test_it_goes_token_by_token_in_the_order_of_product_md(
    call: Tokens, of_input: int, output: int, quota: int
) -> None:
    """Compared with a count that takes one token after the other."""
    expected = uncovered(call, cover(call, of_input, output, quota))
    to_pay = [0, 0, 0, 0]
    for sort, tokens in enumerate(call):
        for _ in range(tokens):
            if sort < 3 and of_input:
                of_input -= 1
            elif sort == 3 and output:
                output -= 1
            elif quota:
                quota -= 1
            else:
                to_pay[sort] += 1
    assert tuple(to_pay) == expected


@THOROUGH
@given(calls, count, count, count)
def test_the_charge_is_of_the_tier_of_the_whole_call(
    call: Tokens, of_input: int, output: int, quota: int
) -> None:
    """A covered call is not priced as a shorter one (product.md, "The price of a call")."""
    tiers = (
        TokenPriceTier(1_000, Nano(1), Nano(1), Nano(1)),
        TokenPriceTier(None, Nano(7), Nano(7), Nano(7)),
    )
    coverage = cover(call, of_input, output, quota)
    whole = call.input
    price = 1 if whole <= 1_000 else 7
    tokens = CallTokens(
        input=whole, cached_input=call.cached, cache_write_input=call.cache_write, output=call.output
    )
    assert charge(tiers, tokens, coverage) == price * uncovered(call, coverage).total


def test_without_coverage_all_is_paid() -> None:
    assert uncovered(Tokens(1, 2, 3, 4), NOTHING) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("reserved", "quota", "to_pay"),
    [
        ((0, 0), 0, (30, 60, 10, 20)),
        # Coverage goes to cache writes first: they are the dearest input (docs/decisions/530).
        ((20, 0), 0, (10, 60, 10, 20)),
        ((95, 0), 0, (0, 0, 5, 20)),
        ((0, 0), 31, (0, 59, 10, 20)),
        ((25, 5), 10, (0, 55, 10, 15)),
        ((900, 900), 900, (0, 0, 0, 0)),
    ],
)
def test_b41_coverage_goes_to_cache_writes_first(
    reserved: tuple[int, int], quota: int, to_pay: tuple[int, int, int, int]
) -> None:
    tokens = CallTokens(input=100, cached_input=10, cache_write_input=30, output=20)
    coverage = cover(by_price(tokens), *reserved, quota)
    assert uncovered(by_price(tokens), coverage) == to_pay
    written, uncached, cached, output = to_pay
    dear = (replace(PRICES[0], cache_write=Nano(625)),)
    due = uncached * 500 + cached * 50 + output * 1_500
    assert charge(dear, tokens, coverage) == due + written * 625
    assert charge(PRICES, tokens, coverage) == due + written * 500, "the default is the price of input"
