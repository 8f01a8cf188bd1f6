"""The image library: root file systems built from the distribution's packages, or imported."""

from __future__ import annotations

import os

from vmm import TYPE_CHECKING
from vmm.errors import ImageError, NotFoundError
from vmm.images.shelf import Shelf, sha256_of, text_of
from vmm.model.clock import now
from vmm.model.image import Image
from vmm.model.names import valid_name
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from vmm.model.progress import Progress

MIB = 1024 * 1024


class ImageLibrary(Value):
    """Images below `root`, one directory each: `rootfs.ext4`, `image.json`."""

    root: Path
    staging: Path

    @property
    def _shelf(self) -> Shelf:
        return Shelf(root=self.root, staging=self.staging, what="image", description="image.json")

    def all(self) -> Sequence[Image]:
        """Return every image that can be read, by name."""
        found: list[Image] = []
        for name in self._shelf.names():
            try:
                found.append(self.get(name))
            except (ImageError, NotFoundError):
                continue
        return found

    def damaged(self) -> Sequence[str]:
        """Return the names of those that cannot be read."""
        good = {image.name for image in self.all()}
        return [name for name in self._shelf.names() if name not in good]

    def get(self, name: str) -> Image:
        """Return an image. Raises NotFoundError, or ImageError when its files are damaged."""
        facts = self._shelf.read(name)
        path = self._shelf.directory(name) / "rootfs.ext4"
        try:
            image = Image(
                name=name,
                path=path,
                size_mib=_whole(facts, "size_mib"),
                sha256=text_of(facts, "sha256"),
                source=text_of(facts, "source"),
                created_at=text_of(facts, "created_at"),
            )
            length = path.stat().st_size
        except (KeyError, TypeError, OSError) as error:
            raise self._shelf.unusable(name, error) from error
        if length != image.size_mib * MIB:
            raise self._shelf.damaged(name, f"{path} has {length} bytes, not {image.size_mib} MiB")
        return image

    def delete(self, name: str) -> None:
        self._shelf.delete(valid_name(name, what="image"))

    def pull(self, name: str | None, *, force: bool, progress: Progress) -> Image:
        """Build an image from packages: `default` (this host's own distribution), `debian-12`, `ubuntu-24.04`.

        One that is there already is returned as it is, unless `force` replaces it.
        """
        # A create reads an image's description; what makes images is for those who do.
        from vmm.images import rootfs

        chosen = valid_name(rootfs.DEFAULT if name is None else name, what="image")
        if not force and chosen in self._shelf.names():
            return self.get(chosen)
        recipe = rootfs.recipe_for(chosen)

        def build(out: Path, work: Path) -> None:
            rootfs.build(recipe, out, work=work, progress=progress)

        return self._add(chosen, build, source=recipe.source, force=force, progress=progress)

    def import_path(self, path: Path, name: str, *, size_mib: int | None, force: bool, progress: Progress) -> Image:
        """Import an ext4 file, a directory or a tar; `size_mib` for the latter two, else what they need."""
        from vmm.images import sources
        from vmm.images.lacks import shortcomings

        valid_name(name, what="image")
        kind = sources.kind_of(path)

        def build(out: Path, work: Path) -> None:
            sources.convert(path, kind, out, work=work, size_mib=size_mib, progress=progress)
            for lacking in shortcomings(out):
                progress.note(lacking)

        return self._add(name, build, source=f"{kind} {path.name}", force=force, progress=progress)

    def _add(
        self, name: str, build: Callable[[Path, Path], None], *, source: str, force: bool, progress: Progress
    ) -> Image:
        from vmm.images.ext4 import read_superblock

        with self._shelf.adding(name, force=force) as new:
            path = new / "rootfs.ext4"
            # Whatever is needed on the way lies beside the new item, never in it.
            build(path, new.parent)
            with progress.step("Checking and storing"):
                # A disk is a whole number of MiB; what is beyond the file system is never looked at.
                size_mib = -(-max(read_superblock(path).size, path.stat().st_size) // MIB)
                _settle(path, size_mib * MIB)
                facts = {"size_mib": size_mib, "sha256": sha256_of(path), "source": source, "created_at": now()}
                self._shelf.describe(new, facts)
        return self.get(name)


def _settle(path: Path, size: int) -> None:
    """Give the image its size and flush it: a reflink of a dirty file would wait for that at every create."""
    # There may be passwords' hashes and keys in it, and other users of this host have no business there.
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.truncate(size)
        os.fsync(stream.fileno())


def _whole(facts: Mapping[str, object], key: str) -> int:
    value = facts[key]
    if not isinstance(value, int):
        raise TypeError(f"{key} is {value!r}")
    return value
