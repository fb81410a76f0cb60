"""Keeps the gateway's snapshot equal to the cluster's keys, services, models and accounts."""

import asyncio
from collections.abc import Callable

from farebox.gateway.snapshot import GatewaySnapshot
from farebox.kube.client import KubeClient
from farebox.kube.names import resource_path
from farebox.kube.reflector import Reflector


class ClusterWatch:
    """One reflector for each kind, in all namespaces.

    Args:
        compare_seconds: how often each kind is compared with a list.
    """

    def __init__(self, client: KubeClient, snapshot: GatewaySnapshot, compare_seconds: float = 30.0) -> None:
        self._compare_seconds = compare_seconds
        self._reflectors = [
            Reflector(client, resource_path(store.kind), store)
            for store in (snapshot.keys, snapshot.services, snapshot.models, snapshot.accounts)
        ]

    @property
    def age(self) -> float:
        """Seconds since the API server last answered about the kind that waits longest; for metrics."""
        return max(reflector.age for reflector in self._reflectors)

    async def run(self, on_synced: Callable[[], None] = lambda: None) -> None:
        """Follow all kinds. Never returns; `on_synced` is called once, after each kind was listed."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors:
                tasks.create_task(reflector.run(self._compare_seconds))
            for reflector in self._reflectors:
                await reflector.synced.wait()
            on_synced()
