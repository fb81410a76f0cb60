"""Tokens of external providers, from the Secrets that Models name. Never logged, nor shown by repr."""

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

KEPT_SECONDS: Final = 30.0
"""How long a token is used before its Secret is read again: a new one acts within this time."""


class CredentialsUnavailable(FareboxError):
    """A Secret is missing, cannot be read, or holds no token. The message names it and never quotes it."""


@dataclass
class Credentials:
    """Reads a Secret when a call needs it, and remembers it for a while.

    Args:
        namespace: of the Secrets: that of the backends.
    """

    client: KubeClient
    namespace: str
    clock: Callable[[], float] = time.monotonic
    _tokens: dict[SecretRef, tuple[float, str]] = field(default_factory=dict, repr=False)

    async def token(self, ref: SecretRef) -> str:
        """The token of a provider. An API server that is away leaves the one that was read last.

        Raises:
            CredentialsUnavailable: see there.
        """
        kept = self._tokens.get(ref)
        if kept is not None and self.clock() - kept[0] < KEPT_SECONDS:
            return kept[1]
        where = f"Secret {self.namespace}/{ref.name}"
        try:
            secret = await self.client.get(core_path("secrets", self.namespace, ref.name))
        except KubeUnreachable as error:
            if kept is not None:
                return kept[1]
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
