"""Which services want to run, by model: a shared backend runs while any of them does.

It is kept in memory and starts empty. Until every shared service on a model was decided once, the demand of a
model without a wanting service is unknown, and an unknown demand scales nothing.
"""

from collections import defaultdict

from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey


class SharedBackendDemand:
    """The verdicts of this process that shared backends depend on.

    A service counts for one model at a time. One that was recreated on another model, or as a dedicated one,
    may arrive as a single change: it leaves the demand of its former model. Methods that change the demand
    return the models whose backend may have to change.
    """

    def __init__(self) -> None:
        self._wanting: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._decided: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._model_of: dict[ObjectKey, str] = {}
        self.undecided: set[ObjectKey] = set()
        """Services whose verdict waits for an unknown fact."""

    def record_shared(self, model: str, service: ObjectKey, wanted: bool, decided: bool) -> list[str]:
        """Record the verdict on a shared service."""
        (self.undecided.discard if decided else self.undecided.add)(service)
        changed = self._leave(service) if self._model_of.get(service, model) != model else []
        first = service not in self._decided[model]
        self._decided[model].add(service)
        self._model_of[service] = model
        before = bool(self._wanting[model])
        (self._wanting[model].add if wanted else self._wanting[model].discard)(service)
        after = bool(self._wanting[model])
        # The last first verdict makes an unknown demand known, unless a wanting service made it known before:
        # a model of thousands of services would otherwise be reconciled once for each of them at a start.
        return [*changed, model] if before is not after or (first and not after) else changed

    def record_dedicated(self, service: ObjectKey, decided: bool) -> list[str]:
        """Record whether the verdict on a dedicated service waits for an unknown fact."""
        (self.undecided.discard if decided else self.undecided.add)(service)
        return self._leave(service)

    def forget(self, service: ObjectKey) -> list[str]:
        """Drop a deleted service."""
        self.undecided.discard(service)
        return self._leave(service)

    def wanted(self, model: str, services: frozenset[ObjectKey]) -> bool | Unknown:
        """Return whether any of the shared services on a model wants to run."""
        if self._wanting[model]:
            return True
        return False if services <= self._decided[model] else UNKNOWN

    def _leave(self, service: ObjectKey) -> list[str]:
        model = self._model_of.pop(service, None)
        if model is None:
            return []
        self._wanting[model].discard(service)
        self._decided[model].discard(service)
        return [model]
