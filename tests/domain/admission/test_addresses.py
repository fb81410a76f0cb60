"""Where a call comes from: the trusted-hop rule, and lists of ranges (B14)."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.domain.admission.addresses import client_address, parse_address, parse_networks, within
from tests.domain.strategies import THOROUGH

PROXIES = parse_networks(["10.0.0.0/8", "fd00::/8"]) or ()


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("203.0.113.9", None, "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "127.0.0.1, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2 , 10.0.0.1", "198.51.100.1"),
        ("10.0.0.1", "10.9.9.9, 10.0.0.2", "10.9.9.9"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, unknown", None),
        ("10.0.0.1", "198.51.100.1,", None),
        ("10.0.0.1", "unknown, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2, evil", None),
        ("nonsense", "198.51.100.1", None),
        ("10.0.0.1", "198.51.100.1" + ", 10.0.0.2" * 40, None),
        ("10.0.0.1", "10.0.0.3" + ", 10.0.0.2" * 31, None),
        ("10.0.0.1", "198.51.100.1" + ", 10.0.0.2" * 31, "198.51.100.1"),
    ],
)
def test_the_first_address_from_the_right_that_is_no_proxy_of_ours_is_the_client(
    peer: str, header: str | None, client: str | None
) -> None:
    found = client_address(peer, header, PROXIES)
    assert found == (None if client is None else ip_address(client))


def test_without_trusted_proxies_the_header_is_never_believed() -> None:
    assert client_address("10.0.0.1", "198.51.100.1", ()) == ip_address("10.0.0.1")
    assert client_address("10.0.0.1", "198.51.100.1", (), repeated=True) == ip_address("10.0.0.1")


def test_a_header_that_came_twice_makes_the_client_unknown() -> None:
    assert client_address("10.0.0.1", "198.51.100.1", PROXIES, repeated=True) is None


@THOROUGH
@given(header=st.text(max_size=200), honest=st.ip_addresses(v=4))
def test_nothing_that_the_client_writes_changes_what_the_proxy_added(header: str, honest: object) -> None:
    address = parse_address(str(honest))
    if within(address, PROXIES):
        return
    assert client_address("10.0.0.1", f"{header}, {honest}", PROXIES) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "localhost",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.4:",
        "1.2.3.4:x",
        "[::1",
        "[::1]x",
        "::1:g",
        "0x7f.1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert parse_address(text) is None


def test_ranges() -> None:
    networks = parse_networks(["10.1.2.3/8", "2001:db8::/32"])
    assert networks is not None
    assert within(parse_address("10.200.0.1"), networks)
    assert within(parse_address("2001:db8::9%eth0"), networks)
    assert not within(parse_address("11.0.0.1"), networks)
    assert not within(None, networks)
    assert parse_networks(["10.0.0.0/8", "10.0.0.0/33"]) is None
    assert parse_networks([]) == ()
