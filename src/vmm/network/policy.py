"""Routing rules (ip-rule(8)) that close what the firewall does not vet: `nft flush ruleset` leaves them alone.

In their order, all for packets without the mark that only the firewall's `guard` gives:

1. what comes over the bridge is routed nowhere, not to the host itself either: so it stands before the host's own rule
   for what is local, which is made anew behind it;
2. what the host itself sends to machines goes by the host's main table;
3. what anyone else sends to machines is routed nowhere.

They are called the kernel's own (`proto kernel`), because networkd removes those of everybody else.
"""

from __future__ import annotations

import errno
import socket
import struct
from zlib import crc32

from vmm import TYPE_CHECKING
from vmm.model.value import Value
from vmm.network import netlink
from vmm.network.netlink import attribute
from vmm.network.tables import VETTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.model.network import Subnet

_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
# linux/fib_rules.h
_DST, _SRC, _IIFNAME, _PRIORITY, _FWMARK, _TABLE, _FWMASK = 1, 2, 3, 6, 10, 15, 16
_OIFNAME, _UIDS, _PROTOCOL = 17, 20, 21
_INVERTED = 2
_TO_TABLE, _BLACKHOLE = 1, 6
_LOCAL, _MAIN, _KERNEL = 255, 254, 2
_HEAD = struct.Struct("=BBBBBBBBI")


class _Rule(Value):
    """One rule of IPv4. `iif` is the link that a packet came over, `to` and `source` are networks.

    `marked`: it is for packets that lack VETTED; `own`: for what programs of the host send;
    `inverted`: for all but what it names.
    """

    priority: int
    action: int
    table: int
    iif: str = ""
    to: tuple[int, bytes] | None = None
    marked: bool = False
    source: tuple[int, bytes] | None = None
    own: bool = False
    inverted: bool = False

    def packed(self, *, protocol: int = _KERNEL) -> bytes:
        """Return the rule as netlink has it; without a `protocol` a rule is meant whoever made it."""
        length = self.to[0] if self.to else 0
        body = _HEAD.pack(socket.AF_INET, length, 0, 0, 0, 0, 0, self.action, 0)
        body += attribute(_PRIORITY, struct.pack("=I", self.priority))
        body += attribute(_PROTOCOL, bytes([protocol])) if protocol else b""
        body += attribute(_TABLE, struct.pack("=I", self.table))
        if self.iif:
            body += attribute(_IIFNAME, self.iif.encode() + b"\0")
        if self.to:
            body += attribute(_DST, self.to[1])
        if self.marked:
            body += attribute(_FWMARK, b"\0\0\0\0") + attribute(_FWMASK, struct.pack("=I", VETTED))
        return body


_LOCAL_RULE = _Rule(priority=0, action=_TO_TABLE, table=_LOCAL)


def stand(bridge: str, subnet: Subnet) -> bool:
    """Whether the rules are there, in an order that closes."""
    wanted = _wanted(bridge, subnet)
    there = list(_rules())
    return all(rule in there for rule in wanted) and _is_before_local(wanted[0], there)


def mend(bridge: str, subnet: Subnet) -> None:
    """Put the rules there that are missing, and remove those of another subnet of this bridge's. May raise OSError."""
    wanted = _wanted(bridge, subnet)
    there = list(_rules())
    for rule in _of_bridge(bridge, there):
        if rule not in wanted:
            _remove(rule)
    for rule in wanted:
        if rule not in there:
            netlink.send([(_NEWRULE, netlink.CREATE, rule.packed())])
    there = list(_rules())
    if not _is_before_local(wanted[0], there):
        # The same once more comes behind ours, and then the first of the two goes: at no time is there none.
        if there.count(_LOCAL_RULE) < 2:
            netlink.send([(_NEWRULE, netlink.CREATE, _LOCAL_RULE.packed())])
        _remove_first_local()


