"""The few rtnetlink messages that vmm needs, on one socket (rtnetlink(7), linux/if_link.h).

Written by hand, because this lies on the way from `start` to a running guest: three `ip` commands take 6 ms, these
messages take a quarter of one, and a netlink library takes 270 ms to import.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct

from vmm import TYPE_CHECKING
from vmm.errors import NetworkError
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

_NEWLINK, _DELLINK, _GETLINK, _SETLINK, _NEWADDR = 16, 17, 18, 19, 20
_REQUEST, _ACK, REPLACE, EXCL, CREATE, _DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
NESTED = 0x8000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_PROTINFO, _IFLA_LINKINFO = 1, 3, 4, 10, 12, 18
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
MTU = 1500  # guests know of no other
# What vmm's bridge is, besides what every link has: attribute -> its name for ip-link(8), and its value.
_BRIDGE = {
    # Frames to a machine that is forgotten go to all of them.
    4: ("ageing_time", struct.pack("=I", 30000)),
    5: ("stp_state", struct.pack("=I", 0)),
    # All of 802.1D's group addresses but the first three, which the kernel does not let go (BR_GROUPFWD_RESTRICTED). By
    # itself a bridge hands some of them (LLDP) to the host past every hook of its firewall, and learns their sender.
    9: ("group_fwd_mask", struct.pack("=H", 0xFFF8)),
}
# Not every kernel has it.
_VLANS = {7: ("vlan_filtering", b"\0")}
_BRPORT_STATE, _IFLA_BRPORT_ISOLATED, _FORWARDING = 1, 33, b"\3"
# What its ports are: attribute -> its name for bridge(8), and its value. Older kernels do not know the last ones.
_PORT = {
    4: ("hairpin", b"\0"),
    5: ("guard", b"\0"),
    8: ("learning", b"\1"),
    9: ("flood", b"\1"),
    10: ("proxy_arp", b"\0"),
    12: ("proxy_arp_wifi", b"\0"),
    30: ("bcast_flood", b"\1"),
    32: ("neigh_suppress", b"\0"),
    _IFLA_BRPORT_ISOLATED: ("isolated", b"\1"),
    39: ("locked", b"\0"),
}
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 4, 5
_IFLA_IFALIAS, _IFLA_EXT_MASK, _IFLA_CARRIER = 20, 29, 33
# RTEXT_FILTER_SKIP_STATS: half of what the kernel would say of a link.
_SKIP_STATS = 8
NETFILTER = 12  # linux/netlink.h
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_LINK_HEAD = struct.Struct("=BxHiII")
_SIOCGIFINDEX = 0x8933  # linux/sockios.h
_HEADER = struct.Struct("=IHHII")


def make_bridge(name: str, mac: bytes) -> None:
    """Make a bridge with a fixed MAC; OSError(EEXIST) when there is a link of that name."""
    info = attribute(_IFLA_LINKINFO | NESTED, attribute(_IFLA_INFO_KIND, b"bridge"))
    body = link_head(0) + attribute(_IFLA_IFNAME, name.encode() + b"\0") + attribute(_IFLA_ADDRESS, mac) + info
    send([(_NEWLINK, CREATE | EXCL, body)])


def settle_bridge(name: str) -> None:
    """Make of a bridge what vmm's is, and take it out of every other link's hands."""
    free = attribute(_IFLA_MASTER, struct.pack("=I", 0)) + attribute(_IFLA_MTU, struct.pack("=I", MTU))
    head = link_head(index_of(name))
    send([(_NEWLINK, 0, head + free + _bridge_info(_BRIDGE))])
    try:
        send([(_NEWLINK, 0, head + _bridge_info(_VLANS))])
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise


def _bridge_info(settings: Mapping[int, tuple[str, bytes]]) -> bytes:
    data = attribute(_IFLA_INFO_DATA | NESTED, _wanted(settings))
    return attribute(_IFLA_LINKINFO | NESTED, attribute(_IFLA_INFO_KIND, b"bridge") + data)


def add_address(name: str, address: str, prefix_length: int, broadcast: str) -> None:
    """Give a link an IPv4 address; the same once more is no error."""
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBI", socket.AF_INET, prefix_length, 0, 0, index_of(name))
    parts = [(_IFA_LOCAL, packed), (_IFA_ADDRESS, packed), (_IFA_BROADCAST, socket.inet_aton(broadcast))]
    send([(_NEWADDR, CREATE | REPLACE, head + b"".join(attribute(kind, data) for kind, data in parts))])


def set_up(name: str, *, alias: str) -> None:
    """Set a link up, with an alias that says whose it is (ip-link(8) shows it)."""
    send([(_NEWLINK, 0, link_head(index_of(name), up=True) + _alias(alias))])


def set_alias(name: str, alias: str) -> None:
    send([(_NEWLINK, 0, link_head(index_of(name)) + _alias(alias))])


def join_bridge(tap: str, bridge: str, *, alias: str) -> None:
    """Put a link on a bridge, as a port that is isolated from the others, and set it up."""
    index = index_of(tap)
    master = attribute(_IFLA_MASTER, struct.pack("=I", index_of(bridge)))
    send(
        [
            (_NEWLINK, 0, link_head(index) + master + _alias(alias)),
            (_SETLINK, 0, _port(index, _wanted(_PORT))),
            # Up last: no frame passes before the port is isolated.
            (_NEWLINK, 0, link_head(index, up=True)),
        ]
    )


def set_mtu(name: str) -> None:
    send([(_NEWLINK, 0, link_head(index_of(name)) + attribute(_IFLA_MTU, struct.pack("=I", MTU)))])


def unblock(tap: str) -> None:
    """Let a port of a bridge pass frames again; one that is down, or that nobody has open, does when that ends."""
    try:
        send([(_SETLINK, 0, _port(index_of(tap), attribute(_BRPORT_STATE, _FORWARDING)))])
    except OSError as error:
        if error.errno != errno.ENETDOWN:
            raise


def _port(index: int, settings: bytes) -> bytes:
    return link_head(index, family=socket.AF_BRIDGE) + attribute(_IFLA_PROTINFO | NESTED, settings)


def _wanted(settings: Mapping[int, tuple[str, bytes]]) -> bytes:
    return b"".join(attribute(kind, value) for kind, (_, value) in settings.items())


class Link(Value):
    """A link of the host: `master` is the index of the bridge that it is a port of.

    `is_open` of a tap: a process has it open, whether the link is up or not. `otherwise`: the settings of a bridge, or
    of a port of one, that are not those of vmm's; `is_blocked`: a port that passes no frames.
    """

    name: str
    index: int
    kind: str
    is_up: bool
    has_carrier: bool
    master: int
    isolated: bool
    is_open: bool
    alias: str
    mac: str
    mtu: int = MTU
    otherwise: tuple[str, ...] = ()
    is_blocked: bool = False


def links() -> dict[str, Link]:
    """Return the host's links by their names. May raise OSError."""
    each = map(_read_link, dump(_GETLINK, link_head(0)))
    return {link.name: link for link in each}


