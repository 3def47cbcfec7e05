"""Where an engine's metrics are: an address on this host alone, unless the user names another one on purpose.

No name is ever looked up for a local endpoint: ``localhost`` is 127.0.0.1 and ::1 (RFC 6761, section 6.3), any other
name needs ``--allow-remote``, and is then resolved once, before the capture begins.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, replace

from gpuaudit.bundle.errors import HostUnfit, UsageError

METRICS_PATH = "/metrics"

_HTTP = re.compile(r"http://(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?(/[!-~]*)?\Z")
_UNIX = re.compile(r"unix:(?://)?(/[^\0\n]{1,4095})\Z")
_HINT = "give http://127.0.0.1:PORT, http://[::1]:PORT or unix:///PATH"
MAX_ADDRESSES = 8


@dataclass(frozen=True)
class Address:
    """One address to connect to: an IP address and port, or a path (``port`` 0); an abstract socket begins with NUL."""

    host: str
    port: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        """AF_UNIX, AF_INET or AF_INET6."""
        if not self.port:
            return socket.AF_UNIX
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


@dataclass(frozen=True)
class Endpoint:
    """``url`` as recorded; ``host`` the Host header; ``addresses`` in the order in which they are tried."""

    url: str
    host: str
    path: str
    addresses: tuple[Address, ...]
    remote: bool = False


def is_loopback(host: str) -> bool:
    """Whether an IP address is 127.0.0.0/8 or ::1. A mapped one (::ffff:127.0.0.1) is not taken for one.

    Which of those ``is_loopback`` is true for depends on the version of Python.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def parse_endpoint(url: str, *, allow_remote: bool = False) -> Endpoint:
    """The endpoint a user named. UsageError where it is none, or not on this host and not allowed."""
    unix = _UNIX.match(url)
    if unix:
        return unix_endpoint(unix[1])
    http = _HTTP.match(url)
    port = int(http[2] or 80) if http else 0
    if http is None or not 0 < port < 65_536:
        raise UsageError(f"--engine {url!r:.120} is no endpoint", hint=_HINT)
    named = http[1].strip("[]")
    path = METRICS_PATH if http[3] in (None, "/") else http[3]
    found = Endpoint(f"http://{http[1]}:{port}{path}", f"{http[1]}:{port}", path, (), allow_remote)
    if named.lower() == "localhost":
        return replace(found, addresses=(Address("127.0.0.1", port), Address("::1", port)), remote=False)
    if is_loopback(named):
        return replace(found, addresses=(Address(named, port),), remote=False)
    if not allow_remote:
        raise UsageError(
            f"--engine {url!r:.120} is neither loopback nor a Unix socket, and nothing else is connected to",
            hint=f"where it is meant: --allow-remote {url:.120}",
        )
    return replace(found, addresses=_resolve(named, port))


def unix_endpoint(path: str) -> Endpoint:
    """A Unix socket; ``path`` beginning with NUL is an abstract one."""
    return Endpoint(f"unix:{path.replace(chr(0), '@')}", "localhost", METRICS_PATH, (Address(path),))


def tcp_endpoint(host: str, port: int) -> Endpoint:
    """A loopback address and port that a process listens on."""
    name = f"[{host}]" if ":" in host else host
    return Endpoint(
        f"http://{name}:{port}{METRICS_PATH}", f"{name}:{port}", METRICS_PATH, (Address(host, port),),
        not is_loopback(host),
    )  # fmt: skip


def _resolve(host: str, port: int) -> tuple[Address, ...]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return (Address(host, port),)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise HostUnfit(f"{host} cannot be resolved: {e}", hint="give its address") from None
    return tuple(dict.fromkeys(Address(str(f[4][0]), port) for f in found))[:MAX_ADDRESSES]
