"""What guests need of the host's network, looked at: an answer a question, each with its proof."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.facts import Answer, Standing, not_ok, ok, unseen
from vmm.network import accepts, advice, dns, links, netlink, others
from vmm.network import managers as link_managers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.network.host_network import HostNetwork

_FIREWALLS = "forward policy"


def forwarding(network: HostNetwork) -> Answer:
    name = "ip forwarding"
    missing = network.missing_forwarding()
    if not missing:
        localhost = network.localhost_trouble()
        if localhost:
            return not_ok(name, f"the way from localhost to machines is {localhost}", "sudo vmm reconcile")
        return _way_out(network)
    return not_ok(name, f"off for {', '.join(missing)}: machines do not reach the world", "sudo vmm reconcile")


def _way_out(network: HostNetwork) -> Answer:
    """Say which links lead out; that there is none is a fault only where the configuration names one."""
    name, given = "ip forwarding", network.host_interface
    if given is None:
        ways = network.ways_out()
        if ways:
            return ok(name, f"on for {network.bridge_name} and the links to the world ({', '.join(ways)})")
        # A host may be meant to be alone with its machines.
        return ok(name, f"on for {network.bridge_name}; no default route: machines reach nothing beyond this host")
    link = netlink.look(given)
    if link is None:
        fix = "sudo vmm config set host_interface LINK (one of: ip -br link)"
        return not_ok(name, f"there is no link {given}, the only way out by host_interface", fix)
    if not link.is_up:
        return not_ok(name, f"{given}, the only way out by host_interface, is down", f"sudo ip link set {given} up")
    return ok(name, f"on for {network.bridge_name} and {given}, the only way out by host_interface")


def bridge(network: HostNetwork) -> Answer:
    name, subnet = network.bridge_name, network.subnet
    lacks = network.bridge_differences()
    if not lacks:
        return ok("bridge", f"{name}, {subnet.gateway} in {subnet.cidr}")
    trouble = network.trouble() if links.is_root() else None
    if trouble is not None:
        return not_ok("bridge", f"{trouble.brief} {trouble.details}", trouble.resolution, fatal=True)
    return not_ok("bridge", f"{name} {', '.join(lacks)}; the next start mends it", "sudo vmm setup")


def managers(network: HostNetwork) -> Answer:
    lacking = link_managers.differences(network.bridge_name)
    if not lacking:
        return ok("link managers", "none that takes the machines' links in hand")
    what = f"{' and '.join(lacking)} may take the machines' links in hand: take them off the bridge, switch IPv6 on"
    return not_ok("link managers", what, "sudo vmm setup")


def other_firewalls(network: HostNetwork) -> Answer:
    if not links.is_root():
        return unseen(_FIREWALLS, "only root can see it", "sudo vmm doctor")
    ours = network.others
    listing = ours.listing()
    answer = told(network, advice.merged(ours.troubles(listing)))
    if answer.standing is Standing.OK and accepts.any_stands(listing.chains):
        rule = accepts.overruled(ours.plan(listing), listing.chains)
        if rule:
            what = f"vmm's own accept stands before a rule that drops on purpose: {rule}"
            return not_ok(_FIREWALLS, what, "sudo vmm reconcile")
    if answer.standing is Standing.OK and listing.unread:
        return unseen(_FIREWALLS, "; ".join(listing.unread), "sudo apt-get install iptables")
    return answer


def told(network: HostNetwork, troubles: Sequence[others.Trouble]) -> Answer:
    """Return the answer that these troubles with other firewalls come to."""
    if not troubles:
        return ok(_FIREWALLS, "no other firewall drops what machines send")
    proof = "; ".join(advice.words(trouble) for trouble in troubles)
    fix = "; ".join(dict.fromkeys(advice.fix(trouble, network.bridge_name) for trouble in troubles))
    if troubles[0].certain:
        return not_ok(_FIREWALLS, proof, fix)
    return unseen(_FIREWALLS, proof, fix)


def resolvers(given: Sequence[str]) -> Answer:
    """Whether machines can ask the host's own resolvers; `given` is what the configuration gives them in place."""
    name = "resolvers"
    if given:
        return ok(name, f"{', '.join(given)}, as configured")
    found = dns.host_resolution()
    servers = ", ".join(found.servers)
    if not found.is_fallback:
        return ok(name, servers + (f"; searched: {' '.join(found.search)}" if found.search else ""))
    fix = "sudo vmm config set vm_defaults.dns_servers ADDRESS,ADDRESS"
    if not found.unusable:
        return not_ok(name, f"the host names none; machines ask {servers}", fix)
    why = "on loopback, no one's, or IPv6, which machines do not speak"
    return not_ok(name, f"the host's ({', '.join(found.unusable)}) are {why}; machines ask {servers}", fix)
