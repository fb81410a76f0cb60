"""What pays for the tokens of a call: the reservation of its minute, then the free quota, then money. Pure.

Within a call, coverage goes to input that writes a cache, then uncached input, then cached input, then
output (docs/decisions/530). A reservation counts input and output separately; the quota counts all tokens
alike (product.md, "What covers a call").
"""

from typing import NamedTuple


class CallTokens(NamedTuple):
    """Tokens of a call as they are reported: `input` includes `cached_input` and `cache_write_input`.

    Create it with the names of the kinds, so that one more kind changes no caller.
    """

    input: int = 0
    cached_input: int = 0
    cache_write_input: int = 0
    output: int = 0


class Coverage(NamedTuple):
    """Tokens of a call that cost no money, by what pays for them."""

    reservation_input: int = 0
    reservation_output: int = 0
    quota: int = 0


NOTHING = Coverage()


class Tokens(NamedTuple):
    """Tokens of a call by their price, in the order in which they are covered."""

    cache_write: int
    uncached: int
    cached: int
    output: int

    @property
    def input(self) -> int:
        """All input, as a reservation counts it."""
        return self.cache_write + self.uncached + self.cached

    @property
    def total(self) -> int:
        """Input and output together, as a quota counts them."""
        return self.input + self.output


def by_price(tokens: CallTokens) -> Tokens:
    """The tokens of a call, with each input token counted once."""
    total, cached, written, output = tokens
    return Tokens(written, total - cached - written, cached, output)


def cover(tokens: Tokens, reserved_input: int, reserved_output: int, quota: int) -> Coverage:
    """The coverage of a call (B6, B9).

    Args:
        tokens: tokens of the call.
        reserved_input, reserved_output: tokens left of the reservation in the call's minute, 0 or more.
        quota: tokens left of the free quota, 0 or more.
    """
    covered_input = min(tokens.input, reserved_input)
    covered_output = min(tokens.output, reserved_output)
    left = tokens.total - covered_input - covered_output
    return Coverage(covered_input, covered_output, min(left, quota))


def uncovered(tokens: Tokens, coverage: Coverage) -> Tokens:
    """The tokens that are left to pay with money. `coverage` is the coverage of the same call."""
    covered_input = coverage.reservation_input
    from_quota = min(tokens.input - covered_input, coverage.quota)
    written, uncached, cached = _uncovered_input(tokens, covered_input + from_quota)
    output = tokens.output - coverage.reservation_output - (coverage.quota - from_quota)
    assert min(cached, output) >= 0, "no token is covered twice"
    return Tokens(written, uncached, cached, output)


def _uncovered_input(tokens: Tokens, covered: int) -> tuple[int, int, int]:
    """Cache writes, uncached and cached input that remain when `covered` tokens of input are paid for."""
    of_written = min(tokens.cache_write, covered)
    of_uncached = min(tokens.uncached, covered - of_written)
    of_cached = covered - of_written - of_uncached
    return tokens.cache_write - of_written, tokens.uncached - of_uncached, tokens.cached - of_cached
