"""Addresses that webhooks may be sent to: no special one, whatever this Python's `ipaddress` knows."""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from sd35.jobs.webhooks.addresses import is_public

# Every row of the registries, and multicast:
# https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry
REGISTRY_V4 = """
    0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
    192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
    192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
    240.0.0.0/4 255.255.255.255/32 224.0.0.0/4
""".split()  # noqa: SIM905  more compact than a list of strings
REGISTRY_V6 = """
    ::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128 2001:1::2/128 2001:1::3/128
    2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16
    2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10 ff00::/8
""".split()  # noqa: SIM905  more compact than a list of strings
METADATA = ["169.254.169.254", "192.0.0.192", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"]
PRIVATE = [
    "0.0.0.0",  # noqa: S104  an address that is refused
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::1.1.1.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:192.0.0.192",
    "64:ff9b::7f00:1",
    "64:ff9b::192.0.0.192",
    "64:ff9b:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2606:4700::5efe:101:101",
    "2606:4700::200:5efe:a00:1",
    "2606:4700:4700::1111%eth0",
    "fc00::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    *METADATA,
]
PUBLIC = ["1.1.1.1", "::ffff:1.1.1.1", "64:ff9b::101:101", "2606:4700:4700::1111", "2a00:1450:4001:82a::200e"]
EMBEDDING = [IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")]  # read as the IPv4 address at their end
V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_machines_and_networks_are_not_public(address: str):
    """Loopback, private, link-local, multicast, reserved and metadata addresses, also written as IPv6."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address: str):
    """IPv4, IPv6, and IPv4 written as IPv6."""
    assert is_public(address)


@pytest.mark.parametrize("block", [*REGISTRY_V4, *REGISTRY_V6])
def test_every_special_purpose_range_is_refused_by_any_python(block: str, monkeypatch: pytest.MonkeyPatch):
    """The first, a middle and the last address, even if `ipaddress` takes every address for global."""
    for kind in (IPv4Address, IPv6Address):
        monkeypatch.setattr(kind, "is_global", True)
    network = ipaddress.ip_network(block)
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        assert not is_public(str(address))


@given(st.sampled_from([*REGISTRY_V4, *REGISTRY_V6]).flatmap(lambda block: st.ip_addresses(network=block)))
def test_no_address_of_a_special_purpose_range_is_public(address: IPv4Address | IPv6Address):
    assert not is_public(str(address))


@pytest.mark.parametrize("address", METADATA)
def test_metadata_services_are_refused_by_any_python(address: str, monkeypatch: pytest.MonkeyPatch):
    """Even if `ipaddress` takes every address for global."""
    for kind in (IPv4Address, IPv6Address):
        monkeypatch.setattr(kind, "is_global", True)
    assert not is_public(address)


@given(st.one_of(V4, V6))
@example(IPv4Address("192.88.99.1"))
@example(IPv6Address("2001:1::1"))
def test_nothing_that_this_python_calls_special_is_public(address: IPv4Address | IPv6Address):
    """Multicast, reserved, link-local and loopback addresses, and all that are not global."""
    if any(address in network for network in EMBEDDING):
        return  # see the next test
    is_special = address.is_multicast or address.is_reserved or address.is_link_local or address.is_loopback
    if is_special or not address.is_global:
        assert not is_public(str(address))


@given(V4, st.sampled_from(EMBEDDING))
@example(IPv4Address("192.0.0.192"), EMBEDDING[0])
@example(IPv4Address("127.0.0.1"), EMBEDDING[1])
def test_an_ipv4_address_written_as_ipv6_is_judged_as_ipv4(address: IPv4Address, network: IPv6Network):
    """IPv4-mapped and NAT64 addresses."""
    assert is_public(str(network[int(address)])) == is_public(str(address))


@given(V4, st.integers(0, 2**64 - 1), st.sampled_from(["2002::/16", "2001::/32", "::/96", "64:ff9b:1::/48"]))
def test_other_ways_to_embed_ipv4_are_refused(address: IPv4Address, rest: int, block: str):
    """6to4, Teredo, IPv4-compatible and local NAT64 addresses, at any position of the IPv4 address."""
    network = IPv6Network(block)
    for place in (80, 64, 0):
        embedded = (int(address) << place | rest) % network.num_addresses
        assert not is_public(str(network[embedded]))


@given(st.ip_addresses(v=6, network="2600::/12"), V4, st.sampled_from([0x5EFE, 0x0200_5EFE]))
def test_isatap_addresses_are_refused(prefix: IPv6Address, address: IPv4Address, mark: int):
    """An ISATAP router would forward them to the IPv4 address at their end."""
    isatap = int(prefix) >> 64 << 64 | mark << 32 | int(address)
    assert not is_public(str(IPv6Address(isatap)))


@given(V6)
def test_an_address_with_a_zone_is_refused(address: IPv6Address):
    """A zone has a meaning only within one network."""
    assert not is_public(f"{address}%1")


@given(V4)
def test_ordinary_ipv4_addresses_are_public(address: IPv4Address):
    """Only the registry, multicast and the metadata addresses are refused."""
    is_special = any(address in IPv4Network(block) for block in REGISTRY_V4) or str(address) in METADATA
    assert is_public(str(address)) == (not is_special)


@given(st.ip_addresses(v=6, network="2600::/12"))
def test_ordinary_ipv6_addresses_are_public(address: IPv6Address):
    """Addresses that the registry of North America assigns are public, unless they are special."""
    is_isatap = int(address) >> 32 & 0xFDFF_FFFF == 0x5EFE
    is_special = any(address in IPv6Network(block) for block in REGISTRY_V6) or is_isatap
    assert is_public(str(address)) == (not is_special)
