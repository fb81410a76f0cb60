"""The plane's own calls to its API server: a handful while it starts, where kubectl would be too slow."""

import http.client
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REQUEST_SECONDS = 5.0


class Admin:
    """Calls the API server at 127.0.0.1 with the administrator's certificate.

    Args:
        port: of the API server.
        pki: the directory that `certs.create_pki` filled.
    """

    def __init__(self, port: int, pki: Path) -> None:
        self._port = port
        self._context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._context.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        """One request; the status and body of the answer.

        Raises:
            OSError, http.client.HTTPException: there was no answer.
        """
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, context=self._context, timeout=REQUEST_SECONDS
        )
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()
