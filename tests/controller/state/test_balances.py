"""The copy of the balances: what is silent, in doubt or older than what was reported is unknown."""

from dataclasses import dataclass

import pytest

from farebox.controller.state.balances import Balances
from farebox.domain.billing.money import Nano
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import AccountBalance

ACME, OTHER = ObjectKey("billing", "acme"), ObjectKey("billing", "other")
JULY, AUGUST = ObjectKey("billing", "july"), ObjectKey("billing", "august")


@dataclass
class Time:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def at(sequence: int, account: ObjectKey = ACME, balance: int = 5) -> AccountBalance:
    return AccountBalance(account, "USD", Nano(balance), Nano(0), sequence)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def balances(time: Time) -> Balances:
    """Balances of two accounts, updated just now."""
    made = Balances(45, time)
    made.update([at(7), at(8, OTHER)], complete=True)
    return made


def test_nothing_is_known_before_the_end_of_the_feed(time: Time) -> None:
    balances = Balances(45, time)
    assert not balances.known
    assert balances.age() == float("inf")
    balances.update([at(7)], complete=False)
    assert balances.of(ACME, 0) is UNKNOWN, "more may come"
    balances.update([], complete=True)
    assert balances.of(ACME, 0) == at(7)
    assert balances.of(ObjectKey("billing", "nobody"), 0) is UNKNOWN
    balances.update([at(9)], complete=False)
    assert balances.known, "once complete, a page of news does not make the rest unknown"


def test_every_balance_is_unknown_after_the_feed_stops(balances: Balances, time: Time) -> None:
    time.now += 44.9
    assert balances.of(ACME, 0) == at(7)
    time.now += 0.1
    assert balances.of(ACME, 0) is UNKNOWN
    balances.update([], complete=True)
    assert balances.of(ACME, 0) == at(7)


def test_the_newest_balance_wins_whatever_its_source(balances: Balances) -> None:
    assert balances.update_account(at(9, balance=6)), "a receipt"
    assert balances.update([at(8), at(9), at(12, OTHER)], complete=True) == [OTHER]
    assert balances.of(ACME, 0) == at(9, balance=6)


def test_a_ledger_that_is_behind_what_was_reported_is_not_believed(balances: Balances) -> None:
    assert balances.of(ACME, 7) == at(7)
    assert balances.of(ACME, 8) is UNKNOWN
    assert balances.behind(ACME, 8)
    assert not balances.behind(ACME, 7)
    assert not balances.behind(ObjectKey("billing", "nobody"), 8), "which the ledger does not have"


def test_no_account_is_behind_after_the_feed_stops(balances: Balances, time: Time) -> None:
    """Another replica may have reported a change that this replica has not received yet."""
    time.now += 60
    assert not balances.behind(ACME, 8)


def test_an_unverified_balance_is_unknown_until_its_last_top_up_is_confirmed(balances: Balances) -> None:
    balances.mark_unverified(ACME, [JULY, AUGUST], 8)
    assert balances.is_unverified(ACME, JULY)
    assert not balances.is_unverified(OTHER, JULY)
    assert balances.of(OTHER, 0) == at(8, OTHER)
    assert balances.confirm(JULY) == []
    balances.update_account(at(9))
    assert balances.of(ACME, 0) is UNKNOWN
    assert balances.confirm(JULY) == [], "twice is once"
    assert balances.confirm(AUGUST) == [ACME]
    assert balances.of(ACME, 0) == at(9)
    assert not balances.is_unverified(ACME, AUGUST)


def test_an_unverified_balance_without_top_ups_is_confirmed_at_once(balances: Balances) -> None:
    """What the ledger lacks is usage alone: it is as it is."""
    balances.mark_unverified(ACME, [], 20)
    assert balances.of(ACME, 20) == at(7)
    assert not balances.behind(ACME, 20)
    assert balances.behind(ACME, 21), "a later report is another matter"


def test_marks_add_up(balances: Balances) -> None:
    balances.mark_unverified(ACME, [JULY], 8)
    balances.mark_unverified(ACME, [AUGUST], 0)
    assert not balances.behind(ACME, 8), "it was doubted for that"
    assert balances.confirm(AUGUST) == []
    assert balances.confirm(JULY) == [ACME]


def test_a_restored_ledger_starts_from_nothing(balances: Balances) -> None:
    balances.forget()
    balances.mark_unverified(ACME, [JULY], 7)
    assert not balances.known
    balances.update([at(3)], complete=True)
    assert balances.of(ACME, 7) is UNKNOWN, "its top-ups are not back"
    assert balances.of(OTHER, 0) is UNKNOWN, "it is not in this ledger yet"
    balances.confirm(JULY)
    assert balances.of(ACME, 7) == at(3)