def remove(bridge: str) -> None:
    """Remove this bridge's rules."""
    there = list(_rules())
    for rule in _of_bridge(bridge, there):
        _remove(rule)
    if there.count(_LOCAL_RULE) > 1:
        # Whoever made it anew was ended in between.
        _remove_first_local()


def tables(bridge: str, subnet: Subnet) -> set[int]:
    """Return the routing tables that packets of machines are looked up in, besides the host's own addresses.

    Not those that are the host's for one of its addresses alone, as each further network card of a cloud's server has.
    """
    named = {rule.table for rule in _rules() if rule.action == _TO_TABLE and _may_meet(rule, bridge, subnet)}
    return (named | {_MAIN}) - {_LOCAL, 0}


def _may_meet(rule: _Rule, bridge: str, subnet: Subnet) -> bool:
    if rule.inverted:
        return True
    if rule.own or rule.iif not in ("", bridge):
        return False
    if rule.source is None:
        return True
    length, address = rule.source
    shorter = 32 - min(length, subnet.prefix_length)
    ours = int.from_bytes(socket.inet_aton(subnet.cidr.partition("/")[0]))
    return int.from_bytes(address) >> shorter == ours >> shorter


def _wanted(bridge: str, subnet: Subnet) -> list[_Rule]:
    to = (subnet.prefix_length, socket.inet_aton(subnet.cidr.partition("/")[0]))
    return [
        _Rule(priority=0, action=_BLACKHOLE, table=0, iif=bridge, marked=True),
        # Its table is never looked into, and says whose it is and the one below: made before that, it goes behind it.
        _Rule(priority=2, action=_BLACKHOLE, table=_owner(bridge), to=to, marked=True),
        _Rule(priority=1, action=_TO_TABLE, table=_MAIN, iif="lo", to=to),
    ]


def _owner(bridge: str) -> int:
    return 0x76000000 | crc32(bridge.encode()) & 0xFFFFFF


def _of_bridge(bridge: str, there: list[_Rule]) -> list[_Rule]:
    """Return the rules that are this bridge's: its own, and those for the subnets that its last rule names."""
    closing = [rule for rule in there if rule.action == _BLACKHOLE and rule.table == _owner(bridge)]
    subnets = [rule.to for rule in closing]
    first = [rule for rule in there if rule.action == _BLACKHOLE and rule.iif == bridge and rule.marked]
    return [
        *first,
        *(rule for rule in there if rule.iif == "lo" and rule.priority == 1 and rule.to in subnets),
        *closing,
    ]


def _is_before_local(rule: _Rule, there: list[_Rule]) -> bool:
    local = [number for number, known in enumerate(there) if known.table == _LOCAL and known.action == _TO_TABLE]
    return rule in there and (not local or there.index(rule) < local[0])


def _remove_first_local() -> None:
    # Whoever made it: another's `ip rule add` is not the kernel's own.
    netlink.send([(_DELRULE, 0, _LOCAL_RULE.packed(protocol=0))])


def _remove(rule: _Rule) -> None:
    try:
        netlink.send([(_DELRULE, 0, rule.packed())])
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _rules() -> Iterator[_Rule]:
    """Give the host's rules in their order."""
    for body in netlink.dump(_GETRULE, _HEAD.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
        _, length, of_source, _, table, _, _, action, flags = _HEAD.unpack_from(body)
        found = netlink.attributes(body, _HEAD.size)

        def number(kind: int, default: int = 0, found: dict[int, bytes] = found) -> int:
            return struct.unpack("=I", found[kind])[0] if kind in found else default

        yield _Rule(
            priority=number(_PRIORITY),
            action=action,
            table=number(_TABLE, table),
            iif=found.get(_IIFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            to=(length, found[_DST]) if _DST in found else None,
            marked=number(_FWMASK) == VETTED and number(_FWMARK) == 0,
            source=(of_source, found[_SRC]) if _SRC in found else None,
            own=bool({_OIFNAME, _UIDS} & found.keys()),
            inverted=bool(flags & _INVERTED),
        )
