"""Which links lead out of this host: those that a default route goes over, whichever table it is in."""

from __future__ import annotations

import contextlib
import re
import socket
import struct

from vmm.network import netlink, policy

_GETROUTE = 26
# linux/rtnetlink.h
_OIF, _MULTIPATH, _TABLE = 4, 9, 15
_HEAD = struct.Struct("=BBBBBBBBI")
_UNICAST = 1
# A VPN that takes everything often writes its default route as two halves.
_HALF = 1
# What nft can write between quotes; a name that ends in * would stand for many.
_NAME = re.compile(r'[^"\\*\s]{1,15}')


def uplinks(besides: str) -> tuple[str, ...]:
    """Return the names of the links that lead out, but for `besides`, the machines' own bridge."""
    found: set[str] = set()
    for table in policy.tables():
        found |= _names(_links(table))
    return tuple(sorted(found - {besides, "lo"}))


def _links(table: int) -> set[int]:
    """Return the indices of the links that a table's default routes go over."""
    body = _HEAD.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    body += netlink.attribute(_TABLE, struct.pack("=I", table))
    links: set[int] = set()
    answers = netlink.dump(_GETROUTE, body, strict=True)
    with contextlib.closing(answers), contextlib.suppress(FileNotFoundError):
        for answer in answers:
            _, length, _, _, _, _, _, kind, _ = _HEAD.unpack_from(answer)
            if length > _HALF:
                # The kernel goes by the address, from 0.0.0.0 on; a router has a million of what comes now.
                break
            found = netlink.attributes(answer, _HEAD.size)
            if kind == _UNICAST and struct.unpack("=I", found.get(_TABLE, b"\0\0\0\0"))[0] == table:
                links |= {struct.unpack("=i", found[_OIF])[0]} if _OIF in found else _hops(found.get(_MULTIPATH, b""))
    return links


def _hops(data: bytes) -> set[int]:
    """Return the links of a route with several next hops: rtnexthop in linux/rtnetlink.h."""
    links: set[int] = set()
    while len(data) >= 8:
        length, index = struct.unpack_from("=HxxI", data)
        links.add(index)
        data = data[max(length, 8) + 3 & ~3 :]
    return links


def _names(links: set[int]) -> set[str]:
    names: set[str] = set()
    for index in links:
        # One that has gone meanwhile leads nowhere.
        with contextlib.suppress(OSError):
            names.add(socket.if_indextoname(index))
    return {name for name in names if _NAME.fullmatch(name)}
