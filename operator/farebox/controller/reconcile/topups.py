"""One pass over a TopUp: booked once for its account and reference, and the receipt written (B10).

A ledger that was restored from an older backup lacks the top-ups that came after it. Those with a receipt are
then asked for again: the ledger books what it lacks, and until all are in it the balance is unknown, so that
money which is only missing from a backup stops nobody. A new leader asks again for the last ones in any case
(docs/decisions/109).
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

import structlog

from farebox.api import ConditionType, TopUp, TopUpPhase, TopUpStatus
from farebox.controller.queue import Key, Priority, account_key, topup_key
from farebox.controller.reconcile.context import Context
from farebox.controller.reconcile.gather import account_terms
from farebox.controller.reconcile.status import conditions
from farebox.controller.sources.mapping import Request
from farebox.controller.state.balances import Balances
from farebox.controller.state.cache import Cache
from farebox.domain.account_status import top_up_hint
from farebox.domain.billing.money import available, format_amount, is_overdue, parse_amount
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meterapi.types import Bookmark, TopUpOrder, TopUpReceipt
from farebox.metrics import LEDGER_TOPUP_SECONDS

log = structlog.get_logger(__name__)
_CLOCKS_APART: Final = timedelta(minutes=1)
"""So far back the clock of a ledger may be set, or be behind that of another replica."""


def mark_all_unverified(cache: Cache, balances: Balances) -> Iterator[Request]:
    """Ask again for all top-ups that have a receipt: the ledger is another one, or an older one."""
    for account in _paid(cache).union(cache.accounts):
        yield from mark_account_unverified(cache, balances, account)


def mark_account_unverified(cache: Cache, balances: Balances, account: ObjectKey) -> Iterator[Request]:
    """Ask again for the top-ups of one account that have a receipt."""
    found = cache.accounts.get(account)
    sequence = 0 if found is None else found.status.ledger_sequence or 0
    yield from _ask_again(balances, account, _posted(cache, account), sequence)


def mark_unread_unverified(cache: Cache, balances: Balances, read: Bookmark) -> Iterator[Request]:
    """Ask again for the top-ups that were booked after the place up to which a leader had read.

    Its receipts are all that is left of them, should the ledger be restored from a copy between the two. If
    nobody noted a place, that is every top-up with a receipt.
    """
    since = None if read.written_at is None else read.written_at - _CLOCKS_APART
    for account in _paid(cache):
        if unread := _posted(cache, account, since):
            yield from _ask_again(balances, account, unread, 0)


def _paid(cache: Cache) -> set[ObjectKey]:
    """The accounts that top-ups name."""
    return {
        ObjectKey(key.namespace, topup.spec.billing_account_ref.name) for key, topup in cache.topups.items()
    }


def _posted(cache: Cache, account: ObjectKey, since: datetime | None = None) -> list[ObjectKey]:
    """The top-ups of an account that have a receipt; those not known to be older than `since`."""
    posted = []
    for key in cache.topups_of_account.of(account):
        topup = cache.topups.get(key)
        if topup is None or topup.status.phase is not TopUpPhase.POSTED:
            continue
        at = topup.status.posted_at
        if since is None or at is None or at >= since:
            posted.append(key)
    return posted


def _ask_again(
    balances: Balances, account: ObjectKey, topups: list[ObjectKey], reported: int
) -> Iterator[Request]:
    balances.mark_unverified(account, topups, reported)
    for key in topups:
        yield Request(topup_key(key), Priority.LOW)


async def reconcile_topup(context: Context, key: Key, priority: Priority) -> None:
    """Book a TopUp that has no receipt yet. Cut off anywhere, the next pass gets the same receipt (B20)."""
    topup = context.cache.topups.get(key.object)
    if topup is None:
        context.forget(key)
        _settle(context, key)
        return
    account = ObjectKey(key.namespace, topup.spec.billing_account_ref.name)
    if topup.status.phase is not None:
        context.forget(key)
        if context.balances.is_unverified(account, key.object):
            await _book_again(context, key, account, topup)
        return
    found = context.cache.accounts.get(account)
    if found is None:
        message = f"BillingAccount {account} does not exist: create it, and this is booked"
        await _wait(context, key, priority, topup, "AccountNotFound", message)
        return
    owner, terms = account_key(account), account_terms(account, found)
    context.ledger_sync.upsert(owner, terms)
    if not context.ledger_sync.acknowledged(owner, terms):
        raise LedgerUnavailable(f"the ledger has not answered to the terms of BillingAccount {account} yet")
    if refusal := context.ledger_sync.refusal(owner):
        # An amount is in its account's currency: it must not be booked in that of an earlier account (B11).
        message = f"{refusal.message}; this is booked once the ledger takes BillingAccount {account}"
        await _wait(context, key, priority, topup, "CurrencyChanged", message)
        return
    try:
        with LEDGER_TOPUP_SECONDS.time():
            receipt = await context.ledger.post_topup(_order(key, account, topup))
    except LedgerRefused as refused:
        if refused.reason == "AccountNotFound":
            # It was restored from an older copy since it answered; it is told of the account again.
            raise LedgerUnavailable(refused.message) from refused
        ready = false(ConditionType.READY, refused.reason, refused.message)
        await _finish(
            context, key, priority, topup, TopUpPhase.REJECTED, kstatus(ready, stalled=refused.reason)
        )
        context.recorder.event(topup, "Warning", refused.reason, "Reject", refused.message)
        return
    # The receipt says what the feed will say a moment later; the services need not wait for it.
    context.on_receipt(receipt.account)
    message = _receipt_message(context, account, receipt)
    ready = true(ConditionType.READY, "Posted", message)
    await _finish(context, key, priority, topup, TopUpPhase.POSTED, kstatus(ready), receipt)
    context.recorder.event(topup, "Normal", "Posted", "Post", message)


async def _book_again(context: Context, key: Key, account: ObjectKey, topup: TopUp) -> None:
    """Make sure that the ledger has a top-up whose receipt was written; the receipt stays as it is."""
    try:
        receipt = await context.ledger.post_topup(_order(key, account, topup))
    except LedgerRefused as refusal:
        if refusal.reason == "AccountNotFound":
            if account in context.cache.accounts:
                raise LedgerUnavailable(refusal.message) from refusal
            # Its BillingAccount is gone as well; this is done when it is made again.
            return
        log.error("topup.not_restored", topup=str(key), reason=refusal.reason, message=refusal.message)
    else:
        context.on_receipt(receipt.account)
        if not receipt.duplicate:
            message = f"the ledger had lost it; {_receipt_message(context, account, receipt)}"
            log.warning("topup.booked_again", topup=str(key), account=str(account))
            context.recorder.event(topup, "Warning", "BookedAgain", "Post", message)
    _settle(context, key)


def _settle(context: Context, key: Key) -> None:
    for account in context.balances.confirm(key.object):
        context.on_balance_confirmed(account)


def _order(key: Key, account: ObjectKey, topup: TopUp) -> TopUpOrder:
    return TopUpOrder(
        account=account,
        reference=topup.spec.reference,
        kind=topup.spec.kind.value,
        amount=parse_amount(topup.spec.amount),
        source=str(key.object),
    )


def _receipt_message(context: Context, account: ObjectKey, receipt: TopUpReceipt) -> str:
    """What was booked, and how much is missing where it was too little (B3)."""
    found = context.cache.accounts.get(account)
    currency = receipt.account.currency
    message = f"balance {format_amount(receipt.balance_after)} {currency}"
    if receipt.duplicate:
        message = f"this reference was booked before and counts once; {message} after it"
    if found is None:
        return message
    credit_limit = parse_amount(found.spec.credit_limit)
    if is_overdue(receipt.balance_after, credit_limit):
        left = available(receipt.balance_after, credit_limit)
        message += f". BillingAccount {account} is still overdue. {top_up_hint(left, currency)}"
    return message


async def _wait(
    context: Context, key: Key, priority: Priority, topup: TopUp, reason: str, message: str
) -> None:
    verdicts = kstatus(false(ConditionType.READY, reason, message), stalled=reason)
    generation = topup.metadata.generation
    status = TopUpStatus(
        observed_generation=generation,
        conditions=conditions(topup.status, verdicts, generation, context.now()),
        message=message,
    )
    if await context.write_status(key, priority, topup, topup.status, status):
        context.recorder.standstill(topup, topup.status, verdicts, "Post")


async def _finish(
    context: Context,
    key: Key,
    priority: Priority,
    topup: TopUp,
    phase: TopUpPhase,
    verdicts: tuple[ConditionVerdict, ...],
    receipt: TopUpReceipt | None = None,
) -> None:
    generation = topup.metadata.generation
    status = TopUpStatus(
        observed_generation=generation,
        conditions=conditions(topup.status, verdicts, generation, context.now()),
        phase=phase,
        posted_at=receipt.posted_at if receipt else None,
        balance_after=format_amount(receipt.balance_after) if receipt else None,
        message=verdicts[0].message,
    )
    await context.write_status(key, priority, topup, topup.status, status)
