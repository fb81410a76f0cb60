"""The JSON of top-ups, accounts and the feed of changes."""

from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    Field,
    StringConstraints,
)

from farebox.api import ReservationState
from farebox.domain.billing.money import available, format_amount, is_overdue
from farebox.domain.billing.reservations import Buying
from farebox.meterapi.schema import Amount, Key, Name, Text, Wire
from farebox.meterapi.types import (
    AccountBalance,
    ChangePage,
    CreditLease,
    CreditLeaseRequest,
    QuotaBalance,
    ReservationBalance,
    TopUpOrder,
    TopUpReceipt,
)


class WireTopUp(Wire):
    """The body of POST /v1/topups."""

    account: Key
    reference: Name
    kind: Literal["Payment", "Adjustment"]
    amount: Amount
    source: Annotated[Text, StringConstraints(max_length=512)]

    def value(self) -> TopUpOrder:
        """As the ledger's value."""
        return self.into(TopUpOrder)

    @classmethod
    def of(cls, order: TopUpOrder) -> "WireTopUp":
        """The body for this order."""
        return cls.copied(order)


class WireAccount(Wire):
    """AccountBalance, with what follows from it."""

    account: Key
    currency: str
    balance: Amount
    credit_limit: Amount
    available: str
    state: Literal["Active", "Overdue"]
    sequence: int

    def value(self) -> AccountBalance:
        """As the ledger's value."""
        return self.into(AccountBalance)

    @classmethod
    def of(cls, account: AccountBalance) -> "WireAccount":
        """The account on the wire."""
        return cls.copied(
            account,
            available=format_amount(available(account.balance, account.credit_limit)),
            state="Overdue" if is_overdue(account.balance, account.credit_limit) else "Active",
        )


class WirePosted(Wire):
    """Posted."""

    posted_at: AwareDatetime
    balance_after: Amount
    duplicate: bool
    account: WireAccount

    def value(self) -> TopUpReceipt:
        """As the ledger's value."""
        return self.into(TopUpReceipt, account=self.account.value())

    @classmethod
    def of(cls, posted: TopUpReceipt) -> "WirePosted":
        """The receipt on the wire."""
        return cls.copied(posted, account=WireAccount.of(posted.account))


class WireBudgetClaim(Wire):
    """The body of POST /v1/budgets: BudgetClaim."""

    source: Annotated[Text, StringConstraints(min_length=1, max_length=256)]
    account: Key
    amount: Amount

    def value(self) -> CreditLeaseRequest:
        """As the ledger's value."""
        return self.into(CreditLeaseRequest)

    @classmethod
    def of(cls, claim: CreditLeaseRequest) -> "WireBudgetClaim":
        """The body for this claim."""
        return cls.copied(claim)


class WireBudget(Wire):
    """Budget."""

    account: Key
    granted: Amount
    spent: Amount
    expires_at: AwareDatetime

    def value(self) -> CreditLease:
        """As the ledger's value."""
        return self.into(CreditLease)

    @classmethod
    def of(cls, budget: CreditLease) -> "WireBudget":
        """The budget on the wire."""
        return cls.copied(budget)


class WireQuota(Wire):
    """QuotaBalance."""

    account: Key
    model: str
    total: int
    used: int
    expires_at: AwareDatetime
    sequence: int

    def value(self) -> QuotaBalance:
        """As the ledger's value."""
        return self.into(QuotaBalance)

    @classmethod
    def of(cls, quota: QuotaBalance) -> "WireQuota":
        """The quota on the wire."""
        return cls.copied(quota)


class WireReservationBalance(Wire):
    """ReservationBalance."""

    service: Key
    uid: str
    account: Key
    model: str
    input_tpm: int = Field(alias="inputTPM")
    output_tpm: int = Field(alias="outputTPM")
    days: int
    buying: Buying
    state: ReservationState
    reason: str
    message: str
    period_start: AwareDatetime | None = None
    period_end: AwareDatetime | None = None
    sequence: int

    def value(self) -> ReservationBalance:
        """As the ledger's value."""
        return self.into(ReservationBalance)

    @classmethod
    def of(cls, reservation: ReservationBalance) -> "WireReservationBalance":
        """The reservation on the wire."""
        return cls.copied(reservation)


class WireChanges(Wire):
    """ChangePage."""

    ledger_id: str
    head: int
    complete: bool
    next: int
    after_written_at: AwareDatetime | None = None
    next_written_at: AwareDatetime | None = None
    accounts: tuple[WireAccount, ...]
    quotas: tuple[WireQuota, ...] = ()
    reservations: tuple[WireReservationBalance, ...] = ()

    def value(self) -> ChangePage:
        """As the ledger's value."""
        return self.into(
            ChangePage,
            accounts=tuple(account.value() for account in self.accounts),
            quotas=tuple(quota.value() for quota in self.quotas),
            reservations=tuple(reservation.value() for reservation in self.reservations),
        )

    @classmethod
    def of(cls, page: ChangePage) -> "WireChanges":
        """The page on the wire."""
        return cls.copied(
            page,
            accounts=tuple(map(WireAccount.of, page.accounts)),
            quotas=tuple(map(WireQuota.of, page.quotas)),
            reservations=tuple(map(WireReservationBalance.of, page.reservations)),
        )
