"""Whether a tree is a root file system: a container's archive is none, and some have theirs one directory down."""

from pathlib import Path

from vmm.errors import ImageError
from vmm.model.progress import Progress

_EXPORT = (
    "Give the file system of a container of it: docker create IMAGE; docker export CONTAINER >root.tar;"
    " then: vmm image import root.tar --name NAME (an init and an ssh server have to be in it)"
)
# Any root has the first, and one of the others.
_ROOT, _PROGRAMS = "etc", ("bin", "usr", "sbin")


def root_of(tree: Path, *, name: str, progress: Progress) -> Path:
    """Return the directory of `tree` that is the root: itself, or the only one in it. `name` is what people gave.

    Raises:
        ImageError: there is nothing in it, or it is an archive of a container's image.
    """
    names = _names(tree, name)
    if not names - {"lost+found"}:
        raise _refused(name, "There is nothing in it.", "Give the directory, or the tar, of a root file system.")
    if "manifest.json" in names and not _is_root(names):
        raise _refused(name, "It is what `docker save` writes: layers of an image, and no root file system.", _EXPORT)
    if "oci-layout" in names or {"index.json", "blobs"} <= names:
        raise _refused(name, "It is a container's image in the OCI layout: layers, and no root file system.", _EXPORT)
    if any(entry.endswith(".ovf") for entry in names):
        advice = (
            "Convert its disk: qemu-img convert -O raw DISK.vmdk disk.raw; then: vmm image import disk.raw --name NAME"
        )
        raise _refused(name, "It is an appliance (OVA): a description and disks of a virtual machine.", advice)
    below = tree / next(iter(names))
    if len(names) == 1 and not below.is_symlink() and below.is_dir() and _is_root(_names(below, name)):
        progress.note(f"The root file system of {name} is below {below.name}/: that is taken.")
        return below
    return tree


def _names(tree: Path, name: str) -> set[str]:
    try:
        return {entry.name for entry in tree.iterdir()}
    except OSError as error:
        raise ImageError(
            f"{name} cannot be read.", details=str(error), resolution="Check what it names, then try again."
        ) from error


def _is_root(names: set[str]) -> bool:
    return _ROOT in names and bool(names & set(_PROGRAMS))


def _refused(name: str, details: str, resolution: str) -> ImageError:
    return ImageError(f"{name} cannot become an image.", details=details, resolution=resolution)
