"""What an InferenceService may be, and what not."""

from tests.api.samples import DEFAULT_SERVICE, RESERVED_SERVICE, SHARED_SERVICE
from tests.api.tables.cases import Accepted, Refused

WRITE_RANGE = 'spec.access.allowedCIDRs[0]: Invalid value: "{}": write an address range as address/length'
NO_MONEY = "spec.trial: Invalid value: trial runs on the free quota alone and never bills: "

SERVICES_REFUSED = [
    Refused("no model", SHARED_SERVICE, {"modelRef": None}, "spec.modelRef: Required value"),
    Refused(
        "no account", SHARED_SERVICE, {"billingAccountRef": None}, "spec.billingAccountRef: Required value"
    ),
    Refused(
        "model that cannot be",
        SHARED_SERVICE,
        {"modelRef": {"name": "Qwen/Qwen3"}},
        "spec.modelRef.name in body should match",
    ),
    Refused(
        "namespace that cannot be",
        SHARED_SERVICE,
        {"billingAccountRef": {"namespace": "a.b"}},
        "spec.billingAccountRef.namespace in body should match",
    ),
    Refused(
        "another type",
        SHARED_SERVICE,
        {"type": "Special"},
        'Unsupported value: "Special": supported values: "Default", "Custom"',
    ),
    Refused(
        "Default under another name",
        DEFAULT_SERVICE,
        {"modelRef": {"name": "qwen3-8b"}},
        "spec.type: Invalid value: a Default service is named like its model",
    ),
    Refused(
        "Default with reservation",
        DEFAULT_SERVICE,
        {"reservation": {"inputTPM": 1, "days": 30}},
        "spec.reservation: Forbidden: a Default service cannot have a reservation",
    ),
    Refused(
        "Default with own backend",
        DEFAULT_SERVICE,
        {"dedicated": True},
        "spec.dedicated: Forbidden: a Default service runs on the model's shared backend",
    ),
    Refused(
        "two replicas of the shared backend",
        SHARED_SERVICE,
        {"replicas": 2},
        "spec.replicas: Invalid value: replicas can only be set with dedicated: true",
    ),
    Refused(
        "no replicas of the shared backend",
        SHARED_SERVICE,
        {"replicas": 0},
        "spec.replicas: Invalid value: replicas can only be set with dedicated: true",
    ),
    Refused("negative replicas", RESERVED_SERVICE, {"replicas": -1}, "should be greater than or equal to 0"),
    Refused("more replicas than can be", RESERVED_SERVICE, {"replicas": 2**31}, "spec.replicas"),
    Refused(
        "trial that pays",
        SHARED_SERVICE,
        {"trial": True, "postpaid": True},
        NO_MONEY + "set postpaid to false",
    ),
    Refused(
        "trial that reserves",
        SHARED_SERVICE,
        {"trial": True, "reservation": {"inputTPM": 1, "days": 30}},
        NO_MONEY + "leave trial or reservation out",
    ),
    Refused(
        "reservation of nothing",
        RESERVED_SERVICE,
        {"reservation": {"inputTPM": 0, "outputTPM": None}},
        "spec.reservation: Invalid value: reserve some throughput",
    ),
    Refused(
        "reservation without term",
        RESERVED_SERVICE,
        {"reservation": {"days": None}},
        "spec.reservation.days: Required value",
    ),
    Refused(
        "term of no day",
        RESERVED_SERVICE,
        {"reservation": {"days": 0}},
        "should be greater than or equal to 1",
    ),
    Refused(
        "term beyond a year",
        RESERVED_SERVICE,
        {"reservation": {"days": 366}},
        "should be less than or equal to 365",
    ),
    Refused(
        "negative reservation",
        RESERVED_SERVICE,
        {"reservation": {"inputTPM": -1}},
        "should be greater than or equal to 0",
    ),
    Refused(
        "negative limit", SHARED_SERVICE, {"limits": {"rpm": -1}}, "should be greater than or equal to 0"
    ),
    Refused(
        "limit as text",
        SHARED_SERVICE,
        {"limits": {"rpm": "60"}},
        "spec.limits.rpm in body must be of type integer",
    ),
    *(
        Refused(
            f"address range {text!r}",
            SHARED_SERVICE,
            {"access": {"allowedCIDRs": [text]}},
            WRITE_RANGE.format(text),
        )
        for text in ("10.0.0.0", "10.0.0.0/33", "example.com", "10.0.0.0/8 ", "2001:db8::/129")
    ),
    Refused(
        "the same range twice",
        SHARED_SERVICE,
        {"access": {"allowedCIDRs": ["10.0.0.0/8", "10.0.0.0/8"]}},
        "Duplicate value",
    ),
    Refused(
        "65 ranges",
        SHARED_SERVICE,
        {"access": {"allowedCIDRs": [f"10.{n}.0.0/16" for n in range(65)]}},
        "must have at most 64 items",
    ),
]

SERVICES_ACCEPTED = [
    Accepted("default service with a dotted name", DEFAULT_SERVICE, {}),
    Accepted("default service in use", DEFAULT_SERVICE, {"postpaid": True, "limits": {"rpm": 5}}),
    Accepted("default service on trial", DEFAULT_SERVICE, {"trial": True}),
    Accepted("full service", RESERVED_SERVICE, {}),
    Accepted("smallest service", SHARED_SERVICE, {}),
    Accepted("dedicated and at zero by its owner's wish", RESERVED_SERVICE, {"replicas": 0}),
    Accepted("reservation of output alone", RESERVED_SERVICE, {"reservation": {"inputTPM": None}}),
    Accepted("reservation on the shared backend", RESERVED_SERVICE, {"dedicated": None, "replicas": None}),
    Accepted("trial", SHARED_SERVICE, {"trial": True}),
    Accepted("no address range", SHARED_SERVICE, {"access": {"allowedCIDRs": []}}),
    Accepted(
        "64 address ranges",
        SHARED_SERVICE,
        {"access": {"allowedCIDRs": [f"10.{n}.0.0/16" for n in range(64)]}},
    ),
    Accepted(
        "IPv6 range",
        SHARED_SERVICE,
        {"access": {"allowedCIDRs": ["2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/128"]}},
    ),
]
