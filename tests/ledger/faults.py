"""Hooks by which a test observes a ledger's database calls and lets them fail."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError


def injected() -> OperationalError:
    """A failure of the database."""
    return OperationalError("injected", None, Exception("injected"))


def before_calls(engine: Engine, call: Callable[[], object]) -> None:
    """Call `call` before each statement and each commit, which it prevents by raising."""
    dialect: Any = engine.dialect
    for name in ("do_execute", "do_executemany"):
        setattr(dialect, name, _after(call, getattr(dialect, name)))
    event.listen(engine, "commit", lambda _: call())


def _after(call: Callable[[], object], act: Callable[..., object]) -> Callable[..., None]:
    def acting(*arguments: Any, **more: Any) -> None:
        call()
        act(*arguments, **more)

    return acting


def after_commits(engine: Engine, call: Callable[[Any], object]) -> None:
    """Call `call` with the driver's connection after each commit, before it returns to the ledger."""
    dialect: Any = engine.dialect
    commit = dialect.do_commit

    def committing(connection: Any) -> None:
        commit(connection)
        call(connection)

    dialect.do_commit = committing
