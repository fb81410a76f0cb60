"""Which Default services an account should have: one for each model that it selects (B1). Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from farebox.api import ConditionType, ServiceType
from farebox.domain.conditions import ConditionVerdict, false, true
from farebox.domain.keys import ObjectKey


@dataclass(frozen=True, slots=True)
class SiblingAccount:
    """An account in the same namespace that also wants Default services there."""

    key: ObjectKey
    created: datetime
    uid: str


@dataclass(frozen=True, slots=True)
class ExistingService:
    """A service in the account's namespace. `pristine`: a Default one that was never enabled."""

    type: ServiceType
    account: ObjectKey
    pristine: bool


@dataclass(frozen=True, slots=True)
class DefaultServicesPlan:
    """What to make and to take away, and what to say about it."""

    create: tuple[str, ...]
    delete: tuple[str, ...]
    condition: ConditionVerdict


def plan_default_services(
    account: SiblingAccount,
    neighbours: Iterable[SiblingAccount],
    selected: Iterable[str],
    services: Mapping[str, ExistingService],
) -> DefaultServicesPlan:
    """The Default services of an account.

    Args:
        neighbours: all accounts of the namespace that want Default services; this one may be among them.
        selected: names of the models that this account selects, retired ones left out.
        services: services in the account's namespace by name: those with a selected model's name, and the
            account's own Default ones.

    A service that a user wrote under the name first is left alone and reported; of several accounts the
    oldest has the Default services. One that nobody ever enabled goes when its model or account does not
    ask for it any more; one that was enabled is the user's by now and stays (docs/decisions/005).
    """
    oldest = min([account, *neighbours], key=lambda other: (other.created, other.uid))
    wanted = sorted(set(selected))
    if oldest.key != account.key and wanted:
        message = f"BillingAccount {oldest.key} is older and has the Default services of this namespace"
        condition = false(ConditionType.DEFAULT_SERVICES, "OtherAccount", message)
        wanted = []
    else:
        condition = _condition(account.key, wanted, services)
    return DefaultServicesPlan(
        create=tuple(name for name in wanted if name not in services),
        delete=tuple(
            sorted(
                name
                for name, service in services.items()
                if name not in wanted and service.account == account.key and service.pristine
            )
        ),
        condition=condition,
    )


def _condition(
    account: ObjectKey, wanted: list[str], services: Mapping[str, ExistingService]
) -> ConditionVerdict:
    taken = [
        name
        for name in wanted
        if (service := services.get(name)) is not None
        and not (service.type is ServiceType.DEFAULT and service.account == account)
    ]
    if taken:
        message = (
            f"Other services already have the names of the Default services {_first_ten(taken)} and stay "
            "unchanged. Rename or delete them to get the Default services"
        )
        return false(ConditionType.DEFAULT_SERVICES, "NameTaken", message)
    return true(ConditionType.DEFAULT_SERVICES, "Ready", f"one for each of {len(wanted)} selected models")


def creation_refused(refusals: Mapping[str, str]) -> ConditionVerdict:
    """What to report when the API server does not take Default services: its sentences by their names.

    A quota or a policy of the namespace does so, and whoever set it can help.
    """
    names = sorted(refusals)
    message = f"the API server refuses the Default services {_first_ten(names)}: {refusals[names[0]]}"
    return false(ConditionType.DEFAULT_SERVICES, "Refused", message)


def _first_ten(names: list[str]) -> str:
    """At most ten names, and how many more there are."""
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
