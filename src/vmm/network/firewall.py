"""The firewall: one nftables table `vmm` a family, rendered whole in one transaction, changed by elements only.

The cost of a start or stop so does not grow with the number of machines. What the rules promise:

- machines reach the world, masqueraded, and nothing reaches them but answers and forwards;
- a machine reaches no other machine: its bridge port is isolated, and what goes round over the gateway is dropped;
- a machine reaches no port of the host (it may ping it), none that others publish there, and no cloud metadata;
- it reaches the way out of the host, and none of the host's other networks but those that are allowed;
- it has a bounded number of connections, and its ICMP errors touch its own alone;
- a machine sends with its own MAC and address, and nothing but IPv4 and ARP;
- a forward takes only what is addressed to the host itself: forwarding port 443 leaves the machines' own HTTPS alone;
- a forward is for the world and the host: a machine reaches no other machine's published port.
"""

from __future__ import annotations

import _thread
from enum import Enum
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError, NetworkError
from vmm.host import process
from vmm.model.value import Value
from vmm.network import tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm.model.network import Lease, PortForward, Subnet

_IPV6 = Path("/proc/sys/net/ipv6")
_ANY = "0.0.0.0"  # noqa: S104  # how forwards write "every address of the host"


class Whose(Enum):
    """Whose the tables of vmm's names are. BEFORE: of a version that did not say; OTHER: of another data directory."""

    NOBODYS = "nobody's"
    OURS = "ours"
    BEFORE = "before"
    OTHER = "other"
    FOREIGN = "foreign"


class Firewall(Value):
    """The rules for one bridge and subnet.

    `owner` names a chain without rules that stands in our tables and in no one else's: what changes them by elements
    names it too, and so comes to nothing where the tables are another's.

    `uplinks` are the interfaces that lead out of the host, `allowed` networks that machines reach over any other one,
    `resolvers` addresses that they may ask for names wherever these lie, the host itself included; `connections` is the
    most that one machine may have at a time.
    """

    bridge: str
    subnet: Subnet
    owner: str
    uplinks: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()
    connections: int = 8192

    def replace(self, attached: Iterable[tuple[Lease, Sequence[PortForward]]]) -> None:
        """Replace the tables by what these machines need, in one transaction."""
        elements = [line for lease, forwards in attached for line in _elements("add", lease, forwards)]
        _nft(self._tables() + "\n".join([*self._ways(), *elements]) + "\n")

    def whose(self) -> Whose:
        """Return whose the tables are that stand."""
        # Each with what it has had in every version.
        known = (("ip", "map ports_at"), ("bridge", "set senders"), ("ip6", "chain prerouting"))
        found = {_whose(family, mark, self.owner) for family, mark in known}
        # What is someone else's must not be touched, whatever the other tables are.
        order = (Whose.FOREIGN, Whose.OTHER, Whose.BEFORE, Whose.OURS)
        return next((one for one in order if one in found), Whose.NOBODYS)

    def differences(self, attached: Iterable[tuple[Lease, Sequence[PortForward]]]) -> list[str]:
        """Return what of the tables is not as these machines need it, a sentence each."""
        from vmm.network import inspection

        names = (("ip", "machines"), ("ip", "own"), ("ip", "ports"), ("ip", "ports_at"), ("bridge", "senders"))
        wanted: inspection.Elements = {name: set() for name in names}
        wanted["ip", "uplinks"] = {(name,) for name in self.uplinks}
        wanted["ip", "resolvers"] = {(address,) for address in self.resolvers}
        for lease, forwards in attached:
            wanted["ip", "machines"].add((lease.address,))
            wanted["ip", "own"].add((lease.address, lease.address))
            wanted["bridge", "senders"].add((lease.tap, lease.mac, lease.address))
            for forward in forwards:
                target = (lease.address, str(forward.guest_port))
                if forward.host_address == _ANY:
                    wanted["ip", "ports"].add((forward.protocol.value, str(forward.host_port), *target))
                else:
                    key = (forward.protocol.value, forward.host_address, str(forward.host_port))
                    wanted["ip", "ports_at"].add((*key, *target))
        text = self._tables()
        return inspection.differences(wanted, tables.rule_counts(text), tables.hooks(text), inspection.rules_of(text))

    def _tables(self) -> str:
        return tables.rendered(
            owner=self.owner,
            bridge=self.bridge,
            subnet=self.subnet,
            allowed=self.allowed,
            connections=self.connections,
            ipv6=_has_ipv6(),
        )

    def _if_current(self) -> str:
        """Return a command that fails, with all that is done with it, where other tables stand than these."""
        return f"add element ip vmm {tables.stamp(self._tables())} {{ 0 }}"

    def _ways(self) -> list[str]:
        lines = [f'add element ip vmm uplinks {{ "{name}" }}' for name in self.uplinks]
        return [*lines, *(f"add element ip vmm resolvers {{ {address} }}" for address in self.resolvers)]

    def begin_admit(self, lease: Lease, forwards: Sequence[PortForward]) -> Callable[[], bool]:
        """Begin to add one machine's elements, and return what waits for the end of it.

        That returns False when the tables are not there, are of another configuration, or hold something else of that
        name.
        """
        # Named again, a table that someone has put to sleep (`flags dormant`) is awake.
        awake = ("add table ip vmm", "add table bridge vmm")
        lines = (*self._ours(), *awake, self._if_current(), *self._ways(), *_elements("add", lease, forwards))
        try:
            begun = process.begin(["nft", "-f", "-"], stdin="\n".join(lines) + "\n")
        except HostError as error:
            raise _no_nft(error) from error
        return lambda: begun.finish() == 0

    def dismiss(self, lease: Lease, forwards: Sequence[PortForward]) -> bool:
        """Remove one machine's elements; False when the tables are not there.

        nft refuses to delete what is not there; added in the same transaction it always is.
        """
        # Who has had a connection is counted as well.
        counted = f"element ip vmm flows {{ {lease.address} }}"
        lines = [
            line for verb in ("add", "delete") for line in (*_elements(verb, lease, forwards), f"{verb} {counted}")
        ]
        return _worked_together("\n".join([*self._ours(), *lines]))

    def open(self, lease: Lease, forward: PortForward) -> bool:
        return _nft_worked("\n".join((*self._ours(), _forward("add", lease, forward))))

    def close(self, lease: Lease, forward: PortForward) -> bool:
        lines = (*self._ours(), _forward("add", lease, forward), _forward("delete", lease, forward))
        return _nft_worked("\n".join(lines))

    def _ours(self) -> tuple[str, ...]:
        # Nothing where they are ours; an error, and with it none of the rest, where they are not.
        return (f"flush chain ip vmm {self.owner}", f"flush chain bridge vmm {self.owner}")

    def renew_ways(self) -> bool:
        """Make ways out and resolvers what they are now; False when the tables are not there."""
        return _nft_worked(
            "\n".join([*self._ours(), "flush set ip vmm uplinks", "flush set ip vmm resolvers", *self._ways()])
        )

    def remove(self) -> None:
        """Remove the tables, unless they are someone else's."""
        if self.whose() in (Whose.OTHER, Whose.FOREIGN):
            return
        _nft(tables.removal(ipv6=_has_ipv6()))


