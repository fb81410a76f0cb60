"""The client of the meter's HTTP API, for the operator, the gateway and the command line.

It decides nothing and retries nothing. An unknown outcome is a LedgerUnavailable; every call is safe to
repeat.
"""

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import aiohttp
import pydantic_core
from pydantic import BaseModel, ValidationError

from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meterapi.calls import Call, CallPage
from farebox.meterapi.refusals import (
    MAX_COUNTS,
    RefusalCount,
    RefusalCounts,
    RefusalReceipt,
    RefusalReport,
)
from farebox.meterapi.reports import Statement, UsageReport
from farebox.meterapi.schema import (
    MAX_RECORDS,
    SEQUENCE_HEADER,
    RecordsAnswer,
    from_json,
    to_json,
    write_records,
)
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
from farebox.meterapi.usage import IngestResult
from farebox.sockets import connector

REQUEST_SECONDS: Final = 15.0
"""The timeout of a request. A long poll adds its waiting time."""
REPORT_SECONDS: Final = 120.0
"""The timeout of a report for the command line."""
_WAIT_SLACK_SECONDS: Final = 5.0
_USAGE_DAYS: Final = timedelta(days=89)
"""The period of one usage request; the meter allows 90 days."""
_PAGE_ROWS: Final = "5000"
_JSON: Final = "application/json"
_EVENTS: Final = "application/cloudevents-batch+json"

_POSTING_REFUSALS: Final = frozenset({400, 409})
"""Answers to a top-up or a lease request that a retry would get again."""
_BATCH_REFUSALS: Final = frozenset({400, 413})
"""Answers to a batch of events that a smaller batch may not get."""
_REPORT_REFUSALS: Final = frozenset({400, 401, 403, 404, 409})
_NOT_FOUND: Final = frozenset({404})

T = TypeVar("T")


