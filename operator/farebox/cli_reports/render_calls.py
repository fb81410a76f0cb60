"""Formats calls and refused calls as aligned text and as CSV. Pure: values in, text out."""

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Final

from farebox.cli_reports.render import aligned, cell, moment_text
from farebox.domain.billing.money import format_amount
from farebox.domain.billing.pricing import format_price
from farebox.meterapi.calls import Call, CallPrice
from farebox.meterapi.csv import render_csv
from farebox.meterapi.refusals import RefusalReport, RefusalRow
from farebox.meterapi.reports import Bucket
from farebox.meterapi.types import json_name

_PRICES: Final = ("input", "cached_input", "cache_write", "output")
_CALL: Final = tuple(field.name for field in fields(Call) if field.name != "price")
_REFUSAL: Final = tuple(field.name for field in fields(RefusalRow))


def calls_table(of: str, calls: Sequence[Call], *, has_more: bool) -> str:
    """A line for each call, the newest first."""
    header = ["TIME", "REQUEST", "SERVICE", "API-KEY", "STATUS", "INPUT", "OUTPUT", "EST", "MS", "CHARGE", ""]
    rows = [
        [
            f"{call.time:%Y-%m-%d %H:%M:%S}",
            call.request_id or "-",
            str(call.service),
            call.api_key or "-",
            "-" if call.status is None else str(call.status),
            f"{call.input_tokens:,}",
            f"{call.output_tokens:,}",
            "yes" if call.estimated else "no",
            "-" if call.duration_ms is None else f"{call.duration_ms:,}",
            "pending" if call.charge is None else format_amount(call.charge),
            call.currency or "",
        ]
        for call in calls
    ]
    lines = [f"Calls of {of}", "", *aligned([header, *rows], 5)] if rows else [f"Calls of {of}", "no calls"]
    if has_more:
        lines += ["", f"More calls are older: raise --limit {len(calls)}, or set --to"]
    return "\n".join(lines)


def call_text(call: Call) -> str:
    """Everything that is stored of a call."""
    paid = "not charged yet" if call.charge is None else f"{format_amount(call.charge)} {call.currency}"
    facts: list[tuple[str, object]] = [
        ("Request", call.request_id),
        ("Ended", f"{call.time:%Y-%m-%d %H:%M:%S.%f} UTC"),
        ("Service", call.service),
        ("Model", call.model),
        ("API key", call.api_key),
        ("Status", call.status),
        ("Duration", None if call.duration_ms is None else f"{call.duration_ms:,} ms"),
        ("First byte", None if call.first_byte_ms is None else f"{call.first_byte_ms:,} ms"),
        ("Input", _input(call)),
        ("Output", f"{call.output_tokens:,} tokens"),
        ("Tokens are", "estimated" if call.estimated else "as the upstream reported"),
        ("Covered by", _coverage(call)),
        ("Price", None if call.price is None else _price(call.price, call.currency)),
        ("Account", call.account),
        ("Charge", f"{paid} (trial)" if call.trial else paid),
        ("Waits for", call.pending_reason and f"{call.waiting_for} ({call.pending_reason})"),
        ("Event", f"{call.source} {call.id}"),
    ]
    return "\n".join(aligned([[f"{name}:", str(value)] for name, value in facts if value is not None], 2))


def _input(call: Call) -> str:
    parts = [
        f"{tokens:,} {what}"
        for tokens, what in (
            (call.cached_input_tokens, "cached"),
            (call.cache_write_input_tokens, "written to the cache"),
        )
        if tokens
    ]
    return f"{call.input_tokens:,} tokens" + (f" ({', '.join(parts)})" if parts else "")


def _coverage(call: Call) -> str | None:
    parts = [
        f"{tokens:,} tokens by the {what}"
        for tokens, what in (
            (call.reservation_input_tokens + call.reservation_output_tokens, "reservation"),
            (call.free_quota_tokens, "free quota"),
        )
        if tokens
    ]
    return ", ".join(parts) or None


def _price(price: CallPrice, currency: str | None) -> str:
    bound = price.up_to_input_tokens
    tier = "all sizes" if bound is None else f"up to {bound:,} input tokens"
    each = ", ".join(f"{json_name(name)} {format_price(getattr(price, name))}" for name in _PRICES)
    return (
        f"{each} {currency} per million tokens; version {price.version} "
        f"since {moment_text(price.effective_at)}, {tier}"
    )


def calls_csv(calls: Sequence[Call]) -> str:
    """A row for each call, with the names of the API; the prices have columns of their own."""
    header = [json_name(name) for name in _CALL]
    header += ["priceVersion", *(json_name(f"price_{name}") for name in _PRICES)]
    return render_csv(header, (_call_row(call) for call in calls))


def _call_row(call: Call) -> list[object]:
    row = [_value(name, getattr(call, name)) for name in _CALL]
    price = call.price
    if price is None:
        return row + [""] * (1 + len(_PRICES))
    return [*row, price.version, *(format_price(getattr(price, name)) for name in _PRICES)]


def _value(name: str, value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int():
            return format_amount(value) if name == "charge" else value
        case datetime():
            return cell(value)
        case _:
            return cell(str(value))


def refusals_table(of: str, report: RefusalReport) -> str:
    """A line for each namespace, service, key, code and status."""
    times = [] if report.bucket is Bucket.NONE else [report.bucket.upper()]
    header = [*times, "NAMESPACE", "SERVICE", "API-KEY", "CODE", "STATUS", "CALLS"]
    rows = [
        [
            *([] if row.start is None else [moment_text(row.start)]),
            row.namespace or "-",
            row.service or "-",
            row.api_key or "-",
            row.code,
            str(row.status),
            f"{row.count:,}",
        ]
        for row in report.rows
    ]
    lines = [f"Refused calls of {of}, {moment_text(report.start)} to {moment_text(report.end)} UTC"]
    lines += ["", *aligned([header, *rows], len(header) - 1)] if rows else ["no refused calls"]
    return "\n".join(lines)


def refusals_csv(report: RefusalReport) -> str:
    """The rows as CSV, with the column names of the API."""
    names = [name for name in _REFUSAL if name != "start" or report.bucket is not Bucket.NONE]
    rows = ([_value(name, getattr(row, name)) for name in names] for row in report.rows)
    return render_csv([json_name(name) for name in names], rows)
