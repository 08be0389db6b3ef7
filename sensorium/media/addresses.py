"""Which web addresses media may be fetched from: a strict reading of URLs, and a table of networks that are not public.

The standard library is too lenient for both: it drops tabs from URLs, and calls several metadata services global.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

MAX_URL = 2048

_URL = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(?::([0-9]{0,5}))?(?:[/?#].*)?", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NETWORKS_V4 = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 168.63.129.16/32 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
    "192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"
)
# Within 2000::/3, the only part of IPv6 that is public: protocol assignments with Teredo, documentation, 6to4.
_NETWORKS_V6 = "2001::/23 2001:db8::/32 2002::/16 3fff::/20"

_LOCAL_NAMES = ("localhost", "localdomain", "local", "internal", "home.arpa")

_DENIED_V4 = tuple(ipaddress.IPv4Network(text) for text in _NETWORKS_V4.split())
_DENIED_V6 = tuple(ipaddress.IPv6Network(text) for text in _NETWORKS_V6.split())
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_MAPPED, _NAT64 = ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A URL that passed the grammar. address is set where the host is a literal."""

    url: str
    scheme: str
    host: str
    port: int
    address: Address | None


def parse_url(url: str) -> WebAddress | None:
    """None for anything but a plain http(s) URL: no credentials, no odd spellings of numbers, ASCII only."""
    if len(url) > MAX_URL or not all("!" <= char <= "~" for char in url) or "\\" in url or "%00" in url:
        return None
    match = _URL.fullmatch(url)
    if match is None:
        return None
    scheme, host = match[1].lower(), match[2].lower().removesuffix(".")
    port = int(match[3]) if match[3] else {"http": 80, "https": 443}[scheme]
    if not 1 <= port <= 65535:
        return None
    address: Address | None = None
    try:
        if host.startswith("["):
            address = ipaddress.IPv6Address(host[1:-1])
        elif host.rpartition(".")[2].isdigit() or host.rpartition(".")[2].startswith("0x"):
            address = ipaddress.IPv4Address(host)  # four decimal parts without leading zeros, nothing else
    except ValueError:
        return None
    if address is None and (len(host) > 253 or not all(_LABEL.fullmatch(label) for label in host.split("."))):
        return None
    return WebAddress(url, scheme, host, port, address)


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet and not to this machine."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _MAPPED or address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _PUBLIC_V6 or any(address in network for network in _DENIED_V6):
            return False
    elif any(address in network for network in _DENIED_V4):
        return False
    return not _is_ours(address)


def domain_allowed(host: str, allowed: tuple[str, ...]) -> bool:
    """allowed: exact names, or suffixes written with a leading dot; empty allows every name."""
    names = [name.lower().removesuffix(".") for name in allowed]
    return not names or any(host == name or (name.startswith(".") and host.endswith(name)) for name in names)


def is_local_name(host: str) -> bool:
    """Names that never belong to the public internet, whatever they resolve to."""
    return any(host == name or host.endswith("." + name) for name in _LOCAL_NAMES)


def _is_ours(address: Address) -> bool:
    """Whether an interface of this machine has the address: then the route to it starts at itself. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError:
        return False
