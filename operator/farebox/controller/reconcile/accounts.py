"""Reconciles a BillingAccount: its record in the ledger, its Default services, its status."""

from collections import Counter
from collections.abc import Iterable

import structlog

from farebox.api import (
    AccountState,
    BillingAccount,
    BillingAccountStatus,
    ConditionStatus,
    ConditionType,
    DefaultModels,
    InferenceService,
    ModelRef,
    ObjectMeta,
    Phase,
    ServiceCounts,
    ServiceType,
)
from farebox.api.inferenceservice import BillingAccountRef, InferenceServiceSpec
from farebox.controller.queue import Key, Kind, Priority, topup_key
from farebox.controller.reconcile.context import REFUSED_RETRY_SECONDS, Context, DefaultServiceRefusal
from farebox.controller.state.balances import account_record, known_balance
from farebox.controller.state.cache import account_of
from farebox.controller.state.restore import mark_account_unverified
from farebox.domain.account_status import AccountStatusFacts, AccountVerdict, decide_account
from farebox.domain.billing.money import parse_amount
from farebox.domain.conditions import ConditionVerdict
from farebox.domain.default_services import (
    DefaultServicesPlan,
    ExistingService,
    SiblingAccount,
    creation_refused,
    plan_default_services,
)
from farebox.domain.facts import UNKNOWN
from farebox.domain.keys import ObjectKey
from farebox.errors import Forbidden, Invalid
from farebox.kube.names import DEFAULT_FOR_LABEL, MANAGED_BY, MANAGER, label_value, resource_path

log = structlog.get_logger(__name__)


async def reconcile_account(context: Context, key: Key, priority: Priority) -> None:
    """Create and delete the account's Default services, and write its status. Safe to repeat (B20)."""
    account = context.cache.accounts.get(key.object)
    if account is None:
        context.forget(key)
        await _remove_pristine(context, key.object, priority)
        return
    context.ledger_sync.upsert(key, account_record(key.object, account))
    if context.balances.behind(key.object, account.status.ledger_sequence or 0):
        # The status reports more than the ledger has: it was restored while no operator was running.
        for topup in mark_account_unverified(context.cache, context.balances, key.object):
            context.queue.add(topup_key(topup), Priority.LOW)
        context.on_balance_confirmed(key.object)
    plan = _plan_default_services(context, key.object, account)
    refusals = await _create_services(context, key, priority, plan.create)
    await _report(context, key, priority, account, creation_refused(refusals) if refusals else plan.condition)
    for name in plan.delete:
        await _delete_service(context, ObjectKey(key.namespace, name), priority)


async def _create_services(
    context: Context, key: Key, priority: Priority, names: Iterable[str]
) -> dict[str, str]:
    """Create Default services; returns the API server's refusals by name.

    A refusal delays nothing else of the account (B23). The operator retries after a while, because quotas and
    policies change without an event. It does not retry at every reconcile in the low priority: an account
    with much traffic is reconciled several times a second.
    """
    refusals, before = dict[str, DefaultServiceRefusal](), context.default_refusals.pop(key, {})
    for name in names:
        if name in before and priority is Priority.LOW and context.monotonic() < before[name].until:
            refusals[name] = before[name]
            continue
        try:
            await context.writer.create_service(_default_service(key.object, name), Priority.LOW)
        except (Invalid, Forbidden) as error:
            log.warning("default_service.refused", account=str(key), service=name, error=error.message)
            refusals[name] = DefaultServiceRefusal(error.message, context.monotonic() + REFUSED_RETRY_SECONDS)
    if refusals:
        context.default_refusals[key] = refusals
        context.queue.add_after(key, REFUSED_RETRY_SECONDS)
    return {name: refusal.message for name, refusal in refusals.items()}


async def _report(
    context: Context, key: Key, priority: Priority, account: BillingAccount, catalog: ConditionVerdict
) -> None:
    verdict = decide_account(_gather(context, key, account), context.now())
    sequence = account.status.ledger_sequence
    balance = known_balance(context.balances, key.object, account)
    if balance is not UNKNOWN:
        sequence = balance.sequence
    before = account.status
    known = verdict.state is not None
    status = BillingAccountStatus(
        observed_generation=account.metadata.generation,
        conditions=context.conditions(account, (*verdict.conditions, catalog)),
        balance=verdict.balance if known else before.balance,
        available=verdict.available if known else before.available,
        state=verdict.state or before.state,
        overdue_since=verdict.overdue_since,
        services=_counts(context, key.object),
        ledger_sequence=sequence,
    )
    if await context.write_status(key, priority, account, status):
        _record_events(context, account, verdict, catalog)


def _gather(context: Context, key: Key, account: BillingAccount) -> AccountStatusFacts:
    balance = known_balance(context.balances, key.object, account)
    refusal = context.ledger_sync.refusal(key)
    return AccountStatusFacts(
        currency=account.spec.currency,
        credit_limit=parse_amount(account.spec.credit_limit),
        low_balance=parse_amount(account.spec.low_balance),
        balance=UNKNOWN if balance is UNKNOWN else balance.balance,
        refusal="" if refusal is None else refusal.message,
        overdue_since=account.status.overdue_since,
    )


