"""Who a client is, where limits count per client: its address."""

import ipaddress
from functools import lru_cache

_REMEMBERED = 4096
"""Addresses whose client is not worked out anew."""


@lru_cache(_REMEMBERED)
def client_of(address: str) -> str:
    """Return what all addresses of one client have in common: an IPv4 address, or an IPv6 network of 64 bits.

    Whoever has one IPv6 address has a whole such network. An address that is neither is returned as it is.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def client_of_peer(peer: str) -> str:
    """Return the client of what gRPC calls a peer: "ipv4:10.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:"."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return client_of(rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]"))
    return peer
