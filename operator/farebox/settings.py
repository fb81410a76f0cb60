"""Settings of the processes, from environment variables that begin with FAREBOX_.

Every field is a variable: `backend_namespace` is FAREBOX_BACKEND_NAMESPACE. Defaults suit the manifests.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from farebox.errors import ConfigurationError


class CommonSettings(BaseSettings):
    """What every process has."""

    model_config = SettingsConfigDict(env_prefix="FAREBOX_", extra="ignore", frozen=True)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR"
    )
    log_format: Literal["json", "console"] = Field("json", description="json, or console for people")
    kubeconfig: Path | None = Field(
        None, description="default: in-cluster, then $KUBECONFIG or ~/.kube/config"
    )

    @classmethod
    def load(cls) -> Self:
        """From the environment.

        Raises:
            ConfigurationError: values cannot be read; it names their variables, and not the values, as one
                may hold a password.
        """
        try:
            return cls()
        except ValidationError as error:
            prefix = cls.model_config["env_prefix"]
            wrong = [f"{prefix}{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors()]
            raise ConfigurationError("; ".join(wrong)) from None


class OperatorSettings(CommonSettings):
    """Settings of `farebox operator`."""

    backend_namespace: str = Field("farebox-models", description="where all backends live")
    system_namespace: str = Field("farebox-system", description="where the Lease is")
    lease_name: str = Field("farebox-operator", description="name of the Lease that the acting replica holds")
    lease_seconds: float = Field(10.0, gt=2, description="a lease not renewed for so long may be taken")
    identity: str = Field(
        "", description="name of this replica in the Lease; default: host name and a random part"
    )
    meter_url: str = Field("http://farebox-meter.farebox-system.svc:8090", description="where the meter is")
    meter_token_file: Path | None = Field(
        Path("/var/run/secrets/farebox/meter-token"),
        description="bearer token for the meter, read anew when it changes",
    )
    listen_host: str = Field("0.0.0.0", description="the address to listen on")
    listen_port: int = Field(8080, description="/healthz, /readyz, /metrics")
    workers: int = Field(
        8, ge=1, le=512, description="bulk writes under way at once; more delay single edits"
    )
    write_qps: float = Field(1000.0, gt=0, description="writes per second to the API server")
    write_burst: int = Field(2000, ge=1, description="writes that may come at once before that rate holds")
    sweep_seconds: float = Field(60.0, gt=0, description="how often everything is listed and compared")
    figures_seconds: float = Field(
        10.0, ge=0, description="status figures that move with traffic: at most so often"
    )
    balance_max_age_seconds: float = Field(
        45.0, gt=0, description="a feed silent for longer makes balances unknown"
    )


class MeterSettings(CommonSettings):
    """Settings of `farebox meter`."""

    ledger_url: str = Field("sqlite:////var/lib/farebox/ledger.db", description="SQLAlchemy URL")
    listen_host: str = Field("0.0.0.0", description="the address to listen on")
    listen_port: int = Field(8090, description="the HTTP API; /healthz, /readyz and /metrics too")
    token_audience: str = Field("farebox-meter", description="callers' tokens must be for this audience")
    review_cache_seconds: float = Field(
        10.0, ge=0, description="how long a TokenReview's answer is used again"
    )


class GatewaySettings(CommonSettings):
    """Settings of `farebox gateway` and of the Envoy beside it."""

    backend_namespace: str = Field("farebox-models", description="where backends and providers' Secrets are")
    meter_url: str = Field("http://farebox-meter.farebox-system.svc:8090", description="where the meter is")
    meter_token_file: Path | None = Field(
        Path("/var/run/secrets/farebox/meter-token"),
        description="bearer token for the meter, read anew when it changes",
    )
    gateway_directory: Path = Field(
        Path("/var/run/farebox"), description="shared with Envoy: sockets, the log of usage and its bookmark"
    )
    identity: str = Field("", description="name of this replica in the ledger; default: the host's name")
    listen_host: str = Field("0.0.0.0", description="the address to listen on")
    listen_port: int = Field(8080, description="where Envoy takes calls")
    health_port: int = Field(8081, description="/healthz, /readyz, /metrics of the decision process")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="a longer request is refused with 413")
    call_seconds: float = Field(
        3600.0,
        ge=1,
        le=3600,
        description="a call that takes longer is ended, and pays what it got; at most the hour for which the "
        "ledger keeps the budget of a gateway that died",
    )
    envoy_memory_bytes: int = Field(
        2 * 2**30,
        ge=64 * 2**20,
        description="what Envoy may use (its container's limit); clients' connections are limited to this / "
        "(4 * connection_buffer_bytes), and calls are refused with 503 before it is full",
    )
    connection_buffer_bytes: int = Field(
        64 * 2**10,
        ge=16 * 2**10,
        le=16 * 2**20,
        description="what came from one side of a connection and the other has not taken yet; windows of "
        "HTTP/2 are 4 times (of a call) and 16 times this",
    )
    http2_streams: int = Field(
        100, ge=1, le=2**31 - 1, description="calls at a time on one HTTP/2 connection"
    )
    envoy_health_port: int = Field(
        0, description="where Envoy answers /healthz alone, however busy it is; 0: only at listen_port"
    )
    tls_certificate: Path | None = Field(None, description="PEM file; with tls_key, Envoy serves TLS")
    tls_key: Path | None = Field(None, description="PEM file of the private key")
    ca_file: Path = Field(
        Path("/etc/ssl/certs/ca-certificates.crt"), description="whom TLS upstreams are trusted by"
    )
    trusted_proxies: str = Field(
        "", description="address ranges, separated by commas, whose X-Forwarded-For is believed"
    )
    valkey_url: str = Field(
        "", description="where replicas count limits together; empty: this one counts by itself"
    )
    valkey_timeout_seconds: float = Field(
        0.25, gt=0, description="a Valkey that takes longer is away: limits are counted without it"
    )
    replicas: int = Field(1, ge=1, description="of the gateway: the shares of each limit without Valkey")
    balance_max_age_seconds: float = Field(
        60.0, gt=0, description="a meter that is silent for longer: paid calls are refused until it is heard"
    )
    backend_address: str = Field(
        "", description="host:port that takes the place of every backend; for tests and the demo"
    )
    linger_seconds: float = Field(
        5.0, ge=0, description="new calls are taken for so long after the signal to end"
    )
    drain_seconds: float = Field(600.0, ge=0, description="how long running calls are waited for at the end")
    run_envoy: bool = Field(False, description="start Envoy as a child process, as on a laptop")
