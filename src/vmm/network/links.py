"""The bridge and the taps."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import NetworkError
from vmm.host import process
from vmm.model.network import Subnet, lease_for
from vmm.network import netlink, policy, tap_filter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Network

    from vmm.model.network import Lease

# linux/if_tun.h and linux/sockios.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFF_UP = 0x1
_ROUTES = Path("/proc/net/route")
_SYSCTL = Path("/proc/sys/net/ipv4")
_SYSCTL_6 = Path("/proc/sys/net/ipv6/conf")


def bridge_is_whole(name: str, subnet: Subnet) -> bool:
    """Whether the bridge is there, up, has its address, and is closed: two ioctls and a look at the routing rules."""
    request = struct.pack("=16s24x", name.encode())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            flags = struct.unpack_from("=H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)[0]
            address = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
        closes = policy.stand(name, subnet)
    except OSError:
        # Whatever keeps us from looking is told by whoever mends it.
        return False
    return bool(flags & _IFF_UP) and address == subnet.gateway and closes


def mend_bridge(name: str, subnet: Subnet) -> None:
    """Make the bridge, or what it lacks of address and being up; and let the host forward.

    Raises:
        NetworkError: the subnet is in use elsewhere on the host, or the kernel refuses.
    """
    from ipaddress import IPv4Address

    gateway = IPv4Address(subnet.gateway)
    try:
        if not _exists(name):
            _refuse_clash(name, subnet.network)
            # A MAC of its own: a bridge without one takes its ports', and changes it as machines come and go.
            mac = bytes.fromhex(lease_for(gateway).mac.replace(":", ""))
            with contextlib.suppress(FileExistsError):
                netlink.make_bridge(name, mac)
            # Someone removed it under running machines: they get their cable back.
            for tap in taps():
                connect(lease_for(IPv4Address(bytes.fromhex(tap.removeprefix("vmm-")))), name)
        _without_ipv6(name)
        netlink.bridge_group_frames(name)
        netlink.set_up(name)
        netlink.add_address(name, subnet.gateway, subnet.prefix_length, str(subnet.network.broadcast_address))
        (_SYSCTL / "ip_forward").write_text("1", encoding="ascii")
        for key in ("accept_redirects", "send_redirects"):
            (_SYSCTL / "conf" / name / key).write_text("0", encoding="ascii")
        policy.mend(name, subnet)
    except OSError as error:
        raise netlink.told(error, f"The bridge {name} cannot be made.") from error


def route_localnet(bridge: str, *, on: bool) -> None:
    """Let answers to 127.0.0.0/8 come in over the bridge, which forwards from localhost need, or keep them out."""
    try:
        (_SYSCTL / "conf" / bridge / "route_localnet").write_text("1" if on else "0", encoding="ascii")
    except FileNotFoundError:
        # Without its bridge nothing comes in over it.
        if on:
            raise
    except OSError as error:
        raise netlink.told(error, f"Whether {bridge} takes answers to localhost cannot be set.") from error


def routes_localnet(bridge: str) -> bool:
    try:
        return (_SYSCTL / "conf" / bridge / "route_localnet").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def make_tap(lease: Lease, bridge: str, *, uid: int) -> None:
    """Make a tap that stays, and put it on the bridge, isolated from the other ports. Only root and `uid` may open it.

    It lets in only what its machine may send: `tap_filter`.

    Raises:
        NetworkError: there is no /dev/net/tun, the tap is in use, or the kernel refuses.
    """
    tap = lease.tap
    try:
        # No child of ours may have it open a moment longer than we do: it would be busy for the engine. And one at a
        # time, because the sysctl of a link takes the kernel's lock on all links by trying again and again: 50 taps by
        # 50 threads took 300 ms and more, one after the other 20.
        with process.forking:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            try:
                # Both engines open it with these flags; a tap with others would be refused to them.
                request = struct.pack("=16sH22x", tap.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
                fcntl.ioctl(fd, _TUNSETIFF, request)
                # Without an owner, any user of the host may attach to a tap that no one has open.
                fcntl.ioctl(fd, _TUNSETOWNER, uid)
                fcntl.ioctl(fd, _TUNSETPERSIST, 1)
            finally:
                os.close(fd)
            connect(lease, bridge)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise NetworkError(
                f"The tap {tap} is in use.",
                details="Another process has it open.",
                resolution=f"See which: grep -l {tap} /proc/[0-9]*/fdinfo/*; end it, then try again.",
            ) from error
        raise netlink.told(error, f"The tap {tap} cannot be made.") from error


def connect(lease: Lease, bridge: str) -> None:
    """Put a tap that is there on its bridge as it should be. May raise OSError."""
    _without_ipv6(lease.tap)
    tap_filter.attach(netlink.index_of(lease.tap), lease)
    netlink.join_bridge(lease.tap, bridge)


def tap_differences(lease: Lease, bridge: str, known: Mapping[str, netlink.Link]) -> list[str]:
    """Return what of a running machine's tap is not as it was made, a sentence each; `known` are the host's links."""
    tap, link, master = lease.tap, known.get(lease.tap), known.get(bridge)
    if link is None:
        return [f"the tap {tap} is gone"]
    if link.kind != "tun":
        return [f"the link {tap} is no tap"]
    if not link.has_carrier and link.is_up:
        return [f"the tap {tap} is not the one that its machine has open"]
    lacks = {
        f"the tap {tap} was down": not link.is_up,
        f"the tap {tap} was off the bridge": master is not None and link.master != master.index,
        f"the tap {tap} was not isolated": not link.isolated and master is not None and link.master == master.index,
        f"the tap {tap} had IPv6 on": has_ipv6(tap),
        f"the tap {tap} lacked its filter": not _is_filtered(link.index, lease),
    }
    return [what for what, is_so in lacks.items() if is_so]


def _is_filtered(index: int, lease: Lease) -> bool:
    try:
        # Where the kernel has no such filters, none is missing.
        return tap_filter.is_attached(index, lease) or not tap_filter.attach(index, lease)
    except OSError:
        return False


def remove_link(name: str) -> None:
    """Remove a tap or bridge; none is no error."""
    try:
        netlink.remove_link(name)
    except OSError as error:
        raise netlink.told(error, f"The link {name} cannot be removed.") from error


def taps() -> list[str]:
    """Return the names of vmm's taps on this host."""
    try:
        names = [name for _, name in socket.if_nameindex()]
    except OSError as error:
        raise netlink.told(error, "This host's links cannot be listed.") from error
    return [name for name in names if name.startswith("vmm-") and _is_tap_name(name)]


