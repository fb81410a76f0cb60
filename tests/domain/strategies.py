"""Strategies for arbitrary facts, and all known facts that unknown ones may become."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from farebox.api import BillingMode, Phase, ReservationState, ServiceType, StopReason
from farebox.domain.billing.money import Nano
from farebox.domain.facts import (
    EXTERNAL,
    MISSING,
    UNKNOWN,
    AccountFacts,
    BackendFacts,
    Facts,
    ModelFacts,
    Previous,
    QuotaFacts,
    ReservationFacts,
    ServiceFacts,
)
from tests.domain.build import ACCOUNT, EARLIER, MODEL, NOW, SERVICE

_TIMES = int(os.environ.get("FAREBOX_TEST_EXAMPLES", "1"))
THOROUGH = settings(max_examples=150 * _TIMES)
"""The variable asks for more examples."""
BRANCHING = settings(THOROUGH, max_examples=50 * _TIMES)
"""For properties that decide hundreds of times for each example."""

SETTLED = tuple(
    ReservationFacts(state)
    for state in (ReservationState.ACTIVE, ReservationState.UNPAID, ReservationState.EXPIRED)
)
QUOTAS = tuple(
    QuotaFacts(total=100, used=used, expires_at=NOW + timedelta(days=days))
    for used, days in ((0, 1), (100, 1), (0, 0), (100, -1))
)
ACCOUNTS = tuple(
    AccountFacts(ACCOUNT, currency, Nano(left), allows)
    for currency, left, allows in product(("USD", "EUR"), (0, 1), (True, False))
)
MODELS = tuple(
    ModelFacts(MODEL, retired, currency, rpm_ceiling=50)
    for retired, currency in product((True, False), ("USD", "EUR"))
)
UNSURE_ACCOUNTS = (
    *(replace(account, available=UNKNOWN) for account in ACCOUNTS if account.available),
    *(replace(account, allows=UNKNOWN) for account in ACCOUNTS if account.allows),
    *(replace(account, available=UNKNOWN, allows=UNKNOWN) for account in ACCOUNTS if account == ACCOUNTS[0]),
)


@st.composite
def backends(draw: st.DrawFn) -> BackendFacts:
    """Deployments in any state that the API server may report."""
    count = st.integers(0, 3)
    replicas = draw(count)
    return BackendFacts(
        desired=draw(count),
        replicas=replicas,
        ready=draw(st.integers(0, replicas)),
        updated=draw(st.integers(0, replicas)),
        current=draw(st.booleans()),
        failure=draw(st.sampled_from(("", "timed out progressing"))),
    )


@st.composite
def services(draw: st.DrawFn) -> ServiceFacts:
    """Services that the CRD accepts."""
    type_ = draw(st.sampled_from(ServiceType))
    custom = type_ is ServiceType.CUSTOM
    dedicated = custom and draw(st.booleans())
    return ServiceFacts(
        key=SERVICE,
        type=type_,
        postpaid=draw(st.booleans()),
        trial=draw(st.booleans()),
        reserves=custom and draw(st.booleans()),
        dedicated=dedicated,
        replicas=draw(st.integers(0, 3)) if dedicated else 1,
        rpm_limit=draw(st.sampled_from((0, 50, 51))),
    )


@st.composite
def histories(draw: st.DrawFn) -> Previous:
    """Statuses that the operator may have written."""
    modes = st.sampled_from(BillingMode)
    ran = draw(st.booleans())
    times = (EARLIER, EARLIER if ran else None)
    reasons = tuple(reason for reason in StopReason if draw(st.integers(0, 3)) == 0)
    return draw(
        st.sampled_from(
            (
                Previous(),
                Previous(Phase.NOT_ENABLED, BillingMode.NONE, (StopReason.POSTPAID_DISABLED,)),
                Previous(Phase.CREATING, draw(modes), (), EARLIER, None),
                Previous(Phase.RUNNING, draw(modes), (), EARLIER, EARLIER),
                Previous(Phase.STOPPED, draw(modes), (), EARLIER, EARLIER),
                Previous(Phase.STOPPED, draw(modes), reasons or (StopReason.OVERDUE,), *times),
            )
        )
    )


def any_facts(
    *, unknown: bool, history: st.SearchStrategy[Previous] | None = None
) -> st.SearchStrategy[Facts]:
    """Facts of any service; with `unknown`, some of them may be unknown."""
    maybe: tuple[Any, ...] = (UNKNOWN,) if unknown else ()
    return st.builds(
        Facts,
        service=services(),
        account=st.sampled_from((*ACCOUNTS, MISSING, *maybe, *(UNSURE_ACCOUNTS if unknown else ()))),
        model=st.sampled_from((*MODELS, MISSING, *maybe)),
        backend=st.one_of(backends(), st.sampled_from((MISSING, EXTERNAL, *maybe))),
        account_key=st.just(ACCOUNT),
        model_name=st.just(MODEL),
        quota=st.sampled_from((*QUOTAS, MISSING, *maybe)),
        reservation=st.sampled_from((*SETTLED, *maybe)),
        backend_error=st.sampled_from(("", "spec.x: refused")),
        previous=histories() if history is None else history,
    )


def resolutions(facts: Facts) -> Iterator[Facts]:
    """All facts with known values in place of the unknown ones."""
    accounts: tuple[Any, ...] = (facts.account,)
    if facts.account is UNKNOWN:
        accounts = (*ACCOUNTS, MISSING)
    elif isinstance(facts.account, AccountFacts):
        accounts = tuple(_certain(facts.account))
    models: tuple[Any, ...] = (*MODELS, MISSING) if facts.model is UNKNOWN else (facts.model,)
    quotas = QUOTAS if facts.quota is UNKNOWN else (facts.quota,)
    reservations = SETTLED if facts.reservation is UNKNOWN else (facts.reservation,)
    for account, model, quota, reservation in product(accounts, models, quotas, reservations):
        yield replace(facts, account=account, model=model, quota=quota, reservation=reservation)


def _certain(account: AccountFacts) -> Iterator[AccountFacts]:
    lefts = (Nano(0), Nano(1)) if account.available is UNKNOWN else (account.available,)
    allows = (True, False) if account.allows is UNKNOWN else (account.allows,)
    for left, allowed in product(lefts, allows):
        yield replace(account, available=left, allows=allowed)
