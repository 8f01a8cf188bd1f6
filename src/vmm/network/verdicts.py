"""What becomes of a packet in the chains of another firewall, as far as their rules tell.

A rule's test is true, false or unknown: unknown is what a rule asks that is not known of the packet (a set's elements,
the time, a match of some module). A packet is dropped for certain only where nothing unknown may have let it pass.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import ip_address, ip_network

from vmm import TYPE_CHECKING
from vmm.model.value import Value, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# What is known of a packet, by the words of nft(8): "iifname", "ip saddr", "ct state"; what is not in it is unknown.
Packet = dict[str, str]
_DEEPEST = 32
_INNER = frozenset({"tcp", "udp", "udplite", "sctp", "dccp", "icmp", "esp", "ah", "igmp", "gre"})
_OTHERS = frozenset({"ip6", "icmpv6", "arp"})


class Action(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    UNTRACK = "untrack"  # it goes on, and no connection is known of it: nothing translates its addresses
    ASK = "ask"  # someone else decides: a queue, a map that is not known
    NOTHING = "nothing"


class Fate(StrEnum):
    PASSES = "passes"
    DROPPED = "dropped"
    UNKNOWN = "unknown"


class Rule(Value):
    """All of its tests must hold. `words` is how the rule is told to its user."""

    tests: tuple[Callable[[Packet], bool | None], ...]
    action: Action
    target: str = ""
    words: str = ""

    def holds(self, packet: Packet) -> bool | None:
        found = [test(packet) for test in self.tests]
        return False if False in found else None if None in found else True


class Chain(Value):
    """A chain; `hook` is empty for one that is only jumped to. `devices`: those of a chain of the family netdev."""

    family: str
    table: str
    name: str
    kind: str = ""
    hook: str = ""
    policy: str = "accept"
    priority: int = 0
    devices: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()


class Verdict(Value):
    """What becomes of a packet in one chain, and by which rule (`by`: its words, or the chain's policy).

    `path` leads there: the name of each chain, and how many of its rules are before the one that ends it.
    `untracked` has the words of the rule that keeps connection tracking from it for certain.
    """

    fate: Fate
    by: str = ""
    path: tuple[tuple[str, int], ...] = ()
    untracked: str = ""


# (family, table, name) -> the chain
Chains = dict[tuple[str, str, str], Chain]


def fate_in(chains: Mapping[tuple[str, str, str], Chain], chain: Chain, packet: Packet) -> Verdict:
    """Return what becomes of a packet that comes into a base chain."""
    walk = _Walk(chains, packet)
    at, found = walk.through(chain, 0)
    if found is None:
        by = f"policy {chain.policy}"
        found = Verdict(fate=Fate.PASSES if chain.policy == "accept" else Fate.DROPPED, by=by, path=((chain.name, at),))
    if found.fate is Fate.DROPPED and walk.may_have_passed:
        return replace(found, fate=Fate.UNKNOWN)
    return replace(found, untracked=walk.untracked)


class _Walk:
    def __init__(self, chains: Mapping[tuple[str, str, str], Chain], packet: Packet) -> None:
        self._chains = chains
        self._packet = packet
        self.may_have_passed = False
        self.untracked = ""

    def through(self, chain: Chain, depth: int) -> tuple[int, Verdict | None]:
        """Return how many rules are before the one that ends the chain, and what they decide: None at its own end."""
        for at, rule in enumerate(chain.rules):
            holds = rule.holds(self._packet)
            if holds is not False:
                ended, found = self._step(chain, rule, depth, certain=holds is True)
                if ended:
                    return at, found and replace(found, path=((chain.name, at), *found.path))
        return len(chain.rules), None

    def _step(self, chain: Chain, rule: Rule, depth: int, *, certain: bool) -> tuple[bool, Verdict | None]:
        """Apply a rule that holds, or may; return whether that ends the chain, and how."""
        if rule.action in (Action.JUMP, Action.GOTO):
            return self._enter(chain, rule, depth, certain=certain)
        if rule.action is Action.ASK or not certain:
            # What is dropped by what we do not know of it (a blocklist, a rate) is not what all machines send.
            if rule.action not in (Action.DROP, Action.NOTHING, Action.UNTRACK):
                self.may_have_passed = True
            return False, None
        match rule.action:
            case Action.ACCEPT:
                return True, Verdict(fate=Fate.PASSES, by=rule.words)
            case Action.DROP:
                return True, Verdict(fate=Fate.DROPPED, by=rule.words)
            case Action.RETURN:
                return True, None
            case _:
                if rule.action is Action.UNTRACK and not self.may_have_passed:
                    self.untracked = self.untracked or rule.words
                return False, None

    def _enter(self, chain: Chain, rule: Rule, depth: int, *, certain: bool) -> tuple[bool, Verdict | None]:
        """Go through the chain that a rule leads to; return whether that ends this one, and how."""
        inner = self._chains.get((chain.family, chain.table, rule.target))
        if inner is None or depth > _DEEPEST:
            self.may_have_passed = True
            return False, None
        before = self.untracked
        _, found = self.through(inner, depth + 1)
        if certain:
            return found is not None or rule.action is Action.GOTO, found
        self.untracked = before
        if found is not None and found.fate is Fate.PASSES:
            self.may_have_passed = True
        return False, None


def is_of_another_protocol(key: str, packet: Packet) -> bool:
    """Whether what a rule asks is a field of a protocol that the packet does not have: then it never holds."""
    protocol = key.partition(" ")[0]
    if protocol in _INNER:
        return "l4proto" in packet and packet["l4proto"] != protocol
    return protocol in _OTHERS and packet.get("nfproto") == "ipv4"


def has_mark(packet: Packet, mask: int, value: int) -> bool | None:
    """Whether the packet's mark has this value under a mask."""
    return int(packet["mark"]) & mask == value if "mark" in packet else None


def is_wanted(value: str, wanted: Iterable[str]) -> bool | None:
    """Whether a value of a packet is one of these: words, networks, ranges (`a-b`), names that end in a wildcard."""
    found = [_is(value, each) for each in wanted]
    return True if True in found else None if None in found else False


def _is(value: str, wanted: str) -> bool | None:
    if wanted.startswith("@"):
        return None
    if wanted.endswith(("*", "+")):
        return value.startswith(wanted[:-1])
    if "/" in wanted or (wanted.count("-") == 1 and value[:1].isdigit()):
        return _is_within(value, wanted)
    return value.lower() == wanted.lower()


def _is_within(value: str, wanted: str) -> bool | None:
    try:
        if "/" in wanted:
            return ip_address(value) in ip_network(wanted, strict=False)
        first, last = wanted.split("-")
        if value.isdigit():
            return int(first) <= int(value) <= int(last)
        low, high = int(ip_address(first)), int(ip_address(last))
    except ValueError:
        return None
    return low <= int(ip_address(value)) <= high
