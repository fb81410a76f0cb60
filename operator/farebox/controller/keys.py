"""What the queue holds: the kind and the place of an object to look at again."""

from enum import StrEnum
from typing import NamedTuple

from farebox.domain.keys import ObjectKey


class Kind(StrEnum):
    """The kinds that the operator watches."""

    SERVICE = "InferenceService"
    MODEL = "Model"
    ACCOUNT = "BillingAccount"
    TOPUP = "TopUp"
    APIKEY = "APIKey"
    NAMESPACE = "Namespace"
    DEPLOYMENT = "Deployment"
    ENDPOINT = "Service"


class Key(NamedTuple):
    """One object to reconcile; cluster-scoped ones have an empty namespace."""

    kind: Kind
    namespace: str
    name: str

    @property
    def object(self) -> ObjectKey:
        """Where it lives."""
        return ObjectKey(self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def service_key(service: ObjectKey) -> Key:
    """The queue's key of an InferenceService."""
    return Key(Kind.SERVICE, service.namespace, service.name)


def account_key(account: ObjectKey) -> Key:
    """The queue's key of a BillingAccount."""
    return Key(Kind.ACCOUNT, account.namespace, account.name)


def topup_key(topup: ObjectKey) -> Key:
    """The queue's key of a TopUp."""
    return Key(Kind.TOPUP, topup.namespace, topup.name)


def apikey_key(apikey: ObjectKey) -> Key:
    """The queue's key of an APIKey."""
    return Key(Kind.APIKEY, apikey.namespace, apikey.name)


def model_key(name: str) -> Key:
    """The queue's key of a Model."""
    return Key(Kind.MODEL, "", name)
