"""The Default services of an account: one for each model that it selects (B1). Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from farebox.api import ConditionType, ServiceType
from farebox.domain.conditions import ConditionVerdict, false, true
from farebox.domain.keys import ObjectKey


@dataclass(frozen=True, slots=True)
class SiblingAccount:
    """An account that selects Default services, in the namespace of the account in question."""

    key: ObjectKey
    created: datetime
    uid: str


@dataclass(frozen=True, slots=True)
class ExistingService:
    """A service in the account's namespace. `pristine` says: a Default service that was never enabled."""

    type: ServiceType
    account: ObjectKey
    pristine: bool


@dataclass(frozen=True, slots=True)
class DefaultServicesPlan:
    """The names of services to create and to delete, and the condition to report."""

    create: tuple[str, ...]
    delete: tuple[str, ...]
    condition: ConditionVerdict


def plan_default_services(
    account: SiblingAccount,
    siblings: Iterable[SiblingAccount],
    selected: Iterable[str],
    services: Mapping[str, ExistingService],
) -> DefaultServicesPlan:
    """The Default services of an account.

    Args:
        siblings: all accounts of the namespace that select Default services; may include this account.
        selected: names of the models that this account selects, without retired models.
        services: services in the account's namespace by name: those with a selected model's name, and the
            account's own Default services.

    A service that a user created under the name first stays unchanged and is reported. If several accounts
    select Default services, the oldest gets them. A Default service that was never enabled is deleted when
    its account no longer selects its model. One that was enabled stays (docs/decisions/005).
    """
    oldest = min([account, *siblings], key=lambda other: (other.created, other.uid))
    wanted = sorted(set(selected))
    if oldest.key != account.key and wanted:
        message = f"BillingAccount {oldest.key} is older and owns the Default services of this namespace"
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
    return true(
        ConditionType.DEFAULT_SERVICES,
        "Ready",
        f"A Default service exists for each of the {len(wanted)} selected models",
    )


def creation_refused(refusals: Mapping[str, str]) -> ConditionVerdict:
    """The condition when the API server rejects Default services, for example because of a namespace quota.

    Args:
        refusals: the API server's message for each service name.
    """
    names = sorted(refusals)
    message = f"The API server rejects the Default services {_first_ten(names)}: {refusals[names[0]]}"
    return false(ConditionType.DEFAULT_SERVICES, "Refused", message)


def _first_ten(names: list[str]) -> str:
    """At most ten names, and the number of the others."""
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
