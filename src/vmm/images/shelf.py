"""How a library keeps its items: one directory a name, whole or not there."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager

from vmm import TYPE_CHECKING
from vmm.errors import ConflictError, ImageError, NotFoundError
from vmm.host import files
from vmm.host.reading import read_object
from vmm.images import durable
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path


# What the file system says of the item itself; all else keeps a sound one from being read.
_DAMAGE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.EILSEQ, errno.ENXIO,
)  # fmt: skip


class Shelf(Value):
    """Items of one kind (`what`: image or kernel) below `root`; each has a description file beside its content."""

    root: Path
    staging: Path
    what: str
    description: str

    def names(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if not entry.name.startswith("."))

    def read(self, name: str) -> dict[str, object]:
        """Return an item's description.

        Raises:
            NotFoundError: there is no such item.
            ImageError: its description is damaged, or cannot be read.
        """
        path = self.directory(name) / self.description
        try:
            return read_object(path)
        except FileNotFoundError as error:
            if self.directory(name).exists():
                raise self.damaged(name, str(error)) from error
            raise self._unknown(name) from error
        except OSError as error:
            raise self.unusable(name, error) from error
        except ValueError as error:
            raise self.damaged(name, str(error)) from error

    def directory(self, name: str) -> Path:
        return files.confined(self.root, name)

    def unusable(self, name: str, error: KeyError | TypeError | OSError) -> ImageError:
        """Return the error of a description that lacks something, or of content that cannot be read."""
        if isinstance(error, OSError) and error.errno not in _DAMAGE:
            from vmm.remedy import remedy

            return ImageError(f"The {self.what} {name!r} cannot be read.", details=str(error), resolution=remedy(error))
        return self.damaged(name, f"it says nothing of {error.args[0]}" if isinstance(error, KeyError) else str(error))

    def damaged(self, name: str, details: str) -> ImageError:
        return ImageError(
            f"The {self.what} {name!r} is damaged.",
            details=f"{self.directory(name) / self.description}: {details}",
            # Machines use it: it cannot be deleted without their disks, and need not be.
            resolution=f"Replace it in place: sudo vmm {self.what} import PATH --name {name} --force; if it was pulled:"
            f" sudo vmm {self.what} pull {name} --force",
        )

    def delete(self, name: str) -> None:
        """Remove an item: first out of sight, then from disk."""
        directory = self.directory(name)
        if not directory.exists():
            raise self._unknown(name)
        with (
            durable.told(f"The {self.what} {name!r} cannot be deleted."),
            files.staging_dir(self.staging, prefix="deleted") as away,
        ):
            durable.take_away(directory, away / name)

    def refuse_existing(self, name: str, *, force: bool) -> None:
        if self.directory(name).exists() and not force:
            raise ConflictError(
                f"There is {'an' if self.what == 'image' else 'a'} {self.what} {name!r} already.",
                details=str(self.directory(name)),
                resolution="Give it another name (--name), or replace that one: --force.",
            )

    @contextmanager
    def adding(self, name: str, *, force: bool) -> Generator[Path]:
        """Give a directory to fill; when the block ends well it becomes the item, in one step.

        Its files must be on disk by then (`fsync`). With `force` it takes the place of the item that stands there;
        machines that run keep their open files.
        """
        self.refuse_existing(name, force=force)
        with durable.told(f"The {self.what} {name!r} cannot be stored."):
            durable.make_directory(self.root)
            with files.staging_dir(self.staging, prefix=self.what) as work:
                new = files.make_dir(work / "new")
                yield new
                self.refuse_existing(name, force=force)
                durable.put_in_place(new, self.directory(name))

    def describe(self, directory: Path, facts: Mapping[str, object]) -> None:
        files.write_atomic(directory / self.description, json.dumps(facts, indent=2) + "\n")

    def _unknown(self, name: str) -> NotFoundError:
        known = ", ".join(self.names()) or "none"
        return NotFoundError(
            f"There is no {self.what} {name!r}.",
            details=f"Known: {known}.",
            resolution=f"sudo vmm {self.what} pull" if name == "default" else f"See: vmm {self.what} list",
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    import hashlib

    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_of(facts: Mapping[str, object], key: str) -> str:
    """Return a text from a description; KeyError or TypeError when it has none."""
    value = facts[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}")
    return value


def texts_of(facts: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return a list of texts from a description, none where it has no such list: older ones have not."""
    value = facts.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):  # pyright: ignore[reportUnknownVariableType]
        raise TypeError(f"{key} is {value!r}")
    return tuple(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
