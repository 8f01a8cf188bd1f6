"""Which name servers the machines are given."""

from __future__ import annotations

import re
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.host.reading import read_text
from vmm.model.network import Resolution

if TYPE_CHECKING:
    from collections.abc import Sequence

_OWN = Path("/etc/resolv.conf")
# Where systemd-resolved and NetworkManager keep the real servers behind their stubs on loopback.
_BEHIND_STUBS = (Path("/run/systemd/resolve/resolv.conf"), Path("/run/NetworkManager/no-stub-resolv.conf"))
# Where the host names none that a machine could reach: Quad9 and Cloudflare.
FALLBACK = ("9.9.9.9", "1.1.1.1")
# resolv.conf(5): of more than three the C library takes no notice; of domains it had room for six.
_SERVERS, _DOMAINS = 3, 6
_DOMAIN = r"[A-Za-z0-9_.-]{1,253}"
# Those that are about the servers' or the network's ways. `trust-ad` is for a server on this very host.
_OPTION = r"(ndots|timeout|attempts):\d{1,2}|rotate|use-vc|edns0|single-request(-reopen)?|no-aaaa"


def host_resolution(own: Path = _OWN, behind_stubs: Sequence[Path] = _BEHIND_STUBS) -> Resolution:
    """Return how this host resolves names, as far as a machine can: by IPv4 servers that are not on loopback."""
    found = [_read(path) for path in (own, *behind_stubs)]
    chosen = next((each for each in found if each.servers), Resolution(servers=FALLBACK))
    # A stub's own file has what was configured as well.
    search = chosen.search or next((each.search for each in found if each.search), ())
    options = chosen.options or next((each.options for each in found if each.options), ())
    passed = tuple(dict.fromkeys(server for each in found for server in each.unusable))
    named = any(each.servers for each in found)
    return Resolution(
        servers=chosen.servers, search=search, options=options, unusable=() if named else passed, is_fallback=not named
    )


def _read(path: Path) -> Resolution:
    try:
        lines = read_text(path, errors="replace").splitlines()
    except OSError:
        return Resolution(servers=())
    words = [line.split() for line in lines if line.split()]
    named = [rest[0] for first, *rest in words if first == "nameserver" and rest]
    # The last of each counts, and `domain` is an older word for a single one.
    none: list[str] = []
    search = next((rest for first, *rest in reversed(words) if first in ("search", "domain")), none)
    options = [option for first, *rest in words if first == "options" for option in rest]
    return Resolution(
        servers=tuple(server for server in named if _is_usable(server))[:_SERVERS],
        search=tuple(domain for domain in search if re.fullmatch(_DOMAIN, domain) and domain != ".")[:_DOMAINS],
        options=tuple(option for option in options if re.fullmatch(_OPTION, option)),
        unusable=tuple(server for server in named if not _is_usable(server)),
    )


def _is_usable(server: str) -> bool:
    import ipaddress

    try:
        address = ipaddress.ip_address(server)
    except ValueError:
        return False
    # 0.0.0.0/8, groups of receivers, 240.0.0.0/4: no one's address.
    nobodys = address.is_multicast or address.is_reserved or address.packed[0] == 0
    return address.version == 4 and not address.is_loopback and not nobodys
