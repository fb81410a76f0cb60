"""TopUp: money posted to an account, once for each reference (B10)."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from farebox.api.base import APIObject, APIPart, Lenient, Status
from farebox.api.fields import ObjectName, OpenAPI, Rule, SignedAmount, Time, rules


class TopUpKind(StrEnum):
    """Why money is posted."""

    PAYMENT = "Payment"
    ADJUSTMENT = "Adjustment"


class TopUpPhase(StrEnum):
    """The result of a TopUp."""

    POSTED = "Posted"
    REJECTED = "Rejected"


_REFERENCE = r"^[!-~]([ -~]*[!-~])?$"

Reference = Annotated[
    str,
    Field(min_length=1, max_length=128, pattern=_REFERENCE),
    OpenAPI(
        rules(
            Rule(
                f"self.matches(r'{_REFERENCE}')",
                "write the reference in printable ASCII, without spaces at its ends, such as pay_123",
            )
        )
    ),
]
"""The payment's number in another system."""


class TopUpAccountRef(APIPart):
    """A BillingAccount beside the TopUp."""

    name: ObjectName = Field(description="Name of the BillingAccount, in the TopUp's own namespace.")


class TopUpSpec(APIPart):
    """The spec of a TopUp."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "self == oldSelf",
                "a TopUp cannot be changed: create another one, with kind: Adjustment and a negative amount"
                " to take something back",
                reason="FieldValueForbidden",
            ),
            Rule(
                "self.amount.matches('[1-9]')",
                "amount must not be zero",
                at=".amount",
            ),
            Rule(
                "self.kind != 'Payment' || !self.amount.startsWith('-')",
                "the amount of a Payment must be above zero: use kind: Adjustment to take something back",
                at=".amount",
            ),
        )
    )

    billing_account_ref: TopUpAccountRef = Field(description="The account, in the TopUp's own namespace.")
    amount: SignedAmount = Field(
        description='Amount in the account\'s currency, as a decimal string such as "100.00" (at most 9'
        " decimals). A Payment is above zero; an Adjustment may be negative."
    )
    kind: TopUpKind = Field(
        TopUpKind.PAYMENT,
        description="Payment (money came in) or Adjustment (a correction, which may be negative).",
    )
    reference: Reference = Field(
        description="The payment's own number, such as pay_123. Each reference counts once for each account,"
        " however often it is applied; the same reference with another amount or kind is Rejected.",
    )


class TopUpStatus(Status):
    """The result of a TopUp."""

    phase: TopUpPhase | None = Field(
        None, description="Posted, or Rejected (see message). Absent until the ledger has answered."
    )
    posted_at: Time | None = Field(None, description="When the ledger posted the amount.")
    balance_after: str | None = Field(
        None, description="The account's balance just after the posting, as a decimal string."
    )
    message: str | None = Field(
        None, max_length=32768, description="Why it was rejected, or how much is still missing."
    )


class TopUp(APIObject):
    """Money posted to an account. It counts once for each reference; deleting it takes nothing back."""

    KIND: ClassVar[str] = "TopUp"

    kind: Literal["TopUp"] = "TopUp"
    spec: TopUpSpec = Field(description="The amount and its reference. Cannot be changed.")
    status: Annotated[TopUpStatus, Lenient] = Field(TopUpStatus(), description="The result.")

    @property
    def billing_account_name(self) -> str:
        """The name of the account, in the TopUp's own namespace."""
        return self.spec.billing_account_ref.name
