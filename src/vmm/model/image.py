"""Images and kernels as they lie on disk. Both are immutable: a new import is a new name or an explicit replacement."""

from __future__ import annotations

from dataclasses import dataclass

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A root file system that machines copy. `size_mib` is the file system's size, `sha256` of the whole file."""

    name: str
    path: Path
    size_mib: int
    sha256: str
    source: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel as an uncompressed ELF `vmlinux`, and the stage-1 initramfs it boots through.

    `stage1` is None for a kernel imported without one (it then finds its root on /dev/vda by itself).
    """

    name: str
    path: Path
    stage1: Path | None
    version: str
    sha256: str
    source: str
    created_at: str
