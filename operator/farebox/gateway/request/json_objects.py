"""Objects of a request body as they were written, each key once. Values stay JSON text."""

from typing import Final

import msgspec

from farebox.domain.admission.types import Denied

MAX_KEYS: Final = 256
MAX_KEY: Final = 1024
"""The most characters of a key."""

Fields = dict[str, msgspec.Raw]
"""The values of an object by key, as JSON."""


class _Key(str):
    """A key of an object. It equals only itself, so a duplicate key does not replace another in a dict."""

    __slots__ = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class _Keys:
    """Makes the keys of one object at a time, at most MAX_KEYS."""

    def __init__(self) -> None:
        self.left = 0

    def make(self, type_: type, text: str) -> _Key:
        """See msgspec's dec_hook."""
        self.left -= 1
        if len(text) > MAX_KEY:
            raise Denied(400, "too_complex", f"An object has a key of more than {MAX_KEY} characters")
        if self.left < 0:
            raise Denied(400, "too_many_keys", f"An object has more than {MAX_KEYS} keys")
        return _Key(text)


_KEYS: Final = _Keys()
_OBJECT: Final = msgspec.json.Decoder(dict[_Key, msgspec.Raw], dec_hook=_KEYS.make)
_PLAIN: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_object(text: bytes | msgspec.Raw, what: str) -> Fields:
    """The fields of an object, each key once.

    Args:
        what: names the object in errors, with a capital letter.

    Raises:
        Denied: it is not JSON or not an object, or it has a duplicate key or too many keys.
    """
    try:
        _KEYS.left = MAX_KEYS
        entries = _OBJECT.decode(text)
    except msgspec.ValidationError:
        raise Denied(400, "invalid_type", f"{what} is not a JSON object") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Denied(400, "invalid_json", f"{what} is not JSON: {error}") from None
    fields: Fields = {str(key): value for key, value in entries.items()}
    if len(fields) < len(entries):
        names = [str(key) for key in entries]
        name = next(name for name in names if names.count(name) > 1)
        raise Denied(400, "duplicate_key", f"{what} has a duplicate key {name!r}")
    return fields
