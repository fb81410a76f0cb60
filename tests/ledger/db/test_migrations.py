"""A ledger of the first schema with data is upgraded on both databases."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from alembic import command
from alembic.config import Config

from farebox.domain.billing.money import Nano
from farebox.errors import ConfigurationError
from farebox.ledger.db.connections import disposing, write_engine
from farebox.ledger.db.migrate import _SCRIPTS, upgrade
from tests.ledger.databases import Database, Databases
from tests.ledger.support import CALL_CHARGE, FACTS, START, TIERS, balance, opened, price, topup, usage

FIRST_DATA = (
    "INSERT INTO accounts VALUES (1, 'billing/acme', 'USD', 0, 9999920000, 3, 1)",
    "INSERT INTO account_terms VALUES (1, 1, 0, 1)",
    "INSERT INTO bindings VALUES (1, 'team-a/chat', 'billing/acme', 'qwen3-8b', 1772366400000000, 1)",
    "INSERT INTO price_versions VALUES (1, 'qwen3-8b', 'USD', 1772366400000000, 1)",
    "INSERT INTO price_tiers VALUES (1, 0, 1000, 500, 50, 1500), (1, 1, NULL, 800, 80, 2400)",
    "INSERT INTO books VALUES (1, 1, 'balance', 'USD'), (2, 1, 'payments', 'USD'),"
    " (3, 1, 'revenue:qwen3-8b', 'USD')",
    "INSERT INTO transactions VALUES (2, 'Payment', 'topup:1:pay_1', 1, 1, 1),"
    " (3, 'Usage', 'usage:9:gateway-0:1', 1, 1772366400000000, 1)",
    "INSERT INTO entries VALUES (2, 1, 10000000000), (2, 2, -10000000000), (3, 1, -80000), (3, 3, 80000)",
    "INSERT INTO topups VALUES (2, 1, 'pay_1', 'Payment', 10000000000, 'billing/pay_1', 10000000000, 1)",
    "INSERT INTO usage_events (source, event_id, service, occurred_at, received_at, input_tokens,"
    " cached_input_tokens, output_tokens, transaction_sequence, binding_id, price_version_id, charge)"
    " VALUES ('gateway-0', '1', 'team-a/chat', 1772366400000000, 1, 100, 0, 20, 3, 1, 1, 80000)",
    "INSERT INTO usage_events (source, event_id, service, occurred_at, received_at, input_tokens,"
    " cached_input_tokens, output_tokens, pending_reason, waiting_for)"
    " VALUES ('gateway-0', 'w', 'team-a/new', 1772366400000000, 1, 100, 0, 20,"
    " 'BindingNotFound', 'team-a/new')",
    "UPDATE ledger SET head = 3, revision = 5",
)
"""The data of a ledger of the first schema: a record, a top-up, a charged call and a pending one."""
_WITH_COLUMNS = {
    FIRST_DATA[2]: "INSERT INTO bindings (id, service, account, model, effective_at, recorded_at)"
    " VALUES (1, 'team-a/chat', 'billing/acme', 'qwen3-8b', 1772366400000000, 1)",
    FIRST_DATA[3]: "INSERT INTO price_versions (id, model, currency, effective_at, recorded_at)"
    " VALUES (1, 'qwen3-8b', 'USD', 1772366400000000, 1)",
}
"""The statements of FIRST_DATA that a later schema needs with the names of the columns."""


def migrate(database: Database, revision: str) -> None:
    """Run the migrations up to one of them."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    with disposing(write_engine(database.url)) as engine, engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@pytest.fixture
def first(databases: Databases) -> Iterator[Database]:
    """A ledger of the first schema."""
    with databases.empty() as database:
        migrate(database, "0001")
        with database.raw() as connection:
            for statement in FIRST_DATA:
                connection.exec_driver_sql(statement)
        yield database


async def test_an_upgrade_from_the_first_schema_keeps_its_data(first: Database) -> None:
    assert CALL_CHARGE == 80_000
    async with opened(first) as ledger:
        first.check()
        assert await ledger.record(FACTS) == []
        assert await ledger.head() == 3, "all of it is known already"
        assert (await ledger.ingest([usage("1"), usage("2")])).duplicate == 1
        assert (await ledger.post_topup(topup())).duplicate
        assert await ledger.pending_count() == 1
        assert await balance(ledger) == 10_000_000_000 - 2 * CALL_CHARGE
    first.check()


async def test_b41_prices_of_before_charge_cache_writes_as_input(databases: Databases) -> None:
    """A ledger of the schema before cache writes and estimates has neither, and goes on charging."""
    with databases.empty() as database:
        migrate(database, "0003")
        with database.raw() as connection:
            for statement in FIRST_DATA:
                connection.exec_driver_sql(_WITH_COLUMNS.get(statement, statement))
        async with opened(database) as ledger:
            assert await ledger.record(FACTS) == [], "no price is new"
            await ledger.ingest([usage("2", cache_write_input_tokens=60, estimated=True, duration_ms=7)])
            assert await balance(ledger) == 10_000_000_000 - 2 * CALL_CHARGE
            dear = tuple(replace(tier, cache_write=Nano(2 * tier.input)) for tier in TIERS)
            await ledger.record([price(tiers=dear, at=START + timedelta(minutes=1))])
            later = usage("3", cache_write_input_tokens=60, time=START + timedelta(minutes=1))
            await ledger.ingest([later])
            assert await balance(ledger) == 10_000_000_000 - 3 * CALL_CHARGE - 60 * 500
        database.check()
        with database.raw() as connection:
            rows = connection.exec_driver_sql(
                "SELECT cache_write_input_tokens, estimated, duration_ms FROM usage_events ORDER BY id"
            ).all()
            assert [tuple(row) for row in rows] == [(0, 0, None), (0, 0, None), (60, 1, 7), (60, 0, None)]


def test_each_migration_leaves_a_consistent_schema(first: Database) -> None:
    for revision in ("0002", "0003", "0004"):
        migrate(first, revision)
    upgrade(first.url)
    first.check()


async def test_meters_that_start_at_once_upgrade_once(first: Database) -> None:
    await asyncio.gather(*(asyncio.to_thread(upgrade, first.url) for _ in range(3)))
    first.check()


def test_a_newer_schema_is_refused(first: Database) -> None:
    with first.raw() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="newer version"):
        upgrade(first.url)
