"""One full object of each kind, as product.md shows it, and a way to change a copy."""

import copy
from typing import Any

Manifest = dict[str, Any]

API_VERSION = "farebox.dev/v1alpha1"


def changed(manifest: Manifest, patch: Manifest) -> Manifest:
    """A copy of `manifest` with a JSON merge patch applied: None removes a field."""
    result = copy.deepcopy(manifest)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = changed(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def manifest(kind: str, name: str, spec: Manifest, namespace: str | None = "team-a") -> Manifest:
    """An object as a user writes it."""
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


TIERS = [
    {"upToInputTokens": 32768, "input": "0.500", "cachedInput": "0.050", "output": "1.500"},
    {"input": "0.800", "cachedInput": "0.080", "output": "2.400"},
]

TEMPLATE = {
    "metadata": {"labels": {"app": "qwen"}},
    "spec": {
        "nodeSelector": {"nvidia.com/gpu.product": "L40S"},
        "containers": [
            {
                "name": "vllm",
                "image": "vllm/vllm-openai:v0.11.0",
                "args": ["--model", "Qwen/Qwen3-8B"],
                "resources": {"limits": {"nvidia.com/gpu": 1}},
            }
        ],
    },
}

MODEL = manifest(
    "Model",
    "qwen3-8b",
    {
        "displayName": "Qwen3 8B",
        "servedName": "Qwen/Qwen3-8B",
        "serving": {"deployment": {"replicas": 1, "port": 8000, "drainSeconds": 30, "template": TEMPLATE}},
        "prices": {"currency": "USD", "tiers": TIERS},
        "reservation": {
            "inputUnitTPM": 10000,
            "inputUnitPricePerDay": "12.00",
            "outputUnitTPM": 1000,
            "outputUnitPricePerDay": "9.00",
            "terms": [1, 30, 90, 365],
        },
        "freeQuota": {"tokens": 500000, "validDays": 90},
        "limits": {"rpm": 600, "tpm": 1000000, "contextTokens": 131072, "maxOutputTokens": 8192},
        "retired": False,
    },
    namespace=None,
)

EXTERNAL_MODEL = changed(
    MODEL,
    {
        "metadata": {"name": "gpt-elsewhere"},
        "spec": {
            "serving": {
                "deployment": None,
                "external": {
                    "baseURL": "https://api.example.com/v1",
                    "credentialsSecretRef": {"name": "example", "key": "token"},
                },
            }
        },
    },
)

RESERVED_SERVICE = manifest(
    "InferenceService",
    "reserved",
    {
        "type": "Custom",
        "modelRef": {"name": "qwen3-8b"},
        "billingAccountRef": {"name": "acme", "namespace": "billing"},
        "postpaid": True,
        "trial": False,
        "reservation": {"inputTPM": 200000, "outputTPM": 20000, "days": 30, "autoRenew": True},
        "replicas": 2,
        "dedicated": True,
        "limits": {"rpm": 60, "tpm": 0},
        "access": {"allowedCIDRs": ["10.0.0.0/8"]},
    },
)

SHARED_SERVICE = manifest(
    "InferenceService",
    "shared",
    {"modelRef": {"name": "qwen3-8b"}, "billingAccountRef": {"name": "acme"}},
)

DEFAULT_SERVICE = manifest(
    "InferenceService",
    "qwen2.5-7b",
    {"type": "Default", "modelRef": {"name": "qwen2.5-7b"}, "billingAccountRef": {"name": "acme"}},
)

ACCOUNT = manifest(
    "BillingAccount",
    "acme",
    {
        "currency": "USD",
        "creditLimit": "0",
        "lowBalance": "20",
        "enforcement": "Soft",
        "allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"team": "acme"}}},
        "defaultServices": {
            "models": "Selector",
            "selector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["small"]}]},
        },
    },
)

TOPUP = manifest(
    "TopUp",
    "july",
    {
        "billingAccountRef": {"name": "acme"},
        "amount": "100.00",
        "kind": "Payment",
        "reference": "pay_123",
    },
)

APIKEY = manifest(
    "APIKey",
    "app",
    {
        "services": {"names": ["chat", "qwen2.5-7b"]},
        "allowedCIDRs": ["10.0.0.0/8"],
        "expiresAt": "2027-01-01T00:00:00Z",
        "disabled": False,
        "quota": {"tokens": 5000000, "period": "Day"},
    },
)

ALL = [MODEL, EXTERNAL_MODEL, RESERVED_SERVICE, SHARED_SERVICE, DEFAULT_SERVICE, ACCOUNT, TOPUP, APIKEY]