def _whose(family: str, mark: str, owner: str) -> Whose:
    # A start asks this only where its own elements found no place.
    from vmm.network.listing import OWNER, listed

    try:
        # Without what is in its sets and maps, which may be thousands.
        found = listed(family, "--terse")
    except HostError as error:
        raise _no_nft(error) from error
    if found is None:
        return Whose.NOBODYS
    # Beside one who makes the tables anew without end, each listing may have everything twice.
    owners = set(OWNER.findall(found))
    if owners:
        return Whose.OURS if owners == {owner} else Whose.OTHER
    return Whose.BEFORE if mark in found else Whose.FOREIGN


def _has_ipv6() -> bool:
    return _IPV6.exists()


def _elements(verb: str, lease: Lease, forwards: Sequence[PortForward]) -> list[str]:
    # One in each table: nothing is added where one of them is not there.
    sender = f"{verb} element bridge vmm senders {{ {lease.tap} . {lease.mac} . {lease.address} }}"
    machine = f"{verb} element ip vmm machines {{ {lease.address} }}"
    own = f"{verb} element ip vmm own {{ {lease.address} . {lease.address} }}"
    return [sender, machine, own, *(_forward(verb, lease, forward) for forward in forwards)]


def _forward(verb: str, lease: Lease, forward: PortForward) -> str:
    target = f"{lease.address} . {forward.guest_port}"
    if forward.host_address == _ANY:
        return f"{verb} element ip vmm ports {{ {forward.protocol} . {forward.host_port} : {target} }}"
    key = f"{forward.protocol} . {forward.host_address} . {forward.host_port}"
    return f"{verb} element ip vmm ports_at {{ {key} : {target} }}"


class _Wish:
    """Commands that one thread wants done; `worked` is None until they were tried."""

    def __init__(self, commands: str) -> None:
        self.commands = commands
        self.worked: bool | None = None


_turn = _thread.allocate_lock()
_waiting: list[_Wish] = []


def _worked_together(commands: str) -> bool:
    """Do what nft is given here; what other threads of this command want meanwhile is done by one nft for all of them.

    Fifty machines that are stopped at once would start it fifty times otherwise.
    """
    mine = _Wish(commands)
    _waiting.append(mine)
    with _turn:
        if mine.worked is None:
            count = len(_waiting)
            # Ours is not among them where another was interrupted while it did it for us.
            batch = [mine, *(wish for wish in _waiting[:count] if wish is not mine)]
            del _waiting[:count]
            worked = _nft_worked("\n".join(wish.commands for wish in batch))
            for wish in batch:
                # One that cannot be done keeps no other from it.
                wish.worked = worked or (len(batch) > 1 and _nft_worked(wish.commands))
        return mine.worked is True


def _nft_worked(commands: str) -> bool:
    return _run(commands, check=False) == 0


def _nft(commands: str) -> None:
    _run(commands, check=True)


def _run(commands: str, *, check: bool) -> int:
    try:
        done = process.run(["nft", "-f", "-"], stdin=commands + "\n", timeout_s=30, check=False)
    except HostError as error:
        raise _no_nft(error) from error
    if check and done.code != 0:
        raise NetworkError(
            "The firewall cannot be set.",
            details=done.words,
            resolution="Check that this kernel has nftables, with its bridge family: vmm doctor",
        )
    return done.code


def _no_nft(error: HostError) -> NetworkError:
    missing = isinstance(error.__cause__, FileNotFoundError)
    resolution = "sudo apt-get install nftables" if missing else error.resolution
    return NetworkError(error.brief, details=error.details, resolution=resolution)
