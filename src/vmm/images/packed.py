"""What is packed, read as it is unpacked: through a pipe, so that a bomb fills neither the disk nor the memory."""

import contextlib
import fcntl
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from vmm.errors import HostError, ImageError
from vmm.host import process
from vmm.host.reading import open_plain
from vmm.model.value import Value

_UNPACK_S = 1800.0
_PIPE_BYTES = 1024 * 1024


class Packing(Value):
    """A way of packing: how it begins, and the program (of which package) that unpacks a file to its output.

    `good` are the exit codes with which all was unpacked.
    """

    name: str
    magic: bytes
    argv: tuple[str, ...]
    package: str
    good: tuple[int, ...] = (0,)


# xz takes as much memory as the file asks for, up to 4 GiB, unless it is told otherwise; `xz -9` needs 65 MiB. The
# others need less than that, whatever they read (zstd by itself refuses windows of more than 128 MiB). gzip ends with 2
# when it has left out what follows its end.
PACKINGS = (
    Packing(name="gzip", magic=b"\x1f\x8b", argv=("gzip", "-q", "-d", "-c"), package="gzip", good=(0, 2)),
    Packing(name="xz", magic=b"\xfd7zXZ\0", argv=("xz", "-q", "-d", "-c", "-M", "256MiB"), package="xz-utils"),
    Packing(name="bzip2", magic=b"BZh", argv=("bzip2", "-q", "-d", "-c"), package="bzip2"),
    Packing(name="zstd", magic=b"\x28\xb5\x2f\xfd", argv=("zstd", "-q", "-d", "-c"), package="zstd"),
    # The legacy frame: what the kernel's build makes.
    Packing(name="lz4", magic=b"\x02\x21\x4c\x18", argv=("lz4", "-q", "-d", "-c"), package="lz4"),
    Packing(name="lz4", magic=b"\x04\x22\x4d\x18", argv=("lz4", "-q", "-d", "-c"), package="lz4"),
    # The older format of xz's makers: its usual properties, then a dictionary of whole 64 KiB.
    Packing(name="xz", magic=b"\x5d\0\0", argv=("xz", "-q", "-d", "-c", "-M", "256MiB"), package="xz-utils"),
    Packing(name="lzop", magic=b"\x89LZO\0\r\n\x1a\n", argv=("lzop", "-q", "-d", "-c"), package="lzop"),
)


def packing_of(head: bytes) -> Packing | None:
    """Return how a file is packed that begins with `head`; None where it is not."""
    return next((packing for packing in PACKINGS if head.startswith(packing.magic)), None)


@contextlib.contextmanager
def unpacked(path: Path, packing: Packing | None) -> Generator[BinaryIO]:
    """Give the plain content of a file, to be read once and to its end; who stops earlier raises.

    Raises:
        ImageError: it cannot be unpacked to its end.
        HostError: the program that unpacks it is missing.
    """
    if packing is None:
        with os.fdopen(open_plain(path), "rb") as stream:
            yield stream
        return
    reader, writer = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    program = _Program(path, packing, writer)
    with contextlib.closing(program):
        with os.fdopen(reader, "rb") as stream:
            try:
                yield stream
            except ImageError as error:
                stream.close()
                problem = program.problem()
                # What it wrote before it found its input damaged may have looked like anything.
                raise (problem or error) from None
        if (problem := program.problem()) is not None:
            raise problem


class _Program:
    """A program that unpacks into a pipe, in a thread of its own; it ends when nobody reads any more."""

    def __init__(self, path: Path, packing: Packing, writer: int) -> None:
        self._path = path
        self._packing = packing
        self._done: process.Completed | None = None
        self._error: HostError | None = None
        self._thread = threading.Thread(target=self._run, args=(writer,))
        self._thread.start()

    def problem(self) -> Exception | None:
        """Wait for its end, and return what it failed with; having lost its reader is no failure of its own."""
        self.close()
        if self._error is not None:
            return self._error
        if self._done is None or self._done.code < 0 or self._done.code in self._packing.good:
            return None
        return ImageError(
            f"{self._path} cannot be unpacked.", details=self._done.words, resolution="Fetch or make it again."
        )

    def close(self) -> None:
        self._thread.join()

    def _run(self, writer: int) -> None:
        # Resolved: a name that begins with a dash is no option, and some of the programs take no links.
        argv = [*self._packing.argv, str(self._path.resolve())]
        try:
            with os.fdopen(writer, "wb") as output:
                self._done = process.run(argv, stdout=output, check=False, timeout_s=_UNPACK_S)
        except HostError as error:
            fix = f"sudo apt-get install {self._packing.package}"
            self._error = HostError(error.brief, details=error.details, resolution=fix)
