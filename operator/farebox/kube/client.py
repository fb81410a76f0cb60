"""Requests to the API server: credentials and TLS from the `kubernetes` package, one aiohttp session.

It takes and returns JSON dictionaries: a typed call costs three times the CPU of a bare request
(docs/decisions/003), and the operator mostly makes such calls. Pydantic reads and writes JSON at least twice
as fast as the standard library. The client never retries, because the work queue does. aiohttp itself repeats
a PUT or DELETE once after a connection reset, which is safe: those carry a resourceVersion or a uid.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from pydantic_core import from_json, to_json

from farebox.domain.keys import ObjectKey
from farebox.errors import (
    ConfigurationError,
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    KubeUnreachable,
    NotFound,
    TooManyRequests,
)
from farebox.kube.names import key_of
from farebox.sockets import connector

JSONObject = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
_ERRORS: dict[int, type[KubeError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    422: Invalid,
    429: TooManyRequests,
}
_PAGE = 500
"""Objects in a page of a list; the whole page is in memory."""
_SILENCE_SECONDS = 90.0
"""The API server sends a bookmark about once a minute."""


class KubeClient:
    """One connection pool to one API server. Create it with `connect`, inside a running event loop."""

    def __init__(self, configuration: Configuration, connections: int = 100) -> None:
        self.configuration = configuration
        self._session = aiohttp.ClientSession(
            base_url=configuration.host,
            connector=connector(ssl=tls_context(configuration), limit=connections, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=30, sock_connect=10),
            # Inside a cluster, compression costs both sides more CPU than it saves in traffic.
            headers={"User-Agent": "farebox", "Accept": "application/json", "Accept-Encoding": "identity"},
        )

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None) -> "KubeClient":
        """Connect by the given kubeconfig, or as the pod's ServiceAccount, or by the user's kubeconfig.

        Raises:
            ConfigurationError: there are no usable credentials.
        """
        return cls(await load_configuration(kubeconfig))

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def __aenter__(self) -> "KubeClient":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: JSONObject | None = None,
        content_type: str = "application/json",
        params: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> JSONObject:
        """Send one request and return the decoded answer.

        Args:
            timeout: seconds for the whole exchange; default 30.

        Raises:
            KubeError: the API server answered with an error; see its subclasses in `farebox.errors`.
            KubeUnreachable: there was no answer, so the outcome of a write is unknown.
        """
        headers = {"Content-Type": content_type}
        if token := await self.configuration.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = token.strip()
        data = None if body is None else to_json(body)
        limits = None if timeout is None else aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._session.request(
                method, path, data=data, headers=headers, params=params, timeout=limits
            ) as response:
                payload = await response.read()
                status = response.status
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KubeUnreachable(f"{method} {path}: {type(error).__name__}: {error}") from error
        if status >= 400:
            raise _error(status, payload, f"{method} {path}")
        answer: JSONObject = from_json(payload)
        return answer

    async def get(self, path: str) -> JSONObject:
        """Read one object."""
        return await self.request("GET", path)

    async def create(self, path: str, body: JSONObject) -> JSONObject:
        """Create an object in the collection at `path`; returns it."""
        return await self.request("POST", path, body=body)

    async def merge_patch(self, path: str, body: JSONObject) -> JSONObject:
        """Apply a JSON merge patch: it replaces whole lists, and null removes a field."""
        return await self.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def delete(self, path: str, uid: str) -> None:
        """Delete the object, if it exists and is still the one with this uid."""
        try:
            await self.request("DELETE", path, body={"preconditions": {"uid": uid}})
        except (NotFound, Conflict):
            return

    async def list(self, path: str) -> AsyncIterator[JSONObject]:
        """Every object of a collection, as of one moment; see `pages`."""
        async for page in self.pages(path):
            for item in page["items"]:
                yield item

    async def listed(self, path: str, take: Callable[[JSONObject], object]) -> tuple[set[ObjectKey], str]:
        """Pass every object of a collection to `take`; returns the keys and the list's resourceVersion.

        A list that had to start again (see `pages`) passes objects twice. The keys are those of the last
        attempt, because an object in the first one alone may have been deleted since.

        Raises:
            KubeError, KubeUnreachable: the list failed, perhaps after some objects were passed on.
        """
        keys: set[ObjectKey] = set()
        version = ""
        async for page in self.pages(path):
            if (current := str(page["metadata"]["resourceVersion"])) != version:
                version = current
                keys.clear()
            for raw in page["items"]:
                keys.add(key_of(raw))
                take(raw)
        return keys, version

    async def pages(self, path: str) -> AsyncIterator[JSONObject]:
        """Yield the pages of a list: `items`, and `metadata.resourceVersion`, the same in all pages.

        If the continue token expires meanwhile, the list starts again with another version, so objects may
        come twice.
        """
        token = ""
        while True:
            params = {"limit": str(_PAGE)} | ({"continue": token} if token else {})
            try:
                page = await self.request("GET", path, params=params)
            except KubeError as error:
                if error.status != 410 or not token:
                    raise
                token = ""
                continue
            yield page
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def watch(
        self, path: str, version: str, seconds: float, accepted: Callable[[], None] = lambda: None
    ) -> AsyncIterator[JSONObject]:
        """Yield the changes of a collection after a resourceVersion, and bookmarks, as they arrive.

        The API server ends the watch after `seconds` at the latest. A connection that is silent for longer
        than the interval of bookmarks counts as dead.

        Args:
            accepted: called when the API server has accepted the watch.

        Raises:
            KubeError: the API server answered with an error, before or within the stream; 410: the version
                is too old, so list again.
            KubeUnreachable: the connection failed, or a line was not an event.
        """
        params = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, int(seconds))),
        }
        headers = {}
        if token := await self.configuration.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = token.strip()
        limits = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_SILENCE_SECONDS)
        try:
            async with self._session.get(path, headers=headers, params=params, timeout=limits) as response:
                if response.status >= 400:
                    raise _error(response.status, await response.read(), f"WATCH {path}")
                accepted()
                async for line in _lines(response.content):
                    event: JSONObject = from_json(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise _error(status.get("code", 500), to_json(status), f"WATCH {path}")
                    yield event
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise KubeUnreachable(f"WATCH {path}: {type(error).__name__}: {error}") from error


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length; aiohttp limits lines to 128 KiB."""
    parts: list[bytes] = []
    async for chunk in stream.iter_any():
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            yield b"".join((*parts, line))
            parts.clear()
        if rest:
            parts.append(rest)


def tls_context(configuration: Configuration) -> ssl.SSLContext:
    """Return the TLS settings of a kubeconfig.

    Strict X.509 checks (Python 3.13's default) are off, as in kubectl: the certificate authorities of many
    clusters lack the required extensions.
    """
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Load credentials and TLS settings: the given kubeconfig, or in-cluster, or the user's default.

    Raises:
        ConfigurationError: credentials are missing or unreadable.
    """
    configuration = Configuration()
    try:
        if kubeconfig is not None:
            await load_kube_config(
                config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
            )
            return configuration
        try:
            load_incluster_config(client_configuration=configuration)
        except ConfigException:
            await load_kube_config(client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError) as error:
        raise ConfigurationError(
            f"no credentials for a cluster: {error}; set FAREBOX_KUBECONFIG or KUBECONFIG, or run in a pod"
        ) from error
    return configuration


def _error(status: int, payload: bytes, request: str) -> KubeError:
    reason, message = "", payload[:500].decode(errors="replace")
    try:
        answer = from_json(payload)
        reason, message = answer.get("reason", ""), answer.get("message", message)
    except (ValueError, AttributeError):
        pass
    return _ERRORS.get(status, KubeError)(status, reason, message or f"{request}: HTTP {status}")
