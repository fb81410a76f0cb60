"""What a Model may be, and what not."""

from tests.api.samples import EXTERNAL_MODEL, MODEL, TIERS
from tests.api.tables.cases import Accepted, Refused, containers, deployment, external, price, tiers

LAST_OPEN = "spec.prices.tiers: Invalid value: the last tier must be without upToInputTokens"
ONE_OPEN = "spec.prices.tiers: Invalid value: only the last tier may be without upToInputTokens"
GROWING = "spec.prices.tiers: Invalid value: upToInputTokens must grow from tier to tier"
WRITE_PRICE = "write a price that is not negative, with at most 6 digits before and 3 after the point"
BASE_URL = 'spec.serving.external.baseURL: Invalid value: "{}": baseURL must be an http or https URL'

MODELS_REFUSED = [
    Refused("no serving", MODEL, {"serving": None}, "spec.serving: Required value"),
    Refused(
        "empty serving",
        MODEL,
        {"serving": {"deployment": None}},
        "spec.serving: Invalid value: set exactly one of",
    ),
    Refused(
        "two servings",
        MODEL,
        external("https://a.example/v1"),
        "spec.serving: Invalid value: set exactly one of",
    ),
    Refused(
        "drain above grace",
        MODEL,
        deployment(drainSeconds=31, template={"spec": {"terminationGracePeriodSeconds": 30}}),
        "spec.serving.deployment.drainSeconds: Invalid value: drainSeconds must not be above",
    ),
    Refused(
        "default drain above grace",
        MODEL,
        deployment(drainSeconds=None, template={"spec": {"terminationGracePeriodSeconds": 29}}),
        "spec.serving.deployment.drainSeconds: Invalid value: drainSeconds must not be above",
    ),
    Refused("unknown salt", MODEL, deployment(cacheSalt="Key"), "Unsupported value"),
    Refused(
        "a field with a space",
        MODEL,
        {"requests": {"allowedFields": ["a b"]}},
        "spec.requests.allowedFields[0]: Invalid value",
    ),
    Refused(
        "negative tokens",
        MODEL,
        {"requests": {"imageTokens": -1}},
        "should be greater than or equal to 0",
    ),
    Refused("endless drain", MODEL, deployment(drainSeconds=3601), "should be less than or equal to 3600"),
    Refused("negative drain", MODEL, deployment(drainSeconds=-1), "should be greater than or equal to 0"),
    Refused("port 0", MODEL, deployment(port=0), "should be greater than or equal to 1"),
    Refused("port 65536", MODEL, deployment(port=65536), "should be less than or equal to 65535"),
    Refused("negative replicas", MODEL, deployment(replicas=-1), "should be greater than or equal to 0"),
    Refused(
        "no template", MODEL, deployment(template=None), "spec.serving.deployment.template: Required value"
    ),
    Refused(
        "template without spec",
        MODEL,
        deployment(template={"spec": None}),
        "spec.serving.deployment.template.spec: Required value",
    ),
    Refused(
        "no containers field",
        MODEL,
        deployment(template={"spec": {"containers": None}}),
        "spec.serving.deployment.template.spec.containers: Required value",
    ),
    Refused("no containers", MODEL, containers(), "should have at least 1 items"),
    Refused(
        "container without image",
        MODEL,
        containers({"name": "a"}),
        "template.spec.containers[0].image: Required value",
    ),
    Refused(
        "container without name",
        MODEL,
        containers({"image": "a"}),
        "template.spec.containers[0].name: Required value",
    ),
    Refused(
        "two containers of one name",
        MODEL,
        containers({"name": "a", "image": "b"}, {"name": "a", "image": "c"}),
        "Duplicate value",
    ),
    Refused(
        "URL of another scheme",
        EXTERNAL_MODEL,
        external("ftp://a.example/v1"),
        BASE_URL.format("ftp://a.example/v1"),
    ),
    Refused("URL without scheme", EXTERNAL_MODEL, external("a.example/v1"), BASE_URL.format("a.example/v1")),
    Refused("URL without host", EXTERNAL_MODEL, external("https:///v1"), BASE_URL.format("https:///v1")),
    Refused(
        "URL with a password",
        EXTERNAL_MODEL,
        external("https://u:p@a.example"),
        "credentials belong in credentialsSecretRef",
    ),
    Refused(
        "URL with a query",
        EXTERNAL_MODEL,
        external("https://a.example/?k=1"),
        BASE_URL.format("https://a.example/?k=1"),
    ),
    Refused(
        "URL with a fragment",
        EXTERNAL_MODEL,
        external("https://a.example/#1"),
        BASE_URL.format("https://a.example/#1"),
    ),
    Refused("no prices", MODEL, {"prices": None}, "spec.prices: Required value"),
    Refused(
        "currency in small letters",
        MODEL,
        {"prices": {"currency": "usd"}},
        'spec.prices.currency: Invalid value: "usd": write a currency as three capital letters',
    ),
    Refused("no tier", MODEL, tiers(), "should have at least 1 items"),
    Refused("17 tiers", MODEL, tiers(*range(1, 17), None), "must have at most 16 items"),
    Refused("only tier with a ceiling", MODEL, tiers(10), LAST_OPEN),
    Refused("last tier with a ceiling", MODEL, tiers(10, 20), LAST_OPEN),
    Refused("open tier before the last", MODEL, tiers(None, 20), LAST_OPEN),
    Refused("two open tiers", MODEL, tiers(10, None, None), ONE_OPEN),
    Refused("equal tiers", MODEL, tiers(10, 10, None), GROWING),
    Refused("falling tiers", MODEL, tiers(20, 10, None), GROWING),
    Refused("falling after rising", MODEL, tiers(10, 30, 20, None), GROWING),
    Refused("tier of nothing", MODEL, tiers(0, None), "should be greater than or equal to 1"),
    Refused(
        "tier without output price",
        MODEL,
        {"prices": {"tiers": [{"input": "1", "cachedInput": "1"}]}},
        "spec.prices.tiers[0].output: Required value",
    ),
    *(
        Refused(
            f"price {text!r}",
            MODEL,
            price(text),
            f'spec.prices.tiers[0].input: Invalid value: "{text}": {WRITE_PRICE}',
        )
        for text in ("-1", "0.0001", "1,5", "1.", ".5", "1e3", "1000000", " 1", "+1", "1 ")
    ),
    Refused(
        "price as a number", MODEL, price(0.5), "spec.prices.tiers[0].input in body must be of type string"
    ),
    Refused(
        "empty price", MODEL, price(""), "spec.prices.tiers[0].input in body should be at least 1 chars long"
    ),
    Refused(
        "unit of nothing", MODEL, {"reservation": {"inputUnitTPM": 0}}, "should be greater than or equal to 1"
    ),
    Refused(
        "unit without price",
        MODEL,
        {"reservation": {"outputUnitPricePerDay": None}},
        "spec.reservation.outputUnitPricePerDay: Required value",
    ),
    Refused(
        "unit price of four decimals", MODEL, {"reservation": {"inputUnitPricePerDay": "1.0001"}}, WRITE_PRICE
    ),
    Refused("term of no day", MODEL, {"reservation": {"terms": [0]}}, "should be greater than or equal to 1"),
    Refused(
        "term beyond a year", MODEL, {"reservation": {"terms": [366]}}, "should be less than or equal to 365"
    ),
    Refused("the same term twice", MODEL, {"reservation": {"terms": [30, 30]}}, "Duplicate value"),
    Refused("no terms", MODEL, {"reservation": {"terms": []}}, "should have at least 1 items"),
    Refused("quota of nothing", MODEL, {"freeQuota": {"tokens": 0}}, "should be greater than or equal to 1"),
    Refused(
        "quota without end",
        MODEL,
        {"freeQuota": {"validDays": None}},
        "spec.freeQuota.validDays: Required value",
    ),
    Refused("negative ceiling", MODEL, {"limits": {"rpm": -1}}, "should be greater than or equal to 0"),
    Refused(
        "ceiling that JSON cannot hold",
        MODEL,
        {"limits": {"tpm": 2**53 + 1}},
        "should be less than or equal to",
    ),
    Refused("empty served name", MODEL, {"servedName": ""}, "should be at least 1 chars long"),
]

