"""A glance at other firewalls beside a start: one nft that runs while the engine comes up, and little else.

Where no one else has a chain that packets pass, that is all. Where someone has, only what drops machines for certain is
told; what takes longer to see is seen by the supervisor a moment later.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import HostError
from vmm.host import process
from vmm.host.reading import read_text
from vmm.network.tables import is_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from vmm.network.others import Others

_PATIENCE_S = 0.2
# A ruleset of tens of thousands of rules is not read on the way of a start.
_MOST_BYTES = 1_000_000
_LEGACY_TABLES = Path("/proc/net/ip_tables_names")


@contextlib.contextmanager
def listing() -> Generator[Callable[[], str]]:
    """Begin to list the ruleset; give what waits for it, a moment at most: empty where it takes longer, or fails."""
    try:
        begun = process.begin_reading(["nft", "-j", "-t", "list", "ruleset"], most=_MOST_BYTES)
    except HostError:
        # Without nft the start itself fails, and says so.
        yield str
        return
    with begun:
        yield lambda: begun.read(timeout_s=_PATIENCE_S)


def is_dropped(others: Callable[[], Others], listed: str) -> bool:
    """Whether a chain of someone else's drops what machines need, as far as can be told at once."""
    entries: list[Any] = json.loads(listed)["nftables"] if listed else []
    chains = [entry["chain"] for entry in entries if "chain" in entry]
    foreign = any("hook" in chain and not is_ours(chain["family"], chain["table"]) for chain in chains)
    if not foreign and not has_legacy_tables():
        return False
    return others().are_dropping(listed)


def has_legacy_tables() -> bool:
    """Whether the old iptables has tables in this network."""
    try:
        return bool(read_text(_LEGACY_TABLES).strip())
    except OSError:
        return False
