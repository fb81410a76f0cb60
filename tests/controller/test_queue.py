"""The work queue: each key once, one worker at a time, nothing forgotten, single edits first."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import pytest

from farebox.controller.queue import Key, Kind, Priority, TokenBucket, WorkQueue


def key(number: int) -> Key:
    return Key(Kind.SERVICE, "team-a", f"service-{number}")


A, B, C = key(1), key(2), key(3)
Waiting: TypeAlias = asyncio.Task[tuple[Key, Priority]]


async def turn() -> None:
    """Let everything that can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def worker(queue: WorkQueue, slowest: Priority = Priority.LOW) -> AsyncIterator[Waiting]:
    """A worker that waits for one key."""
    task = asyncio.create_task(queue.get(slowest))
    await turn()
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def taken(queue: WorkQueue, slowest: Priority = Priority.LOW) -> Key | None:
    """The key that a worker gets now, if it need not wait."""
    async with worker(queue, slowest) as waiting:
        return waiting.result()[0] if waiting.done() else None


# -- a key is there once ------------------------------------------------------------------------------


async def test_a_key_added_often_is_worked_on_once() -> None:
    queue = WorkQueue()
    for _ in range(10):
        queue.add(A)
    assert len(queue) == 1
    assert await taken(queue) == A
    assert await taken(queue) is None
    queue.done(A)
    assert await taken(queue) is None
    assert queue.idle()


async def test_keys_of_a_lane_come_in_the_order_of_their_first_add() -> None:
    queue = WorkQueue()
    for added in (A, B, A, C):
        queue.add(added)
    assert [await taken(queue) for _ in range(3)] == [A, B, C]


async def test_no_two_workers_have_the_same_key() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await taken(queue) == A
    queue.add(A)
    assert await taken(queue) is None, "somebody works on it"
    queue.done(A)
    assert await taken(queue) == A, "what was added meanwhile comes again"
    queue.done(A)
    assert await taken(queue) is None, "and only once"


async def test_a_queue_that_is_worked_on_is_not_idle() -> None:
    queue = WorkQueue()
    assert queue.idle()
    queue.add(A)
    assert not queue.idle()
    assert await taken(queue) == A
    assert (len(queue), queue.idle()) == (0, False)
    queue.done(A)
    assert queue.idle()


# -- priorities --------------------------------------------------------------------------------------------


async def test_a_single_edit_overtakes_bulk_work() -> None:
    queue = WorkQueue()
    queue.add(A, Priority.LOW)
    queue.add(B, Priority.LOW)
    queue.add(C, Priority.HIGH)
    assert [await taken(queue) for _ in range(3)] == [C, A, B]


async def test_a_key_that_waits_in_bulk_moves_to_the_front_when_it_is_edited() -> None:
    queue = WorkQueue()
    queue.add(A, Priority.LOW)
    queue.add(B, Priority.LOW)
    queue.add(B, Priority.HIGH)
    assert len(queue) == 2
    assert await queue.get() == (B, Priority.HIGH)
    assert await taken(queue) == A
    queue.done(B)
    assert await taken(queue) is None


async def test_bulk_work_does_not_slow_an_edit_down() -> None:
    queue = WorkQueue()
    queue.add(A, Priority.HIGH)
    queue.add(A, Priority.LOW)
    assert await queue.get() == (A, Priority.HIGH)


async def test_a_worker_of_the_fast_lane_takes_no_bulk_work() -> None:
    queue = WorkQueue()
    queue.add(A, Priority.LOW)
    assert await taken(queue, Priority.HIGH) is None
    queue.add(B, Priority.HIGH)
    assert await taken(queue, Priority.HIGH) == B


async def test_the_fastest_lane_asked_for_meanwhile_counts() -> None:
    queue = WorkQueue()
    queue.add(A, Priority.LOW)
    assert await taken(queue) == A
    for priority in (Priority.LOW, Priority.HIGH, Priority.LOW):
        queue.add(A, priority)
    queue.done(A)
    assert await queue.get() == (A, Priority.HIGH)


