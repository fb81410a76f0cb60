"""Farebox's Kopf handlers: one for each kind that Kopf watches, and the hooks of its life cycle.

Kopf lists and watches Farebox's kinds and Namespaces, reconnects, logs in again after a 401, and calls a
handler for every event. A handler passes the event on; the work queue decides when the object is reconciled.
Handlers do no I/O and never raise, because Kopf does not retry an event handler (docs/decisions/001).

Kopf does nothing else here, and so no object carries a finalizer or an annotation of Kopf's:
- no `on.create`, `on.update`, daemon or timer: each costs writes to the object, and the queue replaces them;
- no `on.cleanup`: `farebox operator` stops its workers, then gives the Lease back (operator.py);
- no `on.probe`: /healthz and /readyz report Kopf's watches beside the Lease (farebox/health.py);
- no peering: it has no fencing, and the Lease has (docs/decisions/004);
- no Deployments and Services: reflectors watch them in one namespace (docs/decisions/007).

`farebox operator` runs Kopf through `run`. `kopf run` refuses to start, because Kopf alone has neither a
Lease nor a ledger feed.
"""

import asyncio
from typing import Any, Final

import kopf

from farebox.api import GROUP, VERSION
from farebox.controller.queue import Kind
from farebox.controller.sources.kopf_session import KopfSession, configure

_REFUSAL: Final = (
    "Kopf alone cannot run Farebox, which needs its Lease, work queue and ledger feed. "
    "Run instead: farebox operator"
)


@kopf.on.startup()
async def startup(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Turn off what Farebox does not use of Kopf; refuse to run without the rest of the operator."""
    if "session" not in memo:
        raise kopf.PermanentError(_REFUSAL)
    configure(settings)


@kopf.on.login()
async def login(memo: kopf.Memo, **_: Any) -> kopf.AiohttpSession:
    """Give Kopf the operator's own credentials and TLS settings."""
    session: KopfSession = memo.session
    return session.login()


@kopf.on.event(GROUP, VERSION, "inferenceservices")
async def inferenceservice(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Report an InferenceService."""
    memo.session.observe(Kind.SERVICE, event)


@kopf.on.event(GROUP, VERSION, "models")
async def model(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Report a Model."""
    memo.session.observe(Kind.MODEL, event)


@kopf.on.event(GROUP, VERSION, "billingaccounts")
async def billingaccount(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Report a BillingAccount."""
    memo.session.observe(Kind.ACCOUNT, event)


@kopf.on.event(GROUP, VERSION, "topups")
async def topup(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Report a TopUp."""
    memo.session.observe(Kind.TOPUP, event)


@kopf.on.event(GROUP, VERSION, "apikeys")
async def apikey(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Report an APIKey."""
    memo.session.observe(Kind.APIKEY, event)


@kopf.on.event("", "v1", "namespaces")
async def namespace(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Report a Namespace, whose labels decide which accounts admit its services."""
    memo.session.observe(Kind.NAMESPACE, event)


async def run(session: KopfSession, stop: asyncio.Event) -> None:
    """Run Kopf until `stop` is set. Kopf also ends by itself, when it gives up a watch.

    Start all other tasks first: Kopf cancels those that were created after its own.
    """
    await kopf.operator(memo=kopf.Memo(session=session), clusterwide=True, standalone=True, stop_flag=stop)
