"""Settings of the processes, from environment variables that begin with FAREBOX_.

Every field is a variable: `backend_namespace` is FAREBOX_BACKEND_NAMESPACE. Defaults suit the manifests.
"""

from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from farebox.errors import ConfigurationError

GATEWAY_SERVICE: Final = "farebox-gateway"
"""The Service of the gateway in the system namespace; its port is 80 (manifests/base/gateway.yaml)."""


class CommonSettings(BaseSettings):
    """Settings of every process."""

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
        """Read the settings from the environment.

        Raises:
            ConfigurationError: a value is invalid. The message names the variables but not their values,
                because a value may contain a password.
        """
        try:
            return cls()
        except ValidationError as error:
            prefix = cls.model_config["env_prefix"]
            wrong = [f"{prefix}{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors()]
            raise ConfigurationError("; ".join(wrong)) from None


class OperatorSettings(CommonSettings):
    """Settings of `farebox operator`."""

    backend_namespace: str = Field("farebox-models", description="namespace of all backends")
    system_namespace: str = Field("farebox-system", description="namespace of the Lease")
    lease_name: str = Field("farebox-operator", description="name of the Lease that the acting replica holds")
    lease_seconds: float = Field(
        10.0, gt=2, description="another replica may take a Lease that was not renewed for this long"
    )
    identity: str = Field(
        "", description="name of this replica in the Lease; default: host name and a random part"
    )
    meter_url: str = Field("http://farebox-meter.farebox-system.svc:8090", description="where the meter is")
    meter_token_file: Path | None = Field(
        Path("/var/run/secrets/farebox/meter-token"),
        description="bearer token for the meter, re-read when it changes",
    )
    public_url: str = Field(
        "",
        description="`status.endpoint` of services: the base URL at which callers reach the gateway, such as "
        "https://inference.example.com/v1; default: the address of Service farebox-gateway in the cluster",
    )
    listen_host: str = Field("0.0.0.0", description="the address to listen on")
    listen_port: int = Field(8080, description="/healthz, /readyz, /metrics")
    workers: int = Field(
        8, ge=1, le=512, description="concurrent bulk writes; more of them delay single edits"
    )
    write_qps: float = Field(1000.0, gt=0, description="writes per second to the API server")
    write_burst: int = Field(2000, ge=1, description="burst of writes above that rate")
    sweep_seconds: float = Field(
        60.0, gt=0, description="interval of the resync, which lists and compares everything"
    )
    figures_seconds: float = Field(
        10.0, ge=0, description="shortest interval between status writes that only update figures of traffic"
    )
    balance_max_age_seconds: float = Field(
        45.0, gt=0, description="balances are unknown after the meter's feed was silent for longer"
    )

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        """The URL without a trailing slash."""
        if value and not _is_base_url(value):
            raise ValueError(
                "must be an http or https URL with a host and without a query, such as "
                "https://inference.example.com/v1"
            )
        return value.rstrip("/")

    @property
    def endpoint(self) -> str:
        """The base URL of the gateway for the callers of all services."""
        return self.public_url or self._local_endpoint()

    def _local_endpoint(self) -> str:
        """The base URL of the gateway without FAREBOX_PUBLIC_URL."""
        return f"http://{GATEWAY_SERVICE}.{self.system_namespace}.svc/v1"


class MeterSettings(CommonSettings):
    """Settings of `farebox meter`."""

    ledger_url: str = Field("sqlite:////var/lib/farebox/ledger.db", description="SQLAlchemy URL")
    listen_host: str = Field("0.0.0.0", description="the address to listen on")
    listen_port: int = Field(8090, description="the HTTP API; /healthz, /readyz and /metrics too")
    token_audience: str = Field("farebox-meter", description="audience that callers' tokens must have")
    review_cache_seconds: float = Field(
        10.0, ge=0, description="how long the answer of a TokenReview is cached"
    )


class GatewaySettings(CommonSettings):
    """Settings of `farebox gateway` and of the Envoy beside it."""

    backend_namespace: str = Field(
        "farebox-models", description="namespace of backends and providers' Secrets"
    )
    meter_url: str = Field("http://farebox-meter.farebox-system.svc:8090", description="where the meter is")
    meter_token_file: Path | None = Field(
        Path("/var/run/secrets/farebox/meter-token"),
        description="bearer token for the meter, re-read when it changes",
    )
    gateway_directory: Path = Field(
        Path("/var/run/farebox"),
        description="directory shared with Envoy: sockets, the usage log and its checkpoint",
    )
    identity: str = Field("", description="name of this replica in the ledger; default: the host's name")
    listen_host: str = Field("0.0.0.0", description="the address to listen on")
    listen_port: int = Field(8080, description="port on which Envoy accepts calls")
    health_port: int = Field(8081, description="/healthz, /readyz, /metrics of the decision process")
    max_body_bytes: int = Field(16 * 2**20, ge=1024, description="a longer request gets 413")
    call_seconds: float = Field(
        3600.0,
        ge=1,
        le=3600,
        description="a longer call is ended and charged for what it received; at most the hour for which the "
        "ledger keeps the credit lease of a gateway that died",
    )
    envoy_memory_bytes: int = Field(
        2 * 2**30,
        ge=64 * 2**20,
        description="memory of Envoy (its container's limit); client connections are limited to this / "
        "(4 * connection_buffer_bytes), and calls get 503 before it is full",
    )
    connection_buffer_bytes: int = Field(
        64 * 2**10,
        ge=16 * 2**10,
        le=16 * 2**20,
        description="buffer of one direction of a connection; the windows of HTTP/2 are 4 times this for a "
        "call and 16 times this for a connection",
    )
    http2_streams: int = Field(
        100, ge=1, le=2**31 - 1, description="concurrent calls on one HTTP/2 connection"
    )
    envoy_health_port: int = Field(
        0,
        description="port on which Envoy answers only /healthz, even when overloaded; 0: only at listen_port",
    )
    tls_certificate: Path | None = Field(None, description="PEM file; with tls_key, Envoy serves TLS")
    tls_key: Path | None = Field(None, description="PEM file of the private key")
    ca_file: Path = Field(
        Path("/etc/ssl/certs/ca-certificates.crt"),
        description="certificate authorities that are trusted for TLS upstreams",
    )
    trusted_proxies: str = Field(
        "", description="address ranges, separated by commas, whose X-Forwarded-For is trusted"
    )
    response_headers: str = Field(
        "",
        description="names of upstreams' headers, separated by commas, that callers see beside the usual "
        "ones, such as openai-processing-ms",
    )
    cors_origins: str = Field(
        "",
        description="origins of web pages that may call the gateway, separated by commas, such as "
        "https://app.example.com; * allows all; empty: none, and browsers refuse such calls",
    )
    request_headers: str = Field(
        "",
        description="names of client headers, separated by commas, that reach upstreams beside the usual "
        "ones, such as x-title; anthropic-beta forwards all of its values",
    )
    valkey_url: str = Field(
        "", description="Valkey in which replicas count limits together; empty: each replica counts by itself"
    )
    valkey_timeout_seconds: float = Field(
        0.25,
        gt=0,
        description="after this time Valkey counts as unreachable, and limits are counted without it",
    )
    replicas: int = Field(
        1, ge=1, description="replicas of the gateway: without Valkey each has limit / replicas"
    )
    balance_max_age_seconds: float = Field(
        60.0, gt=0, description="paid calls are refused after the meter was unreachable for longer"
    )
    backend_address: str = Field(
        "", description="host:port that replaces every backend; for tests and the demo"
    )
    linger_seconds: float = Field(5.0, ge=0, description="how long new calls are accepted after SIGTERM")
    drain_seconds: float = Field(600.0, ge=0, description="how long running calls may take after SIGTERM")
    run_envoy: bool = Field(False, description="start Envoy as a child process, as on a laptop")


def _is_base_url(text: str) -> bool:
    """Whether a client can append a path to this text and call it."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return False
    return (
        url.scheme in ("http", "https")
        and bool(url.hostname)
        and port != 0
        and not (url.query or url.fragment or "@" in url.netloc)
        and all("!" <= character <= "~" for character in text)
    )
