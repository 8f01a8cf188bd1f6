"""What the kernel has of vmm's tables, compared with what it should have."""

from __future__ import annotations

import json

from vmm import TYPE_CHECKING
from vmm.host import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

# (family, set or map) -> its elements, each as its parts in nft's order.
Elements = dict[tuple[str, str], set[tuple[str, ...]]]


def differences(wanted: Elements, rules: Mapping[tuple[str, str], int]) -> list[str]:
    """Return what of the tables is not as it should be, a sentence each; `rules` counts them by (family, chain)."""
    found: list[str] = []
    for family in ("ip", "bridge"):
        listing = process.run(["nft", "-j", "list", "table", family, "vmm"], check=False)
        if listing.code != 0:
            found.append(f"the firewall's table {family} vmm was gone")
            continue
        has, counted = _parsed(family, listing.stdout)
        for key, count in rules.items():
            if key[0] == family and counted.get(key, 0) != count:
                found.append(f"the chain {key[1]} of {family} vmm had {counted.get(key, 0)} rules of {count}")
        for key, elements in wanted.items():
            if key[0] != family:
                continue
            found += [f"{_words(element)} was not in {key[1]}" for element in sorted(elements - has.get(key, set()))]
            found += [f"{_words(element)} was left in {key[1]}" for element in sorted(has.get(key, set()) - elements)]
    return found


def _parsed(family: str, text: str) -> tuple[Elements, dict[tuple[str, str], int]]:
    elements: Elements = {}
    counted: dict[tuple[str, str], int] = {}
    for entry in json.loads(text)["nftables"]:
        match entry:
            case {"rule": {"chain": str(chain)}}:
                counted[family, chain] = counted.get((family, chain), 0) + 1
            case {"set": {"name": str(name), "elem": found}} | {"map": {"name": str(name), "elem": found}}:
                elements[family, name] = {tuple(_parts(element)) for element in found}
            case _:
                pass
    return elements, counted


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
