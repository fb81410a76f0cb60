"""What a process used and counted: CPU and memory from /proc, Prometheus metrics over HTTP. Reads only."""

import os
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.processes import Process

_TICKS = os.sysconf("SC_CLK_TCK")
Labels = frozenset[tuple[str, str]]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_memory_mb(pid: int) -> float:
    """The most resident memory that a process ever had, in MB (VmHWM)."""
    return _status_mb(pid, "VmHWM")


def memory_mb(pid: int) -> float:
    """The resident memory of a process now, in MB (VmRSS)."""
    return _status_mb(pid, "VmRSS")


@dataclass(frozen=True)
class Metrics:
    """All samples of a process at one moment."""

    samples: dict[tuple[str, Labels], float]

    @classmethod
    def of(cls, process: Process) -> "Metrics":
        """Read /metrics. Raises OSError when nothing answers."""
        _, text = process.http("/metrics")
        return cls(
            {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with these labels."""
        wanted = labels.items()
        return sum(value for (found, has), value in self.samples.items() if found == name and has >= wanted)

    def since(self, before: "Metrics", name: str, **labels: str) -> float:
        """By how much a counter grew."""
        return self.total(name, **labels) - before.total(name, **labels)


def _status_mb(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"/proc/{pid}/status has no {field}")
