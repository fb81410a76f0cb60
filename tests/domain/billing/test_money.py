"""Money is integers of nano-units, and its strings are exact."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.billing.money import (
    MAX_NANO,
    NANO_PER_UNIT,
    available,
    format_amount,
    is_overdue,
    parse_amount,
)
from farebox.errors import InvalidAmount
from tests.domain.strategies import THOROUGH


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("-0", 0),
        ("1", NANO_PER_UNIT),
        ("007", 7 * NANO_PER_UNIT),
        ("100.00", 100 * NANO_PER_UNIT),
        ("0.000000001", 1),
        ("-0.000000001", -1),
        ("-1.5", -1_500_000_000),
        ("0.1", 100_000_000),
        ("9223372036.854775807", MAX_NANO),
        ("-9223372036.854775807", -MAX_NANO),
    ],
)
def test_a_decimal_string_is_nano_units(text: str, nano: int) -> None:
    assert parse_amount(text) == nano


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1 ", " 1", "1\n", "+1", "--1", "1.", ".5", "1,5", "1e3", "0x1", "1_000", "١", "NaN"),
        *("1.0000000001", "12345678901", "9223372036.854775808", "9999999999"),
    ],
)
def test_other_text_is_rejected_and_quoted(text: str) -> None:
    with pytest.raises(InvalidAmount) as refusal:
        parse_amount(text)
    assert repr(text) in str(refusal.value)


@THOROUGH
@given(st.integers(-MAX_NANO, MAX_NANO))
def test_formatting_and_parsing_are_inverse(nano: int) -> None:
    text = format_amount(nano)
    assert parse_amount(text) == nano
    assert len(text.partition(".")[2]) >= 2
    assert not text.endswith("0") or len(text.partition(".")[2]) == 2


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00"), (-1, "-0.000000001"), (1_500_000_000, "1.50"), (-12_340_000_000, "-12.34")],
)
def test_an_amount_has_two_decimals_and_as_many_more_as_it_needs(nano: int, text: str) -> None:
    assert format_amount(nano) == text


@THOROUGH
@given(st.integers(), st.integers(min_value=0))
def test_overdue_is_nothing_left_of_balance_and_credit(balance: int, limit: int) -> None:
    """B3: a new, empty account without credit is overdue too."""
    assert is_overdue(balance, limit) is (balance + limit <= 0)
    assert is_overdue(balance, limit) is (available(balance, limit) <= 0)
    assert is_overdue(0, 0)
