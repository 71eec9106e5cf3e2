"""The address that a request came from, known to everything that answers it."""

import ipaddress
from contextvars import ContextVar

# Set by the guard for each request. uvicorn takes it from X-Forwarded-For if a proxy on this machine, or one
# that FORWARDED_ALLOW_IPS names, sent the request.
CLIENT_ADDRESS: ContextVar[str] = ContextVar("CLIENT_ADDRESS", default="unknown")


def network_of(address: str) -> str:
    """The address, or for IPv6 the /64 network that one household or machine has whole."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
