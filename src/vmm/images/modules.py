"""Which modules a kernel needs before it sees its virtio disk and network, in the order of loading."""

import gzip
import lzma
from collections.abc import Mapping
from pathlib import Path

from vmm.errors import ImageError
from vmm.host import process

# What stage-1 needs; each brings what it depends on. A kernel may have any of them built in.
WANTED = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


def find_tree(directory: Path) -> Path:
    """Return the `lib/modules/VERSION` tree in or below `directory`; raise ImageError when there is none."""
    for candidate in (directory, *sorted(directory.glob("*")), *sorted(directory.glob("**/lib/modules/*"))):
        if (candidate / "kernel").is_dir():
            return candidate
    raise ImageError(
        f"{directory} holds no kernel modules.",
        details="A tree of modules has a directory 'kernel' in it, as /lib/modules/VERSION has.",
        resolution="Give --modules /lib/modules/VERSION",
    )


def in_load_order(tree: Path) -> list[tuple[str, bytes]]:
    """Return (file name, uncompressed content) of what stage-1 must load; what is built in is left out.

    Raises:
        ImageError: a module is neither built in nor in the tree.
    """
    available = {_module_name(path): path for suffix in _SUFFIXES for path in (tree / "kernel").rglob(f"*{suffix}")}
    builtin = _builtin(tree)
    ordered: dict[str, bytes] = {}
    for name in WANTED:
        _add(name, available, builtin, ordered)
    return [(f"{name}.ko", content) for name, content in ordered.items()]


def _add(name: str, available: Mapping[str, Path], builtin: frozenset[str], ordered: dict[str, bytes]) -> None:
    if name in ordered or (name in builtin and name not in available):
        return
    path = available.get(name)
    if path is None:
        raise ImageError(
            f"The kernel's module {name} is missing.",
            details=f"It is neither built in nor among the {len(available)} modules of the tree.",
            resolution="Give the whole tree of the kernel's modules, or a kernel with virtio built in.",
        )
    content = _uncompressed(path)
    for needed in _depends(content):
        _add(needed, available, builtin, ordered)
    ordered[name] = content


def _builtin(tree: Path) -> frozenset[str]:
    listing = tree / "modules.builtin"
    if not listing.exists():
        return frozenset()
    return frozenset(_module_name(Path(line)) for line in listing.read_text(encoding="utf-8").split())


def _depends(content: bytes) -> list[str]:
    """Return what a module says it depends on (its .modinfo section: `depends=a,b`, each ended by a NUL)."""
    start = content.find(b"\0depends=")
    if start < 0:
        return []
    text = content[start + len(b"\0depends=") : content.index(b"\0", start + 1)].decode("ascii")
    return [_plain(name) for name in text.split(",") if name]


def _uncompressed(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            out = path.with_name(f"{path.name}.plain")
            process.run(["zstd", "-q", "-d", "-f", "-o", str(out), str(path)])
            return out.read_bytes()
        case _:
            return path.read_bytes()


def _module_name(path: Path) -> str:
    return _plain(path.name.partition(".ko")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_")
