"""What nft lists of vmm's own tables."""

from __future__ import annotations

import time

from vmm.host import process

_TIMES = 20
_APART_S = 0.01


def listed(family: str, *options: str) -> str | None:
    """Return `nft list table` of this family's table `vmm`, or None where there is none. Raises HostError without nft.

    Read while someone makes it, a table may look as if nothing were in it (nft 1.0.6 on Linux 6.18: 3 listings of 100
    beside two loops that make and flush it). So one of which that is said is read again.
    """
    text = ""
    for _ in range(_TIMES):
        listing = process.run(["nft", *options, "list", "table", family, "vmm"], check=False)
        if listing.code != 0:
            return None
        text = listing.stdout
        if "chain" in text:
            break
        time.sleep(_APART_S)
    return text
