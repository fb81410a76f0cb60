"""Counts that all replicas of the gateway share, in a Valkey server. One script for each call, so none races.

The scripts do what `farebox.domain.admission.rate_limits` says, and the same tests run on both. Times are the
callers': the clocks of gateways that are a second apart make windows a second longer or shorter, and nothing
else.
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
    LimitRequest,
    LimitStatus,
    Window,
    bucket_start,
    first_slot,
    period_end,
    period_status,
    sliding_status,
)
from farebox.errors import CountersUnavailable
from farebox.gateway.ratelimit.memory import TakeResult

_PREFIX: Final = "farebox:"
_CONNECTIONS: Final = 64
_LINGER_MS: Final = 60_000
_LATE_SECONDS: Final = 0.05

# A window is a hash of slots, a period a number. Arguments: the slot of now, the first slot that counts, the
# seconds that a window is kept; then for each key its sort, limit, must, may, whether it binds, its life.
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
  local amount, may = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if ARGV[at + 5] == '1' then may = math.min(may, tonumber(ARGV[at + 2]) - used[i] - amount) end
  amount = amount + may
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
# Arguments: the first slot that counts, the seconds that a window is kept; then for each key its sort, its
# slot, the amount, and for how long it is kept.
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
        timeout: seconds for a connection, and for an answer: a call waits no longer.

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
        self._adjust = self._client.register_script(_ADJUST)
        self._raise = self._client.register_script(_RAISE)
        self._timeout = timeout
        # A crowd of calls waits here for its turn, however long: that is no fault of the server's.
        self._turns = asyncio.Semaphore(_CONNECTIONS)
        self._failures = 0

    async def take(self, demands: Sequence[LimitRequest], now: int) -> TakeResult:
        """See Counters."""
        keys = [_key(demand.counter, demand.window, bucket_start(demand.window, now)) for demand in demands]
        arguments: list[Any] = [now // 1000, first_slot(now), _KEPT_SECONDS]
        for demand in demands:
            arguments += (
                _sort(demand.window),
                demand.limit,
                demand.required,
                demand.optional,
                int(demand.enforced),
                _kept(demand.window, bucket_start(demand.window, now), now),
            )
        exceeded, amounts, *rest = await self._run(self._take, keys, arguments)
        if exceeded:
            return TakeResult((), (), tuple(map(_limit_status, demands, amounts, [now] * len(demands))))
        taken = tuple(
            Consumption(demand.counter, demand.window, now, amount)
            for demand, amount in zip(demands, amounts, strict=True)
        )
        totals = tuple(used + amount for used, amount in zip(rest[0], amounts, strict=True))
        return TakeResult(taken, totals)

    async def adjust(self, adjustments: Sequence[Adjustment], now: int) -> None:
        """See Counters."""
        keys = [_key(each.counter, each.window, each.bucket) for each in adjustments]
        arguments: list[Any] = [first_slot(now), _KEPT_SECONDS]
        for each in adjustments:
            arguments += (_sort(each.window), each.bucket, each.amount, _kept(each.window, each.bucket, now))
        if keys:
            await self._run(self._adjust, keys, arguments)

    async def raise_to(self, counter: str, window: Window, used: int, now: int) -> None:
        """See Counters."""
        at = bucket_start(window, now)
        await self._run(self._raise, [_key(counter, window, at)], [used, _kept(window, at, now)])

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
                raise CountersUnavailable("it did not answer those who asked before")
            try:
                return await self._once_or_twice(command)
            except (ValkeyError, OSError) as error:
                self._failures += 1
                raise CountersUnavailable(f"{type(error).__name__}: {error}") from error

    async def _once_or_twice(self, command: Callable[[], Awaitable[Any]]) -> Any:
        """A time that was over long before this process came to look says nothing of the server."""
        loop = asyncio.get_running_loop()
        late = loop.time() + self._timeout + _LATE_SECONDS
        try:
            return await command()
        except ValkeyTimeoutError:
            if loop.time() < late:
                raise
            return await command()


def _limit_status(demand: LimitRequest, shown: list[int], now: int) -> LimitStatus:
    """Where a limit stands, from what the script showed of its count."""
    if demand.window is Window.SLIDING:
        return sliding_status(demand, dict(zip(shown[::2], shown[1::2], strict=True)), now)
    return period_status(demand, shown[0], now)


def _key(counter: str, window: Window, at: int) -> str:
    return f"{_PREFIX}{counter}" if window is Window.SLIDING else f"{_PREFIX}{counter}:{at}"


def _sort(window: Window) -> str:
    return "w" if window is Window.SLIDING else "p"


def _kept(window: Window, at: int, now: int) -> int:
    """Milliseconds for which a period's count is kept, some more for late corrections; 0: for ever.

    By the caller's clock, like all else: a server whose clock is ahead would drop counts too early.
    """
    end = None if window is Window.SLIDING else period_end(window, at * 1000)
    return 0 if end is None else max(1, end + _LINGER_MS - now)
