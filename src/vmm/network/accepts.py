"""vmm's accepts in the chains of iptables, of either variant: where they stand, and where they should.

One stands before what drops machines though nobody meant them (a policy, a final reject), and behind every rule that
may drop on purpose: a ban, a network that is closed. Whatever is put there later is not overruled either.
"""

from __future__ import annotations

import re
import shlex

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import process
from vmm.model.value import Value, replace
from vmm.network import glance
from vmm.network.verdicts import Action

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vmm.network.others import Trouble
    from vmm.network.verdicts import Chain, Chains, Rule

COMMENT = "vmm"
# iptables' two variants; each has rules that the other does not show.
VARIANTS = ("iptables-nft", "iptables-legacy")
_DEEPEST = 32


class Accept(Value):
    """A rule of ours in a chain of the table `filter`: `words` are those of iptables, `at` counts from 0."""

    tool: str
    chain: str
    words: tuple[str, ...]
    at: int

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        # iptables writes them in an order of its own.
        return self.tool, self.chain, tuple(sorted(self.words))


class Plan(Value):
    """What of ours is to be taken out, and what put in then."""

    out: tuple[Accept, ...] = ()
    into: tuple[Accept, ...] = ()


def without_ours(chains: Mapping[str, Chains]) -> dict[str, Chains]:
    """Return others' chains, by the tool that writes them, as they are without our rules."""
    return {
        tool: {key: replace(chain, rules=_theirs(chain)) for key, chain in each.items()}
        for tool, each in chains.items()
    }


def any_stands(chains: Mapping[str, Chains]) -> bool:
    return next(_standing(chains), None) is not None


def plan(chains: Mapping[str, Chains], troubles: Iterable[Trouble]) -> Plan:
    """Return what is to be changed of our rules. `troubles` are those that accepts mend, seen without ours."""
    wanted: dict[tuple[str, str, tuple[str, ...]], tuple[Accept, int]] = {}
    for trouble in troubles:
        name, earliest, latest = _place(chains[trouble.tool], trouble)
        words = (*trouble.way.iptables, "-m", "comment", "--comment", COMMENT, "-j", "ACCEPT")
        accept = Accept(tool=trouble.tool, chain=name, words=words, at=earliest)
        known = wanted.setdefault(accept.key, (accept, latest))
        if accept.at < known[0].at:
            wanted[accept.key] = (accept, latest)
    there: dict[tuple[str, str, tuple[str, ...]], list[Accept]] = {}
    for accept in _standing(chains):
        there.setdefault(accept.key, []).append(accept)
    right = {
        key
        for key, found in there.items()
        if len(found) == 1 and key in wanted and wanted[key][0].at <= found[0].at <= wanted[key][1]
    }
    return Plan(
        out=tuple(accept for key, found in there.items() if key not in right for accept in found),
        into=tuple(accept for key, (accept, _) in wanted.items() if key not in right),
    )


def carry_out(planned: Plan, chains: Mapping[str, Chains]) -> None:
    """Take out and put in. Raises HostError when iptables refuses."""
    for accept in planned.out:
        process.run([accept.tool, "-w", "-D", accept.chain, *accept.words], check=False)
    # The last first: none moves another.
    for accept in sorted(planned.into, key=lambda each: -each.at):
        before = [each for each in _standing(chains) if each.tool == accept.tool and each.chain == accept.chain]
        stay = sum(each.at <= accept.at for each in before if each not in planned.out)
        place = [accept.chain, str(accept.at + stay + 1)]
        if process.run([accept.tool, "-w", "-I", *place, *accept.words], check=False).code != 0:
            # Someone has taken rules out meanwhile: the next look puts it where it belongs.
            process.run([accept.tool, "-w", "-I", accept.chain, *accept.words])


def overruled(planned: Plan, chains: Mapping[str, Chains]) -> str:
    """Return a rule of someone's that drops on purpose and that one of ours overrules, where there is one."""
    theirs = without_ours(chains)
    for accept in planned.out:
        chain = theirs[accept.tool].get(("ip", "filter", accept.chain))
        for rule in chain.rules[accept.at :] if chain else ():
            if _may_drop(theirs[accept.tool], rule):
                return rule.words
    return ""


def remove() -> None:
    """Take every rule of ours out of others' chains."""
    for variant, line in standing_lines():
        process.run([variant, "-w", "-D", *shlex.split(line)[1:]], check=False)


def standing_lines() -> Iterator[tuple[str, str]]:
    """Give the rules in others' chains that carry our comment, each with the variant of iptables that has it."""
    for variant in VARIANTS:
        # Asked for its rules, the old one would make its tables.
        if variant == "iptables-legacy" and not glance.has_legacy_tables():
            continue
        try:
            listing = process.run([variant, "-w", "-S"], check=False).stdout
        except HostError:
            continue
        for line in listing.splitlines():
            if _is_ours(line):
                yield variant, line


def _is_ours(line: str) -> bool:
    return re.match(rf"-A \S+ .*--comment \"?{COMMENT}\"? ", line) is not None


def _all_theirs(chains: Chains) -> Chains:
    return {key: replace(chain, rules=_theirs(chain)) for key, chain in chains.items()}


def _theirs(chain: Chain) -> tuple[Rule, ...]:
    return tuple(rule for rule in chain.rules if not _is_ours(rule.words))


def _standing(chains: Mapping[str, Chains]) -> Iterator[Accept]:
    """Give our rules; `at` counts the rules of others before each."""
    for tool, each in chains.items():
        for chain in each.values() if tool in VARIANTS else ():
            at = 0
            for rule in chain.rules:
                if chain.table == "filter" and _is_ours(rule.words):
                    words = tuple(shlex.split(rule.words)[2:])
                    yield Accept(tool=tool, chain=chain.name, words=words, at=at)
                else:
                    at += 1


def _place(chains: Chains, trouble: Trouble) -> tuple[str, int, int]:
    """Return the chain for an accept, and the first and the last place in it, by the rules of others before it."""
    family, table, path = trouble.chain.family, trouble.chain.table, trouble.path
    theirs = _all_theirs(chains)
    level = 0
    # Into a chain that is jumped to, only where something in it drops on purpose, and nobody else goes there.
    while any(_drop_before(theirs, theirs[family, table, name].rules[:at]) for name, at in path[level + 1 :]):
        if _jumps_to(theirs, path[level + 1][0]) > 1:
            break
        level += 1
    name, latest = path[level]
    earliest, rules = latest, theirs[family, table, name].rules
    while earliest > 0 and not _may_drop(theirs, rules[earliest - 1]):
        earliest -= 1
    return name, earliest, latest


def _drop_before(chains: Chains, rules: Sequence[Rule]) -> bool:
    return any(_may_drop(chains, rule) for rule in rules)


def _may_drop(chains: Chains, rule: Rule, depth: int = 0) -> bool:
    """Whether a rule drops some packets, by itself or where it leads."""
    if rule.action is Action.DROP:
        return True
    if rule.action not in (Action.JUMP, Action.GOTO) or depth > _DEEPEST:
        return False
    inner = chains.get(("ip", "filter", rule.target))
    return inner is not None and any(_may_drop(chains, each, depth + 1) for each in inner.rules)


def _jumps_to(chains: Chains, name: str) -> int:
    rules = (rule for (_, table, _), chain in chains.items() if table == "filter" for rule in chain.rules)
    return sum(rule.target == name and rule.action in (Action.JUMP, Action.GOTO) for rule in rules)
