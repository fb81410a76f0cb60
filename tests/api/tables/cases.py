"""The rows of the tables, and patches that many of them use."""

from typing import Any, NamedTuple

from tests.api.samples import Manifest


class Refused(NamedTuple):
    """A sample, a patch to its spec, and a part of the error that it gives: the field, then the sentence."""

    title: str
    sample: Manifest
    spec: dict[str, Any]
    says: str


class Accepted(NamedTuple):
    """A sample, and a patch to its spec that must be let in."""

    title: str
    sample: Manifest
    spec: dict[str, Any]


def tiers(*ceilings: int | None) -> dict[str, Any]:
    tiers = []
    for ceiling in ceilings:
        tier: dict[str, Any] = {"input": "1", "cachedInput": "1", "output": "1"}
        tiers.append(tier if ceiling is None else {"upToInputTokens": ceiling, **tier})
    return {"prices": {"tiers": tiers}}


def price(text: Any) -> dict[str, Any]:
    return {"prices": {"tiers": [{"input": text, "cachedInput": "1", "output": "1"}]}}


def deployment(**fields: Any) -> dict[str, Any]:
    return {"serving": {"deployment": fields}}


def external(url: str) -> dict[str, Any]:
    return {"serving": {"external": {"baseURL": url}}}


def containers(*containers: dict[str, Any]) -> dict[str, Any]:
    return deployment(template={"spec": {"containers": list(containers)}})
