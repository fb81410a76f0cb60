"""`farebox up`: operator, meter and gateway on a laptop."""

from farebox.up.process import run
from farebox.up.settings import UpSettings, default_ledger_url

__all__ = ["UpSettings", "default_ledger_url", "run"]
