"""The list of kinds: their names in URLs, on the command line and in Python."""

from dataclasses import dataclass

from farebox.api.apikey import APIKey
from farebox.api.base import APIObject
from farebox.api.billingaccount import BillingAccount
from farebox.api.inferenceservice import InferenceService
from farebox.api.model import Model
from farebox.api.topup import TopUp

AnyObject = APIKey | BillingAccount | InferenceService | Model | TopUp
"""An object of any kind, where its status is needed too; APIObject has none."""

CATEGORY = "farebox"
"""`kubectl get farebox` lists all kinds."""


@dataclass(frozen=True)
class KindInfo:
    """One kind of the group farebox.dev."""

    kind: str
    plural: str
    short_name: str
    namespaced: bool
    cls: type[APIObject]

    @property
    def singular(self) -> str:
        """The kind in lower case, as kubectl takes it."""
        return self.kind.lower()


KINDS: dict[str, KindInfo] = {
    info.kind: info
    for info in (
        KindInfo("Model", "models", "mdl", namespaced=False, cls=Model),
        KindInfo("InferenceService", "inferenceservices", "infsvc", namespaced=True, cls=InferenceService),
        KindInfo("BillingAccount", "billingaccounts", "ba", namespaced=True, cls=BillingAccount),
        KindInfo("TopUp", "topups", "tu", namespaced=True, cls=TopUp),
        KindInfo("APIKey", "apikeys", "ak", namespaced=True, cls=APIKey),
    )
}
"""All kinds by their name."""
