"""Keys of objects, shared by every layer."""

from typing import NamedTuple


class ObjectKey(NamedTuple):
    """Namespace and name of an object: the ledger's key of an account and of a service (B11)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> "ObjectKey":
        """The key of "namespace/name". Raises ValueError for anything else."""
        namespace, slash, name = text.partition("/")
        if not (namespace and slash and name) or "/" in name:
            raise ValueError(f"{text!r} is not of the form namespace/name")
        return cls(namespace, name)
