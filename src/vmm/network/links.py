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
from vmm.network import netlink

if TYPE_CHECKING:
    from ipaddress import IPv4Network

# linux/if_tun.h and linux/sockios.h
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFF_UP = 0x1
_ROUTES = Path("/proc/net/route")
_SYSCTL = Path("/proc/sys/net/ipv4")
_SYSCTL_6 = Path("/proc/sys/net/ipv6/conf")


def bridge_is_whole(name: str, subnet: Subnet) -> bool:
    """Whether the bridge is there, up and has its address: two ioctls."""
    request = struct.pack("=16s24x", name.encode())
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            flags = struct.unpack_from("=H", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)[0]
            address = socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24])
    except OSError:
        # Whatever keeps us from looking is told by whoever mends it.
        return False
    return bool(flags & _IFF_UP) and address == subnet.gateway


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
                netlink.join_bridge(tap, name)
        _without_ipv6(name)
        netlink.bridge_group_frames(name)
        netlink.set_up(name)
        netlink.add_address(name, subnet.gateway, subnet.prefix_length, str(subnet.network.broadcast_address))
        (_SYSCTL / "ip_forward").write_text("1", encoding="ascii")
        # Forwards from localhost: their packets come back over the bridge with an address of 127.0.0.0/8.
        (_SYSCTL / "conf" / name / "route_localnet").write_text("1", encoding="ascii")
    except OSError as error:
        raise netlink.told(error, f"The bridge {name} cannot be made.") from error


def make_tap(tap: str, bridge: str, *, uid: int) -> None:
    """Make a tap that stays, and put it on the bridge, isolated from the other ports. Only root and `uid` may open it.

    Raises:
        NetworkError: there is no /dev/net/tun, the tap is in use, or the kernel refuses.
    """
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
            _without_ipv6(tap)
            netlink.join_bridge(tap, bridge)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise NetworkError(
                f"The tap {tap} is in use.",
                details="Another process has it open.",
                resolution=f"See which: grep -l {tap} /proc/[0-9]*/fdinfo/*; end it, then try again.",
            ) from error
        raise netlink.told(error, f"The tap {tap} cannot be made.") from error


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
