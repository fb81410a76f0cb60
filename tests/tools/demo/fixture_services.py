"""What the demo puts on the cluster: the samples of the repository, and names under which they do no harm.

On a plane of its own it applies the very files. On a cluster that others use too, models and namespaces get
names of this run, since the ledger never forgets an account; all of it carries a label to be found by.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from farebox.domain.billing.money import Nano
from tests.tools.plane.cluster import Cluster

DEMO_LABEL = "farebox.dev/demo"
SAMPLES = "manifests/samples"
GALLERY = ("namespaces.yaml", "catalogue.yaml", "billing.yaml")
SERVICES = ("team-a.yaml",)
_REPOSITORY = Path(__file__).parents[3]
_RENAMED = ("billing", "team-a", "qwen3-8b", "llama-3.3-70b", "bge-m3")


@dataclass(frozen=True, slots=True)
class Calls:
    """`count` equal calls of a service; tokens are those of one call. `free`: the free quota covers all."""

    count: int
    service: str
    model: str
    input_tokens: int
    output_tokens: int = 0
    cached_input_tokens: int = 0
    free: bool = False


@dataclass(frozen=True)
class FixtureServices:
    """The samples under the names of one run.

    Attributes:
        suffix: added to the names of models and namespaces; "" leaves the files as they are.
    """

    suffix: str = ""
    _documents: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, cluster: Cluster) -> "FixtureServices":
        """The services for a cluster: a simulated one belongs to this run alone."""
        return cls() if cluster.simulated else cls(f"-demo-{uuid.uuid4().hex[:6]}")

    @property
    def billing(self) -> str:
        """The account's namespace."""
        return f"billing{self.suffix}"

    @property
    def team(self) -> str:
        """The team's namespace."""
        return f"team-a{self.suffix}"

    @property
    def account(self) -> str:
        """The account, as namespace/name."""
        return f"{self.billing}/acme"

    @property
    def chat(self) -> str:
        """A service on a shared backend, as namespace/name."""
        return f"{self.team}/chat"

    @property
    def assistant(self) -> str:
        """A service with a backend of its own, two replicas of it."""
        return f"{self.team}/assistant"

    @property
    def default(self) -> str:
        """The account's Default service for the model of embeddings, as namespace/name."""
        return f"{self.billing}/{self.model('bge-m3')}"

    @property
    def defaults(self) -> list[str]:
        """All Default services of the account: one for each model of the gallery."""
        return [
            f"{self.billing}/{document['metadata']['name']}" for document in self.documents("catalogue.yaml")
        ]

    def model(self, name: str) -> str:
        """The name of a sample's model in this run."""
        return f"{name}{self.suffix}"

    def apply(self, cluster: Cluster, files: Iterable[str]) -> str:
        """Apply files of the samples; returns the command as a person would type it."""
        options = ["apply", "--server-side"]
        if not self.suffix:
            paths = [f"{SAMPLES}/{name}" for name in files]
            cluster.kubectl(*options, *(f"--filename={_REPOSITORY / path}" for path in paths))
            arguments = " \\\n    ".join(f"-f {path}" for path in paths)
            return f"$ kubectl {' '.join(options)} {arguments}"
        documents = [document for name in files for document in self.documents(name)]
        cluster.kubectl(*options, "--filename=-", input=yaml.safe_dump_all(documents))
        return f"$ kubectl {' '.join(options)} -f -    # {', '.join(files)}, names end with {self.suffix}"

    def documents(self, name: str) -> list[dict[str, Any]]:
        """The objects of one of the samples' files, under this run's names."""
        if name not in self._documents:
            text = (_REPOSITORY / SAMPLES / name).read_text()
            self._documents[name] = [self._renamed(document) for document in yaml.safe_load_all(text)]
        return self._documents[name]

    def cost(self, calls: Calls) -> Nano:
        """What calls cost by the price list; computed here, not by Farebox's own code."""
        if calls.free:
            return Nano(0)
        model = next(
            document
            for document in self.documents("catalogue.yaml")
            if document["metadata"]["name"] == calls.model
        )
        tier = next(
            tier
            for tier in model["spec"]["prices"]["tiers"]
            if tier.get("upToInputTokens", calls.input_tokens) >= calls.input_tokens
        )
        a_call = (
            (calls.input_tokens - calls.cached_input_tokens) * Decimal(tier["input"])
            + calls.cached_input_tokens * Decimal(tier["cachedInput"])
            + calls.output_tokens * Decimal(tier["output"])
        )
        # Prices are per million tokens: a unit of price is 1,000 nano-units a token.
        return Nano(int(a_call * 1000) * calls.count)

    def remove(self, cluster: Cluster) -> None:
        """Take this run's objects away; the ledger keeps what was booked."""
        namespaces = (self.billing, self.team)
        cluster.kubectl("delete", "namespace", "--ignore-not-found", *namespaces)
        models = [document["metadata"]["name"] for document in self.documents("catalogue.yaml")]
        cluster.kubectl("delete", "models.farebox.dev", "--ignore-not-found", *models)

    def _renamed(self, value: Any) -> Any:
        if not self.suffix:
            return value
        renamed = self._replaced(value)
        renamed["metadata"].setdefault("labels", {})[DEMO_LABEL] = "true"
        return renamed

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._replaced(item) for item in value]
        return f"{value}{self.suffix}" if value in _RENAMED else value
