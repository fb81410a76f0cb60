"""What a BillingAccount and a TopUp may be, and what not."""

from tests.api.samples import ACCOUNT, TOPUP
from tests.api.tables.cases import Accepted, Refused

WRITE_AMOUNT = "write the amount as a decimal with at most 9 digits before and 9 after the point"
WRITE_LIMIT = "write a decimal that is not negative, with at most 9 digits before and 9 after the point"

MONEY_REFUSED = [
    Refused("no currency", ACCOUNT, {"currency": None}, "spec.currency: Required value"),
    Refused("currency of two letters", ACCOUNT, {"currency": "US"}, "spec.currency"),
    Refused(
        "currency with a digit", ACCOUNT, {"currency": "US1"}, "write a currency as three capital letters"
    ),
    *(
        Refused(
            f"credit limit {text!r}",
            ACCOUNT,
            {"creditLimit": text},
            f'spec.creditLimit: Invalid value: "{text}": {WRITE_LIMIT}',
        )
        for text in ("-1", "1e3", "1.0000000001", "1000000000")
    ),
    Refused(
        "credit limit as a number",
        ACCOUNT,
        {"creditLimit": 0},
        "spec.creditLimit in body must be of type string",
    ),
    Refused(
        "negative low balance",
        ACCOUNT,
        {"lowBalance": "-20"},
        f'spec.lowBalance: Invalid value: "-20": {WRITE_LIMIT}',
    ),
    Refused("another enforcement", ACCOUNT, {"enforcement": "None"}, 'supported values: "Soft", "Hard"'),
    Refused(
        "namespaces' selector missing",
        ACCOUNT,
        {"allowedNamespaces": {"selector": None}},
        "spec.allowedNamespaces.selector: Invalid value: from: Selector needs a selector",
    ),
    Refused(
        "namespaces' selector idle",
        ACCOUNT,
        {"allowedNamespaces": {"from": "All"}},
        "spec.allowedNamespaces.selector: Invalid value: from: Selector needs a selector",
    ),
    Refused(
        "namespaces' selector idle by default",
        ACCOUNT,
        {"allowedNamespaces": {"from": None}},
        "spec.allowedNamespaces.selector: Invalid value: from: Selector needs a selector",
    ),
    Refused(
        "models' selector missing",
        ACCOUNT,
        {"defaultServices": {"selector": None}},
        "spec.defaultServices.selector: Invalid value: models: Selector needs a selector",
    ),
    Refused(
        "models' selector idle",
        ACCOUNT,
        {"defaultServices": {"models": "None"}},
        "spec.defaultServices.selector: Invalid value: models: Selector needs a selector",
    ),
    *(
        Refused(
            f"{operator} with values {values}",
            ACCOUNT,
            {
                "allowedNamespaces": {
                    "selector": {"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}
                }
            },
            "matchExpressions[0].values: Invalid value: operators In and NotIn need values",
        )
        for operator, values in (("In", []), ("NotIn", []), ("Exists", ["a"]), ("DoesNotExist", ["a"]))
    ),
    Refused(
        "In without values",
        ACCOUNT,
        {"allowedNamespaces": {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}},
        "matchExpressions[0].values: Invalid value: operators In and NotIn need values",
    ),
    Refused(
        "label that cannot be",
        ACCOUNT,
        {"allowedNamespaces": {"selector": {"matchLabels": {"a": "b c"}}}},
        "spec.allowedNamespaces.selector.matchLabels.a in body should match",
    ),
    Refused("no account", TOPUP, {"billingAccountRef": None}, "spec.billingAccountRef: Required value"),
    Refused("no amount", TOPUP, {"amount": None}, "spec.amount: Required value"),
    Refused("no reference", TOPUP, {"reference": None}, "spec.reference: Required value"),
    *(
        Refused(
            f"amount {text!r}",
            TOPUP,
            {"amount": text},
            f'spec.amount: Invalid value: "{text}": {WRITE_AMOUNT}',
        )
        for text in ("1e3", "1,000", "--1", "1.0000000001", "1000000000", "USD 5")
    ),
    Refused("amount as a number", TOPUP, {"amount": 100}, "spec.amount in body must be of type string"),
    *(
        Refused(
            f"{kind} of {text}",
            TOPUP,
            {"kind": kind, "amount": text},
            "spec.amount: Invalid value: amount must not be zero",
        )
        for kind in ("Payment", "Adjustment")
        for text in ("0", "0.00", "-0.0")
    ),
    Refused(
        "negative payment",
        TOPUP,
        {"amount": "-5"},
        "spec.amount: Invalid value: the amount of a Payment must be above zero",
    ),
    Refused(
        "negative payment by default",
        TOPUP,
        {"kind": None, "amount": "-5"},
        "spec.amount: Invalid value: the amount of a Payment must be above zero",
    ),
    Refused("another kind", TOPUP, {"kind": "Gift"}, 'supported values: "Payment", "Adjustment"'),
    *(
        Refused(f"reference {text!r}", TOPUP, {"reference": text}, "spec.reference: Invalid value: " + said)
        for text, said in (
            (" x", '" x": write the reference in printable ASCII'),
            ("x ", '"x ": write the reference'),
            ("zahlung-ü", '"zahlung-ü": write the reference'),
            (" ", '" ": write the reference'),
        )
    ),
    Refused("reference without end", TOPUP, {"reference": "x" * 129}, "spec.reference"),
]

MONEY_ACCEPTED = [
    Accepted("full account", ACCOUNT, {}),
    Accepted(
        "smallest account",
        ACCOUNT,
        {
            "creditLimit": None,
            "lowBalance": None,
            "enforcement": None,
            "allowedNamespaces": None,
            "defaultServices": None,
        },
    ),
    Accepted(
        "account for all",
        ACCOUNT,
        {
            "allowedNamespaces": {"from": "All", "selector": None},
            "defaultServices": {"models": "None", "selector": None},
        },
    ),
    Accepted("empty selector", ACCOUNT, {"allowedNamespaces": {"selector": {"matchLabels": None}}}),
    Accepted(
        "label that must exist",
        ACCOUNT,
        {"allowedNamespaces": {"selector": {"matchExpressions": [{"key": "a.b/c", "operator": "Exists"}]}}},
    ),
    Accepted("largest credit limit", ACCOUNT, {"creditLimit": "999999999.999999999"}),
    Accepted("payment", TOPUP, {}),
    Accepted("smallest payment", TOPUP, {"amount": "0.000000001"}),
    Accepted("money taken back", TOPUP, {"kind": "Adjustment", "amount": "-100.00"}),
    Accepted("reference with blanks", TOPUP, {"reference": "invoice 2026/07 #4"}),
]
