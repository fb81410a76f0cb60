"""Reconciles a TopUp: posts it once for its account and reference, and writes the receipt (B10).

A top-up with a receipt is posted again when its account's balance is unverified (state/restore.py).
"""

import structlog

from farebox.api import ConditionType, TopUp, TopUpPhase, TopUpStatus
from farebox.controller.queue import Key, Priority, account_key
from farebox.controller.reconcile.context import Context
from farebox.controller.state.balances import account_record
from farebox.domain.account_status import top_up_hint
from farebox.domain.billing.money import available, format_amount, is_overdue, parse_amount
from farebox.domain.conditions import ConditionVerdict, false, kstatus, true
from farebox.domain.keys import ObjectKey
from farebox.errors import LedgerRefused, LedgerUnavailable
from farebox.meterapi.types import TopUpOrder, TopUpReceipt
from farebox.metrics import LEDGER_TOPUP_SECONDS

log = structlog.get_logger(__name__)


async def reconcile_topup(context: Context, key: Key, priority: Priority) -> None:
    """Post a TopUp that has no receipt yet. Safe to interrupt: a repetition gets the same receipt (B20)."""
    topup = context.cache.topups.get(key.object)
    if topup is None:
        context.forget(key)
        _confirm(context, key)
        return
    account = ObjectKey(key.namespace, topup.spec.billing_account_ref.name)
    if topup.status.phase is not None:
        context.forget(key)
        if context.balances.is_unverified(account, key.object):
            await _post_again(context, key, account, topup)
        return
    found = context.cache.accounts.get(account)
    if found is None:
        message = (
            f"BillingAccount {account} does not exist: create it. "
            "The top-up is posted as soon as the account exists"
        )
        await _wait(context, key, priority, topup, "AccountNotFound", message)
        return
    owner, record = account_key(account), account_record(account, found)
    context.ledger_sync.upsert(owner, record)
    if not context.ledger_sync.acknowledged(owner, record):
        raise LedgerUnavailable(f"the ledger has not acknowledged BillingAccount {account} yet")
    if refusal := context.ledger_sync.refusal(owner):
        # An amount is in its account's currency: it must not be posted in that of an earlier account (B11).
        message = (
            f"{refusal.message}. The top-up is posted as soon as the ledger accepts BillingAccount {account}"
        )
        await _wait(context, key, priority, topup, "CurrencyChanged", message)
        return
    try:
        with LEDGER_TOPUP_SECONDS.time():
            receipt = await context.ledger.post_topup(_order(key, account, topup))
    except LedgerRefused as refused:
        if refused.reason == "AccountNotFound":
            # The ledger was restored from an older copy since it answered, and gets the account again.
            raise LedgerUnavailable(refused.message) from refused
        ready = false(ConditionType.READY, refused.reason, refused.message)
        verdicts = kstatus(ready, stalled=refused.reason)
        await _report(context, key, priority, topup, verdicts, TopUpPhase.REJECTED)
        context.recorder.event(topup, "Warning", refused.reason, "Reject", refused.message)
        return
    # The receipt has the balance that the feed reports a moment later; services need not wait for it.
    context.on_receipt(receipt.account)
    message = _receipt_message(context, account, receipt)
    ready = true(ConditionType.READY, "Posted", message)
    await _report(context, key, priority, topup, kstatus(ready), TopUpPhase.POSTED, receipt)
    context.recorder.event(topup, "Normal", "Posted", "Post", message)


async def _post_again(context: Context, key: Key, account: ObjectKey, topup: TopUp) -> None:
    """Make sure that the ledger has a top-up whose receipt was written. The receipt stays as it is."""
    try:
        receipt = await context.ledger.post_topup(_order(key, account, topup))
    except LedgerRefused as refusal:
        if refusal.reason == "AccountNotFound":
            if account in context.cache.accounts:
                raise LedgerUnavailable(refusal.message) from refusal
            # Its BillingAccount is deleted too: the top-up is posted again once the account is recreated.
            return
        log.error("topup.not_restored", topup=str(key), reason=refusal.reason, message=refusal.message)
    else:
        context.on_receipt(receipt.account)
        if not receipt.duplicate:
            message = (
                "The ledger had lost this top-up and posted it again. "
                f"{_receipt_message(context, account, receipt)}"
            )
            log.warning("topup.posted_again", topup=str(key), account=str(account))
            context.recorder.event(topup, "Warning", "BookedAgain", "Post", message)
    _confirm(context, key)


def _confirm(context: Context, key: Key) -> None:
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
    """Return the balance after the top-up, and what is missing if the account is still overdue (B3)."""
    found = context.cache.accounts.get(account)
    currency = receipt.account.currency
    amount = f"{format_amount(receipt.balance_after)} {currency}"
    duplicate = f"Duplicate reference: already posted, balance {amount}"
    message = duplicate if receipt.duplicate else f"Balance {amount}"
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
    """Report why a top-up cannot be posted yet."""
    verdicts = kstatus(false(ConditionType.READY, reason, message), stalled=reason)
    if await _report(context, key, priority, topup, verdicts):
        context.recorder.stalled(topup, verdicts, "Post")


async def _report(
    context: Context,
    key: Key,
    priority: Priority,
    topup: TopUp,
    verdicts: tuple[ConditionVerdict, ...],
    phase: TopUpPhase | None = None,
    receipt: TopUpReceipt | None = None,
) -> bool:
    """Write the status, with the receipt of a posted top-up; returns whether it was written."""
    status = TopUpStatus(
        observed_generation=topup.metadata.generation,
        conditions=context.conditions(topup, verdicts),
        phase=phase,
        posted_at=receipt.posted_at if receipt else None,
        balance_after=format_amount(receipt.balance_after) if receipt else None,
        message=verdicts[0].message,
    )
    return await context.write_status(key, priority, topup, status)
