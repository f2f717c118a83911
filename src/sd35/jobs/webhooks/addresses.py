"""Distinguish public IP addresses from private and special ones.

`ipaddress.is_global` depends on the version of Python: 3.11.7 treats 192.0.0.192, the metadata service of Oracle Cloud,
as public. Therefore, this module lists all special ranges. An address is public if it is in none of them, and
`ipaddress` treats it as public, too.

A network-specific NAT64 prefix (RFC 6052) cannot be distinguished from other public IPv6 addresses. The operator of
such a gateway must prevent it from forwarding to private addresses.
"""

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# All blocks of https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, as of 2025,
# except those inside another block. Some are globally reachable, but reserved for a protocol.
_SPECIAL_V4 = [
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared by a provider's customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private use
        "192.175.48.0/24",  # AS112, delegated directly
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "240.0.0.0/4",  # reserved, and broadcast
        # Not in that registry:
        "224.0.0.0/4",  # multicast, RFC 5771
    )
]
_SPECIAL_V6 = [  # without _MAPPED and _NAT64: for these, the embedded IPv4 address is checked
    IPv6Network(block)
    for block in (
        "::/128",  # unspecified
        "::1/128",  # loopback
        "64:ff9b:1::/48",  # NAT64 of a local network
        "100::/64",  # discard
        "100:0:0:1::/64",  # dummy
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID and others
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112, delegated directly
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local; in it are fd00:ec2::254 (AWS) and fd20:ce::254 (Google Cloud)
        "fe80::/10",  # link-local
        # Not in that registry:
        "::/96",  # IPv4-compatible, RFC 4291, deprecated
        "fec0::/10",  # site-local, RFC 3879, deprecated
        "ff00::/8",  # multicast, RFC 4291
    )
]
_UNICAST_V6 = IPv6Network("2000::/3")  # all unicast addresses that IANA has assigned so far
_MAPPED, _NAT64 = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")  # RFC 4291, RFC 6052
# RFC 5214: bits 32 to 63 of an ISATAP address, which has an IPv4 address in its last 32 bits.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)
# Metadata services of clouds. Some are in special ranges, but are listed in case a range is released.
_METADATA = {
    IPv4Address("100.100.100.200"),  # Alibaba Cloud
    IPv4Address("168.63.129.16"),  # Azure; looks public
    IPv4Address("169.254.169.254"),  # AWS, Google Cloud, Azure and most others
    IPv4Address("192.0.0.192"),  # Oracle Cloud
}


def is_public(text: str) -> bool:
    """Return whether an IPv4 or IPv6 address is public.

    Special-purpose and multicast ranges, metadata services of clouds, and IPv6 addresses with a zone are not public. An
    IPv4-mapped or NAT64 address is public if the IPv4 address in it is public. Raises ValueError if the text is not an
    address.
    """
    address = ipaddress.ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:  # it has a zone, as in fe80::1%eth0
            return False
        if address not in _MAPPED and address not in _NAT64:
            return _is_public_v6(address)
        address = IPv4Address(int(address) & 0xFFFF_FFFF)  # the IPv4 address is the last 32 bits
    is_special = address in _METADATA or any(address in block for block in _SPECIAL_V4)
    return address.is_global and not is_special


def _is_public_v6(address: IPv6Address) -> bool:
    """Return whether an IPv6 address without a zone, and without an IPv4 address to check, is public."""
    is_special = address not in _UNICAST_V6 or any(address in block for block in _SPECIAL_V6)
    is_isatap = int(address) >> 32 & 0xFFFF_FFFF in _ISATAP
    return address.is_global and not is_special and not is_isatap
