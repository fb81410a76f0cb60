"""Any order of actions of users, admins, calls and the operator gives the state of the specification.

The machine changes a small world at random, lets the operator's decisions act on it, and compares with
`Expected`, which is written from the specification and shares no code with `decide_service`.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from farebox.api import ConditionType, Phase, ServiceType
from tests.domain.build import is_true
from tests.domain.strategies import THOROUGH
from tests.domain.world import Deployment, Expected, Service, World

KINDS = {
    "default": (ServiceType.DEFAULT, False),
    "shared": (ServiceType.CUSTOM, False),
    "dedicated": (ServiceType.CUSTOM, True),
    "other": (ServiceType.CUSTOM, True),
}
names = st.sampled_from(sorted(KINDS))
amounts = st.integers(1, 6)


class Lifecycle(RuleBasedStateMachine):
    """Services on one account and one model."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(balance=3)
        self.expected: dict[str, Expected] = {}
        self.prompt = True
        for name in ("default", "dedicated"):
            self._create(name)

    def _create(self, name: str) -> None:
        type_, dedicated = KINDS[name]
        self.world.services[name] = Service(type_, dedicated)
        self.expected[name] = Expected()

    # -- owners ---------------------------------------------------------------------------------------

    @rule(name=names, postpaid=st.booleans())
    def switch(self, name: str, postpaid: bool) -> None:
        if service := self.world.services.get(name):
            service.postpaid = postpaid

    @rule(name=names, replicas=st.integers(0, 3))
    def edit_replicas(self, name: str, replicas: int) -> None:
        service = self.world.services.get(name)
        if service and service.dedicated:
            service.replicas = replicas

    @rule(name=names)
    def create_or_delete(self, name: str) -> None:
        """A service that is created again has no status and no backend."""
        if self.world.services.pop(name, None) is None:
            self._create(name)

    # -- money ----------------------------------------------------------------------------------------

    @rule(amount=amounts)
    def charge(self, amount: int) -> None:
        self.world.balance -= amount

    @rule(amount=amounts)
    def top_up(self, amount: int) -> None:
        self.world.balance += amount

    @rule(limit=st.integers(0, 4))
    def edit_credit_limit(self, limit: int) -> None:
        self.world.credit_limit = limit

    @rule()
    def delete_or_create_account(self) -> None:
        """The balance is in the ledger: a new account of the same name has it (B11)."""
        self.world.has_account = not self.world.has_account

    @rule()
    def ledger_goes_silent_or_comes_back(self) -> None:
        self.world.meter_reachable = not self.world.meter_reachable

    # -- models and the cluster -----------------------------------------------------------------------

    @rule()
    def delete_or_create_model(self) -> None:
        self.world.has_model = not self.world.has_model

    @rule(retired=st.booleans())
    def retire(self, retired: bool) -> None:
        self.world.retired = retired

    @rule(name=names, ready=st.integers(0, 3))
    def replicas_come_or_go(self, name: str, ready: int) -> None:
        service = self.world.services.get(name)
        backend = service and self.world.backend_of(service)
        if backend:
            backend.ready = min(ready, backend.desired)

    @rule(name=names, replicas=st.integers(0, 3))
    def somebody_scales_the_deployment(self, name: str, replicas: int) -> None:
        service = self.world.services.get(name)
        backend = service and self.world.backend_of(service)
        if backend:
            backend.scale(replicas)

    @rule(name=names)
    def somebody_deletes_the_deployment(self, name: str) -> None:
        service = self.world.services.get(name)
        if service and service.dedicated:
            service.backend = None
        elif service:
            self.world.shared = None

    # -- the operator ---------------------------------------------------------------------------------

    @rule(prompt=st.booleans())
    def operator_is_prompt_or_slow(self, prompt: bool) -> None:
        """Prompt: it reconciles after each change. Slow: many changes come before a reconcile."""
        self.prompt = prompt

    @invariant()
    def operator_reconciles(self) -> None:
        if self.prompt:
            for name in list(self.world.services):
                self.reconcile(name)
            self.world.reconcile_model()

    @rule(name=names)
    def reconcile(self, name: str) -> None:
        """One reconcile, then the comparison."""
        service = self.world.services.get(name)
        if service is None:
            return
        self.expected[name].update(self.world, service)
        self.world.reconcile(service)
        self._compare(name, service)

    @rule(name=names, writes=st.integers(0, 1))
    def is_killed_in_the_middle(self, name: str, writes: int) -> None:
        """Completed writes stay, and the next reconcile of any replica finishes the job (B20)."""
        service = self.world.services.get(name)
        if service is None:
            return
        before = service.status
        if self.world.interrupted_reconcile(service, writes).wanted:
            assert service.status == before
        elif writes:
            # Down: the status comes first, so that calls are refused before the pods end (B18).
            self.expected[name].update(self.world, service)

    @rule()
    def reconcile_model(self) -> None:
        self.world.reconcile_model()

    @rule()
    def everything_converges(self) -> None:
        """Backends start their replicas and everything is reconciled until nothing changes any more."""
        for _ in range(8):
            before = self._picture()
            for name in list(self.world.services):
                self.reconcile(name)
            self.world.reconcile_model()
            for backend in self._backends():
                backend.ready = backend.desired
            if self._picture() == before:
                break
        else:
            raise AssertionError(f"no rest: {self._picture()}")
        for name, service in self.world.services.items():
            self._at_rest(name, service)
        wanted = any(s.verdict and s.verdict.wanted for s in self.world.services.values() if not s.dedicated)
        if self.world.has_model and self.world.shared is not None:
            assert self.world.shared.desired == (1 if wanted else 0)

    def _compare(self, name: str, service: Service) -> None:
        expected, status = self.expected[name], service.status
        reasons = frozenset(reason.value for reason in status.stop_reasons)
        seen = (status.phase, reasons, status.billing_mode)
        assert seen == (expected.phase, expected.reasons, expected.billing), (name, self.world)
        assert (status.enabled_at is not None) is expected.enabled_once
        assert (status.first_running_at is not None) is expected.ready_once
        if service.dedicated:
            replicas = service.backend.desired if service.backend else 0
            assert replicas == (service.replicas if expected.up else 0), (name, self.world)

    def _at_rest(self, name: str, service: Service) -> None:
        """At rest with everything known, the state follows from the spec alone, whatever happened before."""
        verdict = service.verdict
        assert verdict is not None
        ready, serving = is_true(verdict, ConditionType.READY), is_true(verdict, ConditionType.SERVING)
        up = self.expected[name].up
        if up:
            asked = service.replicas if service.dedicated else 1
            assert serving is (asked > 0)
            assert service.status.phase is (
                Phase.RUNNING if self.expected[name].ready_once else Phase.CREATING
            )
            assert ready
        else:
            assert not serving
        if self.world.meter_reachable and not service.postpaid:
            assert ready, "what its owner switched off is as it should be"

    def _backends(self) -> list[Deployment]:
        own = [service.backend for service in self.world.services.values()]
        return [backend for backend in (*own, self.world.shared) if backend is not None]

    def _picture(self) -> Any:
        return (
            {name: (service.status, service.verdict) for name, service in self.world.services.items()},
            [(backend.desired, backend.ready) for backend in self._backends()],
        )


Lifecycle.TestCase.settings = settings(THOROUGH, stateful_step_count=40)
TestLifecycle = Lifecycle.TestCase
