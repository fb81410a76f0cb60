"""Where a call comes from, and whether a list of address ranges has it. Pure.

X-Forwarded-For is written by whoever likes to. The trusted-hop rule: begin at the address that the connection
came from; while the address at hand is one of our own proxies (`trusted`), the entry that this proxy added,
the next one from the right, is the address at hand; the first that is not a trusted proxy is the client. So
without trusted proxies the header is never looked at, and what stands left of the client is never believed.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAX_HOPS: Final = 32


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """An address, without its port or zone; None for anything else. IPv4 within IPv6 is IPv4.

    >>> parse_address(" [2001:db8::1]:443 "), parse_address("::ffff:10.0.0.1"), parse_address("unknown")
    (IPv6Address('2001:db8::1'), IPv4Address('10.0.0.1'), None)
    """
    text = text.strip()
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...] | None:
    """The ranges of a list, or None if one cannot be read. Bits beyond the prefix do not matter."""
    try:
        return tuple(ip_network(text, strict=False) for text in texts)
    except ValueError:
        return None


def within(address: Address | None, networks: Sequence[Network]) -> bool:
    """Whether one of the ranges has the address. An address that is not known is in no range."""
    if address is not None:
        for network in networks:
            if address.version == network.version and address in network:
                return True
    return False


def client_address(
    peer: str, forwarded_for: str | None, trusted: Sequence[Network], *, repeated: bool = False
) -> Address | None:
    """The address of the client by the trusted-hop rule; None if it cannot be told.

    Args:
        peer: the address that the connection came from.
        forwarded_for: X-Forwarded-For, or None.
        trusted: the ranges of our own proxies.
        repeated: the header came more than once, so that `forwarded_for` is not all of it.

    A trusted proxy that did not say for whom it speaks is taken as the client itself: it may be one, such as
    a monitor on the proxy's host. An entry that is no address, where a trusted proxy put it, makes the client
    unknown, and so do more than 32 hops.
    """
    address = parse_address(peer)
    if not forwarded_for or not within(address, trusted):
        return address
    if repeated:
        return None
    hops = forwarded_for.rsplit(",", _MAX_HOPS)
    if len(hops) > _MAX_HOPS:
        hops = hops[1:]
    for hop in reversed(hops):
        address = parse_address(hop)
        if not within(address, trusted):
            return address
    return None if len(hops) == _MAX_HOPS else address


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6
