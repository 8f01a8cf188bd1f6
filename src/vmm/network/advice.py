"""What is told of another firewall that drops what machines need, and the command that lets them pass."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.value import replace
from vmm.network.others import is_aimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.network.others import Trouble


def words(trouble: Trouble) -> str:
    """Return what a chain does to machines, as a sentence."""
    chain = trouble.chain
    which = f"the chain {chain.name} of {chain.family} {chain.table}"
    if trouble.tool != "nft":
        which = f"{trouble.tool}'s chain {chain.name} (table {chain.table})"
    does = "drops" if trouble.certain else "may drop"
    if trouble.untracked:
        return f"{which} keeps {trouble.way.what} from connection tracking, so that it is not masqueraded: {trouble.by}"
    return f"{which} {does} {trouble.way.what}: {trouble.by}"


def fix(trouble: Trouble, bridge: str) -> str:
    """Return the command that lets machines pass a chain."""
    chain = trouble.chain
    if trouble.tool != "nft":
        if is_aimed(trouble, bridge):
            return f"sudo {trouble.tool} -t {chain.table} -D {trouble.by.removeprefix('-A ')}"
        if chain.table == "filter":
            return "sudo vmm reconcile"
        rule = " ".join(trouble.way.iptables)
        does = (
            f"-I {chain.name} {rule} -j ACCEPT"
            if rule
            else f"-S {chain.name}  # and let the machines' answers be tracked"
        )
        return f"sudo {trouble.tool} -t {chain.table} {does}"
    if chain.table == "firewalld":
        add = f"sudo firewall-cmd --permanent --zone=trusted --add-interface={bridge}"
        return f"{add} && sudo firewall-cmd --reload"
    if not trouble.way.nft:
        return f"sudo nft -a list chain {chain.family} {chain.table} {chain.name}  # and let the machines' answers pass"
    rule = f"{chain.family} {chain.table} {chain.name} {trouble.way.nft}"
    return f"sudo nft 'insert rule {rule}'"


def merged(troubles: Sequence[Trouble]) -> list[Trouble]:
    """Return one trouble for each chain and each thing that it drops, the certain ones before the others."""
    seen: dict[tuple[str, str, str, str, str], Trouble] = {}
    for trouble in sorted(troubles, key=lambda each: not each.certain):
        chain = trouble.chain
        seen.setdefault((trouble.tool, chain.family, chain.table, chain.name, trouble.way.what), replace(trouble))
    return list(seen.values())
