"""Whether a service may buy a reservation from its account: never where it may not run on it (B9, B22)."""

from dataclasses import replace
from typing import Any

import pytest

from farebox.domain.billing.money import Nano
from farebox.domain.facts import MISSING, UNKNOWN
from farebox.domain.stop_reasons import may_reserve
from tests.domain.build import GOOD_ACCOUNT, GOOD_MODEL, NOW, facts

RESERVES = {"reserves": True, "postpaid": False}


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, True),
        # The ledger checks the money, again after each top-up.
        ({"account": replace(GOOD_ACCOUNT, available=Nano(-5))}, True),
        ({"account": replace(GOOD_ACCOUNT, available=UNKNOWN)}, True),
        ({"account": MISSING}, False),
        ({"account": replace(GOOD_ACCOUNT, allows=False)}, False),
        ({"account": replace(GOOD_ACCOUNT, allows=UNKNOWN)}, UNKNOWN),
        ({"account": replace(GOOD_ACCOUNT, currency="EUR")}, False),
        ({"account": UNKNOWN}, UNKNOWN),
        ({"model": MISSING}, False),
        ({"model": UNKNOWN}, UNKNOWN),
        ({"model": replace(GOOD_MODEL, retired=True)}, False),
        # One known obstacle is enough, whatever else is unknown.
        ({"account": replace(GOOD_ACCOUNT, allows=False), "model": UNKNOWN}, False),
    ],
)
def test_b22_only_a_service_that_may_run_on_an_account_buys_from_it(
    changes: dict[str, Any], allowed: object
) -> None:
    assert may_reserve(facts(**RESERVES, **changes), NOW) is allowed
