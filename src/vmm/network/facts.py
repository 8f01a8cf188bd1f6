"""What guests need of the host's network, looked at: an answer a question, each with its proof."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.host import probes
from vmm.model.facts import Answer, not_ok, ok, unseen
from vmm.network import links
from vmm.network import managers as link_managers

if TYPE_CHECKING:
    from vmm.network.host_network import HostNetwork


def forwarding(network: HostNetwork) -> Answer:
    if links.host_forwards():
        return ok("ip forwarding", "on")
    what = f"off: nothing that machines send to {network.bridge_name} leaves this host"
    return not_ok("ip forwarding", what, "sudo vmm reconcile")


def bridge(network: HostNetwork) -> Answer:
    name, subnet = network.bridge_name, network.subnet
    if network.is_whole():
        return ok("bridge", f"{name}, {subnet.gateway} in {subnet.cidr}")
    trouble = network.trouble() if links.is_root() else None
    if trouble is not None:
        return not_ok("bridge", f"{trouble.brief} {trouble.details}", trouble.resolution, fatal=True)
    return not_ok("bridge", f"{name} is not up with {subnet.gateway}; the next start mends it", "sudo vmm setup")


def managers(network: HostNetwork) -> Answer:
    lacking = link_managers.differences(network.bridge_name)
    if not lacking:
        return ok("link managers", "none that takes the machines' links in hand")
    what = f"{' and '.join(lacking)} may take the machines' links in hand: take them off the bridge, switch IPv6 on"
    return not_ok("link managers", what, "sudo vmm setup")


def others(network: HostNetwork) -> Answer:
    name = "forward policy"
    if not links.is_root():
        return unseen(name, "only root can see it", "sudo vmm doctor")
    owner = probes.forward_policy_drops()
    if owner == "firewalld":
        fix = (
            f"sudo firewall-cmd --permanent --zone=trusted --add-interface={network.bridge_name};"
            " sudo firewall-cmd --reload"
        )
        return not_ok(name, "firewalld decides what is forwarded", fix)
    if owner and network.is_dropped_by_others():
        return not_ok(name, f"{owner} drops what machines send to the world", "sudo vmm setup")
    if owner:
        return ok(name, f"{owner} drops by default; vmm's own rule lets its machines through")
    return ok(name, "nothing else drops what machines send")
