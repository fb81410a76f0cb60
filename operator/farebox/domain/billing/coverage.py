"""What pays for the tokens of a call: the reservation of its minute, then the free quota, then money. Pure.

Within a call, coverage goes to uncached input, then cached input, then output. A reservation counts input
and output separately; the quota counts all tokens alike (product.md, "What covers a call").
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
    """Tokens of a call by their price. The input is `uncached` + `cached`."""

    uncached: int
    cached: int
    output: int

    @property
    def total(self) -> int:
        """Input and output together, as a quota counts them."""
        return self.uncached + self.cached + self.output


def cover(tokens: Tokens, reserved_input: int, reserved_output: int, quota: int) -> Coverage:
    """The coverage of a call (B6, B9).

    Args:
        tokens: tokens of the call.
        reserved_input, reserved_output: tokens left of the reservation in the call's minute, 0 or more.
        quota: tokens left of the free quota, 0 or more.
    """
    covered_input = min(tokens.uncached + tokens.cached, reserved_input)
    covered_output = min(tokens.output, reserved_output)
    left = tokens.total - covered_input - covered_output
    return Coverage(covered_input, covered_output, min(left, quota))


def uncovered(tokens: Tokens, coverage: Coverage) -> Tokens:
    """The tokens that are left to pay with money. `coverage` is the coverage of the same call."""
    uncached, cached = _take(tokens.uncached, tokens.cached, coverage.reservation_input)
    output = tokens.output - coverage.reservation_output
    from_input = min(uncached + cached, coverage.quota)
    uncached, cached = _take(uncached, cached, from_input)
    output -= coverage.quota - from_input
    assert min(uncached, cached, output) >= 0, "no token is covered twice"
    return Tokens(uncached, cached, output)


def _take(uncached: int, cached: int, covered: int) -> tuple[int, int]:
    """Uncached and cached input that remain when `covered` tokens of input are paid for."""
    from_uncached = min(uncached, covered)
    return uncached - from_uncached, cached - (covered - from_uncached)
