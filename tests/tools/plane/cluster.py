"""What every test cluster offers, whatever it is made of: kubectl, and identities of ServiceAccounts.

Works through kubectl alone, so the same code serves the plane, kind and a cluster of the user's.
"""

import abc
import base64
import json
import os
import subprocess
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .errors import KubectlError, PlaneError

KUBECTL_TIMEOUT_SECONDS = 120.0


class Cluster(abc.ABC):
    """A cluster to test on.

    Attributes:
        kubeconfig: of an administrator, mode 0600, holding one context.
        directory: for files of this run (tokens, kubectl's cache); goes away with `close`.
        simulated: True where pods are kwok's and run no program, so that the operator and the meter must be
            processes of this machine; False where they run from the image inside the cluster.
    """

    kubeconfig: Path
    directory: Path
    simulated: bool
    kubectl_program: Path

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._cluster_entry()["server"])

    def kubectl(
        self,
        *args: str,
        input: str | None = None,
        check: bool = True,
        seconds: float = KUBECTL_TIMEOUT_SECONDS,
    ) -> str:
        """Run kubectl as the administrator and return its stdout.

        Args:
            args: the arguments, such as `"get", "pods", "-A"`.
            input: text for stdin, such as the YAML for `apply -f -`.
            check: raise when kubectl fails; otherwise return what it wrote to stdout.
            seconds: how long it may take.

        Raises:
            KubectlError: with what kubectl wrote to stderr.
        """
        command = [
            str(self.kubectl_program),
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.directory / 'kubectl-cache'}",
            *args,
        ]
        # The user's kubectl preferences (kuberc) must not change what a test does.
        env = os.environ | {"KUBERC": "off"}
        try:
            run = subprocess.run(
                command,
                input=input,
                capture_output=True,
                text=True,
                check=False,
                env=env,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired as error:
            said = f"no answer within {seconds:.0f} s"
            raise KubectlError(args, -1, said + self.explain_failure()) from error
        if check and run.returncode != 0:
            raise KubectlError(args, run.returncode, run.stderr + self.explain_failure())
        return run.stdout

    def apply(self, *objects: Mapping[str, Any]) -> str:
        """`kubectl apply` of objects given as dicts."""
        return self.kubectl("apply", "-f", "-", input=json.dumps(_list_of(objects)))

    def service_account_token(
        self, namespace: str, name: str, audience: str | None = None, seconds: int = 86400
    ) -> str:
        """A token of a ServiceAccount (TokenRequest).

        Args:
            audience: who shall accept it; None means the API server.
            seconds: how long it is valid, at least 600; the cluster may give it less.
        """
        return self._token(namespace, name, [] if audience is None else [audience], seconds)

    def service_account_kubeconfig(self, namespace: str, name: str, audiences: Sequence[str] = ()) -> Path:
        """A kubeconfig (mode 0600) with a token of a ServiceAccount, valid for a day.

        Args:
            audiences: who shall accept the token besides the API server.
        """
        token = self._token(namespace, name, [], 86400)
        if audiences:
            # A request that names audiences gets those alone, and clusters differ in their own name.
            token = self._token(namespace, name, [*_audiences_of(token), *audiences], 86400)
        path = self.directory / f"kubeconfig-{namespace}-{name}"
        write_kubeconfig(path, self._cluster_entry(), f"{namespace}/{name}", {"token": token})
        return path

    @abc.abstractmethod
    def load_image(self, name: str) -> str:
        """Build the image `name` from the repository's Dockerfile and make it known to the nodes.

        Returns:
            what is behind the name now; "" where the nodes find the image themselves, if at all.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what `open` took. Safe to call twice."""

    def explain_failure(self) -> str:
        """What this cluster knows about why calls may fail, to be added to an error."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def _token(self, namespace: str, name: str, audiences: Sequence[str], seconds: int) -> str:
        wanted = [f"--audience={audience}" for audience in audiences]
        return self.kubectl(
            "create", "token", name, f"--namespace={namespace}", f"--duration={seconds}s", *wanted
        ).strip()

    def _cluster_entry(self) -> dict[str, Any]:
        text = self.kubectl("config", "view", "--minify", "--raw", "--flatten", "--output=json")
        entry: dict[str, Any] = json.loads(text)["clusters"][0]["cluster"]
        return entry


def write_kubeconfig(
    path: Path, cluster: Mapping[str, Any], user: str, credentials: Mapping[str, str]
) -> None:
    """Write a kubeconfig of one context, mode 0600; one of that name is replaced whole."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "farebox", "cluster": dict(cluster)}],
        "users": [{"name": user, "user": dict(credentials)}],
        "contexts": [{"name": "farebox", "context": {"cluster": "farebox", "user": user}}],
        "current-context": "farebox",
    }
    write_private(path, json.dumps(document, indent=2))


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read, at no moment half of it."""
    making = path.with_name(f"{path.name}.{os.getpid()}")
    making.unlink(missing_ok=True)
    with os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    making.replace(path)


def _audiences_of(token: str) -> list[str]:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    audience = claims.get("aud")
    if not audience:
        raise PlaneError("the cluster's ServiceAccount tokens name no audience (`aud`)")
    return [audience] if isinstance(audience, str) else list(audience)


def _list_of(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": [dict(item) for item in objects]}