def look(name: str) -> Link | None:
    """Return a link, None when there is none of that name. May raise OSError."""
    mask = attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))
    body = link_head(0) + attribute(_IFLA_IFNAME, name.encode() + b"\0") + mask
    with _connection(socket.NETLINK_ROUTE) as connection:
        connection.send(_HEADER.pack(_HEADER.size + len(body), _GETLINK, _REQUEST, 1, 0) + body)
        for kind, content in messages(connection.recv(1 << 16)):
            if kind != _ERROR:
                return _read_link(content)
            code = -struct.unpack_from("=i", content)[0]
            if code != errno.ENODEV:
                raise OSError(code, os.strerror(code))
    return None


def _read_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK_HEAD.unpack_from(body)
    parts = attributes(body, _LINK_HEAD.size)
    info = attributes(parts.get(_IFLA_LINKINFO, b""))
    is_port = info.get(_IFLA_INFO_SLAVE_KIND) == b"bridge\0"
    port = attributes(info.get(_IFLA_INFO_SLAVE_DATA, b"")) if is_port else {}
    is_bridge = info.get(_IFLA_INFO_KIND) == b"bridge\0"
    own = attributes(info.get(_IFLA_INFO_DATA, b"")) if is_bridge else {}
    return Link(
        name=parts.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace"),
        index=index,
        kind=info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        is_up=bool(flags & _IFF_UP),
        has_carrier=bool(flags & _IFF_LOWER_UP),
        master=struct.unpack("=I", parts.get(_IFLA_MASTER, b"\0\0\0\0"))[0],
        isolated=port.get(_IFLA_BRPORT_ISOLATED) == b"\1",
        is_open=parts.get(_IFLA_CARRIER, b"\1") != b"\0",
        alias=os.fsdecode(parts.get(_IFLA_IFALIAS, b"").rstrip(b"\0")),
        mac=parts.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=struct.unpack("=I", parts.get(_IFLA_MTU, struct.pack("=I", MTU)))[0],
        otherwise=(*_otherwise(port, _PORT), *_otherwise(own, _BRIDGE | _VLANS)),
        is_blocked=port.get(_BRPORT_STATE, _FORWARDING) != _FORWARDING,
    )


