"""A simulated world for `decide_service`: sources of facts, and verdicts carried out as the operator does.

A reconcile writes the status and the backend in the operator's order, and may be interrupted between them
(B20).
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from farebox.api import BillingMode, Phase, ServiceType
from farebox.domain.billing.money import Nano, available
from farebox.domain.facts import (
    MISSING,
    UNKNOWN,
    AccountFacts,
    BackendFacts,
    Facts,
    Missing,
    ModelFacts,
    Previous,
    ServiceFacts,
    Unknown,
)
from farebox.domain.lifecycle import ServiceVerdict, decide_service, desired_replicas
from farebox.domain.model_status import SharedBackendFacts, decide_model
from tests.domain.build import ACCOUNT, MODEL, NEVER, NOW, SERVICE, remembered


@dataclass
class Deployment:
    """A backend: its desired replicas, and how many are ready."""

    desired: int = 0
    ready: int = 0

    def scale(self, replicas: int) -> None:
        """Surplus replicas end at once; missing ones have to start."""
        self.desired, self.ready = replicas, min(self.ready, replicas)

    def facts(self) -> BackendFacts:
        """As its controller reports it."""
        return BackendFacts(self.desired, self.desired, self.ready, self.desired, current=True)


@dataclass
class Service:
    """A service's spec, its status, and the result of its last reconcile."""

    type: ServiceType
    dedicated: bool
    postpaid: bool = False
    replicas: int = 1
    status: Previous = NEVER
    backend: Deployment | None = None
    verdict: ServiceVerdict | None = None


@dataclass
class World:
    """One account, one model, and services on both."""

    services: dict[str, Service] = field(default_factory=dict)
    shared: Deployment | None = None
    balance: int = 0
    credit_limit: int = 0
    has_account: bool = True
    has_model: bool = True
    retired: bool = False
    meter_reachable: bool = True
    now: datetime = NOW

    def backend_of(self, service: Service) -> Deployment | None:
        """The Deployment that serves a service, if it exists."""
        return service.backend if service.dedicated else self.shared

    def facts(self, service: Service) -> Facts:
        """What the operator can know of a service now."""
        left: Nano | Unknown = available(self.balance, self.credit_limit) if self.meter_reachable else UNKNOWN
        backend = self.backend_of(service)
        return Facts(
            service=ServiceFacts(
                key=SERVICE,
                type=service.type,
                postpaid=service.postpaid,
                trial=False,
                reserves=False,
                dedicated=service.dedicated,
                replicas=service.replicas,
            ),
            account=AccountFacts(ACCOUNT, "USD", left, allows=True) if self.has_account else MISSING,
            model=ModelFacts(MODEL, self.retired, "USD") if self.has_model else MISSING,
            backend=MISSING if backend is None else backend.facts(),
            account_key=ACCOUNT,
            model_name=MODEL,
            previous=service.status,
        )

    def reconcile(self, service: Service) -> ServiceVerdict:
        """One reconcile in the operator's order: up, the backend first; down, the status first (B18)."""
        verdict = self.interrupted_reconcile(service, writes=2)
        service.verdict = verdict
        return verdict

    def interrupted_reconcile(self, service: Service, writes: int) -> ServiceVerdict:
        """A reconcile that is interrupted after `writes` writes."""
        self.now += timedelta(seconds=1)
        verdict = decide_service(self.facts(service), self.now)
        steps = (self._write_status, self._write_backend)
        for step in (steps[::-1] if verdict.wanted else steps)[:writes]:
            step(service, verdict)
        return verdict

    def reconcile_model(self) -> None:
        """Scale the shared backend to what its services need."""
        if not self.has_model:
            self.shared = None
            return
        shared = [service for service in self.services.values() if not service.dedicated]
        undecided = any(service.verdict is None for service in shared)
        wanted = any(service.verdict is not None and service.verdict.wanted for service in shared)
        backend: BackendFacts | Missing = MISSING if self.shared is None else self.shared.facts()
        facts = SharedBackendFacts(backend, UNKNOWN if undecided and not wanted else wanted, replicas=1)
        replicas = decide_model(facts).replicas
        if replicas is not None:
            self.shared = self.shared or Deployment()
            self.shared.scale(replicas)

    def _write_status(self, service: Service, verdict: ServiceVerdict) -> None:
        service.status = remembered(verdict)

    def _write_backend(self, service: Service, verdict: ServiceVerdict) -> None:
        if not service.dedicated:
            return
        replicas = desired_replicas(verdict.wanted, service.replicas)
        if service.backend is None and replicas:
            service.backend = Deployment()
        if service.backend is not None:
            service.backend.scale(replicas)


@dataclass
class Expected:
    """The specification in a few lines, written independently of the code: what a reader expects."""

    phase: Phase | None = None
    reasons: frozenset[str] = frozenset()
    billing: BillingMode = BillingMode.NONE
    up: bool = False
    enabled_once: bool = False
    ready_once: bool = False

    def update(self, world: World, service: Service) -> None:
        """Update what is expected after a reconcile of the service, given the expectation before."""
        reasons = set()
        if not service.postpaid:
            reasons.add("PostpaidDisabled")
        if not world.has_account:
            reasons.add("AccountNotFound")
        if not world.has_model:
            reasons.add("ModelNotFound")
        elif world.retired:
            reasons.add("ModelRetired")
        pays_by_use = service.postpaid and world.has_account
        overdue_before = "Overdue" in self.reasons
        if pays_by_use and (
            world.balance + world.credit_limit <= 0 if world.meter_reachable else overdue_before
        ):
            reasons.add("Overdue")
        self.enabled_once |= service.postpaid
        if not reasons and pays_by_use and not world.meter_reachable and not self.up:
            return  # too little is known to start it: all stays
        backend = world.backend_of(service)
        ready = backend is not None and backend.ready > 0
        self._move(reasons, service, ready=ready)

    def _move(self, reasons: set[str], service: Service, *, ready: bool) -> None:
        was_running = self.phase is Phase.RUNNING
        self.up, self.reasons = not reasons, frozenset(reasons)
        self.billing = BillingMode.PAY_AS_YOU_GO if service.postpaid else BillingMode.NONE
        self.ready_once |= self.up and ready
        if reasons:
            never = service.type is ServiceType.DEFAULT and not self.enabled_once
            self.phase = Phase.NOT_ENABLED if never and reasons == {"PostpaidDisabled"} else Phase.STOPPED
        elif not self.ready_once:
            self.phase = Phase.CREATING
        elif ready or was_running or (service.dedicated and service.replicas == 0):
            self.phase = Phase.RUNNING
        else:
            self.phase = Phase.STOPPED
