"""Follows the kinds that the gateway goes by, into its snapshot, for ever."""

import asyncio
from collections.abc import Callable

from farebox.gateway.snapshot import GatewaySnapshot
from farebox.kube.client import KubeClient
from farebox.kube.names import resource_path
from farebox.kube.reflector import Informer, Sink


class ClusterWatch:
    """Informers of keys, services, models and accounts, in all namespaces."""

    def __init__(self, client: KubeClient, snapshot: GatewaySnapshot, sweep_seconds: float = 30.0) -> None:
        stores: dict[str, Sink] = {
            "APIKey": snapshot.keys,
            "InferenceService": snapshot.services,
            "Model": snapshot.models,
            "BillingAccount": snapshot.accounts,
        }
        self.informers = {
            kind: Informer(client, resource_path(kind), store, sweep_seconds)
            for kind, store in stores.items()
        }

    @property
    def age(self) -> float:
        """Seconds since the API server was heard, of the kind for which it is longest; for metrics."""
        return max(informer.age for informer in self.informers.values())

    async def run(self, on_synced: Callable[[], None] = lambda: None) -> None:
        """Follow all kinds; `on_synced` is called once, when each was listed."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self.informers.values():
                tasks.create_task(informer.run())
            for informer in self.informers.values():
                await informer.synced.wait()
            on_synced()
