"""Sums of amounts that no database can overflow or round. Only expressions: no connection, no statement.

SUM of 64-bit integers is an error on SQLite and a decimal on PostgreSQL once it leaves 64 bits. So units and
nano-units are summed apart, and joined in Python.
"""

from typing import Any

from sqlalchemy import ColumnElement, func

from farebox.domain.billing.money import NANO_PER_UNIT, Nano


def exact_sum(amount: ColumnElement[Any], name: str) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Two columns that `joined` makes one sum of."""
    return (
        func.coalesce(func.sum(amount // NANO_PER_UNIT), 0).label(f"{name}_units"),
        func.coalesce(func.sum(amount % NANO_PER_UNIT), 0).label(f"{name}_nano"),
    )


def joined(units: Any, nano: Any) -> Nano:
    """The sum of the two columns of `exact_sum`; both databases divide and take rests by the same rule."""
    return Nano(int(units) * NANO_PER_UNIT + int(nano))
