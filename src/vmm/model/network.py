"""Addresses, leases, taps and port forwards: pure arithmetic and rules."""

from __future__ import annotations

from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.errors import ConfigError, ConflictError, UsageError
from vmm.model.sizes import parse_whole
from vmm.model.value import Value
from vmm.model.words import quoted

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Collection, Sequence


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class Subnet(Value):
    """The machines' network. `cidr` such as `172.16.0.0/16`; `gateway` is the bridge's own address in it."""

    cidr: str
    gateway: str

    @property
    def network(self) -> ipaddress.IPv4Network:
        # Here and below imported where it is used: a listing and a start never need it, and it takes a millisecond.
        from ipaddress import IPv4Network

        return IPv4Network(self.cidr)

    @property
    def prefix_length(self) -> int:
        return int(self.cidr.partition("/")[2])

    @property
    def netmask(self) -> str:
        mask = (1 << 32) - (1 << 32 - self.prefix_length)
        return ".".join(str(byte) for byte in mask.to_bytes(4))

    def holds(self, address: str) -> bool:
        """Whether a machine may have this address: none of the network's own, the gateway's and the broadcast."""
        last = (1 << 32 - self.prefix_length) - 1
        return 0 < place_in(self, address) < last and address != self.gateway


class Lease(Value):
    """The address, MAC and tap that one machine holds from create to delete."""

    address: str
    mac: str
    tap: str


class Resolution(Value):
    """How names are resolved: addresses of servers, domains that are searched, options (resolv.conf(5)).

    `unusable`: servers that the host has and machines cannot ask, where it has no other. `is_fallback`: it names none
    that they can, and these are vmm's own choice.
    """

    servers: tuple[str, ...]
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    is_fallback: bool = False

    @property
    def text(self) -> str:
        """What a machine's resolv.conf says."""
        lines = [f"nameserver {server}" for server in self.servers]
        lines += [f"search {' '.join(self.search)}"] if self.search else []
        return "\n".join([*lines, *([f"options {' '.join(self.options)}"] if self.options else [])])


class PortForward(Value):
    """A port of the host that leads to a port of a machine. `host_address` 0.0.0.0 means every address of the host."""

    machine: str
    protocol: Protocol
    host_address: str = "0.0.0.0"  # noqa: S104  # the field's default for published ports; a narrower one can be given
    host_port: int
    guest_port: int


# What no machine can have an address of (RFC 6890's special purposes): this network, loopback, link-local, the IETF's
# own, multicast, and what is reserved up to the broadcast to all.
_NO_SUBNETS = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4")
_PREFIXES = (8, 30)


def checked_subnet(cidr: str, gateway: str = "") -> Subnet:
    """Return the subnet, or raise ConfigError when it cannot be the machines'.

    It must hold a gateway and one machine, and have addresses that hosts may have. Without `gateway`, that is the
    first of them.
    """
    import ipaddress

    named = f" with gateway {quoted(gateway)}" if gateway else ""
    try:
        network = ipaddress.IPv4Network(cidr)
        address = ipaddress.IPv4Address(gateway) if gateway else network.network_address + 1
    except ValueError as error:
        raise _no_subnet(f"{quoted(cidr)}{named}", str(error)) from error
    if not _PREFIXES[0] <= network.prefixlen <= _PREFIXES[1]:
        raise _no_subnet(cidr, f"It must be from a /{_PREFIXES[0]} (the largest) to a /{_PREFIXES[1]} (the smallest).")
    for special in _NO_SUBNETS:
        if network.overlaps(ipaddress.IPv4Network(special)):
            raise _no_subnet(cidr, f"{special} is no range that machines may have addresses of (RFC 6890).")
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise _no_subnet(
            f"{cidr}{named}",
            f"The gateway is the host's own address in the subnet: not {network.network_address},"
            f" not {network.broadcast_address}, and between them.",
        )
    return Subnet(cidr=str(network), gateway=str(address))


