"""Before vmm changes anything of a host's network: whether that is this vmm's to change."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.errors import NetworkError
from vmm.network import links, netlink, ownership, policy
from vmm.network.firewall import Whose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from vmm.model.network import Subnet
    from vmm.network.firewall import Firewall
    from vmm.network.netlink import Link
    from vmm.network.ownership import Owner


def refuse_foreign(
    owner: Owner, name: str, subnet: Subnet, firewall: Firewall, known: Callable[[], Collection[str]]
) -> None:
    """Raise NetworkError unless bridge, taps and tables are this vmm's, or are not there; nothing is changed.

    `known` returns the taps of the machines that run: by them what the version before made is known.
    """
    found = links.every()
    for other in _others(owner, found):
        taken = ownership.living(other, found)
        if taken or not ownership.is_gone(other, owner):
            first = next(link.name for link in found if ownership.owner_of(link.alias) == other)
            raise ownership.refused(other, what=f"The link {taken[0] if taken else first}")
    bridge = next((link for link in found if link.name == name), None)
    if bridge is not None and not owner.has_made(bridge) and ownership.owner_of(bridge.alias) is None:
        _refuse_unless_before(bridge, subnet, found)
    strangers = {link.name for link in found if is_unmarked_tap(link) and link.is_open}
    if strangers and not strangers <= set(known()):
        raise _unknown_tap(min(strangers - set(known())))
    refuse_moved(owner, name, subnet, found)
    if firewall.whose() is Whose.FOREIGN:
        raise NetworkError(
            "A firewall table `vmm` of this host is not vmm's.",
            details="Someone else made a table of that name, of ip, ip6 or bridge. It was left alone.",
            resolution="See which (sudo nft list tables; sudo nft list table FAMILY vmm). Whoever made it gives it"
            " another name; if nobody needs it: sudo nft delete table FAMILY vmm",
        )


def take(owner: Owner, name: str, subnet: Subnet) -> None:
    """Remove what vmms that are gone left, and an own bridge of another name or subnet; mark taps that bear no mark."""
    found = links.every()
    old = [link for link in _own(owner, name, found) if _is_of_other(link, subnet) and not _open_ports(link, found)]
    for link in [*_old_bridges(owner, name, found), *old]:
        links.remove_link(link.name)
        try:
            policy.remove(link.name)
        except OSError as error:
            raise netlink.told(error, "The routing rules of the old bridge cannot be removed.") from error
    for other in _others(owner, found):
        for link in found:
            if ownership.owner_of(link.alias) == other:
                links.remove_link(link.name)
    for link in found:
        if is_unmarked_tap(link):
            try:
                netlink.set_alias(link.name, owner.mark)
            except OSError as error:
                raise netlink.told(error, f"The tap {link.name} cannot be marked as vmm's.") from error


def _is_before(link: Link, subnet: Subnet, found: Sequence[Link]) -> bool:
    """Whether a bridge without a mark is one that the version before made: its own MAC, and none but vmm's taps."""
    ports = [port for port in found if port.master == link.index]
    return (
        link.kind == "bridge"
        and not link.alias
        and link.mac == links.bridge_mac(subnet)
        and all(links.is_tap_name(port.name) and port.kind == "tun" for port in ports)
        and links.address_of(link.name) in (None, subnet.gateway)
    )


def _others(owner: Owner, found: Sequence[Link]) -> list[Owner]:
    """Return every other vmm that made a link of this host."""
    marks = dict.fromkeys(ownership.owner_of(link.alias) for link in found)
    return [other for other in marks if other is not None and not owner.is_same(other)]


def is_unmarked_tap(link: Link) -> bool:
    """Whether a tap of vmm's name says of no one that it is theirs, as the version before left it."""
    return link.kind == "tun" and not link.alias and links.is_tap_name(link.name)


def _refuse_unless_before(bridge: Link, subnet: Subnet, found: Sequence[Link]) -> None:
    if not _is_before(bridge, subnet, found):
        raise NetworkError(
            f"The link {bridge.name} is not vmm's.",
            details=f"Someone else made it ({bridge.kind or 'a device'}, {bridge.mac}). It was left alone.",
            resolution="Give vmm a bridge of its own, by a name that is free: sudo vmm config set bridge_name"
            f" {_free_name(found)}",
        )


def _free_name(found: Sequence[Link]) -> str:
    taken = {link.name for link in found}
    return next(name for number in range(len(taken) + 1) if (name := f"vmm-br{number}") not in taken)


def refuse_moved(owner: Owner, name: str, subnet: Subnet, found: Sequence[Link]) -> None:
    """Refuse another name, subnet or gateway for the bridge while machines are on the one there is."""
    _refuse_renamed(owner, name, found)
    _refuse_readdressed(owner, name, subnet, found)


def _refuse_renamed(owner: Owner, name: str, found: Sequence[Link]) -> None:
    for link in _old_bridges(owner, name, found):
        if _open_ports(link, found):
            raise NetworkError(
                f"The machines' bridge is {link.name}, and there are machines on it.",
                details=f"The configuration names another one, {name}.",
                resolution=f"Stop them (sudo vmm stop --all), or: sudo vmm config set bridge_name {link.name}",
            )


def _refuse_readdressed(owner: Owner, name: str, subnet: Subnet, found: Sequence[Link]) -> None:
    for link in _own(owner, name, found):
        # What runs knows the bridge by the gateway and the subnet of its own start.
        ports = _open_ports(link, found)
        strangers = [port.name for port in ports if links.is_tap_name(port.name) and not subnet.holds(_address(port))]
        # An address that someone gave it is another matter, and mended: the MAC tells the gateway that it was made for.
        if not ports or (not strangers and link.mac == links.bridge_mac(subnet)):
            continue
        there = links.network_of(name)
        back = there and f", or put it back: sudo vmm config set subnet {there[0]} gateway {there[1]}"
        raise NetworkError(
            f"The machines' bridge {name} is of another subnet, and there are machines on it.",
            details=f"It {f'is {there[1]} of {there[0]}' if there else 'has no address any more'};"
            f" the configuration says {subnet.gateway} of {subnet.cidr}.",
            resolution=f"Stop them (sudo vmm stop --all){back or ', then start them again'}",
        )


def _own(owner: Owner, name: str, found: Sequence[Link]) -> list[Link]:
    return [link for link in found if link.kind == "bridge" and link.name == name and owner.has_made(link)]


def _is_of_other(bridge: Link, subnet: Subnet) -> bool:
    """Whether a bridge of ours was made for another gateway, or has its address in a network of another size."""
    there = links.network_of(bridge.name)
    return bridge.mac != links.bridge_mac(subnet) or there not in (None, (subnet.cidr, subnet.gateway))


def _open_ports(bridge: Link, found: Sequence[Link]) -> list[Link]:
    return [port for port in found if port.master == bridge.index and port.is_open]


def _address(tap: Link) -> str:
    """Return the address of a tap's machine, which its name is made of."""
    return ".".join(map(str, bytes.fromhex(tap.name.removeprefix("vmm-"))))


def _old_bridges(owner: Owner, name: str, found: Sequence[Link]) -> list[Link]:
    return [link for link in found if link.kind == "bridge" and link.name != name and owner.has_made(link)]


def _unknown_tap(tap: str) -> NetworkError:
    return NetworkError(
        "This host's network is in use by machines that this vmm does not know.",
        details=f"A process has the tap {tap} open. Nothing was touched.",
        resolution="Are they of another data directory? Use that one. Of this one: sudo vmm db restore --rebuild -f",
    )
