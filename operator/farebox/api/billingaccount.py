"""BillingAccount: the account that pays for services."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from farebox.api.base import APIObject, APIPart, Lenient, Status
from farebox.api.fields import Amount, Count32, Count64, Currency, Rule, Time, immutable, rules
from farebox.api.selectors import LabelSelector


class Enforcement(StrEnum):
    """How an account limits calls while its balance runs out (B17)."""

    SOFT = "Soft"
    HARD = "Hard"


class NamespacesFrom(StrEnum):
    """Which namespaces' services may use an account."""

    SAME = "Same"
    ALL = "All"
    SELECTOR = "Selector"


class DefaultModels(StrEnum):
    """For which models an account gets Default services."""

    ALL = "All"
    NONE = "None"
    SELECTOR = "Selector"


class AccountState(StrEnum):
    """Whether an account can pay."""

    ACTIVE = "Active"
    OVERDUE = "Overdue"


def _selector_with(field: str) -> dict[str, Any]:
    return rules(
        Rule(
            f"(self.{field} == 'Selector') == has(self.selector)",
            f"{field}: Selector needs a selector, and other values of {field} take none",
            at=".selector",
        )
    )


class AllowedNamespaces(APIPart):
    """Which namespaces' services may use the account."""

    model_config = ConfigDict(json_schema_extra=_selector_with("from"))

    from_: NamespacesFrom = Field(
        NamespacesFrom.SAME,
        alias="from",
        description="Same (only the account's own namespace), All, or Selector.",
    )
    selector: LabelSelector | None = Field(
        None, description="With from: Selector, the labels of namespaces whose services may use the account."
    )


class DefaultServices(APIPart):
    """For which models the account gets Default services."""

    model_config = ConfigDict(json_schema_extra=_selector_with("models"))

    models: DefaultModels = Field(DefaultModels.ALL, description="All, None, or Selector.")
    selector: LabelSelector | None = Field(
        None,
        description="With models: Selector, the labels of Models for which the account gets Default"
        " services.",
    )


class BillingAccountSpec(APIPart):
    """The spec of an account."""

    model_config = ConfigDict(
        json_schema_extra=rules(immutable("currency", "create another account in the other currency"))
    )

    currency: Currency = Field(
        description="Currency of the account, as a three-letter code. Only models with prices in it can be"
        " used. Cannot be changed."
    )
    credit_limit: Amount = Field(
        "0",
        description="How far the balance may go below zero, as a decimal string. The account is overdue when"
        ' balance + creditLimit is 0 or less, so with "0" it must be topped up before its first paid call.',
    )
    low_balance: Amount = Field(
        "0",
        description="Warns (Event LowBalance) when the available amount falls below this, as a decimal"
        ' string. "0": no warning.',
    )
    enforcement: Enforcement = Field(
        Enforcement.SOFT,
        description="Soft: calls admitted before the balance was spent finish, the next is refused. Hard:"
        " the largest possible price of a call is held before it begins, so the balance never falls below"
        " the credit limit.",
    )
    allowed_namespaces: AllowedNamespaces = Field(
        AllowedNamespaces(), description="Which namespaces' services may use the account. Default: its own."
    )
    default_services: DefaultServices = Field(
        DefaultServices(),
        description="For which models the account gets a Default service, in its own namespace and named"
        " like the model. Default: all.",
    )


class ServiceCounts(APIPart):
    """Services on an account by phase."""

    not_enabled: Count32 = Field(0, description="Services in phase NotEnabled.")
    creating: Count32 = Field(0, description="Services in phase Creating.")
    running: Count32 = Field(0, description="Services in phase Running.")
    stopped: Count32 = Field(0, description="Services in phase Stopped.")


class BillingAccountStatus(Status):
    """What the operator reports of an account."""

    balance: str | None = Field(
        None,
        description="Balance as a decimal string. At most 10 seconds old while it moves with traffic; the"
        " meter has the exact one.",
    )
    available: str | None = Field(None, description="What can still be spent: balance + creditLimit.")
    state: AccountState | None = Field(None, description="Active, or Overdue when available is 0 or less.")
    overdue_since: Time | None = Field(
        None, description="Since when the account is overdue; absent while it is not."
    )
    services: ServiceCounts = Field(
        ServiceCounts(), description="Services that this account pays for, by phase."
    )
    ledger_sequence: Count64 = Field(
        0, description="The ledger's transaction up to which the balance counts."
    )


class BillingAccount(APIObject):
    """Pays for services: a prepaid balance, with a credit limit if one is granted."""

    KIND: ClassVar[str] = "BillingAccount"

    kind: Literal["BillingAccount"] = "BillingAccount"
    spec: BillingAccountSpec = Field(description="Currency, credit, and who may use the account.")
    status: Annotated[BillingAccountStatus, Lenient] = Field(
        BillingAccountStatus(), description="What the operator reports of the account."
    )
