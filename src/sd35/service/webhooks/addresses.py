"""Which addresses are the public's."""

import ipaddress

_IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address is its last four bytes
_AZURE_HOST = ipaddress.IPv4Address("168.63.129.16")  # its machines' own, though it looks public


def is_public(text: str) -> bool:
    """Whether an IPv4 or IPv6 address is anybody's on the internet: no machine's own, no network's own, no group's."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            address = address.ipv4_mapped
        elif address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        elif address not in _IPV6_UNICAST or address.sixtofour:  # 6to4 has an IPv4 address in it, perhaps a private one
            return False
    return address.is_global and not address.is_multicast and address != _AZURE_HOST
