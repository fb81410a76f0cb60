"""Formats statements and usage as aligned text, and usage as CSV. Pure: values in, text out."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from farebox.domain.billing.money import format_amount
from farebox.meterapi.csv import as_text, as_time, render_csv
from farebox.meterapi.reports import Bucket, Group, Statement, StatementLine, UsageReport, UsageRow
from farebox.meterapi.types import json_name

_FIGURES: Final = (
    ("CALLS", "calls"),
    ("INPUT", "input_tokens"),
    ("CACHED", "cached_input_tokens"),
    ("CACHE-WRITE", "cache_write_input_tokens"),
    ("OUTPUT", "output_tokens"),
    ("RESERVED-IN", "reservation_input_tokens"),
    ("RESERVED-OUT", "reservation_output_tokens"),
    ("FREE", "free_quota_tokens"),
    ("EST-CALLS", "estimated_calls"),
    ("EST-TOKENS", "estimated_tokens"),
)
_ADDED: Final = ("cache_write_input_tokens", "estimated_calls", "estimated_tokens")
"""The table omits these columns where all are zero; in CSV they follow the columns of before."""
_GROUPS: Final = {
    Group.SERVICE: ("SERVICE", "service"),
    Group.MODEL: ("MODEL", "model"),
    Group.API_KEY: ("API-KEY", "api_key"),
}
_TIME_WIDTHS: Final = {Bucket.MINUTE: 16, Bucket.HOUR: 16, Bucket.DAY: 10, Bucket.MONTH: 7}
"""The characters of a bucket's time that are shown."""
_NAMES: Final = {"Payment": "Payments", "Adjustment": "Adjustments", "ReservationTerm": "Reservations"}


def usage_table(of: str, usage: UsageReport) -> str:
    """The rows of usage with one total for each currency."""
    groups = [_GROUPS[group] for group in Group if group in usage.group_by]
    header = [*([] if usage.bucket is Bucket.NONE else [usage.bucket.upper()])]
    header += [title for title, _ in groups]
    texts = len(header)
    figures = [
        (title, name)
        for title, name in _FIGURES
        if name not in _ADDED or any(getattr(row, name) for row in usage.rows)
    ]
    has_estimates = any(row.estimated_calls for row in usage.rows)
    header += [title for title, _ in figures] + ["EST-CHARGE"] * has_estimates + ["CHARGE", ""]
    rows = [
        [
            *([] if row.start is None else [moment_text(row.start)[: _TIME_WIDTHS[usage.bucket]]]),
            *(getattr(row, name) or "-" for _, name in groups),
            *(f"{getattr(row, name):,}" for _, name in figures),
            *([format_amount(row.estimated_charge)] * has_estimates),
            format_amount(row.charge),
            row.currency,
        ]
        for row in usage.rows
    ]
    totals = _totals(usage.rows, [name for _, name in figures], has_estimates)
    if texts and rows:
        rows += [["TOTAL", *[""] * (texts - 1), *total] for total in totals]
    lines = [f"Usage of {of}, {moment_text(usage.start)} to {moment_text(usage.end)} UTC"]
    lines += ["", *aligned([header, *rows], texts)] if rows else ["no usage"]
    if usage.pending:
        lines += ["", f"{usage.pending:,} more calls are stored and not charged yet"]
    return "\n".join(lines)


def _totals(rows: Sequence[UsageRow], names: Sequence[str], has_estimates: bool) -> Iterable[list[str]]:
    for currency in sorted({row.currency for row in rows}):
        of = [row for row in rows if row.currency == currency]
        counts = [f"{sum(getattr(row, name) for row in of):,}" for name in names]
        estimated = [format_amount(sum(row.estimated_charge for row in of))] * has_estimates
        yield [*counts, *estimated, format_amount(sum(row.charge for row in of)), currency]


def usage_csv(usage: UsageReport) -> str:
    """The rows as CSV, with the column names of the API."""
    groups = [group for group in Group if group in usage.group_by]
    shown = ["start"] * (usage.bucket is not Bucket.NONE) + [_GROUPS[group][1] for group in groups]
    figures = [name for _, name in _FIGURES if name not in _ADDED]
    rows = (
        [
            *(cell(getattr(row, name)) for name in shown),
            *(getattr(row, name) for name in figures),
            format_amount(row.charge),
            row.currency,
            *(getattr(row, name) for name in _ADDED),
            format_amount(row.estimated_charge),
        ]
        for row in usage.rows
    )
    names = (*shown, *figures, "charge", "currency", *_ADDED, "estimated_charge")
    return render_csv([json_name(name) for name in names], rows)


def cell(value: datetime | str | None) -> str:
    """A time or a text from outside, for a cell of CSV."""
    return as_time(value) if isinstance(value, datetime) else as_text(value)


def statement_table(statement: Statement) -> str:
    """Opening balance, lines, closing balance, and the totals of the lines by kind."""
    rows = [["DATE", "WHAT", "AMOUNT"]]
    rows.append([moment_text(statement.start), "Opening balance", format_amount(statement.opening_balance)])
    for line in statement.lines:
        date = f"{line.time:%Y-%m-%d}" if line.kind == "Usage" else moment_text(line.time)
        rows.append([date, _description(line), format_amount(line.amount)])
    rows.append([moment_text(statement.end), "Closing balance", format_amount(statement.closing_balance)])
    totals: dict[str, int] = {}
    for line in statement.lines:
        kind = _NAMES.get(line.kind, line.kind)
        totals[kind] = totals.get(kind, 0) + line.amount
    title = f"Statement of {statement.account} in {statement.currency}"
    lines = [
        f"{title}, {moment_text(statement.start)} to {moment_text(statement.end)} UTC",
        "",
        *aligned(rows, 2),
    ]
    if totals:
        sums = [[kind, format_amount(amount)] for kind, amount in totals.items()]
        lines += ["", *aligned([["KIND", "TOTAL"], *sums], 1)]
    return "\n".join(lines)


def _description(line: StatementLine) -> str:
    match line.kind:
        case "Usage":
            return f"Usage of {line.model}{_estimated_part(line)}"
        case "ReservationTerm" if line.period_start and line.period_end:
            times = f"{moment_text(line.period_start)} to {moment_text(line.period_end)}"
            return f"Reservation of {line.service}, term {line.term}: {times}"
        case _:
            return " ".join(filter(None, (line.kind, line.reference, line.source and f"({line.source})")))


def _estimated_part(line: StatementLine) -> str:
    """How much of a line of usage is estimated (B26)."""
    if not line.estimated_calls:
        return ""
    amount = format_amount(line.estimated_amount or 0)
    calls = "1 call" if line.estimated_calls == 1 else f"{line.estimated_calls:,} calls"
    return f" (estimated: {calls}, {line.estimated_tokens or 0:,} tokens, {amount})"


def moment_text(moment: datetime) -> str:
    """A time in UTC to the minute."""
    return f"{moment:%Y-%m-%d %H:%M}"


def aligned(rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Align columns two spaces apart: the first `texts` left, figures right and on their decimal points."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        if number < texts:
            cells = list(column)
        else:
            decimals = max(len(cell.partition(".")[2]) for cell in column[1:] or [""])
            cells = [column[0], *(_padded(cell, decimals) for cell in column[1:])]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) if number < texts else cell.rjust(width) for cell in cells])
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _padded(cell: str, decimals: int) -> str:
    missing = decimals - len(cell.partition(".")[2])
    return cell + " " * missing if "." in cell else cell
