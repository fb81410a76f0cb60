"""A small client for tests: paths and dictionaries, over the official `kubernetes` package."""

import json
from pathlib import Path
from typing import Any

from kubernetes import config
from urllib3.exceptions import HTTPError

from farebox.api import API_VERSION
from farebox.kube.names import resource_path

JSONObject = dict[str, Any]


class ApiError(LookupError):
    """The API server's error, with its status code and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message


class Api:
    """Requests with the credentials of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._client = config.new_client_from_config(str(kubeconfig))

    def request(
        self, method: str, path: str, body: JSONObject | None = None, content_type: str = "application/json"
    ) -> JSONObject:
        """One request. Raises ApiError for any status from 400 on, OSError when there is no answer."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        call = self._client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = self._client.call_api(*call)
            payload = response.read()
        except HTTPError as error:
            raise OSError(f"{method} {path}: {error}") from error
        if response.status >= 400:
            raise ApiError(response.status, _message(payload))
        answer: JSONObject = json.loads(payload)
        return answer

    def get(self, path: str) -> JSONObject:
        """One object, or a list."""
        return self.request("GET", path)

    def find(self, path: str) -> JSONObject | None:
        """One object, or None if it does not exist."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def create(self, path: str, body: JSONObject) -> JSONObject:
        """Create an object in a collection."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: JSONObject) -> JSONObject:
        """Apply a merge patch."""
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def merge_lists(self, path: str, body: JSONObject) -> JSONObject:
        """Apply a strategic merge patch: items of a list are found by their key, and the others stay."""
        return self.request("PATCH", path, body, "application/strategic-merge-patch+json")

    def delete(self, path: str) -> None:
        """Delete an object; one that is gone is fine."""
        try:
            self.request("DELETE", path)
        except ApiError as error:
            if error.status != 404:
                raise


def _message(payload: bytes) -> str:
    try:
        return str(json.loads(payload)["message"])
    except (ValueError, KeyError, TypeError):
        return payload.decode(errors="replace")


def path_of(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The API path of one of Farebox's kinds."""
    return resource_path(kind, namespace, name, subresource)


def manifest(kind: str, name: str, spec: JSONObject, namespace: str = "", **metadata: Any) -> JSONObject:
    """An object of one of Farebox's kinds."""
    place = {"namespace": namespace} if namespace else {}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, **place, **metadata},
        "spec": spec,
    }
