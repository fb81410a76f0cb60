"""Windows and periods, and the amounts that fit into them (B15)."""

from collections import Counter
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.admission.rate_limits import (
    Consumption,
    amount_to_take,
    bucket_start,
    corrections,
    first_exceeded,
    first_slot,
    period_end,
    period_status,
    sliding_status,
    sliding_used,
)
from farebox.domain.admission.types import LimitRequest, Window
from tests.domain.strategies import THOROUGH


def at(text: str) -> int:
    """Milliseconds of a time in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOON = at("2026-03-01T12:00:00")


def rpm(limit: int, required: int = 1, optional: int = 0, *, enforced: bool = True) -> LimitRequest:
    return LimitRequest("rpm", "rpm:{a}/b", Window.SLIDING, limit, required, optional, enforced)


def quota(limit: int, required: int = 1, window: Window = Window.DAY) -> LimitRequest:
    return LimitRequest("key_quota_day", "key:{a}/b", window, limit, required)


@THOROUGH
@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 25_000), st.integers(1, 3), st.integers(0, 3)), max_size=60),
)
def test_no_sixty_seconds_have_more_than_the_limit(limit: int, steps: list[tuple[int, int, int]]) -> None:
    now, slots, admitted = NOON, Counter[int](), []
    for step, required, optional in steps:
        now += step
        request = rpm(limit, required, optional)
        limit_status = sliding_status(request, slots, now)
        if not limit_status.exceeded:
            amount = amount_to_take(request, limit_status.used)
            slots[bucket_start(Window.SLIDING, now)] += amount
            admitted.append((now, amount))
    for begin, _ in admitted:
        assert sum(amount for when, amount in admitted if begin <= when <= begin + 60_000) <= limit


@THOROUGH
@given(
    limit=st.integers(1, 50),
    required=st.integers(1, 60),
    slots=st.dictionaries(st.integers(-70, 0), st.integers(1, 20), max_size=20),
    millisecond=st.integers(0, 999),
)
def test_retry_after_is_the_first_moment_at_which_it_fits(
    limit: int, required: int, slots: dict[int, int], millisecond: int
) -> None:
    now = NOON + millisecond
    slots = {NOON // 1000 + slot: amount for slot, amount in slots.items()}
    limit_status = sliding_status(rpm(limit, required), slots, now)
    if required > limit:
        assert limit_status.retry_ms is None
        return
    assert limit_status.retry_ms is not None
    assert limit_status.retry_ms <= 61_000
    assert not sliding_status(rpm(limit, required), slots, now + limit_status.retry_ms).exceeded
    if limit_status.retry_ms:
        assert sliding_status(rpm(limit, required), slots, now + limit_status.retry_ms - 1).exceeded
    assert limit_status.reset_ms is not None
    assert sliding_used(slots, now + limit_status.reset_ms) == 0


@pytest.mark.parametrize(
    ("window", "now", "begin", "end"),
    [
        (Window.MINUTE, "2026-03-01T12:00:59", "2026-03-01T12:00:00", "2026-03-01T12:01:00"),
        (Window.DAY, "2026-03-01T23:59:59", "2026-03-01T00:00:00", "2026-03-02T00:00:00"),
        (Window.DAY, "2026-03-02T00:00:00", "2026-03-02T00:00:00", "2026-03-03T00:00:00"),
        (Window.MONTH, "2026-02-28T23:59:59", "2026-02-01T00:00:00", "2026-03-01T00:00:00"),
        (Window.MONTH, "2028-02-29T12:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        (Window.MONTH, "2026-12-31T12:00:00", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_periods_are_calendar_periods_of_utc(window: Window, now: str, begin: str, end: str) -> None:
    assert bucket_start(window, at(now)) * 1000 == at(begin)
    assert period_end(window, at(now)) == at(end)


def test_a_lifetime_has_one_bucket_and_no_end() -> None:
    assert (bucket_start(Window.LIFETIME, NOON), period_end(Window.LIFETIME, NOON)) == (0, None)
    limit_status = period_status(quota(10, window=Window.LIFETIME), 10, NOON)
    assert limit_status.exceeded
    assert (limit_status.retry_ms, limit_status.reset_ms, limit_status.remaining) == (None, None, 0)


def test_an_exhausted_quota_resets_with_its_period() -> None:
    limit_status = period_status(quota(10), 10, NOON)
    assert limit_status.exceeded
    assert limit_status.retry_ms == limit_status.reset_ms == 12 * 3600 * 1000


def test_the_optional_amount_is_counted_as_far_as_it_fits() -> None:
    assert amount_to_take(rpm(10, 3, 100), used=5) == 5
    assert amount_to_take(rpm(10, 3, 1), used=5) == 4
    assert amount_to_take(rpm(10, 3, 100, enforced=False), used=50) == 103


def test_a_request_that_is_not_enforced_refuses_nothing() -> None:
    limit_status = sliding_status(rpm(10, 3, enforced=False), {NOON // 1000: 100}, NOON)
    assert not limit_status.exceeded
    assert first_exceeded([limit_status]) is None


@THOROUGH
@given(
    window=st.sampled_from(Window),
    taken=st.integers(0, 1000),
    actual=st.integers(0, 1000),
    later=st.integers(0, 40 * 86_400_000),
)
def test_a_correction_leaves_the_actual_use(window: Window, taken: int, actual: int, later: int) -> None:
    now = NOON + later
    counts = Counter({bucket_start(window, NOON): taken})
    for adjustment in corrections(Consumption("c", window, NOON, taken), actual, now):
        assert adjustment.amount != 0
        counts[adjustment.bucket] += adjustment.amount
    assert min(counts.values()) >= 0
    assert sum(counts.values()) == actual
    if window is not Window.SLIDING:
        assert counts[bucket_start(window, now)] == actual


def test_the_oldest_slot_that_counts_is_a_minute_old() -> None:
    assert first_slot(NOON + 999) == NOON // 1000 - 60
    assert sliding_used({NOON // 1000 - 60: 1, NOON // 1000 - 61: 2}, NOON + 999) == 1
