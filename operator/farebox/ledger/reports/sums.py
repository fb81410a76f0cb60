"""SQL expressions for sums of amounts that neither overflow nor round.

SUM of 64-bit integers beyond 64 bits is an error on SQLite and a decimal on PostgreSQL. Therefore units and
nano-units are summed separately and joined in Python.
"""

from typing import Any

from sqlalchemy import ColumnElement, func

from farebox.domain.billing.money import NANO_PER_UNIT, Nano


def exact_sum(amount: ColumnElement[Any], name: str) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """The two columns that `joined` adds up."""
    return (
        func.coalesce(func.sum(amount // NANO_PER_UNIT), 0).label(f"{name}_units"),
        func.coalesce(func.sum(amount % NANO_PER_UNIT), 0).label(f"{name}_nano"),
    )


def joined(units: Any, nano: Any) -> Nano:
    """The sum from the two columns of `exact_sum`. Both databases divide by the same rule."""
    return Nano(int(units) * NANO_PER_UNIT + int(nano))
