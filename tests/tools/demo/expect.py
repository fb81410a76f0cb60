"""What a step should come to, and the sentences about what is not so. Pure: it looks at nothing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class Wrong(Exception):
    """A step did not come out as it should; the message says what was expected and what was seen."""


@dataclass(frozen=True, slots=True)
class Expect:
    """What a service should come to in one step.

    Attributes:
        phases: the phases it goes through, from the one before the step; a single one means that it stays.
        reasons: its stop reasons at the end.
        replicas: of its Deployment at the end, all of them ready.
    """

    phases: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a service was seen to be. `desired` is what the Deployment asks for, `pods` what there is."""

    phases: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    deployment: str = ""
    desired: int = 0
    pods: int = 0
    ready: int = 0

    @property
    def phase(self) -> str:
        """The last phase, or "" for a service without one."""
        return self.phases[-1] if self.phases else ""


def unsettled(expected: Mapping[str, Expect], seen: Mapping[str, Seen]) -> list[str]:
    """What is not at its end yet, however it got there: a sentence for each difference."""
    return [
        f"{service} {difference}"
        for service, expect in expected.items()
        for difference in _differences(expect, seen.get(service, Seen()))
    ]


def strayed(expected: Mapping[str, Expect], seen: Mapping[str, Seen]) -> list[str]:
    """What took another way than it should: a sentence for each service."""
    return [
        f"{service} went {arrows(found.phases)}; it should have {_went(expect.phases)}"
        for service, expect in expected.items()
        if (found := seen.get(service, Seen())).phases != expect.phases
    ]


def arrows(phases: Sequence[str]) -> str:
    """Phases as they follow each other."""
    return " -> ".join(phases) or "(no phase)"


def _differences(expect: Expect, seen: Seen) -> list[str]:
    found = []
    if seen.phase != expect.phases[-1]:
        found.append(f"is {seen.phase or 'without a phase'}, not {expect.phases[-1]}")
    if seen.reasons != expect.reasons:
        found.append(f"has stop reasons [{', '.join(seen.reasons)}], not [{', '.join(expect.reasons)}]")
    if not seen.desired == seen.pods == seen.ready == expect.replicas:
        name = f"Deployment {seen.deployment}" if seen.deployment else "Deployment (unknown)"
        found.append(
            f"has {name} at {seen.desired} replicas, {seen.pods} pods, {seen.ready} ready, "
            f"not {expect.replicas}"
        )
    return found


def _went(phases: Sequence[str]) -> str:
    return f"stayed {phases[0]}" if len(phases) == 1 else f"gone {arrows(phases)}"
