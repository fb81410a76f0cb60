"""Tenants, billing admins and cluster admins, who write what comes into their minds."""

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from farebox.kube.names import core_path, deployment_path
from tests.support.api import manifest, path_of
from tests.support.stack import BACKENDS
from tests.tools.plane import HOLD_ANNOTATION
from tests.tools.soak.specs import (
    ACCOUNTS,
    BAD,
    BILLING,
    HARD,
    KEYS,
    MODELS,
    SERVICES,
    SOLID,
    TEAMS,
    model_spec,
    service_spec,
)
from tests.tools.soak.world import APPLY, MERGE, NO_ANSWER, JSONObject, World


class Actors:
    """Everybody who writes objects."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._references: list[tuple[str, str, str, str]] = []
        self._number = 0
        self._versions: list[tuple[str, JSONObject]] = []

    def begin(self, chance: random.Random) -> None:
        """Namespaces, models and accounts to begin with."""
        for name in (*BILLING, *TEAMS):
            self._namespace(name, chance)
        for model in (*MODELS, SOLID):
            self.make_model(chance, model)
        for account in (*ACCOUNTS, HARD):
            self._make_account(chance, account)
            self._topup("billing", account, "1.5", f"begin-{account.replace('/', '-')}", "Payment", "begin")
        for team in TEAMS:
            for name in SERVICES:
                self._make_service(chance, team, name)
            self._put_key(chance, team, "app", {"services": {"all": True}})
        self._hard_service()

    # -- tenants ----------------------------------------------------------------------------------------

    def tenant(self, chance: random.Random) -> None:
        namespace, name = chance.choice(TEAMS), chance.choice(SERVICES)
        path = path_of("InferenceService", namespace, name)
        act = chance.random()
        if act < 0.18:
            self._make_service(chance, namespace, name)
        elif act < 0.26:
            self.world.write("tenant", "DELETE", path)
            if chance.random() < 0.6:
                self._make_service(chance, namespace, name)
        elif act < 0.55:
            self._edit_service(chance, path)
        elif act < 0.65:
            self._scale(chance, path)
        elif act < 0.72:
            self._stale(chance, path)
        elif act < 0.80:
            self._bad(chance, namespace)
        elif act < 0.84:
            self._default_service(chance)
        elif act < 0.86:
            self._hard_service()
        else:
            self._key(chance, namespace)

    def _enabled(self, found: JSONObject, status: int) -> None:
        spec = found.get("spec", {})
        if status in (200, 201) and (spec.get("postpaid") or spec.get("trial") or spec.get("reservation")):
            self.world.enabled.add(found["metadata"]["uid"])

    def _make_service(self, chance: random.Random, namespace: str, name: str) -> None:
        body = manifest("InferenceService", name, service_spec(chance, namespace, name), namespace)
        self._put(chance, "InferenceService", namespace, name, body)

    def _put(self, chance: random.Random, kind: str, namespace: str, name: str, body: JSONObject) -> None:
        """Create, or apply on the server as Argo CD does."""
        if chance.random() < 0.5:
            status, found = self.world.write("tenant", "POST", path_of(kind, namespace), body)
        else:
            path = f"{path_of(kind, namespace, name)}?fieldManager=argocd-controller&force=true"
            status, found = self.world.write("tenant", "PATCH", path, body, APPLY)
        self._enabled(found, status)

    def _edit_service(self, chance: random.Random, path: str) -> None:
        spec: JSONObject = chance.choice(
            (
                {"postpaid": True, "trial": False},
                {"postpaid": True, "trial": None},
                {"postpaid": False},
                {"postpaid": False},
                {"trial": True, "postpaid": False},
                {"trial": False},
                {"replicas": chance.randrange(4)},
                {"limits": {"rpm": chance.choice((0, 7, 700)), "tpm": chance.choice((0, 5000))}},
                {"limits": None},
                {"access": {"allowedCIDRs": [chance.choice(("127.0.0.0/8", "192.0.2.0/24"))]}},
                {"access": None},
                {"reservation": {"autoRenew": chance.random() < 0.5}},
                {"modelRef": {"name": "gamma"}},
            )
        )
        status, found = self.world.write("tenant", "PATCH", path, {"spec": spec}, MERGE)
        self._enabled(found, status)

    def _scale(self, chance: random.Random, path: str) -> None:
        body = {"spec": {"replicas": chance.randrange(5)}}
        self.world.write("tenant", "PATCH", f"{path}/scale", body, MERGE)

    def _stale(self, chance: random.Random, path: str) -> None:
        """An update of what was read some while ago; most are conflicts."""
        status, found = self.world.kube.ask("GET", path)
        if status == 200:
            self._versions.append((path, found))
        if not self._versions:
            return
        path, old = chance.choice(self._versions[-20:])
        old["spec"]["postpaid"] = chance.random() < 0.5 and not old["spec"].get("trial")
        status, found = self.world.write("tenant", "PUT", path, old)
        self._enabled(found, status)

    def _bad(self, chance: random.Random, namespace: str) -> None:
        kind, spec = chance.choice(BAD)
        status, answer = self.world.write(
            "tenant", "POST", path_of(kind, namespace), manifest(kind, "bad", spec, namespace)
        )
        if status not in (422, 400, NO_ANSWER, 404, 403, 429, 500, 503, 504):
            self.world.diverges(f"bad input was answered with {status}: {kind} {spec}")
        if status in (422, 400) and "spec" not in str(answer.get("message")):
            self.world.diverges(f"an error that names no field: {answer.get('message')}")

    def _default_service(self, chance: random.Random) -> None:
        namespace, name = chance.choice((*BILLING, "team-1")), chance.choice((*MODELS, SOLID))
        path = path_of("InferenceService", namespace, name)
        if chance.random() < 0.2:
            self.world.write("tenant", "DELETE", path)
        elif chance.random() < 0.3:
            self._make_service(chance, namespace, name)
        else:
            self._edit_service(chance, path)

    def _hard_service(self) -> None:
        spec = {
            "modelRef": {"name": SOLID},
            "billingAccountRef": {"name": "hard", "namespace": "billing-b"},
            "postpaid": True,
        }
        body = manifest("InferenceService", "hard", spec, "team-2")
        status, found = self.world.write("tenant", "POST", path_of("InferenceService", "team-2"), body)
        self._enabled(found, status)

    def _key(self, chance: random.Random, namespace: str) -> None:
        name = chance.choice(KEYS)
        path = path_of("APIKey", namespace, name)
        act = chance.random()
        if act < 0.4:
            self._put_key(chance, namespace, name, self._key_spec(chance))
        elif act < 0.55:
            self.world.write("tenant", "DELETE", path)
        elif act < 0.6:
            self.world.write("tenant", "DELETE", core_path("secrets", namespace, name))
        elif act < 0.65:
            secret = {"metadata": {"name": name}, "stringData": {"api-key": "mine"}}
            self.world.write("tenant", "POST", core_path("secrets", namespace), secret)
        else:
            self.world.write("tenant", "PATCH", path, {"spec": self._key_edit(chance)}, MERGE)

    def _put_key(self, chance: random.Random, namespace: str, name: str, spec: JSONObject) -> None:
        self._put(chance, "APIKey", namespace, name, manifest("APIKey", name, spec, namespace))

    def _key_spec(self, chance: random.Random) -> JSONObject:
        some = {"names": chance.sample(SERVICES, 3)}
        return {"services": {"all": True} if chance.random() < 0.6 else some} | (
            self._key_edit(chance) if chance.random() < 0.3 else {}
        )

    def _key_edit(self, chance: random.Random) -> JSONObject:
        soon = datetime.now(UTC) + timedelta(seconds=chance.choice((-60, 20, 3600)))
        edits: tuple[JSONObject, ...] = (
            {"disabled": True},
            *[{"disabled": False, "expiresAt": None, "quota": None, "allowedCIDRs": []}] * 4,
            {"expiresAt": f"{soon:%Y-%m-%dT%H:%M:%SZ}"},
            {"quota": {"tokens": chance.choice((30, 5000)), "period": chance.choice(("Day", "Lifetime"))}},
            {"allowedCIDRs": [chance.choice(("127.0.0.0/8", "10.0.0.0/8"))]},
        )
        return chance.choice(edits)

    # -- billing admins ---------------------------------------------------------------------------------

    def biller(self, chance: random.Random) -> None:
        account = chance.choice((*ACCOUNTS, HARD))
        namespace, _, name = account.partition("/")
        path = path_of("BillingAccount", namespace, name)
        act = chance.random()
        if act < 0.06:
            self.world.write("biller", "DELETE", path)
            if chance.random() < 0.7:
                time.sleep(chance.random())
                self._make_account(chance, account)
        elif act < 0.14:
            self._make_account(chance, account)
        elif act < 0.35 and account != HARD:
            self._edit_account(chance, path)
        elif act < 0.40:
            self._delete_topup(chance, namespace)
        elif act < 0.52 and self._references:
            self._again(chance)
        elif act < 0.60 and account != HARD:
            amount = chance.choice(("-0.5", "-2", "0.25"))
            self._topup("biller", account, amount, self._fresh("adj"), "Adjustment", self._fresh("a"))
        else:
            amount = chance.choice(("0.001", "0.05", "0.3", "1.5", "4", "9"))
            self._topup("biller", account, amount, self._fresh("pay"), "Payment", self._fresh("t"))

    def _fresh(self, stem: str) -> str:
        self._number += 1
        return f"{stem}-{self._number}"

    def _topup(self, who: str, account: str, amount: str, reference: str, kind: str, name: str) -> None:
        namespace, _, holder = account.partition("/")
        spec = {"billingAccountRef": {"name": holder}, "amount": amount, "kind": kind, "reference": reference}
        if name == "begin":
            name = reference
        self.world.topups.append((account, reference, kind, amount))
        self._references.append((account, reference, kind, amount))
        body = manifest("TopUp", name, spec, namespace)
        self.world.write(who, "POST", path_of("TopUp", namespace), body)

    def _again(self, chance: random.Random) -> None:
        """A reference again: restored or renamed, or with another amount."""
        account, reference, kind, amount = chance.choice(self._references[-40:])
        if chance.random() < 0.4:
            amount = "3.333" if account != HARD or kind == "Payment" else amount
        self._topup("biller", account, amount, reference, kind, self._fresh("again"))

    def _delete_topup(self, chance: random.Random, namespace: str) -> None:
        status, found = self.world.kube.ask("GET", path_of("TopUp", namespace))
        if status == 200 and found["items"]:
            raw = chance.choice(found["items"])
            path = path_of("TopUp", namespace, raw["metadata"]["name"])
            self.world.write("biller", "DELETE", path)
            if chance.random() < 0.5:
                body = manifest("TopUp", raw["metadata"]["name"], raw["spec"], namespace)
                self.world.write("biller", "POST", path_of("TopUp", namespace), body)

    def _make_account(self, chance: random.Random, account: str) -> None:
        namespace, _, name = account.partition("/")
        spec: JSONObject = {"currency": ACCOUNTS.get(account, "USD")}
        if account == HARD:
            spec |= {"enforcement": "Hard", "allowedNamespaces": {"from": "All"}}
            spec |= {"defaultServices": {"models": "None"}}
        else:
            spec |= self._account_edit(chance) | {
                "allowedNamespaces": {"from": "All"},
                "enforcement": chance.choice(("Soft", "Hard")),
            }
        body = manifest("BillingAccount", name, spec, namespace)
        self.world.write("biller", "POST", path_of("BillingAccount", namespace), body)

    def _account_edit(self, chance: random.Random) -> JSONObject:
        return chance.choice(
            (
                {"creditLimit": chance.choice(("0", "0.5", "3"))},
                {"enforcement": chance.choice(("Soft", "Hard"))},
                {"lowBalance": chance.choice(("0", "1"))},
                {"allowedNamespaces": {"from": "Same", "selector": None}},
                {"allowedNamespaces": {"from": "All", "selector": None}},
                {
                    "allowedNamespaces": {
                        "from": "Selector",
                        "selector": {"matchLabels": {"tier": chance.choice(("gold", "tin"))}},
                    }
                },
                {"defaultServices": {"models": "None", "selector": None}},
                {"defaultServices": {"models": "All", "selector": None}},
                {"defaultServices": {"models": "Selector", "selector": {"matchLabels": {"size": "small"}}}},
            )
        )

    def _edit_account(self, chance: random.Random, path: str) -> None:
        self.world.write("biller", "PATCH", path, {"spec": self._account_edit(chance)}, MERGE)

    # -- cluster admins ---------------------------------------------------------------------------------

    def admin(self, chance: random.Random) -> None:
        act = chance.random()
        if act < 0.40:
            self._edit_model(chance, chance.choice(MODELS))
        elif act < 0.48:
            name = chance.choice(MODELS)
            self.world.write("admin", "DELETE", path_of("Model", name=name))
            time.sleep(chance.choice((0.0, 0.5, 3.0)))
            self.make_model(chance, name)
        elif act < 0.56:
            for name in MODELS:
                self.make_model(chance, name)
        elif act < 0.90:
            self._hands(chance)
        elif act < 0.98:
            label = {"metadata": {"labels": {"tier": chance.choice(("gold", "tin"))}}}
            self.world.write(
                "admin", "PATCH", core_path("namespaces", name=chance.choice(TEAMS)), label, MERGE
            )
        else:
            self._remake_namespace(chance)

    def make_model(self, chance: random.Random, name: str) -> None:
        spec = model_spec(chance, name, self.world.simulator)
        if name == SOLID:
            spec["prices"]["tiers"] = [{"input": "100.000", "cachedInput": "10.000", "output": "300.000"}]
            spec["retired"] = False
            spec.pop("freeQuota", None)
            spec["serving"]["deployment"]["replicas"] = 1
        labels = {"size": chance.choice(("small", "large"))}
        began, body = time.time(), manifest("Model", name, spec, labels=labels)
        status, _ = self.world.write("admin", "POST", path_of("Model"), body)
        self._priced(name, spec, began, status)

    def _priced(self, name: str, spec: JSONObject, began: float, status: int) -> None:
        """Remember prices that were written, or may have been."""
        if status not in (400, 404, 409, 422):
            certain = status in (200, 201)
            self.world.prices.setdefault(name, []).append((began, spec["prices"]["tiers"], certain))

    def _edit_model(self, chance: random.Random, name: str) -> None:
        spec = model_spec(chance, name, self.world.simulator)
        part = chance.choice(
            ("prices", "retired", "limits", "freeQuota", "reservation", "replicas", "template")
        )
        edit: JSONObject
        if part == "replicas":
            edit = {"spec": {"replicas": chance.randrange(4)}}
            self.world.write("admin", "PATCH", f"{path_of('Model', name=name)}/scale", edit, MERGE)
            return
        if part == "template":
            edit = {"serving": {"deployment": {"template": {"metadata": {"annotations": {
                "turn": str(chance.randrange(5))}}}}}}  # fmt: skip
            if name == "ext":
                return
        elif part == "prices":
            edit = {"prices": {"tiers": spec["prices"]["tiers"]}}
        elif part == "retired":
            edit = {"retired": chance.random() < 0.35}
        else:
            edit = {part: spec.get(part)}
        labels = {"size": chance.choice(("small", "large"))}
        body = {"spec": edit} | ({"metadata": {"labels": labels}} if chance.random() < 0.2 else {})
        began = time.time()
        status, _ = self.world.write("admin", "PATCH", path_of("Model", name=name), body, MERGE)
        if part == "prices":
            self._priced(name, spec, began, status)

    def _hands(self, chance: random.Random) -> None:
        """Somebody's hands on what is the operator's."""
        status, found = self.world.kube.ask("GET", deployment_path(BACKENDS))
        if status != 200 or not found["items"]:
            return
        name = chance.choice(found["items"])["metadata"]["name"]
        path = deployment_path(BACKENDS, name)
        act = chance.random()
        if act < 0.45:
            body = {"spec": {"replicas": chance.randrange(5)}}
            self.world.write("admin", "PATCH", f"{path}/scale", body, MERGE)
        elif act < 0.65:
            self.world.write("admin", "DELETE", path)
        elif act < 0.75:
            self.world.write("admin", "DELETE", core_path("services", BACKENDS, name))
        elif act < 0.85:
            ours = ("farebox.dev/service-uid", "app.kubernetes.io/managed-by", "farebox.dev/model")
            unlabelled = {"metadata": {"labels": {chance.choice(ours): None}}}
            self.world.write("admin", "PATCH", path, unlabelled, MERGE)
        else:
            self._pods(chance)

    def _pods(self, chance: random.Random) -> None:
        status, found = self.world.kube.ask("GET", core_path("pods", BACKENDS))
        if status != 200 or not found["items"]:
            return
        pod = core_path("pods", BACKENDS, chance.choice(found["items"])["metadata"]["name"])
        if chance.random() < 0.5:
            self.world.write("admin", "DELETE", pod)
            return
        for value in ("true", None):
            body = {"metadata": {"annotations": {HOLD_ANNOTATION: value}}}
            self.world.write("admin", "PATCH", pod, body, MERGE)
            time.sleep(chance.random() * 2)

    def _namespace(self, name: str, chance: random.Random) -> int:
        body = {"metadata": {"name": name, "labels": {"tier": chance.choice(("gold", "tin"))}}}
        return self.world.write("admin", "POST", core_path("namespaces"), body)[0]

    def _remake_namespace(self, chance: random.Random) -> None:
        if self.world.write("admin", "DELETE", core_path("namespaces", name="team-3"))[0] != 200:
            return
        deadline = time.time() + 60
        while self._namespace("team-3", chance) not in (201, 500):
            if time.time() > deadline:
                self.world.diverges("namespace team-3 was not gone within 60 s of its deletion")
                return
            time.sleep(1)
        for name in SERVICES:
            self._make_service(chance, "team-3", name)


def schedule(actors: Actors) -> list[tuple[str, Any, float]]:
    """Every actor: its name, its next action, and the mean seconds between two actions."""
    return [
        ("tenant-1", actors.tenant, 0.25),
        ("tenant-2", actors.tenant, 0.25),
        ("biller", actors.biller, 0.5),
        ("admin", actors.admin, 0.9),
    ]
