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
    _refuse_moved(owner, name, found)
    if firewall.whose() is Whose.FOREIGN:
        raise NetworkError(
            "A firewall table `vmm` of this host is not vmm's.",
            details="Someone else made a table of that name, with other chains in it. It was left alone.",
            resolution="Look at it, and rename or delete it: nft list table ip vmm; nft list table bridge vmm",
        )


def take(owner: Owner, name: str) -> None:
    """Remove what vmms that are gone left, and an own bridge of another name; mark the taps that bear no mark yet."""
    found = links.every()
    for link in _old_bridges(owner, name, found):
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
            resolution="Give vmm a bridge of its own, by a name that is free: sudo vmm config set bridge_name vmm-br0",
        )


def _refuse_moved(owner: Owner, name: str, found: Sequence[Link]) -> None:
    """Refuse another name for the bridge while machines are on the one there is."""
    for link in _old_bridges(owner, name, found):
        if any(port.master == link.index and port.is_open for port in found):
            raise NetworkError(
                f"The machines' bridge is {link.name}, and there are machines on it.",
                details=f"The configuration names another one, {name}.",
                resolution=f"Stop them (sudo vmm stop --all), or: sudo vmm config set bridge_name {link.name}",
            )


def _old_bridges(owner: Owner, name: str, found: Sequence[Link]) -> list[Link]:
    return [link for link in found if link.kind == "bridge" and link.name != name and owner.has_made(link)]


def _unknown_tap(tap: str) -> NetworkError:
    return NetworkError(
        "This host's network is in use by machines that this vmm does not know.",
        details=f"A process has the tap {tap} open. Nothing was touched.",
        resolution="Are they of another data directory? Use that one. Of this one: sudo vmm db restore --rebuild -f",
    )
