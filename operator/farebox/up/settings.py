"""Settings of `farebox up`, from environment variables."""

import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from farebox.settings import OperatorSettings

_STATE_HOME: Final = "XDG_STATE_HOME"
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""The address to call a process at that listens on all addresses."""


class UpSettings(OperatorSettings):
    """The settings of operator and meter with defaults for a laptop; the gateway's are passed on to it."""

    log_format: Literal["json", "console"] = Field("console", description="json, or console for people")
    ledger_url: str = Field(
        default_factory=lambda: default_ledger_url(os.environ.get(_STATE_HOME, "")),
        description="SQLAlchemy URL; default: farebox/farebox.db in $XDG_STATE_HOME or ~/.local/state",
    )
    listen_host: str = Field("127.0.0.1", description="the address that all of it listens on")
    listen_port: int = Field(8080, description="/healthz, /readyz and /metrics of the operator")
    meter_port: int = Field(8090, description="the meter's HTTP API; /healthz, /readyz and /metrics too")
    token_audience: str = Field("farebox-meter", description="callers' tokens must be for this audience")
    review_cache_seconds: float = Field(
        10.0, ge=0, description="how long a TokenReview's answer is used again"
    )
    gateway: bool = Field(True, description="take calls too, where an Envoy is installed")
    public_url: str = Field(
        "", description="`status.endpoint` of services; default: the gateway's address on this machine"
    )
    gateway_port: int = Field(8000, description="where calls are taken")
    gateway_health_port: int = Field(8081, description="/healthz, /readyz and /metrics of the gateway")
    gateway_directory: Path = Field(
        default_factory=lambda: _directory(os.environ.get(_STATE_HOME, "")) / "gateway",
        description="its sockets and log of usage; default: beside the ledger",
    )

    def _local_endpoint(self) -> str:
        host = _LOOPBACK.get(self.listen_host, self.listen_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.gateway_port}/v1"


def default_ledger_url(state_home: str) -> str:
    """The default URL of the ledger.

    Args:
        state_home: $XDG_STATE_HOME, or "" for its default; a relative path is ignored (XDG specification).
    """
    return f"sqlite:///{_directory(state_home) / 'farebox.db'}"


def _directory(state_home: str) -> Path:
    home = Path(state_home)
    if not home.is_absolute():
        home = Path.home() / ".local" / "state"
    return home / "farebox"
