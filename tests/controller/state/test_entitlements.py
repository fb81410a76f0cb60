"""The copy of quotas and reservations: the newest wins, and the begin and end of a quota is recognized."""

from datetime import UTC, datetime

from farebox.api import ReservationState
from farebox.controller.state.entitlements import Entitlements
from farebox.domain.billing.reservations import Buying
from farebox.domain.keys import ObjectKey
from farebox.meterapi.types import QuotaBalance, ReservationBalance

ACME, CHAT = ObjectKey("billing", "acme"), ObjectKey("team-a", "chat")
MODEL = "qwen3-8b"


def quota(sequence: int, used: int, total: int = 100) -> QuotaBalance:
    return QuotaBalance(ACME, MODEL, total, used, datetime(2027, 1, 1, tzinfo=UTC), sequence)


def reservation(sequence: int, uid: str = "u1", buying: Buying = Buying.RENEWING) -> ReservationBalance:
    state = ReservationState.ACTIVE
    return ReservationBalance(CHAT, uid, ACME, MODEL, 10, 10, 30, buying, state, "", "", None, None, sequence)


def test_a_quota_turns_when_it_comes_and_when_it_is_used_up_or_not_any_more() -> None:
    terms = Entitlements()
    turned = [
        turned
        for page in ((1, 0), (2, 50), (3, 100), (4, 130), (5, 130, 200), (6, 140, 200))
        for _, turned in terms.update_quotas([quota(*page)])
    ]
    assert turned == [True, False, True, False, True, False]


def test_an_older_quota_changes_nothing() -> None:
    terms = Entitlements()
    assert len(list(terms.update_quotas([quota(5, 50)]))) == 1
    assert list(terms.update_quotas([quota(5, 60), quota(4, 10)])) == []
    assert terms.quota(ACME, MODEL) == quota(5, 50)
    assert terms.quota(ACME, "other") is None


def test_reservations_are_kept_by_uid_the_newest_of_each() -> None:
    terms = Entitlements()
    page = [reservation(3, "u1"), reservation(4, "u2"), reservation(2, "u1", Buying.NOTHING)]
    assert list(terms.update_reservations(page)) == [CHAT, CHAT]
    assert terms.reservation(CHAT, "u1") == reservation(3, "u1")
    assert terms.reservation(CHAT, "u3") is None
    assert list(terms.services()) == [CHAT]


def test_what_still_buys_under_a_name_that_is_gone_or_anothers_is_ownerless() -> None:
    terms = Entitlements()
    list(terms.update_reservations([reservation(3, "old"), reservation(4, "new")]))
    assert [found.uid for found in terms.orphans(CHAT, "new")] == ["old"]
    assert {found.uid for found in terms.orphans(CHAT)} == {"old", "new"}
    list(terms.update_reservations([reservation(5, "old", Buying.NOTHING)]))
    assert terms.orphans(CHAT, "new") == []


def test_another_ledger_starts_from_nothing() -> None:
    terms = Entitlements()
    list(terms.update_quotas([quota(5, 50)]))
    list(terms.update_reservations([reservation(5)]))
    terms.forget()
    assert (terms.quota(ACME, MODEL), terms.reservation(CHAT, "u1")) == (None, None)
    assert len(list(terms.update_quotas([quota(1, 50)]))) == 1
