"""What others do to this host's links, routing rules and firewall, told by the kernel as it happens."""

from __future__ import annotations

import errno
import socket
from enum import Enum

from vmm.network import netlink

# linux/rtnetlink.h, linux/netfilter/nfnetlink.h: the groups whose news are sent here
_LINKS, _FILTERS, _RULES_OF_ROUTING, _NFTABLES = 1, 4, 8, 7
_ADDRESSES, _ADDRESSES_6, _SWITCHES_6 = 5, 9, 12
_OF_LINKS = (_LINKS, _FILTERS, _RULES_OF_ROUTING, _ADDRESSES, _ADDRESSES_6, _SWITCHES_6)
# linux/netfilter/nf_tables.h: what a message of nftables (its lower byte) is about
_NFTABLES_SUBSYSTEM = 10
_ELEMENTS = (12, 14)
_TABLES_CHAINS_AND_RULES = (0, 2, 3, 5, 6, 8, 9, 11)
_NFGENMSG = 4
_TABLE_NAME = 1
_OURS = b"vmm\0"


class Change(Enum):
    """What may be otherwise than before. vmm's own commands change elements and links as well."""

    FIREWALL = "firewall"
    ELEMENTS = "elements"
    LINKS = "links"


class Changes:
    """The kernel's news since the last look. May raise OSError when it is made."""

    def __init__(self) -> None:
        self._routing = _listener(socket.NETLINK_ROUTE, _OF_LINKS)
        self._firewall = _listener(netlink.NETFILTER, (_NFTABLES,))

    def take(self) -> set[Change]:
        """Return what has changed since this was asked last; everything may have where the news were too many."""
        found = {Change.LINKS} if _read(self._routing) != [] else set[Change]()
        news = _read(self._firewall)
        if news is None:
            return set(Change)
        for kind, body in news:
            about = _about(kind, body)
            if about is not None:
                found.add(about)
        return found

    def close(self) -> None:
        self._routing.close()
        self._firewall.close()


def _about(kind: int, body: bytes) -> Change | None:
    if kind >> 8 != _NFTABLES_SUBSYSTEM or netlink.attributes(body, _NFGENMSG).get(_TABLE_NAME) != _OURS:
        return None
    if kind & 0xFF in _ELEMENTS:
        return Change.ELEMENTS
    return Change.FIREWALL if kind & 0xFF in _TABLES_CHAINS_AND_RULES else None


def _listener(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        connection.bind((0, sum(1 << group - 1 for group in groups)))
        connection.settimeout(0.0)
    except OSError:
        connection.close()
        raise
    return connection


def _read(connection: socket.socket) -> list[tuple[int, bytes]] | None:
    """Return the messages that wait; None when some were lost."""
    found: list[tuple[int, bytes]] = []
    lost = False
    while True:
        try:
            found += netlink.messages(connection.recv(1 << 18))
        except BlockingIOError:
            return None if lost else found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost = True
