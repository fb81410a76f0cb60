"""The structure of a body, checked slice by slice before anything is parsed: its encoding, depth and size.

A body of many MiB must not hold up the calls of others. So its structure is checked in slices, each of which
takes at most a few milliseconds; a generator yields between them; and a body that has more of anything than
a request needs is refused within the slice that crosses the limit. What passes is parsed in a few steps whose
time is bounded by these limits and by the size of the body (about a millisecond for each MiB).
"""

import codecs
from collections.abc import Generator
from itertools import accumulate
from typing import Final

from farebox.domain.admission.types import Denied

MAX_DEPTH: Final = 64
MAX_PIECES: Final = 250_000
"""The most strings, and the most lists and objects, of a body."""
MAX_VALUES: Final = 310_000
"""The most values of a body. OpenAI takes at most 300,000 tokens in one request for embeddings."""
SMALL: Final = 64 * 1024
"""A body up to this size is parsed in less than a millisecond, whatever it contains."""
_SLICE: Final = 64 * 1024
_PAUSE_BYTES: Final = 512 * 1024
_PAUSE_PIECES: Final = 50_000
"""The generator yields after these many bytes, or brackets, quotes, commas and escapes."""

_STEP: Final = [1 if byte in b"[{" else -1 if byte in b"]}" else 0 for byte in range(256)]
_NO_STRUCTURE: Final = bytes(byte for byte in range(256) if byte not in b"[]{},")


def check_nesting(body: bytes) -> None:
    """Check the depth of a SMALL body that has been parsed. Raises Denied."""
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        _Structure().add(body)


def check_structure(body: bytes) -> Generator[None, None, None]:
    """Check a body of any size before it is parsed; yields between slices.

    Raises:
        Denied: it is not UTF-8, it is nested beyond MAX_DEPTH, or it has too many pieces or values.
    """
    decode = codecs.getincrementaldecoder("utf-8")().decode
    structure = _Structure()
    start = since_bytes = since_pieces = 0
    while start < len(body):
        part = body[start : start + _SLICE]
        if (len(part) - len(part.rstrip(b"\\"))) % 2:
            # The slice ends within an escape. A single byte cannot: the body would end there.
            part = part[:-1] or part
        start += len(part)
        try:
            decode(part, start >= len(body))
        except UnicodeDecodeError as error:
            position = start - len(part) + error.start
            raise Denied(400, "invalid_utf8", f"The body is not UTF-8: byte {position}") from None
        since_pieces += structure.add(part)
        since_bytes += len(part)
        if since_bytes >= _PAUSE_BYTES or since_pieces >= _PAUSE_PIECES:
            since_bytes = since_pieces = 0
            yield


class _Structure:
    """Counts of the slices so far."""

    def __init__(self) -> None:
        self._depth = 0
        self._quotes = 0
        self._brackets = 0
        self._commas = 0

    def add(self, part: bytes) -> int:
        """Count a slice that begins and ends outside an escape; the work that it was. Raises Denied.

        Every step is a single scan in C.
        """
        escapes = len(part)
        if b"\\" in part:
            part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
        escapes -= len(part)
        quotes = part.count(b'"')
        within = self._quotes % 2
        self._quotes += quotes
        if self._quotes > 2 * MAX_PIECES:
            raise Denied(400, "too_complex", f"The body has more than {MAX_PIECES} strings")
        outside = b"".join(part.split(b'"')[within::2]).translate(None, _NO_STRUCTURE)
        brackets = outside.translate(None, b",")
        self._brackets += len(brackets)
        self._commas += len(outside) - len(brackets)
        if self._brackets > 2 * MAX_PIECES:
            raise Denied(400, "too_complex", f"The body has more than {MAX_PIECES} lists and objects")
        if self._commas > MAX_VALUES:
            raise Denied(400, "too_complex", f"The body has more than {MAX_VALUES} values")
        if brackets:
            depths = list(accumulate(map(_STEP.__getitem__, brackets), initial=self._depth))
            if max(depths) > MAX_DEPTH:
                raise Denied(
                    400, "nested_too_deeply", f"The body is nested more than {MAX_DEPTH} levels deep"
                )
            self._depth = depths[-1]
        return escapes + quotes + len(outside)
