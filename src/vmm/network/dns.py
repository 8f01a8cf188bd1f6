"""Which name servers the machines are given."""

import ipaddress
from pathlib import Path

from vmm.host.reading import read_text

_OWN = Path("/etc/resolv.conf")
# Where systemd-resolved keeps the real servers behind its stub on 127.0.0.53.
_BEHIND_STUB = Path("/run/systemd/resolve/resolv.conf")
# Where the host names none that a machine could reach: Quad9 and Cloudflare.
FALLBACK = ("9.9.9.9", "1.1.1.1")


def host_resolvers(own: Path = _OWN, behind_stub: Path = _BEHIND_STUB) -> tuple[str, ...]:
    """Return the host's own IPv4 name servers, never one on loopback; FALLBACK where there is none."""
    for path in (own, behind_stub):
        found = _servers(path)
        if found:
            return found
    return FALLBACK


def _servers(path: Path) -> tuple[str, ...]:
    try:
        lines = read_text(path, errors="replace").splitlines()
    except OSError:
        return ()
    named = [line.split()[1] for line in lines if line.startswith("nameserver") and len(line.split()) > 1]
    return tuple(server for server in named if _reachable(server))[:3]


def _reachable(server: str) -> bool:
    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback and not address.is_unspecified
