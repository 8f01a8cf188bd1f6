"""The facts of one machine, as files that stage-1 reads: never sourced, so that no value can become a command."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.guest.cpio import Archive
from vmm.host import files
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Facts(Value):
    """What a machine must know of itself. `host_key` and `host_key_pub` are OpenSSH's own texts."""

    hostname: str
    machine_id: str
    address: str
    prefix_length: int
    gateway: str
    resolvers: tuple[str, ...]
    authorized_keys: tuple[str, ...]
    host_key: str
    host_key_pub: str
    grow: bool = False


def facts_archive(facts: Facts) -> bytes:
    """Return the cpio archive that is appended to stage-1: one file a fact, under `vmm/`."""
    archive = Archive()
    archive.add_directory("vmm", mode=0o700)
    texts = {
        "hostname": _hostname(facts.hostname),
        "machine-id": facts.machine_id,
        "address": f"{facts.address}/{facts.prefix_length}",
        "gateway": facts.gateway,
        "resolv.conf": "\n".join(f"nameserver {resolver}" for resolver in facts.resolvers),
        "authorized_keys": "\n".join(facts.authorized_keys),
        "ssh_host_ed25519_key": facts.host_key.rstrip("\n"),
        "ssh_host_ed25519_key.pub": facts.host_key_pub.rstrip("\n"),
    }
    for name, text in texts.items():
        archive.add_file(f"vmm/{name}", text.encode() + b"\n", mode=0o600)
    if facts.grow:
        archive.add_file("vmm/grow", b"", mode=0o600)
    return archive.to_bytes()


def write_initrd(out: Path, *, archives: Sequence[Path], facts: Facts) -> None:
    """Write a machine's initrd: the archives, one after another, and the facts behind them. It holds a private key."""
    parts = [path.read_bytes() for path in archives]
    # The kernel wants each archive to begin at a multiple of four bytes, and passes over zeros before it.
    padded = [part + b"\0" * (-len(part) % 4) for part in parts]
    files.write_atomic(out, b"".join([*padded, facts_archive(facts)]), mode=0o600, durable=False)


def _hostname(name: str) -> str:
    """Return a machine's name as a host name: letters, digits and '-' (RFC 1123), at most 63."""
    cleaned = "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in name)
    return cleaned[:63].strip("-") or "vmm"