def checked_networks(texts: Sequence[str]) -> tuple[str, ...]:
    """Return networks as nft takes them, those within another left out; ConfigError for what is none."""
    import ipaddress

    try:
        named = [ipaddress.IPv4Network(text) for text in texts]
    except ValueError as error:
        raise ConfigError(
            "An allowed network cannot be used.",
            details=str(error),
            resolution="Give IPv4 networks: vmm config set allowed_networks 10.8.0.0/24,192.168.7.20/32",
        ) from error
    return tuple(str(network) for network in ipaddress.collapse_addresses(named))


def _no_subnet(what: str, why: str) -> ConfigError:
    return ConfigError(
        f"The subnet {what} cannot be used.",
        details=why,
        resolution="Choose a private one: sudo vmm config set subnet 172.16.0.0/16 gateway 172.16.0.1",
    )


def lease_for(address: ipaddress.IPv4Address) -> Lease:
    """Derive MAC and tap name from the address: both are unique because addresses are.

    The MAC is `06:00:` (locally administered, unicast) and the four address bytes.
    """
    octets = address.packed
    return Lease(
        address=str(address),
        mac="06:00:" + ":".join(f"{byte:02x}" for byte in octets),
        tap=f"vmm-{octets.hex()}",
    )


def place_in(subnet: Subnet, address: str) -> int:
    """Return which address of the subnet this is: 0 for the network's own."""
    return _number(address) - _number(subnet.cidr.partition("/")[0])


def _number(address: str) -> int:
    return int.from_bytes(bytes(map(int, address.split("."))))


def free_address(subnet: Subnet, taken: Collection[int]) -> ipaddress.IPv4Address:
    """Return the lowest free host address; `taken` are addresses as integers. ConflictError when there is none."""
    import ipaddress

    network = subnet.network
    gateway = int(ipaddress.IPv4Address(subnet.gateway))
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    for candidate in range(first, last + 1):
        if candidate != gateway and candidate not in taken:
            return ipaddress.IPv4Address(candidate)
    raise ConflictError(
        f"Every address of {subnet.cidr} is taken.",
        details=f"{len(taken)} machines hold a lease; an address stays with its machine until the machine is deleted.",
        resolution="Delete a machine (vmm list, vmm delete NAME).",
    )


def parse_forward(machine: str, text: str, protocol: Protocol = Protocol.TCP) -> PortForward:
    """Read `[HOST_ADDRESS:]HOST_PORT:GUEST_PORT[/PROTOCOL]`; raise UsageError when it is none."""
    ports, slash, named = text.partition("/")
    parts = ports.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError("it has no ':' between two ports" if len(parts) == 1 else "it has too many parts")
        host_address = _address(parts.pop(0)) if len(parts) == 3 else "0.0.0.0"  # noqa: S104
        host_port, guest_port = _port(parts[0]), _port(parts[1])
        if slash and named.lower() not in (*Protocol,):
            raise ValueError(f"{quoted(named)} is neither tcp nor udp")
        chosen = Protocol(named.lower()) if slash else protocol
    except ValueError as error:
        raise UsageError(
            f"{quoted(text)} is not a port forward.",
            details=f"A forward is HOST_PORT:GUEST_PORT, each from 1 to 65535; {error}.",
            resolution="Write it such as 8080:80, 127.0.0.1:8080:80 or 5353:53/udp.",
        ) from error
    return PortForward(
        machine=machine, protocol=chosen, host_address=host_address, host_port=host_port, guest_port=guest_port
    )


def checked_resolver(text: str) -> str:
    """Return `text` when it is an IPv4 or IPv6 address of a resolver; raise UsageError otherwise."""
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
        # What follows a % may be anything at all, and names a link of the one who typed it.
        if "%" in text:
            raise ValueError(f"{quoted(text)} names a link as well")
        if address.is_multicast or (address.version == 4 and address.is_reserved):
            raise ValueError(f"{text} is no server's: it is for groups of receivers, or reserved")
        return str(address)
    except ValueError as error:
        raise UsageError(
            f"{quoted(text)} is not the address of a resolver.",
            details=str(error),
            resolution="Write it such as --dns 1.1.1.1.",
        ) from error


def _address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise ValueError(f"{quoted(text)} is no IPv4 address") from error


def _port(text: str) -> int:
    number = parse_whole(text)
    if number is None or not 1 <= number <= 65535:
        raise ValueError(f"{quoted(text)} is no port")
    return number
