"""A running meter for each test."""

from tests.meter.conftest import database, databases, meter, on_postgresql

__all__ = ["database", "databases", "meter", "on_postgresql"]
