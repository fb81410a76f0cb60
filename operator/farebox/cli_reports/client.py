"""Questions to the meter with somebody's token. It reads only, and every error says what to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from pydantic import BaseModel, ValidationError

from farebox.domain.keys import ObjectKey
from farebox.errors import ConfigurationError, LedgerRefused, LedgerUnavailable
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path
from farebox.meterapi.reports import WireStatement, WireUsage

PAGE: Final = 5_000
_SECONDS: Final = 120.0
_TOKEN_SECONDS: Final = 600
_MAKE_TOKEN: Final = "kubectl create token NAME -n NAMESPACE --audience={audience}"


@dataclass(frozen=True, slots=True)
class MeterAccess:
    """Where the meter is, and where a token for it comes from."""

    meter: str
    token: str
    token_file: Path | None
    service_account: str | None
    audience: str
    kubeconfig: Path | None


async def token_of(access: MeterAccess) -> str:
    """The token: given, in a file, or made for a ServiceAccount with the rights of the kubeconfig.

    Raises:
        ConfigurationError: there is none.
        KubeError, KubeUnreachable: it cannot be made.
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
        raise ConfigurationError(f"the token cannot be read: {error}") from error
    if not token.strip():
        raise ConfigurationError(
            "there is no token: give --service-account NAMESPACE/NAME, --token-file, or FAREBOX_TOKEN from "
            + _MAKE_TOKEN.format(audience=access.audience)
        )
    return token.strip()


class MeterReader:
    """The meter's reports. Make it inside a running event loop, as a context manager."""

    def __init__(self, access: MeterAccess, token: str) -> None:
        self._access = access
        self._url = access.meter.rstrip("/")
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": "farebox", "Authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=_SECONDS),
        )

    async def __aenter__(self) -> "MeterReader":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def statement(self, account: str, parameters: dict[str, str]) -> WireStatement:
        """The statement of an account."""
        return WireStatement.model_validate_json(await self._statement(account, parameters))

    async def statement_csv(self, account: str, parameters: dict[str, str]) -> bytes:
        """The same as CSV, as the meter writes it."""
        return await self._statement(account, parameters | {"format": "csv"})

    async def _statement(self, account: str, parameters: dict[str, str]) -> bytes:
        try:
            key = ObjectKey.parse(account)
        except ValueError as error:
            raise ConfigurationError(f"the account: {error}") from error
        return await self._get(f"/v1/accounts/{key}/statement", parameters)

    async def usage(self, parameters: dict[str, str]) -> WireUsage:
        """All pages of usage as one."""
        parameters = parameters | {"limit": str(PAGE)}
        page = WireUsage.model_validate_json(await self._get("/v1/usage", parameters))
        rows = list(page.rows)
        while page.next is not None:
            payload = await self._get("/v1/usage", parameters | {"cursor": page.next})
            page = WireUsage.model_validate_json(payload)
            rows += page.rows
        return page.model_copy(update={"rows": tuple(rows)})

    async def _get(self, path: str, parameters: dict[str, str]) -> bytes:
        try:
            async with self._session.get(self._url + path, params=parameters) as response:
                payload, status = await response.read(), response.status
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise LedgerUnavailable(
                f"the meter at {self._url} does not answer ({type(error).__name__}): give --meter URL, for "
                "one in a cluster after kubectl port-forward -n farebox-system service/farebox-meter 8090"
            ) from error
        if status == 200:
            return payload
        try:
            refusal = _Answer.model_validate_json(payload).error
        except ValidationError as invalid:
            raise LedgerUnavailable(
                f"{self._url} answers {status} and is no meter: give --meter"
            ) from invalid
        message = refusal.message
        if status == 401:
            message += f"; make one with {_MAKE_TOKEN.format(audience=self._access.audience)}"
        raise LedgerRefused(refusal.reason, message)


class _Error(BaseModel):
    reason: str
    message: str


class _Answer(BaseModel):
    error: _Error


def dumped(answer: BaseModel) -> dict[str, Any]:
    """The answer as the meter's JSON."""
    return answer.model_dump(by_alias=True, mode="json", exclude_none=True)
