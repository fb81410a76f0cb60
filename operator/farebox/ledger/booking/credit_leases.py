"""Credit leases: money of an account that a single gateway can spend (B17, Hard).

Before a gateway admits calls of an account with `enforcement: Hard`, it leases the money for its authorized
calls, its unreported usage and a reserve. All leases together never exceed what is available, so the account
never exceeds its credit limit. Charges for the gateway's usage are taken from its lease.

A lease expires `LEASE_SECONDS` after its last request. The money of a dead gateway is free then, and not
earlier, because the gateway may still have usage to report.
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
    """Set the lease of a gateway to the requested amount, or to what is available.

    Raises (before anything is written):
        LedgerRefused: AccountNotFound, AmountOutOfRange.
    """
    if not 0 <= order.amount <= MAX_NANO:
        raise LedgerRefused(
            "AmountOutOfRange", "The amount of a lease must be 0 or more, and fit into 64 bits"
        )
    account = journal.account(order.account)
    if account is None:
        raise LedgerRefused("AccountNotFound", f"The ledger has no account {order.account}")
    known = journal.state.leases.get((order.source, account.id))
    lease = known or CreditLeaseRow(order.source, account.id, 0, 0, 0)
    lease.expires_at = 0
    free = available(account.balance, account.credit_limit) - outstanding(journal, account)
    lease.granted = lease.spent + max(0, min(order.amount, free))
    lease.expires_at = to_micros(journal.now + timedelta(seconds=LEASE_SECONDS))
    journal.set_lease(lease, new=known is None)
    return _public(order.account, lease)


def outstanding(journal: Journal, account: AccountRow) -> int:
    """The money of an account that is leased to gateways and not spent yet."""
    return sum(
        max(0, lease.granted - lease.spent)
        for lease in journal.state.leases_of.get(account.id, ())
        if journal.recorded_at < lease.expires_at
    )


def leases_of(journal: Journal, sources: Collection[str]) -> tuple[CreditLease, ...]:
    """The leases of these gateways that this transaction charged, with their new amounts."""
    return tuple(
        _public(journal.state.account_keys[account], journal.state.leases[source, account])
        for source, account in journal.charged_leases
        if source in sources
    )


def _public(account: ObjectKey, lease: CreditLeaseRow) -> CreditLease:
    return CreditLease(account, Nano(lease.granted), Nano(lease.spent), from_micros(lease.expires_at))
