"""What users write: names, and specs that are mostly good, some odd and some bad."""

import random

from tests.tools.soak.world import JSONObject

TEAMS = ("team-1", "team-2", "team-3")
BILLING = ("billing-a", "billing-b")
ACCOUNTS = {
    "billing-a/acme": "USD",
    "billing-a/beta": "USD",
    "billing-b/corp": "USD",
    "billing-b/euro": "EUR",
    "team-1/own": "USD",
}
HARD = "billing-b/hard"
"""Its enforcement, credit and model are never edited, so that its balance may never be below zero (B17)."""
MODELS = ("alpha", "b.eta-1.5", "gamma", "delta", "ext")
SOLID = "solid"
SERVICES = ("chat", "own-1", "own-2", "res", "try", "alpha", "b.eta-1.5")
KEYS = ("app", "ci", "old")


def tiers(chance: random.Random) -> list[JSONObject]:
    price = chance.choice((20, 100, 500, 999))
    last = {"input": f"{price}.000", "cachedInput": f"{price}.100", "output": f"{2 * price}.001"}
    if chance.random() < 0.5:
        return [last]
    first = {"upToInputTokens": 20, "input": "7.001", "cachedInput": "0.500", "output": "11.000"}
    return [first, last]


def model_spec(chance: random.Random, name: str, simulator: str) -> JSONObject:
    template: JSONObject = {"spec": {"containers": [{"name": "server", "image": "none"}]}}
    serving: JSONObject = {
        "deployment": {
            "template": template,
            "drainSeconds": chance.choice((0, 0, 3)),
            "replicas": chance.choice((0, 1, 1, 2)),
        }
    }
    if name == "ext":
        serving = {"external": {"baseURL": f"http://{simulator}/v1"}}
    spec: JSONObject = {
        "serving": serving,
        "prices": {"currency": "USD", "tiers": tiers(chance)},
        "retired": chance.random() < 0.05,
    }
    if chance.random() < 0.6:
        spec["freeQuota"] = {"tokens": chance.choice((50, 400, 3000)), "validDays": 30}
    if chance.random() < 0.7:
        spec["reservation"] = {
            "inputUnitTPM": 100,
            "inputUnitPricePerDay": chance.choice(("0.010", "0.100", "5.000")),
            "outputUnitTPM": 100,
            "outputUnitPricePerDay": "0.020",
            "terms": [1, 30],
        }
    if chance.random() < 0.4:
        spec["limits"] = {"rpm": chance.choice((0, 30, 600)), "tpm": chance.choice((0, 100000))}
    return spec


def service_spec(chance: random.Random, namespace: str, name: str) -> JSONObject:
    account = chance.choice([*ACCOUNTS] * 4 + ["billing-a/ghost"])
    at, _, who = account.partition("/")
    spec: JSONObject = {
        "modelRef": {"name": chance.choice(MODELS * 5 + ("ghost",))},
        "billingAccountRef": {"name": who, "namespace": at},
    }
    if at == namespace and chance.random() < 0.5:
        del spec["billingAccountRef"]["namespace"]
    kind = chance.random()
    if kind < 0.5:
        spec["postpaid"] = True
    elif kind < 0.65:
        spec["trial"] = True
    elif kind < 0.85:
        spec["reservation"] = {
            "inputTPM": chance.choice((100, 200, 150)),
            "outputTPM": chance.choice((0, 100)),
            "days": chance.choice((1, 30, 7)),
            "autoRenew": chance.random() < 0.5,
        }
        spec["postpaid"] = chance.random() < 0.3
    if name.startswith("own") or name == "res":
        spec["dedicated"] = True
        spec["replicas"] = chance.choice((0, 1, 1, 2, 3))
    if chance.random() < 0.3:
        spec["limits"] = {"rpm": chance.choice((0, 5, 60, 5000)), "tpm": chance.choice((0, 2000))}
    if chance.random() < 0.2:
        spec["access"] = {"allowedCIDRs": [chance.choice(("127.0.0.0/8", "10.0.0.0/8"))]}
    return spec


BAD: tuple[tuple[str, JSONObject], ...] = (
    ("InferenceService", {"modelRef": {"name": "alpha"}, "billingAccountRef": {"name": "x"}, "replicas": -1}),
    ("InferenceService", {"modelRef": {"name": "alpha"}}),
    ("InferenceService", {"modelRef": {"name": "alpha"}, "billingAccountRef": {"name": "x"}, "replicas": 3}),
    (
        "InferenceService",
        {"modelRef": {"name": "alpha"}, "billingAccountRef": {"name": "x"}, "postpaid": True, "trial": True},
    ),
    (
        "InferenceService",
        {
            "modelRef": {"name": "alpha"},
            "billingAccountRef": {"name": "x"},
            "access": {"allowedCIDRs": ["everywhere"]},
        },
    ),
    ("APIKey", {"services": {}}),
    ("APIKey", {"services": {"all": True, "names": ["chat"]}}),
    ("TopUp", {"billingAccountRef": {"name": "acme"}, "amount": "1e3", "reference": "x"}),
    ("TopUp", {"billingAccountRef": {"name": "acme"}, "amount": "-1", "reference": "x"}),
    ("TopUp", {"billingAccountRef": {"name": "acme"}, "amount": "0", "reference": "x", "kind": "Adjustment"}),
    ("BillingAccount", {"currency": "usd"}),
)
