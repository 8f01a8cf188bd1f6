"""What a tap lets in, whatever the firewall does: a filter of its own that hangs on the link and goes with it.

It stands before the bridge, before every rule of nftables, and needs no process. It passes what its machine may send at
all: IPv4 and ARP with its own MAC and address; nothing to a group of receivers, but for ARP's questions, and nothing to
127.0.0.0/8 or 0.0.0.0/8. It is a program of the kernel's classic BPF, which needs no compiler (tc-bpf(8)).
"""

from __future__ import annotations

import errno
import socket
import struct

from vmm import TYPE_CHECKING
from vmm.network import netlink
from vmm.network.netlink import attribute

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.model.network import Lease

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
_NEWQDISC, _NEWTFILTER, _GETTFILTER = 36, 44, 46
_CLSACT, _CLSACT_HANDLE, _INGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_KIND, _OPTIONS = 1, 2
_OPS_LEN, _OPS, _FLAGS = 4, 5, 8
_ACT_DIRECT = 1
_HANDLE, _PREFERENCE, _EVERY_PROTOCOL = 1, 1 << 16, socket.htons(3)
_HEAD = struct.Struct("=BxxxiIII")
# linux/bpf_common.h: what an instruction does
_LOAD4, _LOAD2, _LOAD1, _IF_EQUAL, _IF_AT_LEAST, _IF_BIT, _RETURN = 0x20, 0x28, 0x30, 0x15, 0x35, 0x45, 0x06
# TC_ACT_UNSPEC lets whatever filter comes next decide.
_PASS, _DROP = 0xFFFFFFFF, 2
# Kernels without these parts have the firewall alone; `vmm doctor` says so.
_LACKING = (errno.ENOENT, errno.EOPNOTSUPP)


def attach(index: int, lease: Lease) -> bool:
    """Put its filter on the tap with this index, in place of another; False where the kernel has no such filters."""
    program = _program(lease)
    options = attribute(_OPS_LEN, struct.pack("=H", len(program))) + attribute(_OPS, _packed(program))
    options += attribute(_FLAGS, struct.pack("=I", _ACT_DIRECT))
    head = _HEAD.pack(0, index, _HANDLE, _INGRESS, _PREFERENCE | _EVERY_PROTOCOL)
    wish = head + attribute(_KIND, b"bpf\0") + attribute(_OPTIONS | netlink.NESTED, options)
    qdisc = _HEAD.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")
    try:
        try:
            netlink.send([(_NEWQDISC, netlink.CREATE | netlink.EXCL, qdisc), (_NEWTFILTER, netlink.CREATE, wish)])
        except FileExistsError:
            netlink.send([(_NEWTFILTER, netlink.CREATE, wish)])
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        return False
    return True


def is_attached(index: int, lease: Lease) -> bool:
    """Whether the tap with this index has its filter, and the right one. May raise OSError."""
    body = _HEAD.pack(0, index, 0, _INGRESS, 0)
    for answer in netlink.dump(_GETTFILTER, body):
        found = netlink.attributes(answer, _HEAD.size)
        if found.get(_KIND) == b"bpf\0" and _OPTIONS in found:
            options = netlink.attributes(found[_OPTIONS])
            if options.get(_OPS) == _packed(_program(lease)):
                return True
    return False


def _packed(program: Sequence[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def _program(lease: Lease) -> list[tuple[int, int, int, int]]:
    """Return the steps, each (what, to skip when so, to skip when not, value); a frame begins with its MACs."""
    mac = bytes.fromhex(lease.mac.replace(":", ""))
    high, low = int.from_bytes(mac[:4]), int.from_bytes(mac[4:])
    address = int.from_bytes(socket.inet_aton(lease.address))
    steps: list[tuple[int, int | str, int | str, int]] = [
        (_LOAD4, 0, 0, 6), (_IF_EQUAL, 0, "drop", high),
        (_LOAD2, 0, 0, 10), (_IF_EQUAL, 0, "drop", low),
        (_LOAD2, 0, 0, 12), (_IF_EQUAL, "arp", 0, 0x0806), (_IF_EQUAL, 0, "drop", 0x0800),
        # IPv4: to one receiver, from its own address
        (_LOAD1, 0, 0, 0), (_IF_BIT, "drop", 0, 1),
        (_LOAD4, 0, 0, 26), (_IF_EQUAL, 0, "drop", address),
        (_LOAD1, 0, 0, 30), (_IF_EQUAL, "drop", 0, 0), (_IF_EQUAL, "drop", 0, 127), (_IF_AT_LEAST, "drop", "pass", 224),
        # ARP: who sends it, in its own words
        (_LOAD4, 0, 0, 22), (_IF_EQUAL, 0, "drop", high),
        (_LOAD2, 0, 0, 26), (_IF_EQUAL, 0, "drop", low),
        (_LOAD4, 0, 0, 28), (_IF_EQUAL, 0, "drop", address),
        (_RETURN, 0, 0, _PASS),
        (_RETURN, 0, 0, _DROP),
    ]  # fmt: skip
    places = {"arp": 15, "pass": len(steps) - 2, "drop": len(steps) - 1}

    def skip(to: int | str, number: int) -> int:
        return places[to] - number - 1 if isinstance(to, str) else to

    return [(what, skip(so, at), skip(otherwise, at), value) for at, (what, so, otherwise, value) in enumerate(steps)]
