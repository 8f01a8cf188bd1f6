"""What nft lists of vmm's own tables."""

from __future__ import annotations

import re
import time

from vmm.errors import HostError
from vmm.host import process

# The chain that tells whose a table of vmm's is: see `firewall`.
OWNER = re.compile(r"\bof_[0-9a-f]{16}\b")
_TIMES = 20
_APART_S = 0.01
# What nft says of a table that is not there, or of a family that this kernel has not. Whatever else it fails with (a
# right, memory) says nothing of the table.
_NONE = re.compile("No such file or directory|not supported")


def listed(family: str, *options: str) -> str | None:
    """Return `nft list table` of this family's table `vmm`, or None where there is none.

    Raises HostError where nft cannot tell.

    Read while someone makes it, a table may look as if nothing or half were in it, or everything twice (nft 1.0.6 on
    Linux 6.18: 3 listings of 100 beside two loops that make and flush it). So one that does not say once whose it is
    is read again, for a third of a second; a stranger's, and one of a version that did not say, never does.
    """
    text = ""
    for _ in range(_TIMES):
        listing = process.run(["nft", *options, "list", "table", family, "vmm"], check=False)
        if listing.code != 0 and _NONE.search(listing.stderr):
            return None
        if listing.code != 0:
            raise HostError(
                f"The firewall's table {family} vmm cannot be looked at.",
                details=listing.words,
                resolution="See what nft says (sudo nft list tables), then try again.",
            )
        text = listing.stdout
        if len(OWNER.findall(text)) == 1:
            break
        time.sleep(_APART_S)
    return text
