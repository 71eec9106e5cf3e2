"""The client address of the current request."""

import ipaddress
from contextvars import ContextVar

# Set by the guard for each request. uvicorn takes it from X-Forwarded-For if a proxy on this machine, or one
# that FORWARDED_ALLOW_IPS names, passed the request on.
CLIENT_ADDRESS: ContextVar[str] = ContextVar("CLIENT_ADDRESS", default="unknown")


def network_of(address: str) -> str:
    """The IPv4 address, or the /64 network of an IPv6 address, which usually belongs to one customer.

    What is no address, as a proxy may pass on, is "unknown".
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
