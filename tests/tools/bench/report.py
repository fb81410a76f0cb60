"""What a benchmark found: figures, each with its limit and its goal where it has them. No measuring here."""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Args:
        limit: what bare requests, inserts or lists took in the same run, in the same unit.
        goal: in words; None where the figure only informs.
        met: whether the goal was reached.
    """

    what: str
    value: float
    unit: str
    limit: float | None = None
    goal: str | None = None
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """The value as a multiple of its limit."""
        return self.value / self.limit if self.limit else None


@dataclass
class Report:
    """All figures of one benchmark, and what else a reader may want to know.

    Args:
        notes: sentences that belong under the table: above all, what was not measured and why.
    """

    name: str
    scale: float
    figures: list[Figure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    load_before: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))

    def add(
        self,
        what: str,
        value: float,
        unit: str,
        limit: float | None = None,
        goal: str | None = None,
        met: bool | None = None,
    ) -> None:
        """Note one figure."""
        self.figures.append(Figure(what, value, unit, limit, goal, met))

    def write(self, directory: Path) -> Path:
        """Write <directory>/<name>.json."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        content = asdict(self) | {
            "figures": [asdict(figure) | {"ratio": figure.ratio} for figure in self.figures],
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path


def table(reports: Iterable[Report]) -> str:
    """The figures for people."""
    reports = list(reports)
    rows = [("benchmark", "figure", "measured", "limit", "ratio", "goal", "")]
    rows += [_row(report.name, figure) for report in reports for figure in report.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    notes = [f"{report.name}: {note}" for report in reports for note in report.notes]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], *notes])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least this percentage of the values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def _row(name: str, figure: Figure) -> tuple[str, ...]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
    verdict = "" if figure.met is None else "met" if figure.met else "NOT met"
    limit = "" if figure.limit is None else _number(figure.limit)
    return (
        name,
        figure.what,
        f"{_number(figure.value)} {figure.unit}",
        limit,
        ratio,
        figure.goal or "",
        verdict,
    )


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
