"""What an APIKey may be, and what not."""

from tests.api.samples import APIKEY
from tests.api.tables.cases import Accepted, Refused

ONE_OF = (
    "spec.services: Invalid value: set exactly one of all: true (every service of the namespace) and names"
)
NO_TIME = 'spec.expiresAt in body must be of type date-time: "{}"'

KEYS_REFUSED = [
    Refused("no services", APIKEY, {"services": None}, "spec.services: Required value"),
    Refused("neither all nor names", APIKEY, {"services": {"names": None}}, ONE_OF),
    Refused("all and names", APIKEY, {"services": {"all": True}}, ONE_OF),
    Refused(
        "all: false",
        APIKEY,
        {"services": {"all": False, "names": None}},
        "spec.services.all: Invalid value: write all: true, or list the services in names",
    ),
    Refused(
        "no names",
        APIKEY,
        {"services": {"names": []}},
        "spec.services.names: Invalid value: name at least one service; disabled: true holds a key back",
    ),
    Refused(
        "a name that cannot be",
        APIKEY,
        {"services": {"names": ["Qwen/Qwen3"]}},
        "spec.services.names[0] in body should match",
    ),
    Refused(
        "a name with its namespace",
        APIKEY,
        {"services": {"names": ["team-b/chat"]}},
        "spec.services.names[0] in body should match",
    ),
    Refused("the same name twice", APIKEY, {"services": {"names": ["a", "a"]}}, "Duplicate value"),
    Refused(
        "257 names",
        APIKEY,
        {"services": {"names": [f"s{n}" for n in range(257)]}},
        "must have at most 256 items",
    ),
    *(
        Refused(
            f"address range {text!r}",
            APIKEY,
            {"allowedCIDRs": [text]},
            f'spec.allowedCIDRs[0]: Invalid value: "{text}": write an address range as address/length',
        )
        for text in ("10.0.0.0", "10.0.0.0/33", "example.com", "2001:db8::/129")
    ),
    *(
        Refused(f"expiry {text!r}", APIKEY, {"expiresAt": text}, NO_TIME.format(text))
        for text in (
            "tomorrow",
            "2027-01-01",
            "2027-02-30T00:00:00Z",
            "2027-01-01T00:00",
            "2027-01-01 00:00:00Z",
        )
    ),
    # The API server's own check lets these in, and no reader of times takes them.
    *(
        Refused(f"expiry {text!r}", APIKEY, {"expiresAt": text}, "spec.expiresAt in body should match")
        for text in ("2027-01-01T00:00:00+99:99", "2027-01-01T00:00:00x5Z", "0000-01-01T00:00:00Z")
    ),
    Refused(
        "expiry as a number",
        APIKEY,
        {"expiresAt": 1798761600},
        "spec.expiresAt in body must be of type date-time",
    ),
    Refused("quota of nothing", APIKEY, {"quota": {"tokens": 0}}, "should be greater than or equal to 1"),
    Refused("quota beyond counting", APIKEY, {"quota": {"tokens": 2**60}}, "spec.quota.tokens"),
    Refused("quota without period", APIKEY, {"quota": {"period": None}}, "spec.quota.period: Required value"),
    Refused("quota without tokens", APIKEY, {"quota": {"tokens": None}}, "spec.quota.tokens: Required value"),
    Refused(
        "another period",
        APIKEY,
        {"quota": {"period": "Week"}},
        'supported values: "Day", "Month", "Lifetime"',
    ),
    Refused("disabled as text", APIKEY, {"disabled": "yes"}, "spec.disabled in body must be of type boolean"),
]

KEYS_ACCEPTED = [
    Accepted("full key", APIKEY, {}),
    Accepted(
        "smallest key",
        APIKEY,
        {
            "services": {"names": None, "all": True},
            "allowedCIDRs": None,
            "expiresAt": None,
            "disabled": None,
            "quota": None,
        },
    ),
    Accepted("held back from the start", APIKEY, {"disabled": True}),
    Accepted("expired from the start", APIKEY, {"expiresAt": "2020-01-01T00:00:00Z"}),
    Accepted("expiry in another zone", APIKEY, {"expiresAt": "2027-01-01T00:00:00.5+02:00"}),
    *(
        Accepted(f"quota by {period}", APIKEY, {"quota": {"period": period}})
        for period in ("Month", "Lifetime")
    ),
    Accepted("IPv6 range", APIKEY, {"allowedCIDRs": ["2001:db8::/32"]}),
    Accepted("256 names", APIKEY, {"services": {"names": [f"s{n}" for n in range(256)]}}),
]
