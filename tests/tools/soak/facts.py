"""All that there is at one moment: objects as the API server has them, figures as the meter has them."""

from dataclasses import dataclass
from typing import Any

from farebox.kube.names import core_path, deployment_path
from tests.support.api import path_of
from tests.support.stack import BACKENDS
from tests.tools.soak.world import JSONObject, World


def place(raw: JSONObject) -> str:
    """namespace/name, or the name."""
    metadata = raw["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]


def condition(raw: JSONObject, type_: str) -> JSONObject:
    found = (raw.get("status") or {}).get("conditions") or ()
    return next((each for each in found if each["type"] == type_), {})


@dataclass
class Seen:
    """One look."""

    services: dict[str, JSONObject]
    accounts: dict[str, JSONObject]
    models: dict[str, JSONObject]
    topups: dict[str, JSONObject]
    keys: dict[str, JSONObject]
    namespaces: dict[str, JSONObject]
    deployments: dict[str, JSONObject]
    endpoints: dict[str, JSONObject]
    balances: dict[str, JSONObject]
    quotas: dict[tuple[str, str], JSONObject]
    reservations: dict[tuple[str, str], JSONObject]

    def versions(self) -> dict[str, str]:
        """The resourceVersions of all that an operator writes."""
        kinds: tuple[tuple[str, dict[str, Any]], ...] = (
            ("InferenceService", self.services),
            ("BillingAccount", self.accounts),
            ("Model", self.models),
            ("TopUp", self.topups),
            ("APIKey", self.keys),
            ("Deployment", self.deployments),
            ("Service", self.endpoints),
        )
        return {
            f"{kind} {name}": raw["metadata"]["resourceVersion"]
            for kind, found in kinds
            for name, raw in found.items()
        }


def look(world: World) -> Seen:
    """Raises OSError when something does not answer."""

    def listed(path: str) -> dict[str, JSONObject]:
        return {place(raw): raw for raw in world.kube.items(path)}

    balances: dict[str, JSONObject] = {}
    quotas: dict[tuple[str, str], JSONObject] = {}
    reservations: dict[tuple[str, str], JSONObject] = {}
    after, complete = 0, False
    while not complete:
        page = world.meter(f"/v1/changes?after={after}&wait=0&limit=1000")
        balances |= {each["account"]: each for each in page["accounts"]}
        quotas |= {(each["account"], each["model"]): each for each in page["quotas"]}
        reservations |= {(each["service"], each["uid"]): each for each in page["reservations"]}
        after, complete = page["next"], page["complete"]
    return Seen(
        services=listed(path_of("InferenceService")),
        accounts=listed(path_of("BillingAccount")),
        models=listed(path_of("Model")),
        topups=listed(path_of("TopUp")),
        keys=listed(path_of("APIKey")),
        namespaces=listed(core_path("namespaces")),
        deployments=listed(deployment_path(BACKENDS)),
        endpoints=listed(core_path("services", BACKENDS)),
        balances=balances,
        quotas=quotas,
        reservations=reservations,
    )
