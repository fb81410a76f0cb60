"""The simulator's tokens, and its cache of prompt prefixes.

The rule is simple enough to check a bill by hand: text is split at white space, and every word is cut into
pieces of four characters; each piece is a token. "Hello there" is Hell|o|ther|e: 4 tokens. Each chat message
adds MESSAGE_TOKENS for its role and framing. A token id in a request is one token.
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


def cacheable(tokens: Sequence[str]) -> int:
    """How many of a prompt's first tokens can be cached: whole blocks, and never the last token."""
    return max(0, len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS


class PrefixCache:
    """A cache of prompt prefixes, so that `cached_tokens` behaves as with a real server.

    Args:
        max_blocks: the capacity; the least recently used blocks are evicted first.
    """

    def __init__(self, max_blocks: int = 65_536) -> None:
        self._max_blocks = max_blocks
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def admit(self, tokens: Sequence[str]) -> int:
        """Cache all complete blocks of the prompt; returns how many of its first tokens were cached before.

        At least one token of a prompt is never cached, because a model must compute something to continue
        from.
        """
        cached_blocks = 0
        still_cached = True
        prefix = 0
        for index in range(cacheable(tokens) // BLOCK_TOKENS):
            block = tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]
            prefix = hash((prefix, tuple(block)))
            still_cached = still_cached and prefix in self._blocks
            cached_blocks += still_cached
            self._blocks[prefix] = None
            self._blocks.move_to_end(prefix)
        while len(self._blocks) > self._max_blocks:
            self._blocks.popitem(last=False)
        return cached_blocks * BLOCK_TOKENS
