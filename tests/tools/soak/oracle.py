"""What every object has to say when nothing moves, by docs/product.md. It shares no rule with Farebox."""

from collections import Counter
from decimal import Decimal

from farebox.domain.keys import ObjectKey
from farebox.kube.names import dedicated_backend_name, shared_backend_name
from tests.support.stack import BACKENDS
from tests.tools.soak.facts import Seen, condition, place
from tests.tools.soak.world import JSONObject, World

ORDER = (
    "PostpaidDisabled", "AccountNotFound", "AccountNotAllowed", "ModelNotFound", "ModelRetired",
    "CurrencyMismatch", "Overdue", "FreeQuotaExhausted", "FreeQuotaExpired", "ReservationUnpaid",
    "ReservationExpired",
)  # fmt: skip


def account_of(raw: JSONObject) -> str:
    ref = raw["spec"]["billingAccountRef"]
    return f"{ref.get('namespace') or raw['metadata']['namespace']}/{ref['name']}"


def selected(selector: JSONObject | None, labels: JSONObject) -> bool:
    wanted = (selector or {}).get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items())


class Oracle:
    """Judges one look; `faults` are the sentences about what is wrong."""

    def __init__(self, world: World, seen: Seen) -> None:
        self.world = world
        self.seen = seen
        self.faults: list[str] = []
        self.wanted: dict[str, bool] = {}

    def judge(self) -> list[str]:
        for name, raw in self.seen.services.items():
            self._service(name, raw)
        self._backends()
        for name, raw in self.seen.services.items():
            self._figures(name, raw)
        for name, raw in self.seen.accounts.items():
            self._account(name, raw)
        for name, raw in self.seen.models.items():
            self._model(name, raw)
        for name, raw in self.seen.topups.items():
            self._topup(name, raw)
        for name, raw in self.seen.keys.items():
            self._key(name, raw)
        self._defaults()
        self._deletions()
        return self.faults

    def expect(self, what: str, found: object, *wanted: object) -> None:
        if found not in wanted:
            self.faults.append(f"{what}: {found!r}, not {' or '.join(map(repr, wanted))}")

    # -- services -----------------------------------------------------------------------------------------

    def reasons(self, raw: JSONObject) -> tuple[set[str], set[str]]:
        """Stop reasons that must hold, and those that may."""
        spec = raw["spec"]
        must, may = self._references(raw), set[str]()
        reserves = "reservation" in spec
        if not (spec.get("postpaid") or spec.get("trial") or reserves):
            must.add("PostpaidDisabled")
        if spec.get("postpaid") and not (reserves and self.reservation_state(raw) == "Active"):
            self._overdue(raw, must, may)
        elif spec.get("trial"):
            self._trial(raw, must, may)
        elif reserves and not spec.get("postpaid"):
            self._reservation(raw, must, may)
        return must, may

    def _references(self, raw: JSONObject) -> set[str]:
        """What is wrong with the account and the model that a service names."""
        must: set[str] = set()
        account = self.seen.accounts.get(account_of(raw))
        model = self.seen.models.get(raw["spec"]["modelRef"]["name"])
        if account is None:
            must.add("AccountNotFound")
        elif not self._allows(account, raw["metadata"]["namespace"]):
            must.add("AccountNotAllowed")
        if model is None:
            must.add("ModelNotFound")
        elif model["spec"].get("retired"):
            must.add("ModelRetired")
        if account and model and account["spec"]["currency"] != model["spec"]["prices"]["currency"]:
            must.add("CurrencyMismatch")
        return must

    def _overdue(self, raw: JSONObject, must: set[str], may: set[str]) -> None:
        account, ledger = self.seen.accounts.get(account_of(raw)), self.seen.balances.get(account_of(raw))
        if account is None:
            return
        if ledger is None or ledger["currency"] != account["spec"]["currency"]:
            may.add("Overdue")
        elif Decimal(ledger["balance"]) + Decimal(account["spec"]["creditLimit"]) <= 0:
            must.add("Overdue")

    def _trial(self, raw: JSONObject, must: set[str], may: set[str]) -> None:
        name = raw["spec"]["modelRef"]["name"]
        model, quota = self.seen.models.get(name), self.seen.quotas.get((account_of(raw), name))
        if quota is not None:
            if quota["used"] >= quota["total"]:
                must.add("FreeQuotaExhausted")
            return
        offered = model is not None and "freeQuota" in model["spec"]
        if offered and not must:
            self.faults.append(f"{place(raw)}: {account_of(raw)} was granted no free quota of {name}")
        (may if offered or model is None else must).add("FreeQuotaExhausted")

    def _reservation(self, raw: JSONObject, must: set[str], may: set[str]) -> None:
        state = self.reservation_state(raw)
        if state in ("Unpaid", "Expired"):
            must.add(f"Reservation{state}")
        elif state == "Pending" and must:
            # Nothing is bought while something else keeps it from its money: it stays as it was.
            may.add("ReservationUnpaid")
        elif state == "Pending":
            self.faults.append(f"{place(raw)}: its reservation is neither bought nor refused")

    def reservation_state(self, raw: JSONObject) -> str:
        found = self.seen.reservations.get((place(raw), raw["metadata"]["uid"]))
        return found["state"] if found else "Pending"

    def _allows(self, account: JSONObject, namespace: str) -> bool:
        allowed = account["spec"].get("allowedNamespaces") or {}
        if namespace == account["metadata"]["namespace"] or allowed.get("from") == "All":
            return True
        labels = self.seen.namespaces.get(namespace, {}).get("metadata", {}).get("labels", {})
        return allowed.get("from") == "Selector" and selected(allowed.get("selector"), labels)

    def _ceiling(self, raw: JSONObject) -> bool:
        model = self.seen.models.get(raw["spec"]["modelRef"]["name"])
        ceilings = (model or {"spec": {}})["spec"].get("limits") or {}
        limits = raw["spec"].get("limits") or {}
        return any(0 < ceilings.get(each, 0) < limits.get(each, 0) for each in ("rpm", "tpm"))

    def _service(self, name: str, raw: JSONObject) -> None:
        what, status, spec = f"InferenceService {name}", raw.get("status") or {}, raw["spec"]
        must, may = self.reasons(raw)
        found = status.get("stopReasons") or []
        if not must <= set(found) <= must | may:
            self.faults.append(f"{what}: stopReasons {found}, not {sorted(must)} (perhaps {sorted(may)})")
        if sorted(found, key=ORDER.index) != found:
            self.faults.append(f"{what}: stopReasons in another order: {found}")
        wanted = self.wanted[name] = not found
        self.expect(
            f"{what}: observedGeneration", status.get("observedGeneration"), raw["metadata"]["generation"]
        )
        phases = self._phases(raw, found)
        self.expect(f"{what} {found}: phase", status.get("phase"), *phases)
        self.expect(f"{what}: billingMode", status.get("billingMode"), self._billing(raw))
        self._conditions(what, raw, found, wanted)
        reservation = self.seen.reservations.get((name, raw["metadata"]["uid"]))
        if "reservation" in spec and reservation and not must - {"ReservationUnpaid"}:
            shown = (status.get("reservation") or {}).get("state")
            self.expect(f"{what}: reservation.state", shown, reservation["state"])
            self._unpaid(what, raw, reservation)
        quota = self.seen.quotas.get((account_of(raw), spec["modelRef"]["name"]))
        if quota is not None and status.get("freeQuota") is not None:
            self.expect(f"{what}: freeQuota.used", status["freeQuota"]["used"], quota["used"])

    def _unpaid(self, what: str, raw: JSONObject, reservation: JSONObject) -> None:
        """A term that can be paid is bought."""
        spec, model = raw["spec"]["reservation"], self.seen.models.get(raw["spec"]["modelRef"]["name"])
        account = self.seen.accounts.get(account_of(raw))
        ledger = self.seen.balances.get(account_of(raw))
        offer = (model or {"spec": {}})["spec"].get("reservation")
        if reservation["state"] != "Unpaid" or offer is None or account is None or ledger is None:
            return
        inputs, outputs = spec.get("inputTPM", 0), spec.get("outputTPM", 0)
        units = (inputs / offer["inputUnitTPM"], outputs / offer["outputUnitTPM"])
        if spec["days"] not in offer["terms"] or any(unit != int(unit) for unit in units):
            return
        prices = (offer["inputUnitPricePerDay"], offer["outputUnitPricePerDay"])
        cost = spec["days"] * sum(
            int(unit) * Decimal(price) for unit, price in zip(units, prices, strict=True)
        )
        left = Decimal(ledger["balance"]) + Decimal(account["spec"]["creditLimit"])
        if left >= cost:
            self.faults.append(f"{what}: unpaid ({reservation['message']}), but {left} is there for {cost}")

    def _phases(self, raw: JSONObject, reasons: list[str]) -> tuple[str, ...]:
        status = raw.get("status") or {}
        if reasons:
            if raw["spec"].get("type") != "Default" or reasons != ["PostpaidDisabled"]:
                return ("Stopped",)
            if raw["metadata"]["uid"] not in self.world.enabled and "enabledAt" not in status:
                return ("NotEnabled",)
            return ("Stopped",) if "enabledAt" in status else ("NotEnabled",)
        if "firstRunningAt" not in status:
            return ("Creating",) if self._target(raw) == 0 else ("Running",)
        if self._target(raw) == 0:
            return ("Running", "Stopped")
        return ("Running",)

    def _target(self, raw: JSONObject) -> int:
        """The replicas that its backend has while it is wanted; 1 at a provider."""
        model = self.seen.models.get(raw["spec"]["modelRef"]["name"])
        if model is None:
            return 0
        if "external" in model["spec"]["serving"]:
            return 1
        if raw["spec"].get("dedicated"):
            return int(raw["spec"]["replicas"])
        return int(model["spec"]["serving"]["deployment"]["replicas"])

    def _billing(self, raw: JSONObject) -> str:
        spec = raw["spec"]
        if "reservation" in spec and self.reservation_state(raw) == "Active":
            return "TPMReservation"
        if spec.get("postpaid"):
            return "PayAsYouGo"
        quota = self.seen.quotas.get((account_of(raw), spec["modelRef"]["name"]))
        if spec.get("trial") and quota is not None and quota["used"] < quota["total"]:
            return "FreeQuota"
        return "None"

    def _conditions(self, what: str, raw: JSONObject, reasons: list[str], wanted: bool) -> None:
        ready, serving = condition(raw, "Ready"), condition(raw, "Serving")
        stalled, reconciling = condition(raw, "Stalled"), condition(raw, "Reconciling")
        about = f"{what} {reasons} Ready"
        status = raw["status"]
        calls = wanted and self._target(raw) > 0 and status.get("phase") == "Running"
        self.expect(f"{what} {reasons}: Serving", serving.get("status"), "True" if calls else "False")
        if reasons:
            self.expect(f"{what}: Serving's reason", serving.get("reason"), reasons[0])
        if reasons and "PostpaidDisabled" not in reasons:
            self.expect(about, (ready.get("status"), ready.get("reason")), ("False", reasons[0]))
            self.expect(
                f"{what}: Stalled", (stalled.get("status"), stalled.get("reason")), ("True", reasons[0])
            )
        elif self._ceiling(raw):
            self.expect(about, (ready.get("status"), ready.get("reason")), ("False", "LimitAboveCeiling"))
        elif reasons:
            wants = "NotEnabled" if status.get("phase") == "NotEnabled" else "Disabled"
            self.expect(about, (ready.get("status"), ready.get("reason")), ("True", wants))
        elif self._target(raw) > 0:
            external = "external" in self.seen.models[raw["spec"]["modelRef"]["name"]]["spec"]["serving"]
            wants = "External" if external else "Running"
            self.expect(about, (ready.get("status"), ready.get("reason")), ("True", wants))
        if (ready.get("status"), reconciling.get("status")) == ("True", "True"):
            self.faults.append(f"{what}: Ready and Reconciling at once")

    def _figures(self, name: str, raw: JSONObject) -> None:
        what, status = f"InferenceService {name}", raw.get("status") or {}
        deployment = self._deployment_of(raw)
        pods = deployment["status"].get("replicas", 0) if deployment and self.wanted[name] else 0
        self.expect(f"{what}: replicas", status.get("replicas", 0), pods)
        ready = deployment["status"].get("readyReplicas", 0) if deployment and self.wanted[name] else 0
        self.expect(f"{what}: readyReplicas", status.get("readyReplicas", 0), ready)

    def _deployment_of(self, raw: JSONObject) -> JSONObject | None:
        model = self.seen.models.get(raw["spec"]["modelRef"]["name"])
        if model is not None and "external" in model["spec"]["serving"]:
            return None
        metadata = raw["metadata"]
        name = shared_backend_name(raw["spec"]["modelRef"]["name"])
        if raw["spec"].get("dedicated"):
            name = dedicated_backend_name(ObjectKey(metadata["namespace"], metadata["name"]))
        return self.seen.deployments.get(f"{BACKENDS}/{name}")

    # -- backends -----------------------------------------------------------------------------------------

    def _backends(self) -> None:
        """Deployments as asked, and none without its service or model."""
        expected = self._expected()
        found = {name.partition("/")[2]: raw for name, raw in self.seen.deployments.items()}
        for name in found.keys() - expected.keys():
            labels = found[name]["metadata"]["labels"]
            self.faults.append(f"Deployment {name} without a service or model: {labels}")
        for name in {each.partition("/")[2] for each in self.seen.endpoints} - expected.keys():
            self.faults.append(f"Service {name} of {BACKENDS} without a service or model")
        for name, replicas in expected.items():
            if name in found:
                self.expect(f"Deployment {name}: replicas", found[name]["spec"]["replicas"], replicas)
            elif replicas:
                self.faults.append(f"Deployment {name} is not there; it should have {replicas}")
            if replicas and f"{BACKENDS}/{name}" not in self.seen.endpoints:
                self.faults.append(f"Service {name} of {BACKENDS} is not there")

    def _expected(self) -> dict[str, int]:
        """The replicas of each backend that may be there."""
        expected: dict[str, int] = {}
        shared: Counter[str] = Counter()
        for name, raw in self.seen.services.items():
            of = raw["spec"]["modelRef"]["name"]
            model = self.seen.models.get(of)
            if not raw["spec"].get("dedicated"):
                shared[of] += self.wanted[name]
            elif model is None or "deployment" in model["spec"]["serving"]:
                key = ObjectKey(raw["metadata"]["namespace"], raw["metadata"]["name"])
                expected[dedicated_backend_name(key)] = raw["spec"]["replicas"] if self.wanted[name] else 0
        for name, model in self.seen.models.items():
            deployment = model["spec"]["serving"].get("deployment")
            if deployment is not None:
                expected[shared_backend_name(name)] = deployment["replicas"] if shared[name] else 0
        return expected

    # -- money --------------------------------------------------------------------------------------------

    def _account(self, name: str, raw: JSONObject) -> None:
        what, status, ledger = f"BillingAccount {name}", raw.get("status") or {}, self.seen.balances.get(name)
        if ledger is None:
            self.faults.append(f"{what} is not in the ledger")
            return
        phases = Counter(
            (each.get("status") or {}).get("phase")
            for each in self.seen.services.values()
            if account_of(each) == name
        )
        counts = {
            "notEnabled": phases["NotEnabled"],
            "creating": phases["Creating"],
            "running": phases["Running"],
            "stopped": phases["Stopped"],
        }
        self.expect(f"{what}: services", status.get("services"), counts)
        if ledger["currency"] != raw["spec"]["currency"]:
            return
        balance, limit = Decimal(ledger["balance"]), Decimal(raw["spec"]["creditLimit"])
        self.expect(f"{what}: the ledger's creditLimit", Decimal(ledger["creditLimit"]), limit)
        self.expect(f"{what}: balance", Decimal(status.get("balance", "NaN")), balance)
        self.expect(f"{what}: available", Decimal(status.get("available", "NaN")), balance + limit)
        state = "Active" if balance + limit > 0 else "Overdue"
        self.expect(f"{what}: state", status.get("state"), state)
        self.expect(f"{what}: overdueSince", "overdueSince" in status, state == "Overdue")
        self.expect(f"{what}: Ready", condition(raw, "Ready").get("reason"), state)
        low = Decimal(raw["spec"].get("lowBalance", "0"))
        below = "True" if low > 0 and balance + limit < low else "False"
        self.expect(f"{what}: LowBalance", condition(raw, "LowBalance").get("status"), below)

    def _topup(self, name: str, raw: JSONObject) -> None:
        what, status = f"TopUp {name}", raw.get("status") or {}
        account = f"{raw['metadata']['namespace']}/{raw['spec']['billingAccountRef']['name']}"
        if account in self.seen.accounts:
            self.expect(f"{what}: phase", status.get("phase"), "Posted", "Rejected")
        elif status.get("phase") is None:
            self.expect(f"{what}: Ready", condition(raw, "Ready").get("reason"), "AccountNotFound")

    # -- the rest -----------------------------------------------------------------------------------------

    def _model(self, name: str, raw: JSONObject) -> None:
        what, status = f"Model {name}", raw.get("status") or {}
        on_it = [key for key, each in self.seen.services.items() if each["spec"]["modelRef"]["name"] == name]
        self.expect(f"{what}: services", status.get("services", 0), len(on_it))
        ready = condition(raw, "Ready")
        self.expect(f"{what}: Ready", ready.get("status"), "True")
        if "external" in raw["spec"]["serving"]:
            self.expect(f"{what}: Ready's reason", ready.get("reason"), "External")
            return
        wanted = any(
            self.wanted[key] and not self.seen.services[key]["spec"].get("dedicated") for key in on_it
        )
        replicas = raw["spec"]["serving"]["deployment"]["replicas"]
        reason = "Idle" if not wanted else "Ready" if replicas else "ScaledToZero"
        self.expect(f"{what}: Ready's reason", ready.get("reason"), reason)
        self.expect(f"{what}: replicas", status.get("replicas", 0), replicas if wanted else 0)
        self.expect(f"{what}: readyReplicas", status.get("readyReplicas", 0), replicas if wanted else 0)

    def _key(self, name: str, raw: JSONObject) -> None:
        what, ready = f"APIKey {name}", condition(raw, "Ready")
        secret_exists = ("False", "SecretExists")
        found = (ready.get("status"), ready.get("reason"))
        if found != secret_exists:
            wants = ("Disabled",) if raw["spec"].get("disabled") else ("Active", "Expired")
            self.expect(f"{what}: Ready", found, *(("True", each) for each in wants))
            self.expect(f"{what}: keyHash", len((raw.get("status") or {}).get("keyHash", "")), 64)

    def _defaults(self) -> None:
        """B1: one Default service for each account and selected model, of the older account."""
        by_namespace: dict[str, list[JSONObject]] = {}
        for raw in self.seen.accounts.values():
            wants = (raw["spec"].get("defaultServices") or {}).get("models", "All")
            if wants != "None":
                by_namespace.setdefault(raw["metadata"]["namespace"], []).append(raw)
        for namespace, found in by_namespace.items():
            oldest = min(found, key=_age)
            for name, model in self.seen.models.items():
                if _selects(oldest["spec"], model) and f"{namespace}/{name}" not in self.seen.services:
                    self.faults.append(f"{place(oldest)} has no Default service of {name}")
        for name, raw in self.seen.services.items():
            untouched = raw["status"].get("phase") == "NotEnabled" and raw["metadata"]["generation"] == 1
            if untouched and account_of(raw) not in self.seen.accounts:
                self.faults.append(f"{name} is a Default service that nobody enabled, of no account")

    def _deletions(self) -> None:
        for found in (
            self.seen.services,
            self.seen.accounts,
            self.seen.models,
            self.seen.topups,
            self.seen.keys,
        ):
            for name, raw in found.items():
                if "deletionTimestamp" in raw["metadata"]:
                    self.faults.append(f"{raw['kind']} {name} hangs in deletion")
                if raw["metadata"].get("finalizers"):
                    self.faults.append(f"{raw['kind']} {name} has finalizers")


def _age(account: JSONObject) -> tuple[str, str]:
    return account["metadata"]["creationTimestamp"], account["metadata"]["uid"]


def _selects(account: JSONObject, model: JSONObject) -> bool:
    """Whether an account of this spec has a Default service of a model."""
    rule, spec = account.get("defaultServices") or {}, model["spec"]
    if spec.get("retired") or account["currency"] != spec["prices"]["currency"]:
        return False
    labels = model["metadata"].get("labels") or {}
    return rule.get("models") != "Selector" or selected(rule.get("selector"), labels)
