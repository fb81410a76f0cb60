"""`python -m tests.tools.bench [names]`: measures, writes build/bench/<name>.json, prints a table.

BENCH_SCALE=0.1 makes everything a tenth as large, to see whether it works; its figures mean little.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.support.reaper import reaping
from tests.support.stack import REPOSITORY
from tests.tools.bench import bulk, gateway, ledger, restart, single
from tests.tools.bench.report import Report, table

BENCHMARKS: dict[str, Callable[[float], Awaitable[Report]]] = {
    "bulk": bulk.run,
    "single": single.run,
    "restart": restart.run,
    "ledger": ledger.run,
    "gateway": gateway.run,
}


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, all without any; 1 when a goal was not met."""
    if unknown := set(names) - set(BENCHMARKS):
        print(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
        return 2
    scale = float(os.environ.get("BENCH_SCALE", "1"))
    directory = Path(os.environ.get("BENCH_DIRECTORY", REPOSITORY / "build/bench"))
    reports = []
    for name in names or BENCHMARKS:
        started = time.monotonic()
        print(f"{name} ...", file=sys.stderr, flush=True)
        report = asyncio.run(BENCHMARKS[name](scale))
        path = report.write(directory)
        print(f"{name}: {time.monotonic() - started:.0f} s, {path}", file=sys.stderr, flush=True)
        reports.append(report)
    print(table(reports))
    return 0 if all(figure.met is not False for report in reports for figure in report.figures) else 1


if __name__ == "__main__":
    try:
        with reaping():
            status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
