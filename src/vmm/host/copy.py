"""The content of a disk image into another file: shared where the file system can, else only its data."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# FICLONE of linux/fs.h: share all of a file's blocks (XFS, btrfs, bcachefs).
_FICLONE = 0x40049409
# Measured with 300 MiB on ext4 and two cores: 69 ms by two threads with buffers of 4 MiB, one reading while the other
# writes; 114 ms by one thread, 129 by copy_file_range, 159 by cp --sparse=always.
_THREADS = 2
_BUFFER_BYTES = 4 * 1024 * 1024


def copy_content(source: int, destination: int) -> None:
    """Fill the empty file `destination` with what `source` holds (both open descriptors); holes stay holes.

    Raises:
        OSError: reading or writing failed; what was written so far is the caller's to remove.
    """
    if not reflink(source, destination):
        _Copy(source, destination).run()


def reflink(source: int, destination: int) -> bool:
    """Share all of a file's blocks with an empty one; False where the file system cannot."""
    try:
        fcntl.ioctl(destination, _FICLONE, source)
    except OSError:
        return False
    return True


class _Copy:
    """A copy under way: threads that take piece after piece until none is left, or one of them failed."""

    def __init__(self, source: int, destination: int) -> None:
        self._source = source
        self._destination = destination
        self._pieces = _pieces(source)
        self._lock = threading.Lock()
        self._error: OSError | MemoryError | None = None

    def run(self) -> None:
        others: list[threading.Thread] = []
        try:
            for _ in range(_THREADS - 1):
                others += self._another()
            self._work(self._source, self._destination)
        finally:
            # An interruption reaches only this thread: the others must not write on behind its back.
            with self._lock:
                self._pieces = iter(())
            for thread in others:
                thread.join()
        if self._error is not None:
            raise self._error

    def _another(self) -> list[threading.Thread]:
        """Begin to work in another thread, and return it; none where there is no room for one.

        It has descriptors of its own: should the wait for it be interrupted, it writes into no other file.
        """
        own = os.dup(self._source), os.dup(self._destination)
        thread = threading.Thread(target=self._work_apart, args=own)
        try:
            thread.start()
        except RuntimeError:
            for fd in own:
                os.close(fd)
            return []
        return [thread]

    def _work_apart(self, source: int, destination: int) -> None:
        try:
            self._work(source, destination)
        finally:
            os.close(source)
            os.close(destination)

    def _work(self, source: int, destination: int) -> None:
        try:
            buffer = memoryview(bytearray(_BUFFER_BYTES))
            while (piece := self._next()) is not None:
                offset, end = piece
                while offset < end:
                    count = os.preadv(source, [buffer[: end - offset]], offset)
                    if count == 0:
                        break
                    offset += _write(destination, buffer[:count], offset)
        except (OSError, MemoryError) as error:
            self._error = error
            with self._lock:
                self._pieces = iter(())

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            return next(self._pieces, None)


def _write(destination: int, data: memoryview, offset: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(destination, data[written:], offset + written)
    return written


def _pieces(source: int) -> Iterator[tuple[int, int]]:
    """Give (start, end) of pieces that hold data, each at most a buffer long."""
    size = os.fstat(source).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        while start < position:
            yield start, min(position, start + _BUFFER_BYTES)
            start += _BUFFER_BYTES
