"""The likely number of tokens of a text whose usage nobody reported (B26). Pure.

No tokenizer runs: it is the model's own, and the gateway does not see the text as a whole. What remains of it
are counts of its characters, and of the pieces in which it came.
"""

from typing import Final

from msgspec import Struct

ASCII: Final = 238
"""Thousandths of a token for a byte of Latin text, so 4.2 bytes per token. Tokenizers of 100,000 to 200,000
entries have 3.3 (code) to 4.8 (English prose)."""
LETTER: Final = 400
"""The same for a letter of another alphabet, such as Cyrillic, Greek, Arabic or Devanagari."""
IDEOGRAPH: Final = 710
"""The same for a Chinese, Japanese or Korean character."""
SYMBOL: Final = 1700
"""The same for a character beyond the basic plane, mostly emoji."""
_ONE_TOKEN: Final = (350, 1450)
"""Where the mean piece of a text has between these thousandths of a token by its length, it is one token."""


class TextCounts(Struct, frozen=True):
    """Counts of a text.

    Args:
        pieces: the events of a stream with text in them; a model server mostly sends one token in each.
        ascii: its bytes of ASCII.
        letters: its other letters and signs.
        ideographs: its Chinese, Japanese and Korean characters.
        symbols: its characters beyond the basic plane.
    """

    pieces: int
    ascii: int
    letters: int = 0
    ideographs: int = 0
    symbols: int = 0


def estimate_tokens(text: TextCounts) -> int:
    """The likely number of tokens: that of its pieces if each seems to be one token, else by its length.

    >>> estimate_tokens(TextCounts(pieces=100, ascii=500)), estimate_tokens(TextCounts(pieces=20, ascii=9840))
    (100, 2342)
    """
    by_length = (
        text.ascii * ASCII + text.letters * LETTER + text.ideographs * IDEOGRAPH + text.symbols * SYMBOL
    )
    least, most = _ONE_TOKEN
    if least * text.pieces <= by_length <= most * text.pieces:
        return text.pieces
    return -(-by_length // 1000)