# -- waiting ------------------------------------------------------------------------------------------


async def test_a_waiting_worker_is_woken() -> None:
    queue = WorkQueue()
    async with worker(queue) as waiting:
        assert not waiting.done()
        queue.add(A, Priority.LOW)
        assert await waiting == (A, Priority.LOW)


async def test_an_edit_wakes_a_worker_of_the_fast_lane_first() -> None:
    queue = WorkQueue()
    async with worker(queue, Priority.LOW) as bulk, worker(queue, Priority.HIGH) as fast:
        queue.add(A, Priority.HIGH)
        assert await fast == (A, Priority.HIGH)
        assert not bulk.done()


async def test_an_edit_wakes_a_worker_of_the_bulk_lane_if_no_other_waits() -> None:
    queue = WorkQueue()
    async with worker(queue, Priority.LOW) as bulk:
        queue.add(A, Priority.HIGH)
        assert await bulk == (A, Priority.HIGH)


@pytest.mark.parametrize("priority", Priority)
async def test_a_cancelled_worker_hands_on_its_wake_up(priority: Priority) -> None:
    queue = WorkQueue()
    async with worker(queue) as first, worker(queue) as second:
        queue.add(A, priority)
        first.cancel()  # it was woken, and has not run yet
        assert await second == (A, priority)
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_a_worker_cancelled_while_it_waits_takes_no_wake_up() -> None:
    queue = WorkQueue()
    async with worker(queue) as first, worker(queue) as second:
        first.cancel()
        await turn()
        queue.add(A)
        assert (await second)[0] == A


# -- later --------------------------------------------------------------------------------------------


async def test_a_key_for_later_comes_when_it_is_due() -> None:
    queue = WorkQueue()
    loop = asyncio.get_running_loop()
    started = loop.time()
    queue.add_after(B, 3600, Priority.HIGH)
    queue.add_after(A, 0.02, Priority.HIGH)
    assert await queue.get() == (A, Priority.HIGH)
    assert loop.time() - started >= 0.019
    assert await taken(queue) is None


async def test_of_several_requests_for_later_the_earliest_counts() -> None:
    queue = WorkQueue()
    queue.add_after(A, 3600)
    queue.add_after(A, 0.01)
    queue.add_after(A, 3600)
    assert (await asyncio.wait_for(queue.get(), 60))[0] == A
    queue.done(A)
    await turn()
    assert queue.idle()


async def test_a_key_for_later_can_be_asked_for_now() -> None:
    queue = WorkQueue()
    queue.add_after(A, 0.02)
    queue.add(A)
    assert await taken(queue) == A
    queue.done(A)
    assert (await asyncio.wait_for(queue.get(), 60))[0] == A, "the later look is still due"


