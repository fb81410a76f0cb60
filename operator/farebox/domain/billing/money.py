"""Money as integers of nano-units (10^-9 of the currency's unit), and as decimal strings.

Never a float: prices have at most 3 decimals per million tokens, so the price of a token is a whole
number of nano-units and every charge is exact (product.md, "Decisions already taken").
"""

import re
from typing import NewType

from farebox.errors import InvalidAmount

Nano = NewType("Nano", int)
"""An amount of money in nano-units of some currency."""

NANO_PER_UNIT = 1_000_000_000
MAX_NANO = 2**63 - 1
"""The largest signed 64-bit integer: about 9.2 billion units."""

_DECIMAL = re.compile(r"(-?)([0-9]{1,10})(?:\.([0-9]{1,9}))?")


def parse_amount(text: str) -> Nano:
    """Nano-units of a decimal string such as "100.00" or "-0.000000001".

    Raises:
        InvalidAmount: not of the form -?D{1,10}(.D{1,9})?, or beyond 64 bits.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise InvalidAmount(
            f'{text!r} is not an amount. Write digits with at most 9 decimals, such as "100.00"'
        )
    sign, units, decimals = match.groups()
    nano = int(units) * NANO_PER_UNIT + int((decimals or "").ljust(9, "0"))
    if nano > MAX_NANO:
        raise InvalidAmount(f"{text!r} is too large. Amounts are below {MAX_NANO // NANO_PER_UNIT} units")
    return Nano(-nano if sign else nano)


def format_amount(nano: int) -> str:
    """The decimal string of an amount, with at least 2 decimals and no trailing zeros after them.

    >>> format_amount(1_500_000_000), format_amount(-1), format_amount(0)
    ('1.50', '-0.000000001', '0.00')
    """
    units, rest = divmod(abs(nano), NANO_PER_UNIT)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{units}.{decimals}"


def available(balance: int, credit_limit: int) -> Nano:
    """What an account can still spend: balance + credit limit."""
    return Nano(balance + credit_limit)


def is_overdue(balance: int, credit_limit: int) -> bool:
    """Whether an account has nothing left to spend (B3): available <= 0. A new, empty account is overdue."""
    return available(balance, credit_limit) <= 0
