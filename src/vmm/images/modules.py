"""Which modules a kernel needs before it sees its virtio disk and network, in the order of loading."""

import os
from collections.abc import Mapping
from pathlib import Path

from vmm.errors import ImageError
from vmm.host.reading import open_plain, read_text
from vmm.images.packed import packing_of, unpacked

# What stage-1 needs; each brings what it depends on. A kernel may have any of them built in.
WANTED = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")
# The file system of a seed disk (`--user-data`), which a root without this kernel's own modules could not read. Loaded
# where there is such a disk; a kernel without it boots all the same.
SEED = "isofs"
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
# The largest that distributions ship have 20 MiB, unpacked and with what debuggers want.
_MOST_BYTES = 64 * 1024 * 1024


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
    for name in (*WANTED, *([SEED] if SEED in available else [])):
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
    # Known from now on, so that two that name each other have an end; it is put behind what it needs below.
    ordered[name] = content
    for needed in _depends(content):
        _add(needed, available, builtin, ordered)
    for wish in _wishes(content):
        # By its own name or, as with what the crypto API is asked for, by that of the plainest that provides it.
        plain = wish.removeprefix("crypto_")
        provider = next((each for each in (wish, plain, f"{plain}_generic") if each in available), None)
        if provider is not None:
            _add(provider, available, builtin, ordered)
    ordered[name] = ordered.pop(name)


def _builtin(tree: Path) -> frozenset[str]:
    listing = tree / "modules.builtin"
    if not listing.exists():
        return frozenset()
    try:
        text = read_text(listing, errors="replace")
    except OSError as error:
        raise _unreadable(listing, error) from error
    return frozenset(_module_name(Path(line)) for line in text.split())


def _depends(content: bytes) -> list[str]:
    """Return what a module says it depends on (its .modinfo section: `depends=a,b`, each ended by a NUL)."""
    _, _, rest = content.partition(b"\0depends=")
    text = rest.split(b"\0", 1)[0].decode("ascii", errors="replace")
    return [_plain(name) for name in text.split(",") if name]


def _wishes(content: bytes) -> list[str]:
    """Return what a module says it wants before itself, and modprobe would load (`softdep=pre: a b post: c`).

    ext4 reaches its checksums so (`crypto-crc32c`): a distribution's full kernel has them as a module, and mounts no
    root without it.
    """
    found: list[str] = []
    for part in content.split(b"\0softdep=")[1:]:
        words = part.split(b"\0", 1)[0].decode("ascii", errors="replace").split()
        if "pre:" in words:
            before = words[words.index("pre:") + 1 :]
            found += [_plain(word) for word in before[: before.index("post:") if "post:" in before else None]]
    return found


def _uncompressed(path: Path) -> bytes:
    try:
        with os.fdopen(open_plain(path), "rb") as stream:
            packing = packing_of(stream.read(8))
        with unpacked(path, packing) as plain:
            content = plain.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise ImageError(
                    f"The module {path.name} is refused.",
                    details=f"It has more than {_MOST_BYTES >> 20} MiB.",
                    resolution="Give the kernel's own modules, as its package has them.",
                )
            return content
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(
        f"{path} of the kernel's modules cannot be read.",
        details=str(error),
        resolution="Give the tree as the kernel's package has it: --modules /lib/modules/VERSION",
    )


def _module_name(path: Path) -> str:
    return _plain(path.name.partition(".ko")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_")
