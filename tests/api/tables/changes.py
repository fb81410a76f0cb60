"""Which changes of an object are let in, and which are not (B8)."""

from tests.api.samples import (
    ACCOUNT,
    APIKEY,
    DEFAULT_SERVICE,
    EXTERNAL_MODEL,
    MODEL,
    RESERVED_SERVICE,
    SHARED_SERVICE,
    TOPUP,
)
from tests.api.tables.cases import Accepted, Refused, containers, external, tiers

MODEL_REF = "spec.modelRef: Forbidden: modelRef cannot be changed"
ACCOUNT_REF = "spec.billingAccountRef: Forbidden: billingAccountRef cannot be changed"
RESERVATION = "spec.reservation: Forbidden: reservation cannot be added, removed or changed after creation"
DEDICATED = "spec.dedicated: Forbidden: dedicated cannot be changed"
SERVING = "spec.serving: Forbidden: serving cannot change between deployment and external"
CURRENCY = "currency: Forbidden: currency cannot be changed"
BOOKED = "spec: Forbidden: a TopUp cannot be changed"

CHANGES_REFUSED = [
    Refused(
        "another type", DEFAULT_SERVICE, {"type": "Custom"}, "spec.type: Forbidden: type cannot be changed"
    ),
    Refused("type left out", DEFAULT_SERVICE, {"type": None}, "spec.type: Forbidden: type cannot be changed"),
    Refused("another model", SHARED_SERVICE, {"modelRef": {"name": "other"}}, MODEL_REF),
    Refused("another account", SHARED_SERVICE, {"billingAccountRef": {"name": "other"}}, ACCOUNT_REF),
    Refused(
        "account in another namespace",
        RESERVED_SERVICE,
        {"billingAccountRef": {"namespace": "other"}},
        ACCOUNT_REF,
    ),
    Refused(
        "account's namespace left out",
        RESERVED_SERVICE,
        {"billingAccountRef": {"namespace": None}},
        ACCOUNT_REF,
    ),
    Refused(
        "account's namespace added",
        SHARED_SERVICE,
        {"billingAccountRef": {"namespace": "team-a"}},
        ACCOUNT_REF,
    ),
    Refused("own backend", SHARED_SERVICE, {"dedicated": True}, DEDICATED),
    Refused("own backend given up", RESERVED_SERVICE, {"dedicated": False, "replicas": 1}, DEDICATED),
    Refused("own backend left out", RESERVED_SERVICE, {"dedicated": None, "replicas": 1}, DEDICATED),
    Refused("reservation added", SHARED_SERVICE, {"reservation": {"inputTPM": 1, "days": 1}}, RESERVATION),
    Refused("reservation removed", RESERVED_SERVICE, {"reservation": None}, RESERVATION),
    Refused("larger reservation", RESERVED_SERVICE, {"reservation": {"inputTPM": 400000}}, RESERVATION),
    Refused(
        "reservation without output", RESERVED_SERVICE, {"reservation": {"outputTPM": None}}, RESERVATION
    ),
    Refused("longer reservation", RESERVED_SERVICE, {"reservation": {"days": 90}}, RESERVATION),
    Refused(
        "deployment to external",
        MODEL,
        {"serving": {"deployment": None, "external": {"baseURL": "https://a.example"}}},
        SERVING,
    ),
    Refused(
        "external to deployment",
        EXTERNAL_MODEL,
        {"serving": {"external": None, "deployment": MODEL["spec"]["serving"]["deployment"]}},
        SERVING,
    ),
    Refused("prices in another currency", MODEL, {"prices": {"currency": "EUR"}}, "spec.prices." + CURRENCY),
    Refused("account in another currency", ACCOUNT, {"currency": "EUR"}, "spec." + CURRENCY),
    Refused("another amount", TOPUP, {"amount": "200.00"}, BOOKED),
    Refused("the same amount in other words", TOPUP, {"amount": "100.0"}, BOOKED),
    Refused("another kind", TOPUP, {"kind": "Adjustment"}, BOOKED),
    Refused("another reference", TOPUP, {"reference": "pay_124"}, BOOKED),
    Refused("another account", TOPUP, {"billingAccountRef": {"name": "other"}}, BOOKED),
]

CHANGES_ACCEPTED = [
    Accepted("switched on", DEFAULT_SERVICE, {"postpaid": True}),
    Accepted("type Custom left out", RESERVED_SERVICE, {"type": None}),
    Accepted("renewal off", RESERVED_SERVICE, {"reservation": {"autoRenew": False}}),
    Accepted("renewal left out", RESERVED_SERVICE, {"reservation": {"autoRenew": None}}),
    Accepted(
        "more replicas, other limits",
        RESERVED_SERVICE,
        {"replicas": 5, "limits": {"rpm": 1}, "postpaid": False},
    ),
    Accepted("limits and access removed", RESERVED_SERVICE, {"limits": None, "access": None}),
    Accepted("dedicated: false spelled out", SHARED_SERVICE, {"dedicated": False}),
    Accepted("other prices", MODEL, tiers(100, None)),
    Accepted("retired, other template", MODEL, {"retired": True, **containers({"name": "a", "image": "b"})}),
    Accepted("offers removed", MODEL, {"reservation": None, "freeQuota": None, "limits": None}),
    Accepted("provider moved", EXTERNAL_MODEL, external("https://b.example/v1")),
    Accepted("more credit", ACCOUNT, {"creditLimit": "50", "enforcement": "Hard"}),
    Accepted("other services", APIKEY, {"services": {"names": None, "all": True}}),
    Accepted("key held back", APIKEY, {"disabled": True}),
    Accepted(
        "key without limits",
        APIKEY,
        {"allowedCIDRs": None, "expiresAt": None, "disabled": None, "quota": None},
    ),
    Accepted("open to all", ACCOUNT, {"allowedNamespaces": {"from": "All", "selector": None}}),
]
