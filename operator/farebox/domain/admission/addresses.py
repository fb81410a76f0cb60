"""The address of a client, and whether it is in a list of address ranges. Pure.

Any client can set X-Forwarded-For. The trusted-hop rule: start at the address of the connection. While the
current address is a trusted proxy, continue with the entry that this proxy added, which is the next one from
the right. The first address that is not a trusted proxy is the client. So without trusted proxies the header
is ignored, and entries left of the client are never trusted.
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
    """Parse an address and drop its port or zone; None if it is invalid. IPv4-mapped IPv6 becomes IPv4.

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
    """The ranges of a list; None if one is invalid. Bits beyond the prefix are ignored."""
    try:
        return tuple(ip_network(text, strict=False) for text in texts)
    except ValueError:
        return None


def within(address: Address | None, networks: Sequence[Network]) -> bool:
    """Whether the address is in one of the ranges. An unknown address is in none."""
    if address is not None:
        for network in networks:
            if address.version == network.version and address in network:
                return True
    return False


def client_address(
    peer: str, forwarded_for: str | None, trusted: Sequence[Network], *, repeated: bool = False
) -> Address | None:
    """The address of the client by the trusted-hop rule; None if it cannot be determined.

    Args:
        peer: the address of the connection.
        forwarded_for: X-Forwarded-For, or None.
        trusted: the ranges of trusted proxies.
        repeated: whether the header occurs more than once, so `forwarded_for` is incomplete.

    A trusted proxy that sends no header is the client itself, for example a monitor on the proxy's host. An
    invalid entry of a trusted proxy makes the client unknown, and so do more than 32 hops.
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
