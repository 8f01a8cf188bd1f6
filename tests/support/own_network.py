"""The network of the host that the tests run on: none of them may change it."""

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

_IPV4 = Path("/proc/sys/net/ipv4")


def state() -> dict[str, object]:
    """Return links, routing rules, firewall and forwarding of the network that this process is in."""
    switches = [*_IPV4.glob("conf/*/forwarding"), _IPV4 / "ip_forward"]
    return {
        "links": sorted(name for _, name in socket.if_nameindex()),
        "routing rules": _said("ip", "rule"),
        "routing rules of IPv6": _said("ip", "-6", "rule"),
        # Without its counters. An ordinary user, who sees none of it, cannot change it either.
        "firewall": _said("nft", "--stateless", "list", "ruleset"),
        "forwarding": {str(path.relative_to(_IPV4)): _content(path) for path in switches},
    }


def changes(before: dict[str, object], after: dict[str, object]) -> str:
    """Return what differs, in words; empty when nothing does."""
    return "\n".join(
        f"{what} were:\n{old}\nand are:\n{after[what]}" for what, old in before.items() if old != after[what]
    )


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Assert that nothing of it is other after the block than it was before."""
    before = state()
    yield
    changed = changes(before, state())
    assert not changed, f"a test changed this host's own network\n{changed}"


def _said(program: str, *arguments: str) -> str:
    path = shutil.which(program)
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False).stdout if path else ""


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        # A link that goes takes its switches along; it is missing among the links as well.
        return ""
