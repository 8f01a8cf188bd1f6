"""What the kernel has of vmm's tables, compared with what it should have."""

from __future__ import annotations

import json

from vmm import TYPE_CHECKING
from vmm.host import process
from vmm.network.listing import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from vmm.network.tables import Head

# (family, set or map) -> its elements, each as its parts in nft's order.
Elements = dict[tuple[str, str], set[tuple[str, ...]]]
# (family, chain) -> its rules in their order, each as nft's JSON has it.
Rules = dict[tuple[str, str], list["Any"]]
# (family, chain) -> where it hangs; None where nothing but a jump leads to it.
Heads = dict[tuple[str, str], "Head | None"]


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
    wanted: Elements, counts: Mapping[tuple[str, str], int], heads: Heads, rules: Rules | None = None
) -> list[str]:
    """Return what of the tables is not as it should be, a sentence each.

    `counts` are those of the rules by (family, chain), `heads` where the chains hang; `rules` may not be known.
    """
    found: list[str] = []
    for family in dict.fromkeys(family for family, _ in counts):
        listing = listed(family, "-j")
        if listing is None:
            found.append(f"the firewall's table {family} vmm was gone")
            continue
        entries = json.loads(listing)["nftables"]
        has, standing = _elements(family, entries), _rules(entries)
        found += _misplaced(family, {key: head for key, head in heads.items() if key[0] == family}, entries)
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


def _misplaced(family: str, heads: Heads, entries: Iterable[Any]) -> list[str]:
    """Say what keeps the rules from being asked, though they stand: a table asleep, a chain that hangs elsewhere."""
    found: list[str] = []
    there: Heads = {}
    for entry in entries:
        match entry:
            # nft 1.0.6 writes the table's name for the flag's. One of vmm's has none.
            case {"table": {"flags": _}}:
                found.append(f"the table {family} vmm was switched off")
            case {"chain": {"name": str(name), **place}}:
                there[family, name] = _head(place)
            case _:
                pass
    moved = sorted(name for _, name in heads.keys() & there.keys() if there[family, name] != heads[family, name])
    found += [f"the chain {name} of {family} vmm hung elsewhere, or had another policy" for name in moved]
    strangers = sorted(name for _, name in there.keys() - heads.keys())
    return found + [f"the chain {name} of {family} vmm was not vmm's" for name in strangers]


def _head(place: Mapping[str, Any]) -> Head | None:
    if "hook" not in place:
        return None
    return (str(place.get("type")), str(place["hook"]), int(place.get("prio", 0)), str(place.get("policy")))


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