MODELS_ACCEPTED = [
    Accepted("full model", MODEL, {}),
    Accepted("external model", EXTERNAL_MODEL, {}),
    Accepted("plain http on another port", EXTERNAL_MODEL, external("http://10.0.0.1:8080")),
    Accepted("URL by IPv6", EXTERNAL_MODEL, external("http://[2001:db8::1]/v1")),
    Accepted(
        "smallest model",
        MODEL,
        {
            "displayName": None,
            "servedName": None,
            "reservation": None,
            "freeQuota": None,
            "limits": None,
            "retired": None,
            "serving": {
                "deployment": {
                    "replicas": None,
                    "port": None,
                    "drainSeconds": None,
                    "template": {"metadata": None},
                }
            },
            "prices": {"tiers": [TIERS[1]]},
        },
    ),
    Accepted(
        "drain as long as grace",
        MODEL,
        deployment(drainSeconds=30, template={"spec": {"terminationGracePeriodSeconds": 30}}),
    ),
    Accepted("no stream options, no salt", MODEL, deployment(streamUsage="Never", cacheSalt="Never")),
    Accepted(
        "more fields and other pieces",
        MODEL,
        {"requests": {"allowedFields": ["brand_new", "tools.web_search"], "imageTokens": 0}},
    ),
    Accepted("16 tiers", MODEL, tiers(*range(1, 16), None)),
    Accepted("free of charge", MODEL, price("0")),
    Accepted("dearest price", MODEL, price("999999.999")),
]
