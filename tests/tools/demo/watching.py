"""Every phase that services go through, from `kubectl get --watch`: no short one is missed."""

import json
import subprocess
import threading
import time
from dataclasses import dataclass

from tests.tools.plane.cluster import Cluster

_FIELDS = ("namespace", "name", "phase", "stopReasons", "selector")
# Not tabs: kubectl would align them.
_LINE = (
    "jsonpath={.object.metadata.namespace}|{.object.metadata.name}|{.object.status.phase}|"
    '{.object.status.stopReasons}|{.object.status.selector}{"\\n"}'
)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A service at one moment; `at` in monotonic seconds."""

    at: float
    phase: str
    reasons: tuple[str, ...]
    backend: str


class PhaseWatch:
    """Watches all services of a cluster. Use it as a context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self._history: dict[str, list[Sighting]] = {}
        self._marks: dict[str, int] = {}
        self._kubectl = subprocess.Popen(
            [str(cluster.kubectl_program), f"--kubeconfig={cluster.kubeconfig}", "get", "infsvc",
             "--all-namespaces", "--watch", "--output-watch-events", f"--output={_LINE}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True, name="phases")
        self._reader.start()

    def mark(self) -> None:
        """A step begins: `phases` and `since_mark` go from here."""
        self._marks = {service: len(sightings) - 1 for service, sightings in self._history.items()}

    def latest(self, service: str) -> Sighting | None:
        """The service as it was seen last, or None if it has no status yet."""
        sightings = self._history.get(service)
        return sightings[-1] if sightings else None

    def phases(self, service: str) -> tuple[str, ...]:
        """The phase at the mark and all that followed, each once in a row."""
        phases: list[str] = []
        for sighting in self._since_mark(service):
            if not phases or phases[-1] != sighting.phase:
                phases.append(sighting.phase)
        return tuple(phases)

    def last_transition(self) -> float:
        """When a phase changed last since the mark, in monotonic seconds; 0 if none did."""
        times = [0.0]
        for service in list(self._history):
            sightings = self._since_mark(service)
            known = service in self._marks
            for before, after in zip([None, *sightings], sightings, strict=False):
                if before is None:
                    if not known:
                        times.append(after.at)
                elif before.phase != after.phase:
                    times.append(after.at)
        return max(times)

    def running(self) -> bool:
        """Whether the watch still works."""
        return self._kubectl.poll() is None and self._reader.is_alive()

    def close(self) -> None:
        """End the watch."""
        self._kubectl.terminate()
        self._kubectl.wait()
        self._reader.join(timeout=5)

    def __enter__(self) -> "PhaseWatch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _since_mark(self, service: str) -> list[Sighting]:
        return self._history.get(service, [])[max(0, self._marks.get(service, 0)) :]

    def _read(self) -> None:
        assert self._kubectl.stdout is not None
        for line in self._kubectl.stdout:
            fields = dict(zip(_FIELDS, line.rstrip("\n").split("|"), strict=True))
            if not fields["phase"]:
                continue
            sighting = Sighting(
                at=time.monotonic(),
                phase=fields["phase"],
                reasons=tuple(json.loads(fields["stopReasons"] or "[]")),
                backend=fields["selector"].rpartition("=")[2],
            )
            self._history.setdefault(f"{fields['namespace']}/{fields['name']}", []).append(sighting)
