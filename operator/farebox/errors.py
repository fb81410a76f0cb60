"""Every error that Farebox raises on purpose, in one place.

    FareboxError
    |-- ConfigurationError      a setting or command-line argument is invalid
    |-- InvalidAmount           a decimal string is not an amount, or does not fit into 64 bits
    |-- Denied                  a call to the gateway is refused (domain/admission/types.py: status and code)
    |-- CountersUnavailable     the server that counts limits for all gateways does not answer
    |-- NotLeading              the Lease may be lost: nothing may be written, another operator may act
    |-- KubeError               the API server answered with an error (carries the HTTP status)
    |   |-- Conflict            409: another writer was first; read again and decide again
    |   |-- NotFound            404
    |   |-- Invalid             400, 422: the object is rejected; the message names the field
    |   |-- Forbidden           401, 403
    |   `-- TooManyRequests     429
    |-- KubeUnreachable         no answer from the API server: connection refused, reset, timed out
    `-- LedgerError
        |-- LedgerRefused       the ledger understood the request and refuses it (carries a reason)
        `-- LedgerUnavailable   no answer, or unavailable: the outcome is unknown, and the caller retries

Messages are for the person who has to act. They name the object and the field, and say what to do.
"""


class FareboxError(Exception):
    """Base of all errors that Farebox raises on purpose."""


class ConfigurationError(FareboxError):
    """A setting or command-line argument is invalid."""


class InvalidAmount(FareboxError, ValueError):
    """A decimal string is not an amount of money, or does not fit into 64 bits of nano-units."""


class CountersUnavailable(FareboxError):
    """The server that counts limits for all gateways does not answer. Whether it counted is unknown."""


class NotLeading(FareboxError):
    """The Lease may be lost: nothing may be written (B21)."""


class KubeError(FareboxError):
    """The API server answered with an error.

    Args:
        status: the HTTP status code.
        reason: the machine-readable reason of the Status object ("Invalid", "Conflict", ...).
        message: the API server's message; for Invalid it names the field.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message


class Conflict(KubeError):
    """409: another writer was first. Read again and decide again."""


class NotFound(KubeError):
    """404: the object, or its kind, does not exist."""


class Invalid(KubeError):
    """422 or 400: the object is rejected. The message names the field."""


class Forbidden(KubeError):
    """401 or 403: the caller may not do this."""


class TooManyRequests(KubeError):
    """429: the API server limits the rate of requests."""


class KubeUnreachable(FareboxError):
    """No answer from the API server: connection refused, reset or timed out."""


class LedgerError(FareboxError):
    """Base of errors of the ledger."""


class LedgerRefused(LedgerError):
    """The ledger understood the request and refuses it; a retry does not help.

    Args:
        reason: CamelCase word for machines ("CurrencyMismatch", "ReferenceConflict", ...).
        message: what is wrong and what to do, for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class LedgerUnavailable(LedgerError):
    """The ledger is unreachable or cannot answer now. The outcome of the request is unknown."""
