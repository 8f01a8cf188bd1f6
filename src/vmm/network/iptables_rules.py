"""Chains as iptables-save(8) writes them, of its nft variant or of the legacy one, as values to be walked through."""

from __future__ import annotations

import shlex

from vmm import TYPE_CHECKING
from vmm.model.value import replace
from vmm.network.verdicts import Action, Chain, Chains, Packet, Rule, has_mark, is_wanted

if TYPE_CHECKING:
    from collections.abc import Callable

_ENDS = {
    "ACCEPT": Action.ACCEPT,
    "DROP": Action.DROP,
    "REJECT": Action.DROP,
    "RETURN": Action.RETURN,
    "QUEUE": Action.ASK,
    "NFQUEUE": Action.ASK,
    "NOTRACK": Action.UNTRACK,
}
# Targets of xtables that let the packet go on (iptables-extensions(8)).
_GO_ON = frozenset({"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TCPMSS", "CT", "CLASSIFY", "SET", "TRACE", "CHECKSUM"})
# An option of a match -> what it asks of a packet. What is in neither table is unknown.
_ASKS = {
    "-i": "iifname", "-o": "oifname", "-s": "ip saddr", "-d": "ip daddr", "-p": "l4proto", "--ctstate": "ct state",
    "--state": "ct state", "--dport": "th dport", "--dports": "th dport", "--mark": "mark",
    "--dst-type": "fib daddr type", "--src-type": "fib saddr type", "--ctstatus": "ct status",
    "--ctorigsrc": "ct original ip saddr",
}  # fmt: skip
# linux/netfilter_ipv4.h, but for nat, which is not walked through.
_PRIORITIES = {"raw": -300, "mangle": -150, "security": 50}
_SILENT = frozenset({"-m", "--comment"})


def chains_of(saved: str) -> Chains:
    """Return every chain that iptables-save has written, as of the family ip, by family, table and name."""
    found: Chains = {}
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            base = policy != "-"
            found["ip", table, name] = Chain(
                family="ip",
                table=table,
                name=name,
                kind="filter" if base and table != "nat" else "",
                hook=name.lower() if base else "",
                policy=policy.lower() if base else "accept",
                priority=_PRIORITIES.get(table, 0),
            )
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault(("ip", table, words[1]), []).append(_rule(words[2:], line))
    return {key: replace(chain, rules=tuple(rules.get(key, ()))) for key, chain in found.items()}


def _rule(words: list[str], line: str) -> Rule:
    tests: list[Callable[[Packet], bool | None]] = []
    negated = False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            return _ending(word, words[0] if words else "", tests, line)
        values = _values(words)
        if word in _ASKS and values:
            tests.append(_test(_ASKS[word], values[0], negated=negated))
        elif word not in _SILENT:
            tests.append(lambda _: None)
        negated = False
    return Rule(tests=tuple(tests), action=Action.NOTHING, words=line)


def _values(words: list[str]) -> list[str]:
    """Take the values of an option from the front of the words: up to the next option."""
    found: list[str] = []
    while words and not (words[0].startswith("-") and len(words[0]) > 1) and words[0] != "!":
        found.append(words.pop(0))
    return found


def _ending(option: str, target: str, tests: list[Callable[[Packet], bool | None]], line: str) -> Rule:
    if target in _ENDS:
        action = _ENDS[target]
    elif target in _GO_ON:
        action = Action.UNTRACK if "--notrack" in line.split() else Action.NOTHING
    else:
        action = Action.GOTO if option == "-g" else Action.JUMP
    return Rule(tests=tuple(tests), action=action, target=target, words=line)


def _test(key: str, text: str, *, negated: bool) -> Callable[[Packet], bool | None]:
    if key == "mark":
        first, _, second = text.partition("/")
        value, mask = int(first, 0), int(second or "0xffffffff", 0)
        return lambda packet: None if (found := has_mark(packet, mask, value)) is None else found != negated
    wanted = [part.replace(":", "-") for part in text.split(",")]

    def holds(packet: Packet) -> bool | None:
        value = packet.get(key)
        if value is None:
            return None
        found = is_wanted(value, wanted)
        return None if found is None else found != negated

    return holds