def _record_events(
    context: Context, account: BillingAccount, verdict: AccountVerdict, catalog: ConditionVerdict
) -> None:
    """Record Events of the account, one where thousands of its services change."""
    context.recorder.stalled(account, verdict.conditions)
    was = account.status.condition(ConditionType.DEFAULT_SERVICES)
    if catalog.status is ConditionStatus.FALSE and (was is None or was.reason != catalog.reason):
        context.recorder.event(account, "Warning", catalog.reason, "Create", catalog.message)
    low = next(c for c in verdict.conditions if c.type is ConditionType.LOW_BALANCE)
    before = account.status.condition(ConditionType.LOW_BALANCE)
    if low.status is ConditionStatus.TRUE and (before is None or before.status is not ConditionStatus.TRUE):
        context.recorder.event(account, "Warning", "LowBalance", "Warn", low.message)
    if verdict.state is None or verdict.state is account.status.state:
        return
    message = next(c.message for c in verdict.conditions if c.type is ConditionType.READY)
    if verdict.state is AccountState.OVERDUE:
        context.recorder.event(account, "Warning", "Overdue", "Stop", message)
    elif account.status.state is not None:
        context.recorder.event(account, "Normal", "Active", "Resume", message)


def _counts(context: Context, account: ObjectKey) -> ServiceCounts:
    phases = Counter(
        service.status.phase
        for key in context.cache.services_of_account.of(account)
        if (service := context.cache.services.get(key)) is not None
    )
    return ServiceCounts(
        not_enabled=phases[Phase.NOT_ENABLED],
        creating=phases[Phase.CREATING],
        running=phases[Phase.RUNNING],
        stopped=phases[Phase.STOPPED],
    )


def _plan_default_services(context: Context, key: ObjectKey, account: BillingAccount) -> DefaultServicesPlan:
    selected = _selected_models(context, account)
    siblings = [
        _sibling(other, found)
        for other in context.cache.accounts_in_namespace.of(ObjectKey("", key.namespace))
        if (found := context.cache.accounts.get(other)) is not None
        and found.spec.default_services.models is not DefaultModels.NONE
    ]
    return plan_default_services(
        _sibling(key, account), siblings, selected, _existing(context, key, selected)
    )


def _sibling(key: ObjectKey, account: BillingAccount) -> SiblingAccount:
    return SiblingAccount(key, account.metadata.creation_timestamp, account.metadata.uid)


def _selected_models(context: Context, account: BillingAccount) -> list[str]:
    """Return the names of the models for which an account gets Default services."""
    wanted = account.spec.default_services
    if wanted.models is DefaultModels.NONE:
        return []
    return [
        key.name
        for key, model in context.cache.models.items()
        if not model.spec.retired
        and model.spec.prices.currency == account.spec.currency
        and (
            wanted.models is DefaultModels.ALL
            or (wanted.selector is not None and wanted.selector.matches(model.metadata.labels))
        )
    ]


def _existing(context: Context, account: ObjectKey, selected: list[str]) -> dict[str, ExistingService]:
    """Return the services that have the name of a selected model, and the account's Default services."""
    named = {ObjectKey(account.namespace, name) for name in selected}
    own = (key for key in context.cache.defaults_of_account.of(account) if key.namespace == account.namespace)
    return {
        key.name: ExistingService(service.spec.type, account_of(service), _pristine(service))
        for key in named.union(own)
        if (service := context.cache.services.get(key)) is not None
    }


def _pristine(service: InferenceService) -> bool:
    """Return whether the operator created the service, and no user ever enabled or edited it."""
    return (
        service.spec.type is ServiceType.DEFAULT
        and service.metadata.labels.get(MANAGED_BY) == MANAGER
        and service.metadata.generation == 1
        and service.status.enabled_at is None
        and service.metadata.deletion_timestamp is None
    )


def _default_service(account: ObjectKey, model: str) -> dict[str, object]:
    """Build a Default service: NotEnabled until its owner enables it (B1)."""
    return InferenceService(
        metadata=ObjectMeta(
            name=model,
            namespace=account.namespace,
            labels={MANAGED_BY: MANAGER, DEFAULT_FOR_LABEL: label_value(account.name)},
        ),
        spec=InferenceServiceSpec(
            type=ServiceType.DEFAULT,
            model_ref=ModelRef(name=model),
            billing_account_ref=BillingAccountRef(name=account.name),
        ),
    ).manifest()


async def _remove_pristine(context: Context, account: ObjectKey, priority: Priority) -> None:
    """Delete the Default services of a deleted account that no user ever enabled."""
    for key in context.cache.defaults_of_account.of(account):
        service = context.cache.services.get(key)
        if service is not None and _pristine(service) and key.namespace == account.namespace:
            await _delete_service(context, key, priority)


async def _delete_service(context: Context, key: ObjectKey, priority: Priority) -> None:
    service = context.cache.services.get(key)
    if service is not None:
        path = resource_path(Kind.SERVICE, key.namespace, key.name)
        await context.writer.delete(path, service.metadata.uid, priority)
