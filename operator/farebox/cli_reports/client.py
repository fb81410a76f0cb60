"""The command line's access to the meter: where it is, and with which token. It only reads."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from farebox.domain.keys import ObjectKey
from farebox.errors import ConfigurationError, LedgerRefused, LedgerUnavailable
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path
from farebox.meterapi.client import MeterClient

_TOKEN_SECONDS: Final = 600
_CREATE_TOKEN: Final = "kubectl create token NAME -n NAMESPACE --audience={audience}"


@dataclass(frozen=True, slots=True)
class MeterAccess:
    """The meter's URL, and the source of a token for it."""

    meter: str
    token: str
    token_file: Path | None
    service_account: str | None
    audience: str
    kubeconfig: Path | None


async def token_of(access: MeterAccess) -> str:
    """The token from the environment or a file, or a new one of a ServiceAccount.

    Raises:
        ConfigurationError: there is no token.
        KubeError, KubeUnreachable: the token cannot be created.
    """
    if access.service_account is not None:
        try:
            account = ObjectKey.parse(access.service_account)
        except ValueError as error:
            raise ConfigurationError(f"--service-account: {error}") from error
        path = core_path("serviceaccounts", account.namespace, account.name)
        spec = {"audiences": [access.audience], "expirationSeconds": _TOKEN_SECONDS}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        async with await KubeClient.connect(access.kubeconfig) as client:
            answer = await client.create(f"{path}/token", body)
        return str(answer["status"]["token"])
    try:
        token = access.token if access.token_file is None else access.token_file.read_text()
    except OSError as error:
        raise ConfigurationError(f"Cannot read the token: {error}") from error
    if not token.strip():
        raise ConfigurationError(
            "No token: give --service-account NAMESPACE/NAME, --token-file, or FAREBOX_TOKEN from "
            + _CREATE_TOKEN.format(audience=access.audience)
        )
    return token.strip()


@asynccontextmanager
async def meter(access: MeterAccess) -> AsyncIterator[MeterClient]:
    """A client of the meter whose errors say what to do on a command line."""
    async with MeterClient(access.meter, await token_of(access)) as client:
        try:
            yield client
        except LedgerUnavailable as error:
            raise LedgerUnavailable(
                f"{error}. Check --meter URL; reach a meter in a cluster with "
                "kubectl port-forward -n farebox-system service/farebox-meter 8090"
            ) from error
        except LedgerRefused as refusal:
            if refusal.reason != "Unauthenticated":
                raise
            hint = f"create a token with {_CREATE_TOKEN.format(audience=access.audience)}"
            raise LedgerRefused(refusal.reason, f"{refusal.message}; {hint}") from refusal