class TokenFile:
    """A bearer token in a file that is replaced from time to time, as ServiceAccount tokens are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: tuple[int, ...] = ()
        self._token = ""

    def read(self) -> str:
        """The current token. The file is read again when it has changed.

        Raises:
            LedgerUnavailable: the file cannot be read.
        """
        try:
            stat = self._path.stat()
            # The time alone has steps of milliseconds, and a projected volume swaps a link.
            version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if version != self._version:
                self._token = self._path.read_text().strip()
                self._version = version
        except OSError as error:
            raise LedgerUnavailable(f"Cannot read the token for the meter: {error}") from error
        return self._token


class MeterClient:
    """`LedgerAPI` over HTTP, with the calls of gateways and reports. Create it in a running event loop."""

    def __init__(self, url: str, token: Path | str | None = None) -> None:
        """`url` is the meter's, without a path. `token` is a bearer token or a file with one."""
        self.url = url.rstrip("/")
        self._token = TokenFile(token) if isinstance(token, Path) else token
        self._session = aiohttp.ClientSession(
            connector=connector(limit=32, keepalive_timeout=60),
            headers={"User-Agent": "farebox", "Accept": _JSON},
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def __aenter__(self) -> "MeterClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def record(self, records: Sequence[Record]) -> Sequence[RecordRefusal]:
        """See LedgerAPI. More than MAX_RECORDS go in several requests, in their order."""
        refusals: list[RecordRefusal] = []
        for start in range(0, len(records), MAX_RECORDS):
            page = records[start : start + MAX_RECORDS]
            answer = await self._call(RecordsAnswer, "POST", "/v1/records", body=write_records(page))
            refusals += (replace(item, index=start + item.index) for item in answer.by_position(page))
        return refusals

    async def post_topup(self, order: TopUpOrder) -> TopUpReceipt:
        """See LedgerAPI."""
        return await self._call(
            TopUpReceipt, "POST", "/v1/topups", body=to_json(order), refusals=_POSTING_REFUSALS
        )

    async def changes(self, after: int, wait_seconds: float, limit: int = 1000) -> ChangePage:
        """See LedgerAPI."""
        params = {"after": str(after), "wait": f"{wait_seconds:g}", "limit": str(limit)}
        seconds = wait_seconds + _WAIT_SLACK_SECONDS
        return await self._call(ChangePage, "GET", "/v1/changes", params=params, seconds=seconds)

    async def lease_credit(self, request: CreditLeaseRequest) -> CreditLease:
        """Set the lease of a gateway to the requested amount, or to what is available (B17).

        Raises:
            LedgerRefused: AccountNotFound, AmountOutOfRange.
        """
        return await self._call(
            CreditLease, "POST", "/v1/budgets", body=to_json(request), refusals=_POSTING_REFUSALS
        )

    async def post_usage(self, events: Sequence[Mapping[str, Any]]) -> IngestResult:
        """Store a batch of CloudEvents and charge them, each once by (source, id) (B12).

        Raises:
            LedgerRefused: HTTP400 or HTTP413: the batch as a whole is refused; a smaller one may not be.
        """
        answer = await self._send(
            "POST", "/v1/events", pydantic_core.to_json(list(events)), content_type=_EVENTS
        )
        if answer.status in _BATCH_REFUSALS:
            raise LedgerRefused(f"HTTP{answer.status}", answer.body.decode(errors="replace")[:500])
        result = self._read(IngestResult, answer)
        sequence = answer.headers.get(SEQUENCE_HEADER, "")
        return replace(result, sequence=int(sequence) if sequence.isdecimal() else 0)

    async def report_refusals(self, source: str, refusals: Sequence[RefusalCount]) -> int:
        """Store counts of refused calls, at most MAX_COUNTS in a request (B32). Returns how many are stored.

        A count may be sent again: the largest one of a source, minute, service, key, code and status counts.

        Raises:
            LedgerRefused: MinuteInFuture, InvalidBody: the meter would refuse them again.
        """
        stored = 0
        for begin in range(0, len(refusals), MAX_COUNTS):
            counts = RefusalCounts(source, tuple(refusals[begin : begin + MAX_COUNTS]))
            answer = await self._call(
                RefusalReceipt, "POST", "/v1/refusals", body=to_json(counts), refusals=_POSTING_REFUSALS
            )
            stored += answer.stored
        return stored

    async def refusals(self, params: Mapping[str, str]) -> RefusalReport:
        """Read GET /v1/refusals. Raises LedgerRefused as `usage` does."""
        return await self._call(
            RefusalReport,
            "GET",
            "/v1/refusals",
            params=params,
            seconds=REPORT_SECONDS,
            refusals=_REPORT_REFUSALS,
        )

    async def tokens_by_key(
        self, namespace: str, start: datetime, end: datetime, api_key: str = ""
    ) -> dict[str, int]:
        """Sum the input and output tokens that a namespace's keys used between two times, by key name.

        Args:
            api_key: limits the sum to this key.
        """
        tokens: dict[str, int] = {}
        query = {"namespace": namespace, "groupBy": "apiKey"} | ({"apiKey": api_key} if api_key else {})
        while start < end:
            until = min(end, start + _USAGE_DAYS)
            times = {"from": start.isoformat(), "to": until.isoformat()}
            async for page in self._usage_pages(query | times, REQUEST_SECONDS, frozenset()):
                for row in page.rows:
                    name = row.api_key or ""
                    tokens[name] = tokens.get(name, 0) + row.input_tokens + row.output_tokens
            start = until
        return tokens

    async def usage(self, params: Mapping[str, str]) -> UsageReport:
        """Read all pages of GET /v1/usage as one report.

        Raises:
            LedgerRefused: the caller may not read it, or a parameter is invalid.
        """
        params = {**params, "limit": _PAGE_ROWS}
        pages = [page async for page in self._usage_pages(params, REPORT_SECONDS, _REPORT_REFUSALS)]
        return replace(pages[-1], rows=tuple(row for page in pages for row in page.rows))

    async def usage_page(self, params: Mapping[str, str]) -> UsageReport:
        """Read one page of GET /v1/usage. Raises LedgerRefused as `usage` does."""
        return await self._call(
            UsageReport, "GET", "/v1/usage", params=params, seconds=REPORT_SECONDS, refusals=_REPORT_REFUSALS
        )

    async def calls(self, params: Mapping[str, str]) -> CallPage:
        """Read a page of GET /v1/calls, the newest call first. Raises LedgerRefused as `usage` does."""
        return await self._call(
            CallPage, "GET", "/v1/calls", params=params, seconds=REPORT_SECONDS, refusals=_REPORT_REFUSALS
        )

    async def call(self, request_id: str, params: Mapping[str, str]) -> Call:
        """Look a call up. `params` has the account or the namespace that it must be of.

        Raises:
            LedgerRefused: CallNotFound; otherwise as `usage`.
        """
        path = f"/v1/calls/{quote(request_id, safe='')}"
        return await self._call(Call, "GET", path, params=params, refusals=_REPORT_REFUSALS)

    async def statement(self, account: ObjectKey, params: Mapping[str, str]) -> Statement:
        """Read the statement of an account. Raises LedgerRefused as `usage` does."""
        return self._read(Statement, await self._statement(account, params))

    async def statement_csv(self, account: ObjectKey, params: Mapping[str, str]) -> bytes:
        """Read the statement of an account as CSV. Raises LedgerRefused as `usage` does."""
        return (await self._statement(account, {**params, "format": "csv"})).body

    async def account(self, key: ObjectKey) -> AccountBalance | None:
        """Read an account; None if it is not recorded."""
        try:
            return await self._call(AccountBalance, "GET", f"/v1/accounts/{key}", refusals=_NOT_FOUND)
        except LedgerRefused as refusal:
            if refusal.reason != "AccountNotFound":
                raise LedgerUnavailable(f"Cannot read account {key}: {refusal.message}") from refusal
            return None

    async def _usage_pages(
        self, params: Mapping[str, str], seconds: float, refusals: Set[int]
    ) -> AsyncIterator[UsageReport]:
        params = dict(params)
        while True:
            page = await self._call(
                UsageReport, "GET", "/v1/usage", params=params, seconds=seconds, refusals=refusals
            )
            yield page
            if page.next is None:
                return
            params["cursor"] = page.next

    async def _statement(self, account: ObjectKey, params: Mapping[str, str]) -> "_Answer":
        path = f"/v1/accounts/{account}/statement"
        answer = await self._send("GET", path, params=params, seconds=REPORT_SECONDS)
        if answer.status != 200:
            raise self._error(answer, _REPORT_REFUSALS)
        return answer

    async def _call(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        params: Mapping[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
        refusals: Set[int] = frozenset(),
    ) -> T:
        """Send a request and read the answer. Statuses in `refusals` are raised as LedgerRefused."""
        answer = await self._send(method, path, body, params=params, seconds=seconds)
        return self._read(kind, answer, refusals)

    def _read(self, kind: type[T], answer: "_Answer", refusals: Set[int] = frozenset()) -> T:
        if answer.status != 200:
            raise self._error(answer, refusals)
        try:
            return from_json(kind, answer.body)
        except ValidationError as invalid:
            raise self._unreadable(answer) from invalid

    def _error(self, answer: "_Answer", refusals: Set[int]) -> LedgerRefused | LedgerUnavailable:
        try:
            error = _ErrorBody.model_validate_json(answer.body).error
        except ValidationError:
            return self._unreadable(answer)
        if answer.status in refusals:
            return LedgerRefused(error.reason, error.message)
        return LedgerUnavailable(
            f"{answer.request} failed with {answer.status} {error.reason}: {error.message}"
        )

    def _unreadable(self, answer: "_Answer") -> LedgerUnavailable:
        return LedgerUnavailable(
            f"Cannot read the answer to {answer.request} ({answer.status}): check that {self.url} is a meter "
            "of this version"
        )

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        content_type: str = _JSON,
        params: Mapping[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> "_Answer":
        headers = {} if body is None else {"Content-Type": content_type}
        if self._token is not None:
            token = self._token.read() if isinstance(self._token, TokenFile) else self._token
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=body,
                params=params,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                return _Answer(f"{method} {path}", response.status, response.headers, await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise LedgerUnavailable(
                f"The meter at {self.url} does not answer: {type(error).__name__} {error}"
            ) from error


class _Answer(NamedTuple):
    """An HTTP answer to `request`, such as "GET /v1/usage"."""

    request: str
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Error(BaseModel):
    reason: str
    message: str


class _ErrorBody(BaseModel):
    error: _Error
