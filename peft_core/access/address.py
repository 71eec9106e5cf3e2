"""The client address of the current request.

Every proxy appends to X-Forwarded-For the address from which it was reached; the entries to the left of it
are what its client claims. With N proxies in front of the app (`--proxies N`), the N-th entry from the right
is therefore the last that a client cannot choose, and the only one that is read.

Without `--proxies` the address is that of the connection, as uvicorn reports it. If the connection comes from
127.0.0.1 (or an address in FORWARDED_ALLOW_IPS), uvicorn has replaced it by the rightmost entry that is not
such an address: the entry of the one proxy on this machine, such as a tunnel.

If the header has fewer entries than there are proxies, the request bypassed a proxy, and the address of the
connection counts. If uvicorn has replaced that address, it was read from the same header, which the client
may have written: such a request counts as one from "unknown".
"""

import ipaddress
from contextvars import ContextVar

from starlette.datastructures import Headers

from peft_core.access.asgi import Scope

CLIENT_ADDRESS: ContextVar[str] = ContextVar("CLIENT_ADDRESS", default="unknown")  # the guard sets it
UNKNOWN = "unknown"


def client_address(scope: Scope, proxies: int) -> str:
    """Return the client address of a request behind this many proxies that append to X-Forwarded-For."""
    connection = scope["client"][0] if scope.get("client") else UNKNOWN
    if not proxies:
        return connection
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for"))
    entries = [_without_port(entry.strip()) for entry in forwarded.split(",")] if forwarded else []
    if len(entries) >= proxies and _is_address(entries[-proxies]):
        return entries[-proxies]
    return UNKNOWN if connection in entries else connection


def network_of(address: str) -> str:
    """Return an IPv4 address itself, or the /64 network of an IPv6 address, usually that of one customer.

    Returns "unknown" for text that is not an address, which a proxy may pass on.
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
    """Strip the port, which some proxies add, from `192.0.2.1:5000` or `[2001:db8::1]:5000`."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
