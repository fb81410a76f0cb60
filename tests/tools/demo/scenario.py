"""The main job, step by step: what is done, what must come of it, and the look at whether it did.

enable -> Running; usage until overdue -> Stopped, no replicas; a small top-up -> still Stopped; a real one ->
Running with the same replicas; disabled -> Stopped; top-up -> still Stopped; enabled -> Running.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from farebox.domain.billing.money import format_amount, parse_amount
from farebox.kube.names import deployment_path
from tests.support.api import ApiError, path_of
from tests.support.stack import AUDIENCE, BACKENDS, SYSTEM, Stack, usage_event
from tests.tools.demo.calling import Answer, Caller, Refusal
from tests.tools.demo.expect import Expect, Seen, Wrong, arrows, strayed, unsettled
from tests.tools.demo.fixture_services import GALLERY, SERVICES, Calls, FixtureServices
from tests.tools.demo.timeline import Timeline
from tests.tools.demo.watching import PhaseWatch

CURRENCY = "USD"
HOLD_SECONDS = 1.0
"""Where nothing may happen, it is watched for this long: a resume takes a tenth of it."""
_POLL_SECONDS = 0.02
_OVERDUE = ("Overdue",)
_DISABLED = ("PostpaidDisabled",)
_STAYS_OFF = Expect(("NotEnabled",), _DISABLED)


class Scenario:
    """The steps, in their order, on a running Farebox. `play` runs them all.

    Args:
        patience: seconds for a step to come out as it should.
    """

    def __init__(
        self, stack: Stack, services: FixtureServices, timeline: Timeline, watch: PhaseWatch, patience: float
    ) -> None:
        self._stack = stack
        self._services = services
        self._timeline = timeline
        self._watch = watch
        self._patience = patience
        self._balance = 0
        self._step = 0
        self._topups = 1
        self._began = 0.0
        self._meter_token = stack.cluster.service_account_token(SYSTEM, "farebox-operator", audience=AUDIENCE)

    def play(self) -> None:
        """Run every step. Raises Wrong at the first that does not come out as it should."""
        self._publish()
        self._deploy()
        self._enable_default()
        self._use_the_free_quota()
        self._call()
        self._use_it_up()
        self._top_up_too_little()
        self._top_up()
        self._disable()
        self._top_up_while_disabled()
        self._enable_again()

    # -- the steps ----------------------------------------------------------------------------------

    def _publish(self) -> None:
        self._begin("Models, an account, a payment of 100 USD: every model is there as a Default service")
        self._timeline.command(self._services.apply(self._stack.cluster, GALLERY))
        self._balance = parse_amount("100.00")
        self._settle(dict.fromkeys(self._services.defaults, _STAYS_OFF))

    def _deploy(self) -> None:
        self._begin("A team's services: one on a shared backend, one with two replicas of its own")
        self._timeline.command(self._services.apply(self._stack.cluster, SERVICES))
        up = ("Creating", "Running")
        self._settle(
            {
                self._services.chat: Expect(up, replicas=1),
                self._services.assistant: Expect(up, replicas=2),
                self._services.default: _STAYS_OFF,
            }
        )

    def _enable_default(self) -> None:
        self._begin("The Default service is enabled")
        self._set_postpaid(self._services.default, "true")
        self._settle(self._all(("Running",)) | {
            self._services.default: Expect(("NotEnabled", "Creating", "Running"), replicas=1)
        })  # fmt: skip

    def _use_the_free_quota(self) -> None:
        self._begin("Calls within the model's free quota cost nothing")
        quota = 500_000
        self._use(Calls(50, self._services.chat, self._services.model("qwen3-8b"), 9_000, 1_000, free=True))
        namespace, name = self._services.chat.split("/")
        path = path_of("InferenceService", namespace, name)
        found = self._wait(
            lambda: self._stack.api.get(path)["status"].get("freeQuota", {}), "used", quota, "the quota used"
        )
        self._timeline.detail(
            f"free quota of {self._services.chat}: {quota:,} of {found['total']:,} tokens used"
        )
        self._settle(self._all(("Running",)))

    def _call(self) -> None:
        self._begin("Calls through the gateway with the official OpenAI client, and paid")
        self._caller = Caller(self._stack, self._services, self._patience)
        name = self._services.chat.partition("/")[2]
        self._timeline.command(f"client = OpenAI(base_url={self._caller.url!r}, api_key=...)")
        for title, call in (("", self._caller.ask), (", stream=True", self._caller.stream)):
            self._timeline.command(f"client.chat.completions.create(model={name!r}, messages=[...]{title})")
            self._pay(call())
        self._settle(self._all(("Running",)))

    def _use_it_up(self) -> None:
        self._begin("Calls until the account is overdue: everything that it pays for stops")
        self._use(Calls(314, self._services.assistant, self._services.model("llama-3.3-70b"), 120_000, 4_096))
        tokens = 60_000
        self._timeline.command(f"client.chat.completions.create(...)    # {tokens:,} tokens, again and again")
        answers, refusal = self._caller.until_refused(tokens)
        cost = sum(self._services.cost(answer.used) for answer in answers)
        self._balance -= cost
        self._timeline.detail(f"{len(answers)} calls are served, and cost {format_amount(cost)} {CURRENCY}")
        self._check_refused(refusal)
        self._settle(self._all(("Running", "Stopped"), _OVERDUE), state="Overdue")

    def _top_up_too_little(self) -> None:
        self._begin("A top-up that is too small")
        # Half of what is missing.
        self._post_topup(format_amount(-self._balance // 2), state="Overdue")
        self._check_refused(self._caller.refused())
        self._settle(self._all(("Stopped",), _OVERDUE), state="Overdue")

    def _top_up(self) -> None:
        self._begin("A real top-up: they come back by themselves, with the same replicas")
        self._post_topup("25.00", state="Active")
        self._settle(self._all(("Stopped", "Running")))
        self._timeline.command("client.chat.completions.create(...)")
        self._pay(self._caller.ask())

    def _disable(self) -> None:
        self._begin("The team disables its dedicated service")
        self._set_postpaid(self._services.assistant, "false")
        self._settle(self._all(("Running",)) | {
            self._services.assistant: Expect(("Running", "Stopped"), _DISABLED)
        })  # fmt: skip

    def _top_up_while_disabled(self) -> None:
        self._begin("A top-up does not wake what its owner disabled")
        self._post_topup("10.00", state="Active")
        self._settle(self._all(("Running",)) | {self._services.assistant: Expect(("Stopped",), _DISABLED)})

    def _enable_again(self) -> None:
        self._begin("Enabled again")
        self._set_postpaid(self._services.assistant, "true")
        self._settle(self._all(("Running",)) | {
            self._services.assistant: Expect(("Stopped", "Running"), replicas=2)
        })  # fmt: skip

    # -- what is done -------------------------------------------------------------------------------

    def _begin(self, title: str) -> None:
        self._step += 1
        self._timeline.step(f"{self._step}. {title}")
        self._watch.mark()
        self._began = time.monotonic()

    def _set_postpaid(self, service: str, value: str) -> None:
        namespace, name = service.split("/")
        patch = f'{{"spec":{{"postpaid":{value}}}}}'
        self._timeline.command(f"$ kubectl patch infsvc/{name} -n {namespace} --type=merge -p '{patch}'")
        self._stack.cluster.kubectl(
            "patch", f"infsvc/{name}", f"--namespace={namespace}", "--type=merge", f"--patch={patch}"
        )

    def _post_topup(self, amount: str, state: str) -> None:
        """Apply a TopUp, and check its receipt: what it says of the balance, and of what is missing."""
        self._topups += 1
        namespace, account = self._services.account.split("/")
        name = f"pay-{self._topups:04}"
        topup = {
            "apiVersion": "farebox.dev/v1alpha1",
            "kind": "TopUp",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "billingAccountRef": {"name": account},
                "amount": amount,
                "reference": name.replace("-", "_"),
            },
        }
        self._timeline.command(
            f"$ kubectl apply -f -    # kind: TopUp, metadata: {{name: {name}, namespace: {namespace}}}\n"
            f'    spec: {{billingAccountRef: {{name: {account}}}, amount: "{amount}", '
            f"reference: {name.replace('-', '_')}}}"
        )
        self._stack.cluster.apply(topup)
        self._balance += parse_amount(amount)
        path = path_of("TopUp", namespace, name)
        status = self._wait(lambda: self._stack.api.get(path).get("status", {}), "phase", "Posted", name)
        after = status["balanceAfter"]
        self._check(after == format_amount(self._balance), f"TopUp {name} has balanceAfter {after}")
        self._timeline.detail(f"TopUp {name}: Posted, balance after it {after} {CURRENCY}")
        if state == "Overdue":
            missing = f"Top up more than {format_amount(-self._balance)} {CURRENCY} to reactivate the account"
            message = status.get("message", "")
            self._check(missing in message, f"TopUp {name} says {message!r}, not {missing!r}")
            self._timeline.detail(f"its status says: {message}")

    def _use(self, *batches: Calls) -> list[dict[str, Any]]:
        """Post usage as the gateway does; returns the events."""
        url = self._stack.meter_url
        self._timeline.command(
            f"POST {url}/v1/events    # as ServiceAccount farebox-gateway, CloudEvents in a batch"
        )
        events: list[dict[str, Any]] = []
        for calls in batches:
            cost = self._services.cost(calls)
            events += [
                usage_event(
                    calls.service,
                    calls.model,
                    calls.input_tokens,
                    calls.output_tokens,
                    calls.cached_input_tokens,
                )
                for _ in range(calls.count)
            ]
            self._balance -= cost
            cached = f" ({calls.cached_input_tokens:,} of them cached)" if calls.cached_input_tokens else ""
            self._timeline.command(
                f"    {calls.count:,} calls of {calls.service}: {calls.input_tokens:,} tokens in{cached}, "
                f"{calls.output_tokens:,} out; {format_amount(cost)} {CURRENCY}"
            )
        self._check_counts(self._stack.post_usage(events), accepted=len(events), duplicate=0)
        return events

    def _pay(self, answer: Answer) -> None:
        """Count what a call costs by the price list, and show it."""
        used = answer.used
        cost = self._services.cost(used)
        self._balance -= cost
        cached = f" ({used.cached_input_tokens} of them cached)" if used.cached_input_tokens else ""
        self._timeline.detail(
            f"{used.input_tokens} tokens in{cached}, {used.output_tokens} out; {format_amount(cost)} "
            f"{CURRENCY}: {answer.text[:40]!r}..."
        )

    def _check_refused(self, refusal: Refusal) -> None:
        shown = f"{refusal.status} {refusal.type}: {refusal.message}"
        wanted = "402 permission_error: endpoint is inactive: OVERDUE"
        self._check(shown == wanted, f"a call is refused with {shown!r}, not {wanted!r}")
        self._timeline.detail(f"the next call is refused: {shown}")

    # -- what must come of it -----------------------------------------------------------------------

    def _all(self, phases: tuple[str, ...], reasons: tuple[str, ...] = ()) -> dict[str, Expect]:
        """The same for all three services."""
        on = phases[-1] == "Running"
        replicas = {self._services.chat: 1, self._services.assistant: 2, self._services.default: 1}
        return {service: Expect(phases, reasons, count if on else 0) for service, count in replicas.items()}

    def _settle(self, expected: Mapping[str, Expect], state: str = "Active") -> None:
        """Wait until all is as expected, and stays so where it should stay; print it; raise Wrong if not."""
        deadline = time.monotonic() + self._patience
        while differences := self._differences(expected, state):
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        transition = self._watch.last_transition()
        if not differences:
            differences = self._hold(expected, state)
        seen = {service: self._look(service) for service in expected}
        differences += strayed(expected, seen)
        self._print(seen, state)
        if differences:
            raise Wrong("; ".join(differences))
        took = f"{transition - self._began:.2f} s after the command" if transition > self._began else ""
        held = any(len(expect.phases) == 1 for expect in expected.values())
        stayed = f"what should stay as it was did for {HOLD_SECONDS:g} s more" if held else ""
        self._timeline.ok("; ".join(filter(None, (took, stayed))))

    def _hold(self, expected: Mapping[str, Expect], state: str) -> list[str]:
        """Where a service should stay as it is, a moment is not enough."""
        if all(len(expect.phases) > 1 for expect in expected.values()):
            return []
        until = time.monotonic() + HOLD_SECONDS
        while time.monotonic() < until:
            if differences := self._differences(expected, state):
                return differences
            time.sleep(_POLL_SECONDS * 5)
        return []

    def _differences(self, expected: Mapping[str, Expect], state: str) -> list[str]:
        differences = unsettled(expected, {service: self._look(service) for service in expected})
        account = self._account()
        if account.get("balance") != format_amount(self._balance):
            differences.append(
                f"account {self._services.account} has {account.get('balance')} {CURRENCY} in the ledger, "
                f"not {format_amount(self._balance)}"
            )
        shown = self._account_status()
        if shown.get("state") != state:
            differences.append(f"account {self._services.account} is {shown.get('state')}, not {state}")
        if not self._watch.running():
            differences.append("`kubectl get --watch` has ended")
        return differences

    def _look(self, service: str) -> Seen:
        latest = self._watch.latest(service)
        if latest is None:
            return Seen()
        found = self._stack.api.find(deployment_path(BACKENDS, latest.backend)) or {}
        status = found.get("status", {})
        return Seen(
            phases=self._watch.phases(service),
            reasons=latest.reasons,
            deployment=latest.backend,
            desired=found.get("spec", {}).get("replicas", 0),
            pods=status.get("replicas", 0),
            ready=status.get("readyReplicas", 0),
        )

    def _account(self) -> dict[str, Any]:
        """The account as the meter has it: exact to the last call."""
        try:
            return self._stack.call_meter(
                "GET", f"/v1/accounts/{self._services.account}", token=self._meter_token
            )
        except OSError:
            return {}

    def _account_status(self) -> dict[str, Any]:
        namespace, name = self._services.account.split("/")
        found = self._stack.api.find(path_of("BillingAccount", namespace, name)) or {}
        status: dict[str, Any] = found.get("status", {})
        return status

    def _print(self, seen: Mapping[str, Seen], state: str) -> None:
        rows = [("SERVICE", "PHASE", "REASON", "DEPLOYMENT", "REPLICAS")]
        for service, found in seen.items():
            replicas = f"{found.ready}/{found.desired}" if found.desired else str(found.pods)
            rows.append((service, arrows(found.phases), ", ".join(found.reasons), found.deployment, replicas))
        self._timeline.table(rows)
        shown = self._account_status().get("state")
        self._timeline.detail(f"balance {self._account().get('balance')} {CURRENCY}, {shown}")

    def _wait(
        self, look: Callable[[], Mapping[str, Any]], field: str, value: object, what: str
    ) -> Mapping[str, Any]:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                found = look()
            except (ApiError, OSError) as error:
                found = {"error": str(error)}
            if found.get(field) == value:
                return found
            self._check(time.monotonic() < deadline, f"{what} is not {value}, but {json.dumps(found)}")
            time.sleep(_POLL_SECONDS)

    def _check_counts(self, answer: Mapping[str, Any], accepted: int, duplicate: int) -> None:
        wanted = {"accepted": accepted, "duplicate": duplicate, "pending": 0, "rejected": []}
        self._check(answer == wanted, f"the meter answered {json.dumps(answer)[:500]}, not {wanted}")

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Wrong(otherwise)
