"""Which services want to run, counted for each model: a shared backend runs while any of them does.

Kept in memory and made anew at every start: until each shared service on a model was decided once, whether
nobody wants it is unknown, and an unknown demand scales nothing.
"""

from collections import defaultdict

from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey


class SharedBackendDemand:
    """The verdicts of this process, as far as others depend on them.

    A service is counted in the demand of one model at a time. One that was deleted and made again on another
    model, or with a backend of its own, may be seen as one change: it leaves the demand that it was in. The
    methods return the models whose backend may have to change.
    """

    def __init__(self) -> None:
        self._wanted: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._decided: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._model_of: dict[ObjectKey, str] = {}
        self.undecided: set[ObjectKey] = set()
        """Services that wait for a fact to become known."""

    def record_shared(self, model: str, service: ObjectKey, wanted: bool, decided: bool) -> list[str]:
        """Note the verdict on a shared service."""
        (self.undecided.discard if decided else self.undecided.add)(service)
        changed = self._leave(service) if self._model_of.get(service, model) != model else []
        first = service not in self._decided[model]
        self._decided[model].add(service)
        self._model_of[service] = model
        before = bool(self._wanted[model])
        (self._wanted[model].add if wanted else self._wanted[model].discard)(service)
        return [*changed, model] if first or before is not bool(self._wanted[model]) else changed

    def record_dedicated(self, service: ObjectKey, decided: bool) -> list[str]:
        """Note whether a dedicated service waits for a fact."""
        (self.undecided.discard if decided else self.undecided.add)(service)
        return self._leave(service)

    def forget(self, service: ObjectKey) -> list[str]:
        """The service is gone."""
        self.undecided.discard(service)
        return self._leave(service)

    def wanted(self, model: str, services: frozenset[ObjectKey]) -> bool | Unknown:
        """Whether any of the shared services on a model wants to run."""
        if self._wanted[model]:
            return True
        return False if services <= self._decided[model] else UNKNOWN

    def _leave(self, service: ObjectKey) -> list[str]:
        model = self._model_of.pop(service, None)
        if model is None:
            return []
        self._wanted[model].discard(service)
        self._decided[model].discard(service)
        return [model]
