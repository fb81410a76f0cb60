"""MeterClient returns what the ledger returns, and raises LedgerUnavailable when the outcome is unknown."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from farebox.domain.billing.money import Nano
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meterapi.client import MeterClient
from farebox.meterapi.types import LedgerAPI, Record
from tests.ledger.support import ACME, FACTS, START, binding, flat, price, terms, topup, usage
from tests.meter.support import GATEWAY, OPERATOR, READER, Running


class Token:
    """A token in a file, as in a projected volume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replace(OPERATOR)

    def replace(self, token: str) -> None:
        """Replace the token."""
        self.path.write_text(token + "\n")

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink()


@pytest.fixture
def token(tmp_path: Path) -> Token:
    """The operator's token."""
    return Token(tmp_path / "token")


@pytest_asyncio.fixture
async def remote(meter: Running, token: Token) -> AsyncIterator[MeterClient]:
    """The ledger over HTTP, with the operator's token."""
    async with MeterClient(meter.url, token.path) as ledger:
        yield ledger


async def same(one: LedgerAPI, other: LedgerAPI, ask: Any) -> Any:
    """The answer of both, which must be equal."""
    first, second = await ask(one), await ask(other)
    assert first == second
    return first


async def test_client_and_ledger_return_the_same_answers(remote: MeterClient, meter: Running) -> None:
    tiers = flat(123_456_789)
    assert await remote.record([*FACTS, price("m2", tiers), terms(limit="1.000000001")]) == []
    first = await remote.post_topup(topup(amount="0.000000001"))
    assert (first.posted_at, first.duplicate, first.balance_after) == (START, False, 1)
    await meter.ledger.ingest([usage()])
    receipt = await same(remote, meter.ledger, lambda ledger: ledger.post_topup(topup(amount="0.000000001")))
    assert (receipt.duplicate, receipt.account.balance) == (True, 1 - 80_000)
    page = await same(remote, meter.ledger, lambda ledger: ledger.changes(0, 0))
    assert page.accounts[0].credit_limit == 1_000_000_001
    await same(remote, meter.ledger, lambda ledger: ledger.changes(page.head, 0.01))


async def test_refusals_have_the_index_of_their_record(remote: MeterClient, meter: Running) -> None:
    records: list[Record] = [
        binding(),
        terms(),
        price(tiers=()),
        terms(currency="EUR"),
        price(),
        binding(model=""),
    ]
    refused = await remote.record(records)
    assert sorted((item.index, item.reason) for item in refused) == [
        (2, "InvalidPrice"),
        (3, "CurrencyMismatch"),
        (5, "InvalidRecord"),
    ]
    assert (await meter.ledger.ingest([usage()])).pending == 0


async def test_more_than_max_records_are_sent_in_several_requests(
    remote: MeterClient, meter: Running
) -> None:
    services = [ObjectKey("team", f"s{number}") for number in range(5_500)]
    records: list[Record] = [binding(service) for service in services]
    records.append(price(tiers=()))
    assert [item.index for item in await remote.record([terms(), price(), *records])] == [5_502]
    assert (await meter.ledger.ingest([usage(service=services[-1])])).pending == 0


async def test_a_refused_topup_raises_ledger_refused(remote: MeterClient) -> None:
    with pytest.raises(LedgerRefused) as refused:
        await remote.post_topup(topup())
    assert refused.value.reason == "AccountNotFound"
    await remote.record([terms()])
    with pytest.raises(LedgerRefused) as refused:
        await remote.post_topup(topup(amount=Nano(0)))
    assert refused.value.reason == "AmountOutOfRange"


async def test_an_unrecorded_account_is_read_as_none(
    remote: MeterClient, meter: Running, token: Token
) -> None:
    token.replace(READER)
    assert await remote.account(ACME) is None
    await meter.ledger.record([terms()])
    assert await remote.account(ACME) == await meter.ledger.account(ACME)


async def test_a_replaced_token_file_is_read_again(remote: MeterClient, token: Token) -> None:
    token.replace(GATEWAY)
    with pytest.raises(LedgerUnavailable, match="403"):
        await remote.changes(0, 0)
    token.replace("expired")
    with pytest.raises(LedgerUnavailable, match="401"):
        await remote.changes(0, 0)
    token.replace(OPERATOR)
    assert (await remote.changes(0, 0)).head == 0
    token.remove()
    with pytest.raises(LedgerUnavailable, match="token"):
        await remote.changes(0, 0)


async def test_a_long_poll_ends_with_the_change(remote: MeterClient, meter: Running) -> None:
    waiting = asyncio.create_task(remote.changes(0, 60))
    await remote.changes(0, 0.01)
    await meter.ledger.record([terms()])
    assert (await asyncio.wait_for(waiting, 50)).accounts[0].account == ACME


async def test_an_unreachable_or_unready_meter_raises_ledger_unavailable(
    remote: MeterClient, meter: Running
) -> None:
    meter.meter.ledger, ledger = None, meter.meter.ledger
    with pytest.raises(LedgerUnavailable, match="503"):
        await remote.record([terms()])
    meter.meter.ledger = ledger
    async with MeterClient("http://127.0.0.1:9") as nowhere:
        for call in (nowhere.record([terms()]), nowhere.post_topup(topup()), nowhere.changes(0, 0)):
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                await call


@pytest.mark.parametrize(
    ("status", "text"),
    [
        *((200, "<html>"), (200, "{}"), (500, "oops"), (502, "{}"), (302, ""), (200, '{"posted_at": 1}')),
        (200, '{"refused": [{"kind": "orders", "index": 0, "reason": "InvalidRecord", "message": "?"}]}'),
    ],
)
async def test_an_unreadable_answer_raises_ledger_unavailable(status: int, text: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with MeterClient(site.name) as remote:
            with pytest.raises(LedgerUnavailable):
                await remote.post_topup(topup())
            with pytest.raises(LedgerUnavailable):
                await remote.record([terms()])
            with pytest.raises(LedgerUnavailable):
                await remote.changes(0, 0)
    finally:
        await runner.cleanup()


async def test_a_lost_connection_raises_ledger_unavailable() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, MeterClient(f"http://127.0.0.1:{port}") as remote:
        with pytest.raises(LedgerUnavailable, match="does not answer"):
            await remote.post_topup(topup())


async def test_times_keep_their_microseconds(remote: MeterClient, meter: Running) -> None:
    border = START + timedelta(microseconds=1)
    await remote.record([*FACTS, price(tiers=flat(7), at=border)])
    await meter.ledger.ingest([usage("before"), usage("after", time=border)])
    account = await meter.ledger.account(ACME)
    assert account is not None
    assert account.balance == -(80_000 + 120 * 7)
