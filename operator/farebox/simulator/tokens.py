"""What a token is here, and which of a prompt's tokens count as cached.

The rule, so that anyone can check a bill by hand: text is split at white space, and every word is cut into
pieces of four characters; each piece is a token. "Hello there" is Hell|o|ther|e: 4 tokens. Each chat message
costs MESSAGE_TOKENS more, for its role and framing. A token id in a request is one token.
"""

from collections import OrderedDict
from collections.abc import Sequence

PIECE_CHARACTERS = 4
MESSAGE_TOKENS = 3
BLOCK_TOKENS = 16
"""A prompt's prefix is cached in whole blocks of this many tokens, as vLLM does by default."""


def tokenize(text: str) -> list[str]:
    """The tokens of a text, by the rule above."""
    return [
        word[start : start + PIECE_CHARACTERS]
        for word in text.split()
        for start in range(0, len(word), PIECE_CHARACTERS)
    ]


class PrefixCache:
    """Remembers which prompt prefixes were seen, so that `cached_tokens` behaves as behind a real server.

    Args:
        max_blocks: how many blocks are remembered; the least recently used are forgotten first.
    """

    def __init__(self, max_blocks: int = 65_536) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def admit(self, tokens: Sequence[str]) -> int:
        """How many of the prompt's first tokens were cached; from now on all its whole blocks are.

        At least one token of a prompt is never cached: a model has to compute something to go on from.
        """
        cached_blocks = 0
        still_cached = True
        prefix = 0
        usable = max(0, len(tokens) - 1) // BLOCK_TOKENS
        for index in range(usable):
            block = tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            prefix = hash((prefix, tuple(block)))
            still_cached = still_cached and prefix in self._blocks
            cached_blocks += still_cached
            self._blocks[prefix] = None
            self._blocks.move_to_end(prefix)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)
        return cached_blocks * BLOCK_TOKENS
