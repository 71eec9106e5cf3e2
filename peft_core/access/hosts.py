"""Host names under which the app is reached, and the origins that count as its own."""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

from peft_core.errors import ConfigError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """The name or address of a host, in lower case, and its port; None means the scheme's default port."""

    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Authority | None":
        """Parse `name:port` (RFC 3986, 3.2); return None if the text has another form."""
        match = _AUTHORITY.fullmatch(text.lower())
        if match is None:
            return None
        port = match["port"]
        return cls(match["name"], int(port) if port else None)

    @classmethod
    def of_origin(cls, origin: str) -> "Authority | None":
        """Return the authority of an origin such as `https://demo.example.org`; None for `null` etc."""
        scheme, colon, rest = origin.partition("://")
        authority = cls.parse(rest) if colon and scheme in _DEFAULT_PORTS else None
        return authority and authority.without_default_port(scheme)

    def without_default_port(self, scheme: str) -> "Authority":
        return self._replace(port=None) if self.port == _DEFAULT_PORTS[scheme] else self


class AllowedHosts:
    """The host names of the app: loopback names, the address it listens on, and added names."""

    def __init__(self, address: str, added: Iterable[str] = ()) -> None:
        """Allow the loopback names, an address to listen on, and further names.

        Args:
            address: The address to listen on, such as 127.0.0.1 or 0.0.0.0.
            added: Further names, as for `add`.

        Raises:
            ConfigError: An added name is malformed.
        """
        self._added_hosts: set[Authority] = set()
        self._own_names = {*LOOPBACK_NAMES, _in_brackets(address.lower())}
        for host in added:
            self.add(host)

    def add(self, host: str) -> None:
        """Allow a host name, with its port if that is not the scheme's default."""
        authority = Authority.parse(host)
        if authority is None:
            raise ConfigError(
                f"{host!r} is not the name of a host. Give one such as demo.example.org, or "
                "demo.example.org:8443 where the port is not 80 or 443."
            )
        self._added_hosts.add(authority)

    def add_url(self, url: str) -> None:
        """Allow the host of a public URL, such as a share link."""
        self.add(urlsplit(url).netloc)

    def is_allowed(self, host: str, local_address: str | None) -> bool:
        """Return whether a `Host` header names this app.

        Args:
            host: The header's value.
            local_address: The address of this machine to which the client connected.
        """
        authority = Authority.parse(host)
        if authority is None:
            return False
        names = {
            *self._own_names,
            *(added.name for added in self._added_hosts if added.port in (None, authority.port)),
        }
        return authority.name in names or (
            local_address is not None and authority.name == _in_brackets(local_address)
        )

    def is_own_origin(self, origin: str, host: str, scheme: str) -> bool:
        """Return whether an origin is the requested host, or an added name, since a proxy may replace `Host`.

        Args:
            origin: The `Origin` header.
            host: The `Host` header.
            scheme: The request's scheme. A proxy that serves an added name by HTTPS forwards by HTTP.
        """
        authority, requested = Authority.of_origin(origin), Authority.parse(host)
        if authority is None or requested is None:
            return False
        origin_scheme = origin.partition("://")[0]
        if authority in self._added_hosts:
            return origin_scheme in ("https", scheme)
        is_added = any(requested.name == added.name for added in self._added_hosts)
        same_scheme = origin_scheme == scheme or (is_added and origin_scheme == "https")
        return same_scheme and authority == requested.without_default_port(origin_scheme)


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address to listen on, such as 127.0.0.1 or localhost."""
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def is_network_address(host: str) -> bool:
    """Return whether a `Host` header is an IP address other than loopback, which is served by plain HTTP."""
    authority = Authority.parse(host)
    try:
        return authority is not None and not ipaddress.ip_address(authority.name.strip("[]")).is_loopback
    except ValueError:
        return False


def _in_brackets(address: str) -> str:
    """Return an IPv6 address in brackets, as in a URL; other addresses are unchanged."""
    return f"[{address}]" if ":" in address and not address.startswith("[") else address
