"""Who may post usage and read whose money, asked with real tokens of ServiceAccounts (B22)."""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from farebox.kube.names import core_path
from tests.integration.tenants import SECONDS, Tenant
from tests.support.api import JSONObject
from tests.support.stack import AUDIENCE, SYSTEM, Stack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.plane

RBAC = "/apis/rbac.authorization.k8s.io/v1"
SINCE = "from=2026-01-01T00:00:00Z&to=2026-03-01T00:00:00Z"
STATEMENT = "/v1/accounts/{billing}/acme/statement?" + SINCE
ACCOUNT = "/v1/accounts/{billing}/acme"
ACCOUNT_USAGE = "/v1/usage?account={billing}/acme&" + SINCE
TEAM_USAGE = "/v1/usage?namespace={team}&" + SINCE
BILLING_USAGE = "/v1/usage?namespace={billing}&" + SINCE
READS = (STATEMENT, ACCOUNT, ACCOUNT_USAGE, TEAM_USAGE, BILLING_USAGE)
PEOPLE = {
    "viewer": ("team", "view"),
    "editor": ("team", "edit"),
    "biller": ("billing", "farebox-billing-admin"),
    "outsider": ("other", "admin"),
    "nobody": ("team", ""),
}
MAY = {
    "viewer": {TEAM_USAGE},
    "editor": {TEAM_USAGE},
    "biller": {STATEMENT, ACCOUNT, ACCOUNT_USAGE, BILLING_USAGE},
    "outsider": set(),
    "nobody": set(),
    # It decides calls by balances, and counts keys' quotas from what was charged.
    "gateway": set(READS),
    "operator": set(READS),
}


@dataclass
class Shop:
    """Three namespaces, an account in one that pays for a service in another, and the people's tokens."""

    stack: Stack
    names: dict[str, str]
    tokens: dict[str, str]

    def status(
        self, who: str, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> int:
        """The meter's status for a call; paths name the namespaces in braces."""
        token = self.tokens.get(who, who)
        request = urllib.request.Request(
            self.stack.meter_url + path.format(**self.names),
            data=body,
            method=method,
            headers={"Authorization": f"Bearer {token}"}
            | {name.replace("_", "-"): headers[name] for name in headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Iterator[Shop]:
    """The shop, once the account and the roles are known."""
    tenant = Tenant(stack)
    names = {"team": tenant.namespace, "billing": f"{tenant.namespace}-b", "other": f"{tenant.namespace}-o"}
    tenant.make_namespace(names["billing"])
    tenant.make_namespace(names["other"])
    model = tenant.model()
    tenant.account(namespace=names["billing"], balance="10", allowedNamespaces={"from": "All"})
    account = {"name": "acme", "namespace": names["billing"]}
    tenant.service("chat", model, billingAccountRef=account)
    tokens = {
        who: stack.cluster.service_account_token(SYSTEM, f"farebox-{who}", audience=AUDIENCE)
        for who in ("gateway", "operator")
    }
    for who, (place, role) in PEOPLE.items():
        tokens[who] = person(stack, who, names[place], role)
    stack.charge(f"{tenant.namespace}/chat", model, input_tokens=1000)
    made = Shop(stack, names, tokens)
    for who, allowed in MAY.items():
        for path in allowed:
            wait_for(
                f"{who} may read {path}", lambda who=who, path=path: made.status(who, path) == 200, SECONDS
            )
    yield made
    tenant.close()


def person(stack: Stack, name: str, namespace: str, role: str) -> str:
    """A ServiceAccount with a role in its namespace; its token for the meter."""
    stack.api.create(core_path("serviceaccounts", namespace), metadata(name))
    if role:
        binding: JSONObject = metadata(name) | {
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        stack.api.create(f"{RBAC}/namespaces/{namespace}/rolebindings", binding)
    return stack.cluster.service_account_token(namespace, name, audience=AUDIENCE)


def metadata(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}}


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("who", list(MAY))
def test_b22_only_authorized_callers_read_money(shop: Shop, who: str, path: str) -> None:
    assert shop.status(who, path) == (200 if path in MAY[who] else 403)


@pytest.mark.parametrize("who", ["gateway", "operator", *PEOPLE])
def test_b22_usage_is_posted_by_the_gateway_alone(shop: Shop, who: str) -> None:
    kind = "application/cloudevents-batch+json"
    status = shop.status(who, "/v1/events", "POST", b"[]", Content_Type=kind)
    assert status == (200 if who == "gateway" else 403)


@pytest.mark.parametrize("path", ["/v1/topups", "/v1/records"])
@pytest.mark.parametrize("who", ["gateway", *PEOPLE])
def test_b22_only_the_operator_writes_money(shop: Shop, who: str, path: str) -> None:
    assert shop.status(who, path, "POST", b"{}", Content_Type="application/json") == 403


@pytest.mark.parametrize("path", ["/v1/changes", "/v1/events/pending"])
@pytest.mark.parametrize("who", ["gateway", "operator", *PEOPLE])
def test_b22_what_is_of_all_accounts_is_fareboxs_own(shop: Shop, who: str, path: str) -> None:
    assert shop.status(who, path) == (403 if who in PEOPLE else 200)


def test_a_token_for_the_api_server_is_refused_by_the_meter(shop: Shop) -> None:
    token = shop.stack.cluster.service_account_token(shop.names["billing"], "biller")
    assert shop.status(token, STATEMENT) == 401
    assert shop.status("guessed", STATEMENT) == 401


def test_a_billing_admin_reads_a_statement_on_the_command_line(shop: Shop) -> None:
    command = [
        *(sys.executable, "-m", "farebox", "statement", f"{shop.names['billing']}/acme"),
        *("--meter", shop.stack.meter_url, "--service-account", f"{shop.names['billing']}/biller"),
        *("--kubeconfig", str(shop.stack.cluster.kubeconfig)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Opening balance" in done.stdout
    assert "Payment" in done.stdout
    command[command.index(f"{shop.names['billing']}/biller")] = f"{shop.names['team']}/viewer"
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "may not get billingaccounts.farebox.dev" in done.stderr
