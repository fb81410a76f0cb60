"""Reports as CSV by RFC 4180, without formulas for a spreadsheet. Pure: values in, text out."""

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from farebox.domain.billing.money import format_amount
from farebox.meterapi.reports import Statement, StatementLine

_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
"""A spreadsheet reads text that starts with one of these as a formula."""
STATEMENT_COLUMNS: Final = (
    *("time", "kind", "amount", "balance", "currency", "reference", "source", "service", "model", "term"),
    *("periodStart", "periodEnd", "estimatedCalls", "estimatedTokens", "estimatedAmount"),
)


def as_text(value: str | None) -> str:
    """Text from outside, such as a reference; an apostrophe protects what could be a formula."""
    text = value or ""
    is_formula = text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA)
    return f"'{text}" if is_formula else text


def as_time(moment: datetime | None) -> str:
    """A time as RFC 3339, or "" without one."""
    return "" if moment is None else moment.isoformat().replace("+00:00", "Z")


def render_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The header and the rows. The caller passes text from outside through `as_text`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def statement_csv(statement: Statement) -> str:
    """A statement with one row for each line, between the rows of the opening and the closing balance.

    Balances have their own column, so the column `amount` sums to the change of the balance.
    """
    currency = statement.currency

    def balance(kind: str, moment: datetime, nano: int) -> tuple[object, ...]:
        shown = (as_time(moment), kind, "", format_amount(nano), currency)
        return (*shown, *[""] * (len(STATEMENT_COLUMNS) - len(shown)))

    def row(line: StatementLine) -> tuple[object, ...]:
        return (
            *(as_time(line.time), line.kind, format_amount(line.amount), "", currency),
            *map(as_text, (line.reference, line.source, line.service, line.model)),
            "" if line.term is None else line.term,
            as_time(line.period_start),
            as_time(line.period_end),
            *("" if count is None else count for count in (line.estimated_calls, line.estimated_tokens)),
            "" if line.estimated_amount is None else format_amount(line.estimated_amount),
        )

    opening = balance("OpeningBalance", statement.start, statement.opening_balance)
    closing = balance("ClosingBalance", statement.end, statement.closing_balance)
    return render_csv(STATEMENT_COLUMNS, (opening, *map(row, statement.lines), closing))
