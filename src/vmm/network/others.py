"""Other firewalls of this host that drop what they do not know: Docker's, ufw's, anybody's of iptables."""

from __future__ import annotations

import re

from vmm.errors import HostError
from vmm.host import process
from vmm.network.tables import PASSED

_COMMENT = "vmm"
# What vmm's own rules have let pass, and nothing else: neither whole interfaces nor a container's closed ports.
_ACCEPT = ("-m", "mark", "--mark", f"{PASSED:#x}/{PASSED:#x}", "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT")


def accept_where_they_drop() -> None:
    """Let pass what vmm's own rules have let pass, where Docker, ufw or someone else made iptables drop the rest.

    An accept in a table of ours cannot overrule another table's drop; so a rule of ours, marked by its comment, goes
    into their chain: into DOCKER-USER, which Docker keeps for this, or at the top of FORWARD.
    """
    chain, missing, stale = _look()
    for where, rule in stale:
        process.run(["iptables", "-w", "-D", where, *rule], check=False)
    if missing:
        process.run(["iptables", "-w", "-I", chain, *_ACCEPT])


def is_dropped() -> bool:
    """Whether a chain of someone else's drops what machines send, and lacks the rule of ours that lets it pass."""
    return _look()[1]


def forget() -> None:
    """Remove what was put into others' chains."""
    for chain, rule in _ours(_listing()):
        process.run(["iptables", "-w", "-D", chain, *rule], check=False)


def _look() -> tuple[str, bool, list[tuple[str, list[str]]]]:
    """Return the chain that drops, whether it lacks the rule of ours, and rules of ours that say something else."""
    listing = _listing()
    ours = _ours(listing)
    # Older releases let everything from and to the bridge pass.
    stale = [(chain, rule) for chain, rule in ours if not _is_accept(rule)]
    chain = "DOCKER-USER" if "-N DOCKER-USER" in listing else "FORWARD"
    if chain == "FORWARD" and "-P FORWARD DROP" not in listing:
        return chain, False, stale
    return chain, not any(where == chain and _is_accept(rule) for where, rule in ours), stale


def _is_accept(rule: list[str]) -> bool:
    return set(_ACCEPT) <= set(rule)


def _listing() -> str:
    """Return the filter table as iptables -S writes it; empty where there is no iptables."""
    try:
        return process.run(["iptables", "-w", "-S"], check=False).stdout
    except HostError:
        return ""


def _ours(listing: str) -> list[tuple[str, list[str]]]:
    """Return (chain, rule) of the rules that carry our comment."""
    found: list[tuple[str, list[str]]] = []
    for line in listing.splitlines():
        match = re.fullmatch(rf"-A (\S+) (.*--comment \"?{_COMMENT}\"? .*)", line)
        if match:
            found.append((match[1], match[2].replace('"', "").split()))
    return found
