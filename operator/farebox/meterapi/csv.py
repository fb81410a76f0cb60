"""Figures as CSV by RFC 4180, with no formula in it for a spreadsheet. Pure: values in, text out."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
"""With one of these a spreadsheet takes what follows for a formula."""


def as_text(value: str | None) -> str:
    """Text that others wrote, such as a reference: with an apostrophe before what could be a formula."""
    text = value or ""
    begins = text.startswith(_FORMULA) or text.lstrip().startswith(_FORMULA)
    return f"'{text}" if begins else text


def render_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The header and the rows. The caller passes what others wrote through `as_text`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