async def test_failures_wait_ever_longer_up_to_the_limit() -> None:
    queue = WorkQueue(base_delay=1.0, max_delay=10.0, jitter=lambda: 1.0)
    assert [queue.retry(A, Priority.LOW) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert queue.retry(B, Priority.LOW) == 1.0, "each key has its own"
    queue.forget(A)
    assert queue.retry(A, Priority.LOW) == 1.0


async def test_jitter_spreads_retries_between_half_and_all_of_the_backoff() -> None:
    least = WorkQueue(base_delay=1.0, jitter=lambda: 0.0)
    middle = WorkQueue(base_delay=1.0, jitter=lambda: 0.5)
    assert (least.retry(A, Priority.HIGH), middle.retry(A, Priority.HIGH)) == (0.5, 0.75)


async def test_thousands_of_failures_do_not_overflow() -> None:
    queue = WorkQueue(max_delay=60.0, jitter=lambda: 1.0)
    assert [queue.retry(A, Priority.LOW) for _ in range(2000)][-1] == 60.0


async def test_a_failed_key_comes_back_in_its_lane() -> None:
    queue = WorkQueue(base_delay=0.001)
    queue.add(A)
    got, priority = await queue.get()
    queue.retry(got, priority)
    queue.done(got)
    assert await asyncio.wait_for(queue.get(), 60) == (A, Priority.HIGH)


# -- all of it at once --------------------------------------------------------------------------------


class Shop:
    """Workers that read a version of each key, as reconcilers read the newest facts."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.queue = WorkQueue(base_delay=0.0001, max_delay=0.001, jitter=self.random.random)
        self.wanted: Counter[Key] = Counter()
        self.seen: Counter[Key] = Counter()
        self.busy: set[Key] = set()
        self.workers: list[asyncio.Task[None]] = []

    def hire(self, slowest: Priority) -> None:
        self.workers.append(asyncio.create_task(self._work(slowest)))

    async def _work(self, slowest: Priority) -> None:
        while True:
            key, priority = await self.queue.get(slowest)
            assert key not in self.busy, "two workers have the same key"
            assert priority <= slowest
            self.busy.add(key)
            version = self.wanted[key]
            try:
                for _ in range(self.random.randrange(4)):
                    await asyncio.sleep(0)
                if self.random.random() < 0.1:
                    self.queue.retry(key, priority)
                else:
                    self.seen[key] = version
                    self.queue.forget(key)
            except asyncio.CancelledError:
                # A worker that ends in the middle leaves the key to the next one.
                self.queue.add(key, priority)
                raise
            finally:
                self.busy.discard(key)
                self.queue.done(key)

    def change(self, key: Key) -> None:
        """Something about the key is new."""
        self.wanted[key] += 1
        priority = self.random.choice(list(Priority))
        if self.random.random() < 0.1:
            self.queue.add_after(key, self.random.random() / 1000, priority)
        else:
            self.queue.add(key, priority)

    def replace_a_worker(self) -> None:
        """One worker ends wherever it is; another begins."""
        gone = self.workers.pop(self.random.randrange(1, len(self.workers)))
        gone.cancel()
        self.hire(self.random.choice(list(Priority)))

    async def until_all_is_seen(self) -> None:
        while self.seen != self.wanted or self.busy:
            assert not [task for task in self.workers if task.done()], self.workers
            await asyncio.sleep(0.0005)


@pytest.mark.parametrize("seed", range(12))
async def test_each_key_is_reconciled_after_its_last_change(seed: int) -> None:
    shop = Shop(seed)
    for slowest in (Priority.LOW, Priority.HIGH, Priority.LOW, Priority.HIGH, Priority.LOW, Priority.LOW):
        shop.hire(slowest)
    for _ in range(400):
        for _ in range(shop.random.randrange(4)):
            shop.change(key(shop.random.randrange(15)))
        if shop.random.random() < 0.05:
            shop.replace_a_worker()
        if shop.random.random() < 0.7:
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await shop.until_all_is_seen()
    for task in shop.workers:
        task.cancel()
    await asyncio.gather(*shop.workers, return_exceptions=True)


# -- tokens -------------------------------------------------------------------------------------------


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_a_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=8.0, burst=3, clock=clock)
    assert [bucket.try_take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.125
    assert [bucket.try_take() for _ in range(2)] == [True, False]


def test_tokens_do_not_pile_up_beyond_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=8.0, burst=3, clock=clock)
    clock.now += 3600
    assert [bucket.try_take() for _ in range(4)] == [True, True, True, False]


async def test_waiters_are_served_in_order_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10.0, burst=1, clock=clock)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(round(seconds, 6))

    monkeypatch.setattr("farebox.controller.queue.asyncio.sleep", sleep)
    for _ in range(4):
        await bucket.take()
    assert waits == [0.1, 0.2, 0.3]
    assert not bucket.try_take(), "those who wait come first"
    clock.now += 0.5
    assert bucket.try_take()


async def test_reconciles_that_never_wait_yield_to_other_tasks() -> None:
    queue = WorkQueue()
    done = 0

    async def drain() -> None:
        nonlocal done
        while True:
            taken_key, _ = await queue.get()
            done += 1
            queue.done(taken_key)

    for number in range(1000):
        queue.add(key(number), Priority.LOW)
    draining = asyncio.create_task(drain())
    await turn()
    assert 0 < done < 10
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
