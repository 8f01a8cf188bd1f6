"""Chains as `nft -j list ruleset` writes them (libnftables-json(5)), as values that can be walked through."""

from __future__ import annotations

import json

from vmm import TYPE_CHECKING
from vmm.network.verdicts import Action, Chain, Chains, Packet, Rule, has_mark, is_of_another_protocol, is_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

# How statements of nft end a rule; all others (counter, log, mark, limit's) let it go on.
_ENDS = {
    "accept": Action.ACCEPT,
    "drop": Action.DROP,
    "reject": Action.DROP,
    "return": Action.RETURN,
    "jump": Action.JUMP,
    "goto": Action.GOTO,
    "queue": Action.ASK,
    # A chain of the type nat ends with what it translates.
    "masquerade": Action.ACCEPT,
    "redirect": Action.ACCEPT,
    "snat": Action.ACCEPT,
    "dnat": Action.ACCEPT,
}
_XT_ENDS = {"REJECT": Action.DROP, "DROP": Action.DROP, "NFQUEUE": Action.ASK}
# What asks nothing of a packet that could keep the rule from it. A `limit` does.
_SILENT = frozenset({"counter", "log", "mangle", "ct helper", "meter"})


def chains_of(listing: str) -> Chains:
    """Return every chain of a ruleset, with its rules, by family, table and name."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for entry in json.loads(listing)["nftables"]:
        chain, rule = entry.get("chain"), entry.get("rule")
        if chain:
            found[chain["family"], chain["table"], chain["name"]] = chain
        elif rule:
            rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).extend(_rules(rule["expr"]))
    return {key: _chain(key, rest, tuple(rules.get(key, ()))) for key, rest in found.items()}


def devices_in(listing: str) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Return the devices of each base chain that `nft list chains netdev` writes, by family, table and name."""
    found: dict[tuple[str, str, str], tuple[str, ...]] = {}
    family = table = chain = ""
    for words in (line.split() for line in listing.splitlines()):
        match words:
            case ["table", family, table, *_]:
                pass
            case ["chain", chain, *_]:
                pass
            case ["type", _, "hook", _, "device", name, *_]:
                found[family, table, chain] = (name.strip('"'),)
            case ["type", _, "hook", _, "devices", "=", *rest]:
                names = " ".join(rest).partition("{")[2].partition("}")[0]
                found[family, table, chain] = tuple(name.strip(' "') for name in names.split(","))
            case _:
                pass
    return found


def is_of_iptables(chain: Chain) -> bool:
    """Whether a base chain is one of those that iptables-nft makes, whose rules iptables-save writes better."""
    known = chain.table in {"filter", "mangle", "raw", "security", "nat"}
    return chain.family in {"ip", "ip6"} and known and chain.name == chain.hook.upper()


def _chain(key: tuple[str, str, str], rest: dict[str, Any], rules: tuple[Rule, ...]) -> Chain:
    devices = rest.get("dev", ())
    return Chain(
        family=key[0],
        table=key[1],
        name=key[2],
        kind=rest.get("type", ""),
        hook=rest.get("hook", ""),
        policy=rest.get("policy", "accept"),
        priority=rest.get("prio", 0),
        devices=(devices,) if isinstance(devices, str) else tuple(devices),
        rules=rules,
    )


def _rules(expressions: list[Any]) -> Iterator[Rule]:
    """Give the rule; a verdict map is a rule for each of its elements, and one that ends with none."""
    tests: list[Callable[[Packet], bool | None]] = []
    for expression in expressions:
        (kind, body), *_ = expression.items()
        if kind == "match":
            tests.append(_test(body["left"], body["right"], negated=body["op"] == "!="))
        elif kind == "vmap":
            yield from _verdict_map(body, tuple(tests))
            return
        elif kind in _ENDS:
            yield Rule(tests=tuple(tests), action=_ENDS[kind], target=_target(body), words=_words(kind, expressions))
            return
        elif kind == "notrack":
            # What follows it in the rule is another one, for the same packets.
            yield Rule(tests=tuple(tests), action=Action.UNTRACK, words=_words(kind, expressions))
        elif kind == "xt":
            action = _XT_ENDS.get(str(body.get("name"))) if body and body.get("type") == "target" else None
            if action is not None:
                yield Rule(tests=tuple(tests), action=action, words=_words("drop", expressions))
                return
            if not body or body.get("name") != "comment":
                tests.append(lambda _: None)
        elif kind not in _SILENT and kind != "mangle":
            tests.append(lambda _: None)


def _verdict_map(body: dict[str, Any], tests: tuple[Callable[[Packet], bool | None], ...]) -> Iterator[Rule]:
    data = body.get("data")
    if not isinstance(data, dict) or "set" not in data:
        yield Rule(tests=tests, action=Action.ASK, words="a verdict map")
        return
    for wanted, verdict in data["set"]:  # pyright: ignore[reportUnknownVariableType]  # nft's JSON
        (kind, target), *_ = verdict.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        yield Rule(
            tests=(*tests, _test(body["key"], wanted, negated=False)),
            action=_ENDS.get(str(kind), Action.NOTHING),  # pyright: ignore[reportUnknownArgumentType]
            target=_target(target),
            words=f"a verdict map: {kind}",
        )


def _target(body: Any) -> str:  # noqa: ANN401  # nft's JSON
    match body:
        case {"target": str(target)}:
            return target
        case _:
            return ""


def _test(left: Any, right: Any, *, negated: bool) -> Callable[[Packet], bool | None]:  # noqa: ANN401  # nft's JSON
    match left, right:
        case {"&": [{"meta": {"key": "mark"}}, int(mask)]}, int(value):
            return lambda packet: None if (found := has_mark(packet, mask, value)) is None else found != negated
        case _:
            pass
    key, wanted = _key(left), list(_plain(right))

    def holds(packet: Packet) -> bool | None:
        if is_of_another_protocol(key, packet):
            return False
        value = packet.get(key)
        if value is None or not wanted:
            return None
        found = is_wanted(value, wanted)
        return None if found is None else found != negated

    return holds


def _key(left: Any) -> str:  # noqa: ANN401  # nft's JSON
    match left:
        case {"meta": {"key": str(key)}}:
            return {"iif": "iifname", "oif": "oifname"}.get(key, key)
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return f"{protocol} {field}"
        case {"ct": {"key": str(key), **rest}}:
            return f"ct {rest['dir']} {key}" if "dir" in rest else f"ct {key}"
        case {"fib": {"result": str(result), "flags": flags}}:
            return f"fib {' '.join(flags) if isinstance(flags, list) else flags} {result}"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case _:
            return ""


def _plain(right: Any) -> Iterator[str]:  # noqa: ANN401  # nft's JSON
    match right:
        case {"prefix": {"addr": addr, "len": length}}:
            yield f"{addr}/{length}"
        case {"range": [first, last]}:
            yield f"{first}-{last}"
        case {"elem": {"val": value}}:
            yield from _plain(value)
        case {"set": parts} if isinstance(parts, list):
            yield from _plain(parts)
        case list():
            for part in right:  # pyright: ignore[reportUnknownVariableType]
                yield from _plain(part)
        case str() | int():
            yield str(right)
        case _:
            # Something that is not known here: whatever it is compared with stays unknown.
            yield "@"


def _words(kind: str, expressions: list[Any]) -> str:
    keys = [_key(each["match"]["left"]) for each in expressions if "match" in each]
    named = ", ".join(key for key in keys if key)
    return f"{kind} (by {named})" if named else f"{kind} of everything"
