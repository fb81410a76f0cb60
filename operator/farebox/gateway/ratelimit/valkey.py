"""Counts that all replicas of the gateway share, in a Valkey server. One script per call, so none can race.

The scripts implement `farebox.domain.admission.rate_limits`, and the same tests run on both. Times are those
of the gateways: if their clocks differ by a second, windows are a second longer or shorter.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from valkey.asyncio import ConnectionPool, Valkey
from valkey.exceptions import TimeoutError as ValkeyTimeoutError
from valkey.exceptions import ValkeyError

from farebox.domain.admission.rate_limits import (
    SLIDING_SECONDS,
    Adjustment,
    Consumption,
    bucket_start,
    first_slot,
    period_end,
    period_status,
    sliding_status,
)
from farebox.domain.admission.types import LimitRequest, LimitStatus, Window
from farebox.errors import CountersUnavailable
from farebox.gateway.ratelimit.base import TakeResult

_PREFIX: Final = "farebox:"
_CONNECTIONS: Final = 64
_LINGER_MS: Final = 60_000
_LATE_SECONDS: Final = 0.05

# A window is a hash of slots, a period a number. Arguments: the current slot, the first slot that counts, the
# lifetime of a window in seconds; then for each key its kind ('w' or 'p'), limit, required amount, optional
# amount, whether it is enforced, and its lifetime in milliseconds.
_TAKE: Final = """
local used, shown, exceeded = {}, {}, false
for i, key in ipairs(KEYS) do
  local at = 3 + (i - 1) * 6
  if ARGV[at + 1] == 'w' then
    local sum, live, old = 0, {}, {}
    local all = redis.call('HGETALL', key)
    for j = 1, #all, 2 do
      if tonumber(all[j]) >= tonumber(ARGV[2]) then
        sum = sum + tonumber(all[j + 1])
        live[#live + 1] = tonumber(all[j])
        live[#live + 1] = tonumber(all[j + 1])
      else
        old[#old + 1] = all[j]
      end
    end
    if #old > 0 then redis.call('HDEL', key, unpack(old)) end
    used[i], shown[i] = sum, live
  else
    used[i] = tonumber(redis.call('GET', key) or '0')
    shown[i] = {used[i]}
  end
  local after = used[i] + tonumber(ARGV[at + 3])
  if ARGV[at + 5] == '1' and after > tonumber(ARGV[at + 2]) then exceeded = true end
end
if exceeded then return {1, shown} end
local amounts = {}
for i, key in ipairs(KEYS) do
  local at = 3 + (i - 1) * 6
  local amount, optional = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if ARGV[at + 5] == '1' then
    optional = math.min(optional, tonumber(ARGV[at + 2]) - used[i] - amount)
  end
  amount = amount + optional
  if ARGV[at + 1] == 'w' then
    redis.call('HINCRBY', key, ARGV[1], amount)
    redis.call('EXPIRE', key, ARGV[3])
  else
    redis.call('INCRBY', key, amount)
    if ARGV[at + 6] ~= '0' then redis.call('PEXPIRE', key, ARGV[at + 6]) end
  end
  amounts[i] = amount
end
return {0, amounts, used}
"""
# Arguments: for each key its kind.
_READ: Final = """
local shown = {}
for i, key in ipairs(KEYS) do
  if ARGV[i] == 'w' then
    local all, numbers = redis.call('HGETALL', key), {}
    for j = 1, #all do numbers[j] = tonumber(all[j]) end
    shown[i] = numbers
  else
    shown[i] = {tonumber(redis.call('GET', key) or '0')}
  end
end
return shown
"""
# Arguments: the first slot that counts, the lifetime of a window in seconds; then for each key its kind, its
# slot, the amount, and its lifetime in milliseconds.
_ADJUST: Final = """
for i, key in ipairs(KEYS) do
  local at = 2 + (i - 1) * 4
  local amount, slot = tonumber(ARGV[at + 3]), ARGV[at + 2]
  if ARGV[at + 1] == 'w' then
    if tonumber(slot) >= tonumber(ARGV[1]) and (amount > 0 or redis.call('HEXISTS', key, slot) == 1) then
      redis.call('HINCRBY', key, slot, amount)
      redis.call('EXPIRE', key, ARGV[2])
    end
  elseif amount > 0 or redis.call('EXISTS', key) == 1 then
    redis.call('INCRBY', key, amount)
    if ARGV[at + 4] ~= '0' then redis.call('PEXPIRE', key, ARGV[at + 4]) end
  end
end
return 0
"""
_RAISE: Final = """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
if ARGV[2] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_KEPT_SECONDS: Final = 2 * SLIDING_SECONDS + 2


class ValkeyCounters:
    """Counts in a Valkey server. Every method raises CountersUnavailable when it does not answer in time.

    Args:
        url: "valkey://[user:password@]host:port/database", or "valkeys://" for TLS, or "unix:///path".
        timeout: seconds to wait for a connection, and for an answer.

    The server must not evict keys (`maxmemory-policy noeviction`), and quotas of keys outlive its restart
    only if it persists (`appendonly yes`).
    """

    def __init__(self, url: str, timeout: float = 0.25) -> None:
        pool = ConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
        )
        self._client: Any = Valkey(connection_pool=pool)
        self._take = self._client.register_script(_TAKE)
        self._read = self._client.register_script(_READ)
        self._adjust = self._client.register_script(_ADJUST)
        self._raise = self._client.register_script(_RAISE)
        self._timeout = timeout
        # Calls beyond the connections wait here. The wait does not count as a timeout of the server.
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._failures = 0

    async def take(self, requests: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters."""
        keys = [_key(each.counter, each.window, bucket_start(each.window, now)) for each in requests]
        arguments: list[Any] = [now // 1000, first_slot(now), _KEPT_SECONDS]
        for each in requests:
            arguments += (
                _kind(each.window),
                each.limit,
                each.required,
                each.optional,
                int(each.enforced),
                _lifetime(each.window, bucket_start(each.window, now), now),
            )
        exceeded, amounts, *rest = await self._run(self._take, keys, arguments)
        if exceeded:
            statuses = tuple(map(_limit_status, requests, amounts, [now] * len(requests)))
            return TakeResult((), limit_statuses=statuses)
        consumption = tuple(
            Consumption(each.counter, each.window, now, amount)
            for each, amount in zip(requests, amounts, strict=True)
        )
        totals = tuple(used + amount for used, amount in zip(rest[0], amounts, strict=True))
        return TakeResult(consumption, totals, tuple(requests))

    async def read(self, requests: Sequence[LimitRequest], now: int) -> tuple[LimitStatus, ...]:
        """See Counters."""
        if not requests:
            return ()
        keys = [_key(each.counter, each.window, bucket_start(each.window, now)) for each in requests]
        shown = await self._run(self._read, keys, [_kind(each.window) for each in requests])
        return tuple(map(_limit_status, requests, shown, [now] * len(requests)))

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        keys = [_key(each.counter, each.window, each.bucket) for each in adjustments]
        arguments: list[Any] = [first_slot(now), _KEPT_SECONDS]
        for each in adjustments:
            arguments += (
                _kind(each.window),
                each.bucket,
                each.amount,
                _lifetime(each.window, each.bucket, now),
            )
        if keys:
            await self._run(self._adjust, keys, arguments)

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """See Counters."""
        bucket = bucket_start(window, now)
        await self._run(self._raise, [_key(counter, window, bucket)], [used, _lifetime(window, bucket, now)])

    async def reach(self) -> None:
        """Raise CountersUnavailable unless the server answers."""
        await self._ask(self._client.ping)

    async def close(self) -> None:
        """See Counters."""
        await self._client.aclose(close_connection_pool=True)

    async def _run(self, script: Any, keys: list[str], arguments: list[Any]) -> Any:
        return await self._ask(partial(script, keys=keys, args=arguments))

    async def _ask(self, command: Callable[[], Awaitable[Any]]) -> Any:
        failures = self._failures
        async with self._turns:
            if failures != self._failures:
                raise CountersUnavailable("an earlier call got no answer")
            try:
                return await self._retry_if_late(command)
            except (ValkeyError, OSError) as error:
                self._failures += 1
                raise CountersUnavailable(f"{type(error).__name__}: {error}") from error

    async def _retry_if_late(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """Run a command; repeat it once if this process was too busy to see the answer before the timeout."""
        loop = asyncio.get_running_loop()
        late = loop.time() + self._timeout + _LATE_SECONDS
        try:
            return await command()
        except ValkeyTimeoutError:
            if loop.time() < late:
                raise
            return await command()


def _limit_status(request: LimitRequest, shown: list[int], now: int) -> LimitStatus:
    """The status of a limit, from the script's answer: slots and amounts of a window, or one amount."""
    if request.window is Window.SLIDING:
        return sliding_status(request, dict(zip(shown[::2], shown[1::2], strict=True)), now)
    return period_status(request, shown[0], now)


def _key(counter: str, window: Window, bucket: int) -> str:
    return f"{_PREFIX}{counter}" if window is Window.SLIDING else f"{_PREFIX}{counter}:{bucket}"


def _kind(window: Window) -> str:
    return "w" if window is Window.SLIDING else "p"


def _lifetime(window: Window, bucket: int, now: int) -> int:
    """Milliseconds until a period's count may be dropped, with time for late corrections; 0: never.

    It is relative to the caller's clock, because a server whose clock is ahead would drop counts too early.
    """
    end = None if window is Window.SLIDING else period_end(window, bucket * 1000)
    return 0 if end is None else max(1, end + _LINGER_MS - now)
