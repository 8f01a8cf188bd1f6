"""Connections that the kernel remembers (conntrack): forgotten when what they belonged to is gone or leads elsewhere.

The kernel goes on translating a flow as it began: a forward that was removed would still deliver, one that was added
never meet a sender who does not stop, and a new machine get what was for its predecessor at the same address.
"""

from __future__ import annotations

import _thread
import contextlib
import socket
import struct

from vmm import TYPE_CHECKING
from vmm.model.network import Protocol
from vmm.model.value import Value
from vmm.network import netlink
from vmm.network.netlink import NESTED, attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmm.model.network import Lease, PortForward

# linux/netfilter/nfnetlink_conntrack.h
_GET, _DELETE = 0x101, 0x102
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTO = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _FROM, _TO = 1, 2, 3
_BY_ORIGINAL, _BY_REPLY = 1, 2
_F_SOURCE, _F_DESTINATION, _F_NUMBER, _F_TO = 1 << 0, 1 << 1, 1 << 3, 1 << 5
_HEAD = struct.pack("=BBH", socket.AF_INET, 0, 0)
_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}
_ANY = "0.0.0.0"  # noqa: S104  # how forwards write "every address of the host"
_GETADDR = 22
_IFA_LOCAL = 2


class _Way(Value):
    """One direction of a connection."""

    source: bytes
    destination: bytes
    protocol: int
    from_port: int
    to_port: int


class _Entry(Value):
    """One connection. `key` is what the kernel knows it by."""

    original: _Way
    reply: _Way
    key: bytes


_turn = _thread.allocate_lock()
_waiting: list[bytes] = []


def forget_machine(lease: Lease) -> None:
    """Forget every connection from and to a machine's address.

    The kernel walks its whole table for a question, 12 ms on a large host. So threads that ask meanwhile are served by
    one walk: fifty machines that are stopped at once would make a hundred.
    """
    own = socket.inet_aton(lease.address)
    _waiting.append(own)
    with _turn:
        # Whoever had the turn before may have done it for us.
        if own in _waiting:
            _forget({_waiting.pop() for _ in range(len(_waiting))})


def _forget(addresses: set[bytes]) -> None:
    if len(addresses) == 1:
        wish = _ip(_SOURCE, *addresses)
        found = [*_entries(original=(wish, _F_SOURCE)), *_entries(reply=(wish, _F_SOURCE))]
    else:
        found = list(_entries())
    _delete(found, lambda entry: not addresses.isdisjoint((entry.original.source, entry.reply.source)))


def forget_forward(lease: Lease, forward: PortForward) -> None:
    """Forget the connections that came in by a forward."""
    own, number = socket.inet_aton(lease.address), _NUMBERS[forward.protocol]

    def belongs(entry: _Entry) -> bool:
        came, answers = entry.original, entry.reply
        leads = (answers.source, answers.from_port) == (own, forward.guest_port) and came.destination != own
        return leads and (came.protocol, came.to_port) == (number, forward.host_port)

    _delete(_entries(reply=(_ip(_SOURCE, own), _F_SOURCE)), belongs)


def forget_before(lease: Lease, forwards: Iterable[PortForward]) -> None:
    """Forget the flows to ports of the host that lead to the machine from now on, and do not yet.

    Those of UDP, whose sender need never stop: a TCP connection to a port where nobody listened has ended.
    """
    own, local = socket.inet_aton(lease.address), None
    for forward in forwards:
        if forward.protocol is not Protocol.UDP:
            continue
        local = _local_addresses() if local is None else local
        number = _NUMBERS[forward.protocol]
        places = local if forward.host_address == _ANY else {socket.inet_aton(forward.host_address)}

        def belongs(entry: _Entry, *, number: int = number, port: int = forward.host_port, places: set[bytes] = places):  # noqa: ANN202
            came = entry.original
            at_port = (came.protocol, came.to_port) == (number, port) and came.destination in places
            return at_port and entry.reply.source != own

        wish = _port(number, forward.host_port)
        _delete(_entries(original=(wish, _F_NUMBER | _F_TO)), belongs)


def forget_strangers(leases: Iterable[Lease]) -> None:
    """Forget what came to these machines' own addresses from anyone but the host.

    The rules let none of it begin; what began while they were away they would take for a connection that goes on.
    """
    local = None
    for lease in leases:
        own = socket.inet_aton(lease.address)
        found = [each for each in _entries(reply=(_ip(_SOURCE, own), _F_SOURCE)) if each.original.destination == own]
        if found:
            known = local = _local_addresses() if local is None else local
            _delete(found, lambda entry, known=known: entry.original.source not in known)


def _ip(end: int, address: bytes) -> bytes:
    return attribute(_IP | NESTED, attribute(end, address))


def _port(number: int, port: int) -> bytes:
    return attribute(_PROTO | NESTED, attribute(_NUMBER, bytes([number])) + attribute(_TO, struct.pack("!H", port)))


def _entries(*, original: tuple[bytes, int] | None = None, reply: tuple[bytes, int] | None = None) -> Iterator[_Entry]:
    """Give the connections with these parts; a kernel before 5.8 gives all, so each is to be looked at."""
    body = _HEAD
    flags = b""
    for kind, by, wish in ((_ORIGINAL, _BY_ORIGINAL, original), (_REPLY, _BY_REPLY, reply)):
        if wish:
            body += attribute(kind | NESTED, wish[0])
        flags += attribute(by, struct.pack("=I", wish[1] if wish else 0))
    if original or reply:
        body += attribute(_FILTER | NESTED, flags)
    for answer in netlink.dump(_GET, body, protocol=netlink.NETFILTER):
        found = netlink.attributes(answer, len(_HEAD))
        if _ORIGINAL in found and _REPLY in found:
            key = attribute(_ORIGINAL | NESTED, found[_ORIGINAL])
            key += b"".join(attribute(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
            yield _Entry(original=_way(found[_ORIGINAL]), reply=_way(found[_REPLY]), key=key)


def _way(data: bytes) -> _Way:
    parts = netlink.attributes(data)
    ends, proto = netlink.attributes(parts.get(_IP, b"")), netlink.attributes(parts.get(_PROTO, b""))

    def port(kind: int) -> int:
        return struct.unpack("!H", proto[kind])[0] if kind in proto else 0

    return _Way(
        source=ends.get(_SOURCE, b""),
        destination=ends.get(_DESTINATION, b""),
        protocol=proto.get(_NUMBER, b"\0")[0],
        from_port=port(_FROM),
        to_port=port(_TO),
    )


def _delete(entries: Iterable[_Entry], belongs: Callable[[_Entry], bool]) -> None:
    for entry in [entry for entry in entries if belongs(entry)]:
        # One that has ended meanwhile is what was wanted.
        with contextlib.suppress(FileNotFoundError):
            netlink.send([(_DELETE, 0, _HEAD + entry.key)], protocol=netlink.NETFILTER)


def _local_addresses() -> set[bytes]:
    """Return the host's own addresses, all of 127.0.0.0/8 not among them but 127.0.0.1."""
    body = struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)
    found = (netlink.attributes(answer, len(body)) for answer in netlink.dump(_GETADDR, body))
    return {parts[_IFA_LOCAL] for parts in found if _IFA_LOCAL in parts}
