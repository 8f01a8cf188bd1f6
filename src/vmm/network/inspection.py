"""What the kernel has of vmm's tables, compared with what it should have."""

from __future__ import annotations

import json

from vmm import TYPE_CHECKING
from vmm.host import process
from vmm.network.listing import OWNER, listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from vmm.network.tables import Hook

# (family, set or map) -> its elements, each as its parts in nft's order.
Elements = dict[tuple[str, str], set[tuple[str, ...]]]
# (family, chain) -> its rules in their order, each as nft's JSON has it.
Rules = dict[tuple[str, str], list["Any"]]


def rules_of(tables: str) -> Rules | None:
    """Return the rules of these tables as nft writes them when they stand: in a network namespace that is gone at once.

    None where none can be made, as in a container that may not.
    """
    # As an argument: what nft reads from a pipe while it writes JSON must be JSON too.
    echo = process.run(["unshare", "--net", "nft", "--json", "--echo", tables], check=False)
    if echo.code != 0:
        return None
    return _rules(entry["add"] for entry in json.loads(echo.stdout)["nftables"] if "add" in entry)


def differences(
    wanted: Elements,
    counts: Mapping[tuple[str, str], int],
    hooks: Mapping[tuple[str, str], Hook],
    rules: Rules | None = None,
) -> list[str]:
    """Return what of the tables is not as it should be, a sentence each.

    `counts` are those of the rules by (family, chain), `hooks` where these hang; `rules` themselves may not be known.
    """
    found: list[str] = []
    for family in dict.fromkeys(family for family, _ in counts):
        listing = listed(family, "-j")
        if listing is None:
            found.append(f"the firewall's table {family} vmm was gone")
            continue
        entries = json.loads(listing)["nftables"]
        has, standing = _elements(family, entries), _rules(entries)
        found += _frame_differences(family, entries, hooks)
        for key, count in counts.items():
            there = standing.get(key, [])
            if key[0] == family and len(there) != count:
                found.append(f"the chain {key[1]} of {family} vmm had {len(there)} rules of {count}")
            elif key[0] == family and rules is not None and there != rules.get(key, []):
                found.append(f"the chain {key[1]} of {family} vmm had other rules")
        for key, elements in wanted.items():
            if key[0] != family:
                continue
            found += [f"{_words(element)} was not in {key[1]}" for element in sorted(elements - has.get(key, set()))]
            found += [f"{_words(element)} was left in {key[1]}" for element in sorted(has.get(key, set()) - elements)]
    return found


def _frame_differences(family: str, entries: Iterable[Any], hooks: Mapping[tuple[str, str], Hook]) -> list[str]:
    """Return what of a table itself and of its chains is otherwise: rules that hang nowhere wall nothing off."""
    found: list[str] = []
    there: dict[str, Hook] = {}
    for entry in entries:
        match entry:
            # Ours has none. nft 1.0.6 writes the family in place of what is set, and a newer one a list.
            case {"table": {"flags": _}}:
                found.append(f"the firewall's table {family} vmm had flags, as `dormant`")
            case {"chain": {"name": str(name), **rest}} if not OWNER.fullmatch(name):
                there[name] = tuple(rest[key] for key in ("type", "hook", "prio", "policy") if key in rest)
            case _:
                pass
    for (of, name), hook in hooks.items():
        if of == family and name in there and there[name] != hook:
            found.append(f"the chain {name} of {family} vmm was {_hung(there[name])}, not {_hung(hook)}")
    strange = sorted(name for name in there if (family, name) not in hooks)
    return found + [f"the chain {name} of {family} vmm is none of vmm's" for name in strange]


def _hung(hook: Hook) -> str:
    if not hook:
        return "on no hook"
    kind, where, priority, policy = hook
    return f"{kind} on {where} at {priority} with policy {policy}"


def _rules(entries: Iterable[Any]) -> Rules:
    found: Rules = {}
    for entry in entries:
        match entry:
            case {"rule": {"family": str(family), "chain": str(chain), **rest}}:
                found.setdefault((family, chain), []).append(rest.get("expr"))
            case _:
                pass
    return found


def _elements(family: str, entries: Iterable[Any]) -> Elements:
    elements: Elements = {}
    for entry in entries:
        match entry:
            case {"set": {"name": str(name), "elem": found}} | {"map": {"name": str(name), "elem": found}}:
                elements[family, name] = {tuple(_parts(element)) for element in found}
            case _:
                pass
    return elements


def _parts(value: Any) -> Iterator[str]:  # noqa: ANN401  # nft's JSON
    """Give the plain values in an element, however they are nested: a map's are [key, value], both concatenations."""
    match value:
        case {"concat": parts}:
            yield from _parts(parts)
        case list():
            for part in value:  # pyright: ignore[reportUnknownVariableType]  # nft's JSON
                yield from _parts(part)
        case _:
            yield str(value)


def _words(element: tuple[str, ...]) -> str:
    return " . ".join(element)
