"""The JSON of statements and usage, and the statement as CSV."""

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from farebox.domain.billing.money import format_amount
from farebox.ledger.reports.statement import Statement, StatementLine
from farebox.ledger.reports.usage import Bucket, Group, UsagePage, UsageQuery, UsageRow
from farebox.meterapi.csv import as_text, render_csv
from farebox.meterapi.schema import Amount, Key, Wire


class WireUsageRow(Wire):
    """UsageRow. What the report is not by is left out."""

    start: AwareDatetime | None = None
    service: str | None = None
    model: str | None = None
    api_key: str | None = None
    calls: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reservation_input_tokens: int
    reservation_output_tokens: int
    free_quota_tokens: int
    charge: str
    currency: str

    @classmethod
    def of(cls, row: UsageRow) -> "WireUsageRow":
        """The row on the wire."""
        return cls.model_construct(
            start=row.start,
            service=row.service,
            model=row.model,
            api_key=row.api_key,
            calls=row.calls,
            input_tokens=row.input_tokens,
            cached_input_tokens=row.cached_input_tokens,
            output_tokens=row.output_tokens,
            reservation_input_tokens=row.reservation_input,
            reservation_output_tokens=row.reservation_output,
            free_quota_tokens=row.quota_tokens,
            charge=format_amount(row.charge),
            currency=row.currency,
        )


class WireUsage(Wire):
    """UsagePage with what was asked. `next` is the cursor of the next page, if there is one."""

    start: AwareDatetime = Field(alias="from")
    end: AwareDatetime = Field(alias="to")
    bucket: Bucket
    group_by: tuple[Group, ...]
    as_of: int
    pending: int
    rows: tuple[WireUsageRow, ...]
    next: str | None = None

    @classmethod
    def of(cls, query: UsageQuery, page: UsagePage, cursor: str | None) -> "WireUsage":
        """The page on the wire."""
        return cls.model_construct(
            start=query.start,
            end=query.end,
            bucket=query.bucket,
            group_by=tuple(group for group in Group if group in query.group_by),
            as_of=page.as_of.sequence,
            pending=page.pending,
            rows=tuple(map(WireUsageRow.of, page.rows)),
            next=cursor,
        )


class WireLine(Wire):
    """StatementLine."""

    kind: str
    time: AwareDatetime
    amount: Amount
    reference: str | None = None
    source: str | None = None
    service: str | None = None
    model: str | None = None
    term: int | None = None
    period_start: AwareDatetime | None = None
    period_end: AwareDatetime | None = None

    @classmethod
    def of(cls, line: StatementLine) -> "WireLine":
        """The line on the wire."""
        return cls.model_construct(
            kind=line.kind,
            time=line.time,
            amount=line.amount,
            reference=line.reference,
            source=line.source,
            service=line.service,
            model=line.model,
            term=line.term,
            period_start=line.period_start,
            period_end=line.period_end,
        )


class WireStatement(Wire):
    """Statement."""

    account: Key
    currency: str
    start: AwareDatetime = Field(alias="from")
    end: AwareDatetime = Field(alias="to")
    as_of: int
    opening_balance: Amount
    closing_balance: Amount
    lines: tuple[WireLine, ...]

    @classmethod
    def of(cls, statement: Statement) -> "WireStatement":
        """The statement on the wire."""
        return cls.model_construct(
            account=statement.account,
            currency=statement.currency,
            start=statement.start,
            end=statement.end,
            as_of=statement.as_of,
            opening_balance=statement.opening,
            closing_balance=statement.closing,
            lines=tuple(map(WireLine.of, statement.lines)),
        )


StatementFormat = Literal["json", "csv"]

STATEMENT_COLUMNS = (
    "time",
    "kind",
    "amount",
    "balance",
    "currency",
    "reference",
    "source",
    "service",
    "model",
    "term",
    "periodStart",
    "periodEnd",
)


def statement_csv(statement: Statement) -> str:
    """The statement with a row for each line between one for either balance.

    Balances have a column of their own, so the sum of the column `amount` is what moved.
    """
    currency = statement.currency
    nothing = ("",) * (len(STATEMENT_COLUMNS) - 5)

    def row(line: StatementLine) -> tuple[object, ...]:
        return (
            _time(line.time),
            line.kind,
            format_amount(line.amount),
            "",
            currency,
            *map(as_text, (line.reference, line.source, line.service, line.model)),
            "" if line.term is None else line.term,
            _time(line.period_start),
            _time(line.period_end),
        )

    opening = (_time(statement.start), "OpeningBalance", "", format_amount(statement.opening), currency)
    closing = (_time(statement.end), "ClosingBalance", "", format_amount(statement.closing), currency)
    rows = ((*opening, *nothing), *map(row, statement.lines), (*closing, *nothing))
    return render_csv(STATEMENT_COLUMNS, rows)


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat().replace("+00:00", "Z")
