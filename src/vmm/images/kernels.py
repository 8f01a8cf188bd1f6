"""The kernel library: kernels from the distribution's packages or from files, each with its stage-1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vmm import TYPE_CHECKING
from vmm.errors import ImageError, NotFoundError
from vmm.images.shelf import Shelf, sha256_of, text_of, texts_of
from vmm.model.clock import now
from vmm.model.image import Kernel
from vmm.model.names import valid_name
from vmm.model.value import Value

if TYPE_CHECKING:
    from vmm.model.progress import Progress

DEFAULT = "default"
BuildStage1 = Callable[[Sequence[tuple[str, bytes]], Path], None]


class KernelLibrary(Value):
    """Kernels below `root`, one directory each: `vmlinux`, `stage1.cpio.gz`, `kernel.json`.

    `build_stage1` writes a stage-1 from (file name, content) of modules in load order.
    """

    root: Path
    staging: Path
    build_stage1: BuildStage1

    @property
    def _shelf(self) -> Shelf:
        return Shelf(root=self.root, staging=self.staging, what="kernel", description="kernel.json")

    def all(self) -> Sequence[Kernel]:
        """Return every kernel that can be read, by name."""
        found: list[Kernel] = []
        for name in self._shelf.names():
            try:
                found.append(self.get(name))
            except (ImageError, NotFoundError):
                continue
        return found

    def damaged(self) -> Sequence[str]:
        """Return the names of those that cannot be read."""
        good = {kernel.name for kernel in self.all()}
        return [name for name in self._shelf.names() if name not in good]

    def get(self, name: str) -> Kernel:
        """Return a kernel. Raises NotFoundError, or ImageError when its files are damaged."""
        facts = self._shelf.read(name)
        directory = self._shelf.directory(name)
        try:
            kernel = Kernel(
                name=name,
                path=directory / "vmlinux",
                stage1=directory / "stage1.cpio.gz" if facts["stage1"] else None,
                version=text_of(facts, "version"),
                sha256=text_of(facts, "sha256"),
                source=text_of(facts, "source"),
                created_at=text_of(facts, "created_at"),
                lacking=texts_of(facts, "lacking"),
            )
        except (KeyError, TypeError) as error:
            raise self._shelf.unusable(name, error) from error
        for path in (kernel.path, kernel.stage1):
            try:
                missing = path is not None and not path.exists()
            except OSError as error:
                raise self._shelf.unusable(name, error) from error
            if missing:
                raise self._shelf.damaged(name, f"{path} is missing")
        return kernel

    def delete(self, name: str) -> None:
        self._shelf.delete(valid_name(name, what="kernel"))

    def pull(self, name: str | None, *, force: bool, progress: Progress) -> Kernel:
        """Fetch a kernel from the distribution's package registry, its signatures checked by apt.

        None or `default` is the distribution's own cloud kernel; another name is that of a linux-image package. One
        that is there already is returned as it is, unless `force` replaces it.
        """
        # A start reads a kernel's description; what makes kernels is for those who do.
        from vmm.images import packages
        from vmm.images.vmlinux import extract_vmlinux

        chosen = valid_name(DEFAULT if name is None else name, what="kernel")
        if chosen != DEFAULT and not chosen.startswith("linux-image-"):
            raise NotFoundError(
                f"There is no kernel {chosen!r} to pull.",
                details="A kernel to pull is 'default' or a package whose name begins with linux-image-.",
                resolution="sudo vmm kernel pull; a kernel of your own: sudo vmm kernel import PATH --name NAME",
            )
        if not force and chosen in self._shelf.names():
            return self.get(chosen)
        with self._shelf.adding(chosen, force=force) as new:
            work = new.parent
            package = packages.cloud_kernel() if chosen == DEFAULT else chosen
            tree, resolved = packages.fetch_kernel(package, work, progress=progress)
            image = packages.kernel_image(tree)
            with progress.step(f"Preparing {resolved}"):
                extract_vmlinux(image, new / "vmlinux", staging=work)
                self._add_stage1(new, tree)
                self._describe(new, version=image.name.removeprefix("vmlinuz-"), source=f"package {resolved}")
        return self.get(chosen)

    def import_path(
        self, path: Path, name: str, *, modules: Path | None, stage1: bool, force: bool, progress: Progress
    ) -> Kernel:
        """Import a vmlinux or bzImage with its /lib/modules/VERSION; `stage1` false: it mounts /dev/vda itself."""
        from vmm.images.kernel_parts import parts_lacking
        from vmm.images.modules import find_tree
        from vmm.images.vmlinux import extract_vmlinux

        valid_name(name, what="kernel")
        with self._shelf.adding(name, force=force) as new, progress.step(f"Importing {path.name}"):
            extract_vmlinux(path, new / "vmlinux", staging=new.parent)
            loaded = self._add_stage1(new, modules) if stage1 else ()
            for lacking in parts_lacking(new / "vmlinux", loaded, stage1=stage1):
                progress.note(lacking)
            version = find_tree(modules).name if modules else path.name
            self._describe(new, version=version, source=f"file {path.name}", stage1=stage1)
        return self.get(name)

    def _add_stage1(self, new: Path, modules: Path | None) -> Sequence[tuple[str, bytes]]:
        """Make the kernel's stage-1, and return the modules in it."""
        from vmm.images.modules import find_tree, in_load_order

        loaded = in_load_order(find_tree(modules)) if modules is not None else []
        self.build_stage1(loaded, new / "stage1.cpio.gz")
        return loaded

    def _describe(self, new: Path, *, version: str, source: str, stage1: bool = True) -> None:
        from vmm.images.kernel_words import lacking

        self._shelf.describe(
            new,
            {
                "version": version,
                "sha256": sha256_of(new / "vmlinux"),
                "source": source,
                "created_at": now(),
                "stage1": stage1,
                "lacking": list(lacking(new / "vmlinux")),
            },
        )