def _otherwise(found: Mapping[int, bytes], wanted: Mapping[int, tuple[str, bytes]]) -> list[str]:
    return [name for kind, (name, value) in wanted.items() if found.get(kind, value) != value]


def remove_link(name: str) -> None:
    """Remove a link; none is no error."""
    try:
        send([(_DELLINK, 0, link_head(index_of(name)))])
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
    if error.errno == errno.EROFS:
        return NetworkError(
            brief,
            details=f"/proc/sys is mounted read-only, as in most containers: {error}",
            resolution="Run vmm on the host itself, or where it may: sudo mount -o remount,rw /proc/sys",
        )
    return NetworkError(brief, details=str(error), resolution=_remedy(error))


def _remedy(error: OSError) -> str:
    denied = error.errno in (errno.EPERM, errno.EACCES)
    if denied and os.geteuid() == 0:
        return "This root may not change the network, as in a container: run vmm on the host, or give it CAP_NET_ADMIN."
    if error.errno in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENODEV, errno.ENOENT):
        return "The kernel lacks the device, or the module for it: ip link; sudo modprobe -a bridge tun; sudo dmesg"
    if error.errno in (errno.ENOTTY, errno.ENXIO):
        return "What lies there is not the kernel's device for taps: ls -l /dev/net/tun; sudo modprobe tun; vmm doctor"
    if denied or error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN):
        from vmm.remedy import remedy

        return remedy(error)
    return "See what the kernel says (sudo dmesg) and which links there are (ip -d link), then give the command again."


def link_head(index: int, *, family: int = socket.AF_UNSPEC, up: bool = False) -> bytes:
    flags = _IFF_UP if up else 0
    return _LINK_HEAD.pack(family, 0, index, flags, flags)


def _alias(text: str) -> bytes:
    # linux/if.h: IFALIASZ is 256, with a NUL.
    return attribute(_IFLA_IFALIAS, os.fsencode(text)[:255])


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def send(messages: Sequence[tuple[int, int, bytes]], *, protocol: int = socket.NETLINK_ROUTE) -> None:
    """Send the messages (type, flags, body) at once; raise the first error of their acknowledgements as OSError."""
    with _connection(protocol) as connection:
        batch = b"".join(
            _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, number, 0) + body
            for number, (kind, flags, body) in enumerate(messages, start=1)
        )
        connection.send(batch)
        missing = set(range(1, len(messages) + 1))
        while missing:
            missing -= _acknowledged(connection.recv(65536))


def dump(
    kind: int, body: bytes, *, protocol: int = socket.NETLINK_ROUTE, strict: bool = False
) -> Generator[bytes, None, None]:
    """Give the body of each answer to a request for all; `strict` has the kernel heed what `body` asks for.

    Whoever has seen enough ends the generator, and the kernel's work with it.
    """
    with _connection(protocol) as connection:
        if strict:
            # A kernel before 4.20 knows no better than to give all.
            with contextlib.suppress(OSError):
                connection.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        connection.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, 1, 0) + body)
        while True:
            for found, content in messages(connection.recv(1 << 18)):
                if found == _DONE:
                    return
                if found == _ERROR:
                    code = struct.unpack_from("=i", content)[0]
                    raise OSError(-code, os.strerror(-code))
                yield content


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from `offset` on, by their type; of a type that comes twice the last."""
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _connection(protocol: int) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    connection.settimeout(5.0)
    connection.bind((0, 0))
    return connection


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Give (type, body) of each message in what was received."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


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
