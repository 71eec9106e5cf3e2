"""The client address of the current request.

Every proxy appends to X-Forwarded-For the address that it was reached from, and what stands to the left of
its entry is what its client claims. With N proxies in front of the app (`--proxies N`) the N-th entry from
the right is therefore the last that a client cannot choose, and the only one that is read.

Without `--proxies` the address is that of the connection, as uvicorn gives it. If the connection comes from
127.0.0.1 (or an address in FORWARDED_ALLOW_IPS), uvicorn has replaced it by the rightmost entry that is not
such an address: that of the one proxy on this machine, as a tunnel is.

Where fewer entries came than there are proxies, the request went past one of them. The connection's own
address counts then. If uvicorn has replaced it, it was read from that same header, which the client may have
written: such a request counts as one from "unknown".
"""

import ipaddress
from contextvars import ContextVar

from starlette.datastructures import Headers

from peft_core.access.asgi import Scope

CLIENT_ADDRESS: ContextVar[str] = ContextVar("CLIENT_ADDRESS", default="unknown")  # the guard sets it
UNKNOWN = "unknown"


def client_address(scope: Scope, proxies: int) -> str:
    """The address that a request came from, behind so many proxies that append to X-Forwarded-For."""
    connection = scope["client"][0] if scope.get("client") else UNKNOWN
    if not proxies:
        return connection
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
    entries = [_without_port(entry.strip()) for entry in forwarded.split(",")] if forwarded else []
    if len(entries) >= proxies and _is_address(entries[-proxies]):
        return entries[-proxies]
    return UNKNOWN if connection in entries else connection


def network_of(address: str) -> str:
    """The IPv4 address, or the /64 network of an IPv6 address, which usually belongs to one customer.

    What is no address, as a proxy may pass on, is "unknown".
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return UNKNOWN
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _without_port(entry: str) -> str:
    """`192.0.2.1:5000` and `[2001:db8::1]:5000` without the port, which some proxies add."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
