"""Every error that Farebox raises on purpose, in one place.

    FareboxError
    |-- ConfigurationError      a setting or command-line argument cannot work
    |-- InvalidAmount           a decimal string is not money, or does not fit
    |-- Denied                  a call to the gateway is refused (domain/admission/types.py: status and code)
    |-- CountersUnavailable     the server that counts for all gateways does not answer
    |-- NotLeading              the Lease is not held for sure: nothing may be written, another may act
    |-- KubeError               the API server answered with an error (carries the HTTP status)
    |   |-- Conflict            409: somebody wrote first; read again and decide again
    |   |-- NotFound            404
    |   |-- Invalid             422: the object is refused; the message names the field
    |   |-- Forbidden           401, 403
    |   `-- TooManyRequests     429
    |-- KubeUnreachable         no answer at all: connection refused, reset, timed out
    `-- LedgerError
        |-- LedgerRefused       the ledger understood the request and says no (carries a reason)
        `-- LedgerUnavailable   no answer, or not now: the caller tries again, and knows nothing meanwhile

Messages are for the person who has to act: they name the object, the field, and what to do.
"""


class FareboxError(Exception):
    """Base of all errors that Farebox raises on purpose."""


class ConfigurationError(FareboxError):
    """A setting or command-line argument cannot work."""


class InvalidAmount(FareboxError, ValueError):
    """A decimal string is not an amount of money, or does not fit into 64-bit nano-units."""


class CountersUnavailable(FareboxError):
    """The server that counts for all gateways does not answer; whether it counted a call is not known."""


class NotLeading(FareboxError):
    """The Lease is not held for sure any more: nothing may be written (B21)."""


class KubeError(FareboxError):
    """The API server answered with an error.

    Args:
        status: the HTTP status code.
        reason: the machine-readable reason of the Status object ("Invalid", "Conflict", ...).
        message: the API server's own sentence; for Invalid it names the field.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class Conflict(KubeError):
    """409: somebody else wrote first. Read again and decide again."""


class NotFound(KubeError):
    """404: the object, or its kind, does not exist."""


class Invalid(KubeError):
    """422 or 400: the object is refused. The message names the field."""


class Forbidden(KubeError):
    """401 or 403: the caller may not do this."""


class TooManyRequests(KubeError):
    """429: the API server asks to slow down."""


class KubeUnreachable(FareboxError):
    """No answer from the API server: connection refused, reset or timed out."""


class LedgerError(FareboxError):
    """Base of errors of the ledger."""


class LedgerRefused(LedgerError):
    """The ledger understood the request and refuses it; trying again will not help.

    Args:
        reason: CamelCase word for machines ("CurrencyMismatch", "ReferenceConflict", ...).
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class LedgerUnavailable(LedgerError):
    """The ledger cannot be reached, or cannot answer now. What it would have said stays unknown."""
