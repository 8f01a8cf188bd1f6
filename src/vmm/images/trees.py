"""Whether a tree is a root file system: a container's archive is none, and some have theirs some directories down."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from vmm.errors import ImageError
from vmm.host.reading import open_plain
from vmm.images.ext4 import is_ext4
from vmm.images.packed import packing_of
from vmm.images.partitions import is_partitioned
from vmm.images.recognize import HEAD_BYTES, format_of
from vmm.images.tarball import is_header, shown
from vmm.model.progress import Progress

_EXPORT = (
    "Give the file system of a container of it: docker create IMAGE; docker export CONTAINER >root.tar;"
    " then: vmm image import root.tar --name NAME (an init and an ssh server have to be in it)"
)
# Any root has the first, and one of the others. What has any of them is not left for a directory in it.
_ROOT, _PROGRAMS = "etc", ("bin", "usr", "sbin")
_MOST_LEVELS = 4
# Of what is looked at, and of what is named.
_MOST_ENTRIES, _MOST_NAMED = 1000, 5


def root_of(tree: Path, *, name: str, progress: Progress) -> Path:
    """Return the directory of `tree` that is the root: itself, or the only one in it. `name` is what people gave.

    Raises:
        ImageError: there is nothing in it, it is an archive of a container's image, or it holds several roots.
    """
    place, beside = tree, set[str]()
    for _ in range(_MOST_LEVELS):
        names = _names(place, name)
        if place == tree and not names:
            raise _refused(name, "There is nothing in it.", "Give the directory, or the tar, of a root file system.")
        if _is_root(names):
            break
        _refuse_container(place, names, name)
        if names & {_ROOT, *_PROGRAMS}:
            return tree
        below = sorted(entry for entry in names if _is_directory(place / entry))[:_MOST_ENTRIES]
        roots = [entry for entry in below if _is_root(_names(place / entry, name))]
        if len(roots) > 1:
            where = "Give the one that is meant, by its own path (an archive has to be unpacked first)."
            raise _refused(name, f"It holds several root file systems: {_listed(roots)}.", where)
        if not roots:
            _refuse_other(place, names, name)
        chosen = roots or below
        if len(chosen) != 1:
            return tree
        beside |= names - set(chosen)
        place /= chosen[0]
    else:
        return tree
    if place != tree:
        _tell(place.relative_to(tree), beside, name, progress)
    return place


def _tell(below: Path, beside: set[str], name: str, progress: Progress) -> None:
    left = f" What lies beside it is left out: {_listed(sorted(beside))}." if beside else ""
    progress.note(f"The root file system of {name} is below {shown(os.fsencode(below))[1:-1]}/: that is taken.{left}")


def _listed(names: list[str]) -> str:
    said = ", ".join(shown(os.fsencode(each)) for each in names[:_MOST_NAMED])
    return said if len(names) <= _MOST_NAMED else f"{said} and {len(names) - _MOST_NAMED} more"


def _names(tree: Path, name: str) -> set[str]:
    try:
        return {entry.name for entry in tree.iterdir()} - {"lost+found"}
    except OSError as error:
        raise ImageError(
            f"{name} cannot be read.", details=str(error), resolution="Check what it names, then try again."
        ) from error


def _is_root(names: set[str]) -> bool:
    return _ROOT in names and bool(names & set(_PROGRAMS))


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _refuse_container(tree: Path, names: set[str], name: str) -> None:
    for found, details, advice in _CONTAINERS:
        if found(tree, names):
            raise _refused(name, details, advice)


def _is_saved(tree: Path, names: set[str]) -> bool:
    """Whether it is an archive of `docker save`: of today, or of releases that wrote no manifest yet."""
    if names & {"manifest.json", "repositories", "layer.tar"}:
        return True
    below = sorted(names)[:_MOST_ENTRIES]
    return any(_is_directory(tree / each) and _is_there(tree / each / "layer.tar") for each in below)


_Found = Callable[[Path, set[str]], bool]
_CONTAINERS: tuple[tuple[_Found, str, str], ...] = (
    (
        # Since version 25 both are written; who has the first knows it by its name.
        _is_saved,
        "It is what `docker save` writes: layers of an image, and no root file system.",
        _EXPORT,
    ),
    (
        lambda _, names: "oci-layout" in names or {"index.json", "blobs"} <= names,
        "It is a container's image in the OCI layout: layers, and no root file system.",
        _EXPORT,
    ),
    (
        lambda _, names: any(entry.lower().endswith(".ovf") for entry in names),
        "It is an appliance (OVA): a description and disks of a virtual machine.",
        "Convert its disk: qemu-img convert -O raw DISK.vmdk disk.raw; then: vmm image import disk.raw --name NAME",
    ),
    (
        lambda _, names: "debootstrap" in names and not names & set(_PROGRAMS),
        "It is what `debootstrap --make-tarball` writes: packages, and no root file system yet.",
        "Make one of them: debootstrap --unpack-tarball=TARBALL SUITE tree; then: vmm image import tree --name NAME",
    ),
)


def _refuse_other(tree: Path, names: set[str], name: str) -> None:
    """Raise ImageError when there is no root, but files that may hold one, or that are told by it to be elsewhere."""
    files = [each for each in sorted(names)[:_MOST_ENTRIES] if _is_there(tree / each) and _may_hold_a_root(tree / each)]
    if files:
        raise _refused(
            name,
            f"There is no root file system in it, but what may hold one: {_listed(files)}.",
            "Take the one with the root file system out, and import that: vmm image import FILE --name NAME",
        )
    if "metadata.yaml" in names or {"create-message", "excludes-user"} & names:
        raise _refused(
            name,
            "It is the description of an image of LXC or Incus, without the root file system.",
            "Give the file that belongs to it: rootfs.tar.xz, or what unsquashfs makes of rootfs.squashfs.",
        )


def _may_hold_a_root(path: Path) -> bool:
    try:
        with os.fdopen(open_plain(path), "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return False
    known = format_of(head)
    is_archive = is_header(head) or packing_of(head) is not None
    return is_archive or is_ext4(head) or is_partitioned(head) or (known is not None and known.holds_root)


def _refused(name: str, details: str, resolution: str) -> ImageError:
    return ImageError(f"{name} cannot become an image.", details=details, resolution=resolution)
