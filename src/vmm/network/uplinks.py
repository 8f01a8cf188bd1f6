"""Which links lead out of this host: those that a default route goes over, whichever table it is in."""

from __future__ import annotations

import contextlib
import re
import socket
import struct

from vmm import TYPE_CHECKING
from vmm.network import netlink, policy

if TYPE_CHECKING:
    from vmm.model.network import Subnet

_GETROUTE, _GETNEXTHOP = 26, 106
# linux/rtnetlink.h
_DST, _OIF, _MULTIPATH, _TABLE, _NH_ID = 1, 4, 9, 15, 30
# linux/nexthop.h: a group is of entries of 8 bytes, each of which begins with the id of one.
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5
_NEXTHOP_HEAD = struct.Struct("=BBBBI")
_HEAD = struct.Struct("=BBBBBBBBI")
_UNICAST = 1
# A VPN that takes everything often writes its default route as two halves.
_HALF = 1
# What nft can write between quotes; a name that ends in * would stand for many.
_NAME = re.compile(r'[^"\\*\s]{1,15}')


def uplinks(bridge: str, subnet: Subnet) -> tuple[str, ...]:
    """Return the names of the links that lead out for machines of this subnet, on this bridge."""
    found: set[str] = set()
    for table in policy.tables(bridge, subnet):
        found |= _names(_links(table))
    return tuple(sorted(found - {bridge, "lo"}))


def _links(table: int) -> set[int]:
    """Return the indices of the links that a table's default routes go over."""
    body = _HEAD.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    body += netlink.attribute(_TABLE, struct.pack("=I", table))
    links: set[int] = set()
    answers = netlink.dump(_GETROUTE, body, strict=True)
    with contextlib.closing(answers), contextlib.suppress(FileNotFoundError):
        for answer in answers:
            _, length, _, _, _, _, _, kind, _ = _HEAD.unpack_from(answer)
            found = netlink.attributes(answer, _HEAD.size)
            if length > _HALF:
                if any(found.get(_DST, b"")):
                    # The kernel goes by the address, from 0.0.0.0 on; a router has a million of what comes now.
                    break
                # At one address it gives the longest prefix first: 0.0.0.0/8 comes before the default route.
                continue
            if kind == _UNICAST and struct.unpack("=I", found.get(_TABLE, b"\0\0\0\0"))[0] == table:
                links |= _links_of(found)
    return links


def _links_of(route: dict[int, bytes]) -> set[int]:
    if _OIF in route:
        return {struct.unpack("=I", route[_OIF])[0]}
    if _MULTIPATH in route:
        return _hops(route[_MULTIPATH])
    # Where net.ipv4.nexthop_compat_mode is 0, a route says no more than the id of its next hop.
    return _links_of_nexthop(route[_NH_ID]) if _NH_ID in route else set()


def _links_of_nexthop(number: bytes) -> set[int]:
    """Return the links of a next hop that is an object of its own, or a group of them (ip-nexthop(8))."""
    known: dict[bytes, dict[int, bytes]] = {}
    head = _NEXTHOP_HEAD.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for answer in netlink.dump(_GETNEXTHOP, head):
        found = netlink.attributes(answer, _NEXTHOP_HEAD.size)
        known[found.get(_NHA_ID, b"")] = found
    group = known.get(number, {}).get(_NHA_GROUP, b"")
    members = [group[start : start + 4] for start in range(0, len(group), 8)] or [number]
    hops = [known[member] for member in members if member in known]
    return {struct.unpack("=I", hop[_NHA_OIF])[0] for hop in hops if _NHA_OIF in hop}


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
