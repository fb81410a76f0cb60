"""What a call may use and cost at most: bounds are bounds (B17)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.admission.estimates import (
    ADDED_TOKENS,
    bound_input,
    bound_output,
    estimate_input,
    estimate_text,
    most_expensive,
)
from farebox.domain.billing.coverage import CallTokens
from farebox.domain.billing.money import Nano
from farebox.domain.billing.pricing import MAX_TOKENS, charge
from farebox.meterapi.types import TokenPriceTier
from tests.domain.strategies import BRANCHING
from tests.gateway.envoy.test_text_counts import SAMPLES

PRICES = st.integers(0, 2000).map(Nano)


@st.composite
def tiers(draw: st.DrawFn) -> tuple[TokenPriceTier, ...]:
    """Tiers of any prices: a longer call may well be cheaper."""
    bounds: list[int | None] = sorted(draw(st.sets(st.integers(1, 40), max_size=3)))  # type: ignore[arg-type]
    prices = st.tuples(PRICES, PRICES, PRICES, st.none() | PRICES)
    return tuple(TokenPriceTier(bound, *draw(prices)) for bound in [*bounds, None])


@BRANCHING
@given(tiers=tiers(), inputs=st.integers(0, 45), outputs=st.integers(0, 4))
def test_no_call_within_the_bounds_costs_more_and_one_costs_as_much(
    tiers: tuple[TokenPriceTier, ...], inputs: int, outputs: int
) -> None:
    costs = [
        charge(tiers, CallTokens(used, cached, written, output))
        for used in range(inputs + 1)
        for cached, written in {(0, 0), (used, 0), (0, used)}
        for output in range(outputs + 1)
    ]
    assert most_expensive(tiers, inputs, outputs) == max(costs)


def test_what_does_not_fit_into_the_ledger_has_no_bound() -> None:
    flat = (TokenPriceTier(None, Nano(1), Nano(1), Nano(1)),)
    dear = (TokenPriceTier(None, Nano(2**40), Nano(0), Nano(0)),)
    assert most_expensive(flat, MAX_TOKENS, MAX_TOKENS) == 2 * MAX_TOKENS
    assert most_expensive(flat, MAX_TOKENS + 1, 0) is None
    assert most_expensive(dear, MAX_TOKENS, 0) is None


@pytest.mark.parametrize(
    ("body_bytes", "context", "estimate"),
    [(0, 0, 1), (1, 0, 1), (5, 0, 2), (4000, 0, 1000), (4000, 100, 100)],
)
def test_four_bytes_are_a_token(body_bytes: int, context: int, estimate: int) -> None:
    assert estimate_input(body_bytes, context) == estimate


@pytest.mark.parametrize(
    ("text_only", "context", "bound"),
    [(True, 0, 4000 + ADDED_TOKENS), (True, 100, 100), (False, 100, 100), (False, 0, None)],
)
def test_bytes_bound_text_and_the_context_bounds_all(
    text_only: bool, context: int, bound: int | None
) -> None:
    assert bound_input(4000, text_only=text_only, context_tokens=context) == bound


@pytest.mark.parametrize(
    ("asked", "choices", "most", "context", "bound"),
    [
        (None, 1, 0, 0, None),
        (None, 2, 50, 0, 100),
        (None, 1, 0, 70, 70),
        (10, 3, 50, 70, 30),
        (90, 1, 0, 70, 70),
        (0, 1, 50, 70, 0),
    ],
)
def test_the_least_bound_on_an_answer_holds_for_each_of_them(
    asked: int | None, choices: int, most: int, context: int, bound: int | None
) -> None:
    assert bound_output(asked, choices, most, context) == bound


@pytest.mark.parametrize("name", sorted(set(SAMPLES) - {"identifier", "formula"}))
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_request_is_estimated_within_thirty_percent(name: str, ascii_only: bool) -> None:
    text, tokens = SAMPLES[name]
    messages = [{"role": "user", "content": text}] * 20
    body = json.dumps({"messages": messages}, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    markup = 8
    limit = 0.3 if not ascii_only or text.isascii() else 1.0
    assert abs(estimate_text(body) / (20 * (tokens + markup)) - 1) <= limit


def test_a_long_request_is_estimated_by_samples() -> None:
    text, _ = SAMPLES["code"]
    body = json.dumps({"content": text * 4000}).encode()
    assert estimate_text(body) == pytest.approx(
        4000 * estimate_text(json.dumps(text).encode()[1:-1]), rel=0.1
    )