def _without_ipv6(name: str) -> None:
    """Keep the host from speaking IPv6 on a link: machines have none, and so even without a firewall it hears none."""
    # A kernel without IPv6 has nothing to switch off.
    with contextlib.suppress(FileNotFoundError):
        (_SYSCTL_6 / name / "disable_ipv6").write_text("1", encoding="ascii")


def has_ipv6(name: str) -> bool:
    """Whether the host speaks IPv6 on a link."""
    try:
        return (_SYSCTL_6 / name / "disable_ipv6").read_text(encoding="ascii").strip() == "0"
    except OSError:
        return False


def _is_tap_name(name: str) -> bool:
    suffix = name.removeprefix("vmm-")
    return len(suffix) == 8 and all(letter in "0123456789abcdef" for letter in suffix)


def _exists(name: str) -> bool:
    try:
        netlink.index_of(name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


def _refuse_clash(name: str, network: IPv4Network) -> None:
    """Refuse a subnet that the host reaches some other way: a VPN, a LAN, Docker's networks."""
    from ipaddress import IPv4Address, IPv4Network

    for line in _ROUTES.read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        address = IPv4Address(socket.ntohl(int(fields[1], 16)))
        mask = IPv4Address(socket.ntohl(int(fields[7], 16)))
        other = IPv4Network(f"{address}/{mask}")
        # A VPN that takes everything often writes its default route as two halves.
        if fields[0] == name or other.prefixlen <= 1:
            continue
        if other.overlaps(network):
            raise NetworkError(
                f"The machines' subnet {network} is in use on this host.",
                details=f"The route to {other} goes over {fields[0]}.",
                resolution="Choose a free one: sudo vmm config set subnet 10.77.0.0/16 gateway 10.77.0.1",
            )


def host_forwards() -> bool:
    """Whether the host forwards IPv4."""
    try:
        return (_SYSCTL / "ip_forward").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def is_root() -> bool:
    """Whether this process may change links and rules, as far as its user tells."""
    return os.geteuid() == 0
