"""Which services want to run, counted for each model: a shared backend runs while any of them does.

Kept in memory and made anew at every start: until each shared service on a model was decided once, whether
nobody wants it is unknown, and an unknown demand scales nothing.
"""

from collections import defaultdict

from farebox.domain.facts import UNKNOWN, Unknown
from farebox.domain.keys import ObjectKey


class Demand:
    """The verdicts of this process, as far as others depend on them."""

    def __init__(self) -> None:
        self._wanted: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._decided: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self.held: set[ObjectKey] = set()
        """Services that wait for a fact to become known."""

    def decide(self, model: str, service: ObjectKey, wanted: bool, decided: bool) -> bool:
        """Note the verdict on a shared service; True when the model's backend may have to change."""
        (self.held.discard if decided else self.held.add)(service)
        first = service not in self._decided[model]
        self._decided[model].add(service)
        before = bool(self._wanted[model])
        (self._wanted[model].add if wanted else self._wanted[model].discard)(service)
        return first or before is not bool(self._wanted[model])

    def hold(self, service: ObjectKey, decided: bool) -> None:
        """Note whether a dedicated service waits for a fact."""
        (self.held.discard if decided else self.held.add)(service)

    def forget(self, model: str, service: ObjectKey) -> None:
        """The service is gone."""
        self.held.discard(service)
        self._wanted[model].discard(service)
        self._decided[model].discard(service)

    def models_of(self, service: ObjectKey) -> list[str]:
        """The models whose demand the service was counted in."""
        return [model for model, services in self._decided.items() if service in services]

    def wanted(self, model: str, services: frozenset[ObjectKey]) -> bool | Unknown:
        """Whether any of the shared services on a model wants to run."""
        if self._wanted[model]:
            return True
        return False if services <= self._decided[model] else UNKNOWN
