"""Fixtures: tenants of one test each on the session's Farebox, and a plane without an operator."""

from collections.abc import Iterator

import pytest

from tests.integration.dedicated_stack import dedicated_stack
from tests.integration.tenants import Tenant
from tests.support.stack import AUDIENCE, SYSTEM, Stack

__all__ = ["dedicated_stack", "tenant"]


@pytest.fixture
def tenant(stack: Stack) -> Iterator[Tenant]:
    """A namespace of this test's own; what is made in it goes with it."""
    made = Tenant(stack)
    yield made
    made.close()


@pytest.fixture(scope="session")
def reader(stack: Stack) -> str:
    """A token that may read balances: the operator's."""
    return stack.cluster.service_account_token(SYSTEM, "farebox-operator", audience=AUDIENCE)
