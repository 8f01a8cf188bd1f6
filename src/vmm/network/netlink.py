"""The few rtnetlink messages that vmm needs, on one socket (rtnetlink(7), linux/if_link.h).

Written by hand, because this lies on the way from `start` to a running guest: three `ip` commands take 6 ms, these
messages take a quarter of one, and a netlink library takes 270 ms to import.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from vmm import TYPE_CHECKING
from vmm.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEWLINK, _DELLINK, _SETLINK, _NEWADDR = 16, 17, 19, 20
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_ERROR = 2
_NESTED = 0x8000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO = 1, 3, 10, 12, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_IFLA_BR_GROUP_FWD_MASK = 9
# All of 802.1D's group addresses but the first three, which the kernel does not let go (BR_GROUPFWD_RESTRICTED).
_GROUP_FRAMES = 0xFFF8
_IFLA_BRPORT_ISOLATED = 33
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFF_UP = 1
_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_HEADER = struct.Struct("=IHHII")


def make_bridge(name: str, mac: bytes) -> None:
    """Make a bridge with a fixed MAC; OSError(EEXIST) when there is a link of that name."""
    info = _attribute(_IFLA_LINKINFO | _NESTED, _attribute(_IFLA_INFO_KIND, b"bridge"))
    body = _link(0) + _attribute(_IFLA_IFNAME, name.encode() + b"\0") + _attribute(_IFLA_ADDRESS, mac) + info
    _send([(_NEWLINK, _CREATE | _EXCL, body)])


def bridge_group_frames(name: str) -> None:
    """Let a bridge treat frames for 802.1D's group addresses as it treats all others.

    By itself it hands some of them (LLDP) to the host past every hook of its firewall, and learns their sender's MAC.
    """
    mask = _attribute(_IFLA_INFO_DATA | _NESTED, _attribute(_IFLA_BR_GROUP_FWD_MASK, struct.pack("=H", _GROUP_FRAMES)))
    info = _attribute(_IFLA_LINKINFO | _NESTED, _attribute(_IFLA_INFO_KIND, b"bridge") + mask)
    _send([(_NEWLINK, 0, _link(index_of(name)) + info)])


def add_address(name: str, address: str, prefix_length: int, broadcast: str) -> None:
    """Give a link an IPv4 address; the same once more is no error."""
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBI", socket.AF_INET, prefix_length, 0, 0, index_of(name))
    parts = [(_IFA_LOCAL, packed), (_IFA_ADDRESS, packed), (_IFA_BROADCAST, socket.inet_aton(broadcast))]
    _send([(_NEWADDR, _CREATE | _REPLACE, head + b"".join(_attribute(kind, data) for kind, data in parts))])


def set_up(name: str) -> None:
    _send([(_NEWLINK, 0, _link(index_of(name), up=True))])


def join_bridge(tap: str, bridge: str) -> None:
    """Put a link on a bridge, as a port that is isolated from the others, and set it up."""
    index = index_of(tap)
    master = _attribute(_IFLA_MASTER, struct.pack("=I", index_of(bridge)))
    isolated = _attribute(_IFLA_PROTINFO | _NESTED, _attribute(_IFLA_BRPORT_ISOLATED, b"\1"))
    _send(
        [
            (_NEWLINK, 0, _link(index) + master),
            (_SETLINK, 0, _link(index, family=socket.AF_BRIDGE) + isolated),
            # Up last: no frame passes before the port is isolated.
            (_NEWLINK, 0, _link(index, up=True)),
        ]
    )


def remove_link(name: str) -> None:
    """Remove a link; none is no error."""
    try:
        _send([(_DELLINK, 0, _link(index_of(name)))])
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def index_of(name: str) -> int:
    """Return a link's index; OSError(ENODEV) when there is none of that name, and no other error stands for that one.

    Python's own if_nametoindex gives every error the same words and no number.
    """
    request = struct.pack("=16s24x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        index: int = struct.unpack_from("=i", fcntl.ioctl(probe, _SIOCGIFINDEX, request), 16)[0]
    return index


def told(error: OSError, brief: str) -> NetworkError:
    """Convert the kernel's refusal into an error that says what to do."""
    denied = error.errno in (1, 13)
    return NetworkError(
        brief,
        details=str(error),
        resolution="Run the command as root: sudo vmm ..." if denied else "Check the host with: vmm doctor",
    )


def _link(index: int, *, family: int = socket.AF_UNSPEC, up: bool = False) -> bytes:
    flags = _IFF_UP if up else 0
    return struct.pack("=BxHiII", family, 0, index, flags, flags)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _send(messages: Sequence[tuple[int, int, bytes]]) -> None:
    """Send the messages at once and raise the first error of their acknowledgements as OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        connection.settimeout(5.0)
        connection.bind((0, 0))
        batch = b"".join(
            _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, number, 0) + body
            for number, (kind, flags, body) in enumerate(messages, start=1)
        )
        connection.send(batch)
        missing = set(range(1, len(messages) + 1))
        while missing:
            missing -= _acknowledged(connection.recv(65536))


def _acknowledged(data: bytes) -> set[int]:
    """Return the numbers of the messages that this answer acknowledges; OSError for one that was refused."""
    seen: set[int] = set()
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
        if kind == _ERROR:
            code = struct.unpack_from("=i", data, offset + _HEADER.size)[0]
            if code:
                raise OSError(-code, os.strerror(-code))
            seen.add(number)
        offset += (length + 3) & ~3
    return seen
