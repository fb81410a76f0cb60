"""Tokens of external providers, from the Secrets that Models name. They are never logged or in a repr."""

import base64
import binascii
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from farebox.errors import FareboxError, KubeError, KubeUnreachable
from farebox.gateway.convert import SecretRef
from farebox.kube.client import KubeClient
from farebox.kube.names import core_path

CACHE_SECONDS: Final = 30.0
"""The lifetime of a cached token; a new token acts within this time."""


class CredentialsUnavailable(FareboxError):
    """A Secret is missing, unreadable, or has no token. The message names it and never quotes it."""


@dataclass
class Credentials:
    """Reads a Secret when a call needs it, and caches its token.

    Args:
        namespace: the namespace of the Secrets, which is that of the backends.
    """

    client: KubeClient
    namespace: str
    clock: Callable[[], float] = time.monotonic
    _tokens: dict[SecretRef, tuple[float, str]] = field(default_factory=dict, repr=False)

    async def token(self, ref: SecretRef) -> str:
        """The token of a provider. While the API server is unreachable, the last token stays in use.

        Raises:
            CredentialsUnavailable: there is no token.
        """
        cached = self._tokens.get(ref)
        if cached is not None and self.clock() - cached[0] < CACHE_SECONDS:
            return cached[1]
        where = f"Secret {self.namespace}/{ref.name}"
        try:
            secret = await self.client.get(core_path("secrets", self.namespace, ref.name))
        except KubeUnreachable as error:
            if cached is not None:
                return cached[1]
            raise CredentialsUnavailable(f"{where} cannot be read: no answer") from error
        except KubeError as error:
            self._tokens.pop(ref, None)
            raise CredentialsUnavailable(f"{where} cannot be read: HTTP {error.status}") from error
        try:
            token = base64.b64decode(secret.get("data", {})[ref.key]).decode("ascii").strip()
        except (KeyError, UnicodeDecodeError, binascii.Error):
            raise CredentialsUnavailable(f"{where} has no token under {ref.key}") from None
        if not token or not token.isprintable() or " " in token:
            raise CredentialsUnavailable(f"{where} has no token under {ref.key}")
        self._tokens[ref] = (self.clock(), token)
        return token
