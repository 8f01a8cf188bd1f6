"""Images and kernels as they lie on disk. Both are immutable: a new import is a new name or an explicit replacement."""

from __future__ import annotations

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from pathlib import Path


class Image(Value):
    """A root file system that machines copy. `size_mib` is the file system's size, `sha256` of the whole file."""

    name: str
    path: Path
    size_mib: int
    sha256: str
    source: str
    created_at: str


class Kernel(Value):
    """A kernel as an uncompressed ELF `vmlinux`, and the stage-1 initramfs it boots through.

    `stage1` is None for a kernel imported without one (it then finds its root on /dev/vda by itself). `lacking` is what
    of its end it does not say in words that vmm knows, a phrase each.
    """

    name: str
    path: Path
    stage1: Path | None
    version: str
    sha256: str
    source: str
    created_at: str
    lacking: tuple[str, ...] = ()
