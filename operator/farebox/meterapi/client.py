"""The ledger over the meter's HTTP API, as the operator uses it.

It never decides and never retries (but for a token that was just replaced): what is not known is reported
as LedgerUnavailable, and every call is safe to repeat.
"""

from collections.abc import Sequence, Set
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meterapi.types import (
    AccountBalance,
    ChangePage,
    CreditLease,
    CreditLeaseRequest,
    Record,
    RecordRefusal,
    TopUpOrder,
    TopUpReceipt,
)
from farebox.meterapi.wire_answers import (
    WireAccount,
    WireBudget,
    WireBudgetClaim,
    WireChanges,
    WirePosted,
    WireTopUp,
)
from farebox.meterapi.wire_records import MAX_RECORDS, RecordSort, WireRecords, WireRefusals
from farebox.sockets import connector

REQUEST_SECONDS: Final = 15.0
"""What a call may take; a long poll has its waiting time on top."""
_WAIT_SLACK_SECONDS: Final = 5.0
_REFUSALS: Final = frozenset({400, 409})
"""Answers to a top-up or a claim that another try would get again."""
_USAGE_DAYS: Final = timedelta(days=89)
"""The meter reads at most 90 at once."""
_NOT_FOUND: Final = frozenset({404})

M = TypeVar("M", bound=BaseModel)


class TokenFile:
    """A bearer token in a file that is replaced now and then, as ServiceAccount tokens are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, ...] = ()
        self._token = ""

    def read(self) -> str:
        """The token as it is now; the file is read again when it has changed.

        Raises:
            LedgerUnavailable: there is no file.
        """
        try:
            stat = self._path.stat()
            # The time alone has steps of milliseconds, and a projected volume swaps a link.
            version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if version != self._version:
                self._token = self._path.read_text().strip()
                self._version = version
        except OSError as error:
            raise LedgerUnavailable(f"the token for the meter cannot be read: {error}") from error
        return self._token


class MeterClient:
    """`LedgerAPI` over HTTP. Make it inside a running event loop; end it with `close`."""

    def __init__(self, url: str, token_file: Path | None = None) -> None:
        """`url` is the meter's, without a path; without `token_file` no token is sent."""
        self._url = url.rstrip("/")
        self._token = None if token_file is None else TokenFile(token_file)
        self._session = aiohttp.ClientSession(
            connector=connector(limit=32, keepalive_timeout=60),
            headers={"User-Agent": "farebox", "Accept": "application/json"},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def __aenter__(self) -> "MeterClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        """See LedgerAPI. Many records go in several requests, in their order."""
        refusals: list[RecordRefusal] = []
        for start in range(0, len(records), MAX_RECORDS):
            page = list(islice(records, start, start + MAX_RECORDS))
            body = WireRecords.of(page).dump()
            answer = await self._call(WireRefusals, "POST", "/v1/records", body=body)
            places = _places(page)
            refusals += (
                RecordRefusal(start + places[item.kind, item.index], item.reason, item.message)
                for item in answer.refused
            )
        return refusals

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        """See LedgerAPI."""
        body = WireTopUp.of(order).dump()
        answer = await self._call(WirePosted, "POST", "/v1/topups", body=body, refusals=_REFUSALS)
        return answer.value()

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        """See LedgerAPI."""
        params = {"after": str(after), "wait": f"{wait_seconds:g}", "limit": str(limit)}
        seconds = wait_seconds + _WAIT_SLACK_SECONDS
        return (await self._call(WireChanges, "GET", "/v1/changes", params=params, seconds=seconds)).value()

    async def lease_credit(self, claim: CreditLeaseRequest) -> CreditLease:
        """Set what a gateway may spend of an account, as far as there is (B17).

        Raises:
            LedgerRefused: AccountNotFound, AmountOutOfRange.
        """
        body = WireBudgetClaim.of(claim).dump()
        answer = await self._call(WireBudget, "POST", "/v1/budgets", body=body, refusals=_REFUSALS)
        return answer.value()

    async def tokens_by_key(
        self, namespace: str, start: datetime, end: datetime, api_key: str = ""
    ) -> dict[str, int]:
        """Tokens, input and output, that the keys of a namespace used between two times, by their names.

        Args:
            api_key: only this one's.
        """
        # Not above: reports bring SQLAlchemy along, 27 MB that the operator does without.
        from farebox.meterapi.reports import WireUsage

        tokens: dict[str, int] = {}
        while start < end:
            until = min(end, start + _USAGE_DAYS)
            params = {
                "namespace": namespace,
                "groupBy": "apiKey",
                "from": start.isoformat(),
                "to": until.isoformat(),
            }
            if api_key:
                params["apiKey"] = api_key
            while True:
                page = await self._call(WireUsage, "GET", "/v1/usage", params=params)
                for row in page.rows:
                    name = row.api_key or ""
                    tokens[name] = tokens.get(name, 0) + row.input_tokens + row.output_tokens
                if page.next is None:
                    break
                params["cursor"] = page.next
            start = until
        return tokens

    async def account(self, key: ObjectKey) -> AccountBalance | None:
        """The account as it is now, or None if it was never recorded."""
        try:
            answer = await self._call(WireAccount, "GET", f"/v1/accounts/{key}", refusals=_NOT_FOUND)
        except LedgerRefused as refusal:
            if refusal.reason != "AccountNotFound":
                raise LedgerUnavailable(f"account {key} cannot be read: {refusal.message}") from refusal
            return None
        return answer.value()

    async def _call(
        self,
        shape: type[M],
        method: str,
        path: str,
        *,
        body: Any = None,
        params: dict[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
        refusals: Set[int] = frozenset(),
    ) -> M:
        status, payload = await self._send(method, path, body, params, seconds)
        try:
            if status == 200:
                return shape.model_validate_json(payload)
            error = _WireError.model_validate_json(payload).error
        except ValidationError as invalid:
            raise LedgerUnavailable(
                f"the meter's answer to {method} {path} ({status}) cannot be read: {invalid.error_count()} "
                f"faults; is {self._url} a meter of this version?"
            ) from invalid
        if status in refusals:
            raise LedgerRefused(error.reason, error.message)
        raise LedgerUnavailable(f"{method} {path} failed with {status} {error.reason}: {error.message}")

    async def _send(
        self, method: str, path: str, body: Any, params: dict[str, str] | None, seconds: float
    ) -> tuple[int, bytes]:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token.read()}"}
        try:
            async with self._session.request(
                method,
                self._url + path,
                json=body,
                params=params,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                return response.status, await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise LedgerUnavailable(
                f"the meter at {self._url} does not answer: {type(error).__name__} {error}"
            ) from error


class _WireErrorBody(BaseModel):
    reason: str
    message: str


class _WireError(BaseModel):
    error: _WireErrorBody


def _places(records: Sequence[Record]) -> dict[tuple[RecordSort, int], int]:
    """Where the record of a sort and index within it is in the list."""
    by_sort: dict[RecordSort, int] = dict.fromkeys(_SORTS.values(), 0)
    places: dict[tuple[RecordSort, int], int] = {}
    for index, record in enumerate(records):
        sort = _SORTS[type(record).__name__]
        places[sort, by_sort[sort]] = index
        by_sort[sort] += 1
    return places


_SORTS: Final[dict[str, RecordSort]] = {
    "AccountRecord": "accounts",
    "Binding": "bindings",
    "PriceVersion": "prices",
    "ReservationRecord": "reservations",
}
