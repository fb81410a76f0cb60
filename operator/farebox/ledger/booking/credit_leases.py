"""Budgets: money of an account that one gateway may spend, so that no two spend the same (B17, Hard).

A gateway claims, before calls that an account must be able to pay in full, what its running calls hold, what
it has not reported yet, and a little to spare. What all gateways have is never more than is available, so the
account never falls below its credit line. Charges of usage from a gateway take from its lease.

A lease that is not claimed again ends after `LEASE_SECONDS`: what a gateway that died had is free again
then, and not sooner, as it may still have usage to report.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from farebox.clock import from_micros, to_micros
from farebox.domain.billing.money import MAX_NANO, Nano, available
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused
from farebox.ledger.booking.journal import Journal
from farebox.ledger.booking.state import AccountRow, CreditLeaseRow
from farebox.meterapi.types import CreditLease, CreditLeaseRequest

LEASE_SECONDS: Final = 3600


def grant_lease(journal: Journal, order: CreditLeaseRequest) -> CreditLease:
    """Set a gateway's lease to what it claims, or to as much of it as there is.

    Raises (before anything is written):
        LedgerRefused: AccountNotFound, AmountOutOfRange.
    """
    if not 0 <= order.amount <= MAX_NANO:
        raise LedgerRefused("AmountOutOfRange", "a claim is 0 or more, and fits into 64 bits")
    account = journal.account(order.account)
    if account is None:
        raise LedgerRefused("AccountNotFound", f"the ledger has no account {order.account}")
    known = journal.state.leases.get((order.source, account.id))
    lease = known or CreditLeaseRow(order.source, account.id, 0, 0, 0)
    lease.expires_at = 0
    free = available(account.balance, account.credit_limit) - outstanding(journal, account)
    lease.granted = lease.spent + max(0, min(order.amount, free))
    lease.expires_at = to_micros(journal.now + timedelta(seconds=LEASE_SECONDS))
    journal.set_lease(lease, new=known is None)
    return _public(order.account, lease)


def outstanding(journal: Journal, account: AccountRow) -> int:
    """What gateways may still spend of an account, and nobody else should count on."""
    return sum(
        max(0, lease.granted - lease.spent)
        for lease in journal.state.leases_of.get(account.id, ())
        if journal.recorded_at < lease.expires_at
    )


def leases_of(journal: Journal, sources: Collection[str]) -> tuple[CreditLease, ...]:
    """The budgets of these gateways that were charged in this transaction, as they are now."""
    return tuple(
        _public(journal.state.account_keys[account], journal.state.leases[source, account])
        for source, account in journal.charged_leases
        if source in sources
    )


def _public(account: ObjectKey, lease: CreditLeaseRow) -> CreditLease:
    return CreditLease(account, Nano(lease.granted), Nano(lease.spent), from_micros(lease.expires_at))
