"""Top-ups: money that is posted once by account and reference, however often the order comes (B10)."""

from typing import Any, Final

from sqlalchemy import bindparam, select

from farebox.clock import from_micros
from farebox.domain.billing.money import Nano, format_amount
from farebox.errors import LedgerRefused
from farebox.ledger.booking.entitlements import process_due_renewals
from farebox.ledger.booking.journal import Journal, fits
from farebox.ledger.booking.state import AccountRow
from farebox.ledger.booking.usage import charge_pending
from farebox.ledger.db import tables
from farebox.ledger.db.prepared import Prepared
from farebox.meterapi.types import TopUpOrder, TopUpReceipt

BOOKS: Final = {"Payment": "payments", "Adjustment": "adjustments"}
"""The counter account of each kind of top-up."""


def post_topup(journal: Journal, order: TopUpOrder) -> TopUpReceipt:
    """Post a top-up, or return the receipt of the earlier one with its reference.

    Raises (before anything is written):
        LedgerRefused: AccountNotFound, ReferenceConflict, AmountOutOfRange.
    """
    account = journal.account(order.account)
    if account is None:
        raise LedgerRefused(
            "AccountNotFound", f"The ledger has no account {order.account}: create its BillingAccount first"
        )
    if found := _FIRST.rows(journal.connection, (account.id, order.reference)):
        return _repeated(order, account, found[0])
    _check_amount(order, account)
    balance_after = account.balance + order.amount
    sequence = journal.next_sequence()
    account.balance = balance_after
    journal.post(
        sequence,
        account,
        kind=order.kind,
        idempotency_key=f"topup:{account.id}:{order.reference}",
        occurred_at=journal.recorded_at,
        amount=order.amount,
        against=BOOKS[order.kind],
    )
    journal.add_topup(
        transaction_sequence=sequence,
        account_id=account.id,
        reference=order.reference,
        kind=order.kind,
        amount=order.amount,
        source=order.source,
        balance_after=balance_after,
        posted_at=journal.recorded_at,
    )
    journal.flush()
    # Pending usage that would have exceeded 64 bits may fit now.
    charge_pending(journal, services=(), waited_for=(str(order.account),))
    # A reservation that was not affordable may be affordable now (B9).
    process_due_renewals(journal, [order.account])
    return TopUpReceipt(from_micros(journal.recorded_at), Nano(balance_after), False, account.public())


def _repeated(order: TopUpOrder, account: AccountRow, first: tuple[Any, ...]) -> TopUpReceipt:
    amount, kind, source, balance_after, posted_at = first
    if (amount, kind) != (order.amount, order.kind):
        raise LedgerRefused(
            "ReferenceConflict",
            f"Reference {order.reference!r} of account {order.account} is already used by a {kind} of "
            f"{format_amount(amount)} {account.currency} ({source}): use another reference",
        )
    return TopUpReceipt(from_micros(posted_at), Nano(balance_after), True, account.public())


def _check_amount(order: TopUpOrder, account: AccountRow) -> None:
    if order.amount == 0 or (order.kind == "Payment" and order.amount < 0):
        raise LedgerRefused(
            "AmountOutOfRange",
            f"A {order.kind} of {format_amount(order.amount)} is not valid: a Payment must be above zero, an "
            "Adjustment must not be zero",
        )
    if not fits(order.amount) or not fits(account.balance + order.amount):
        raise LedgerRefused(
            "AmountOutOfRange",
            f"{format_amount(order.amount)} {account.currency} on a balance of "
            f"{format_amount(account.balance)} exceeds what the ledger can hold: give a smaller amount",
        )


_topups = tables.topups.c
_FIRST = Prepared(
    select(_topups.amount, _topups.kind, _topups.source, _topups.balance_after, _topups.posted_at).where(
        _topups.account_id == bindparam("of"), _topups.reference == bindparam("called")
    ),
    ("of", "called"),
)
