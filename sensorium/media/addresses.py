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

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
    )
)  # fmt: skip
_WEB_PORTS = (80, 443)

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


def is_metadata(address: Address) -> bool:
    """Whether a cloud's service for machine credentials answers there, in any spelling."""
    if isinstance(address, ipaddress.IPv6Address) and (address in _MAPPED or address in _NAT64):
        return is_metadata(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _METADATA


class Listing:
    """The operator's list of hosts. Empty: any public one. Otherwise only those listed.

    An entry is a name, a suffix with a leading dot, an address, a network such as 10.0.0.0/8, or * for any public
    host; each may end in a port. Names, addresses and networks that are listed may be private; credentials services of
    clouds never answer.
    """

    def __init__(self, entries: tuple[str, ...], *, private: bool = False) -> None:
        """private: lifts the rules on addresses and ports for every host."""
        self._private = private
        self._names: dict[str, set[int]] = {}
        self._networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, set[int]]] = []
        for entry in entries:
            host, ports = _entry(entry)
            try:
                self._networks.append((ipaddress.ip_network(host.strip("[]")), ports))
            except ValueError:
                self._names.setdefault(host.lower().removesuffix("."), set()).update(ports)

    def names(self, host: str, address: Address | None) -> bool:
        """Whether the list lets this host be asked at all."""
        if not self._names and not self._networks:
            return True
        if "*" in self._names or host in self._names or self._suffixes(host):
            return True
        return address is not None and self._networks_of(address) is not None

    def admits(self, target: WebAddress) -> bool:
        """Port and, where the host is a literal, address. Names are judged by admits_address once looked up."""
        if self._private:
            return target.address is None or not is_metadata(target.address)
        ports = {*_WEB_PORTS, *self._names.get(target.host, ()), *self._names.get("*", ())}
        for suffix in self._suffixes(target.host):
            ports |= self._names[suffix]
        if target.address is not None:
            ports |= self._networks_of(target.address) or set()
            return target.port in ports and self.admits_address(target.address, target.host)
        return target.port in ports and (target.host in self._names or not is_local_name(target.host))

    def admits_address(self, address: Address, host: str) -> bool:
        """host: the name that led there."""
        if is_metadata(address):
            return False
        listed = host in self._names or self._networks_of(address) is not None
        return self._private or listed or is_public(address)

    def _suffixes(self, host: str) -> list[str]:
        return [name for name in self._names if name.startswith(".") and host.endswith(name)]

    def _networks_of(self, address: Address) -> set[int] | None:
        found = [ports for network, ports in self._networks if address in network]
        return set().union(*found) if found else None


def _entry(text: str) -> tuple[str, set[int]]:
    """Host and port of an entry; a port stands behind the last colon, of IPv6 behind the bracket."""
    host, colon, port = text.strip().rpartition(":")
    bare_v6 = text.count(":") > 1 and not text.startswith("[")
    if colon and port.isdigit() and not bare_v6:
        return host, {int(port)}
    return text.strip(), set()


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
