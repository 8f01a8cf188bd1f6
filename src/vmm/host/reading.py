"""The one way that vmm reads files it did not just write: a plain file, to a bound, and never waiting.

Where a file is expected there may be a FIFO that nobody writes to, a device without an end, or a hundred megabytes:
whoever put it there, a command that looks must come to an end. Files of the kernel's own (/proc, /sys) are read as they
are, but for a command line in /proc, whose size any user chooses (`identity.command_line`).
"""

from __future__ import annotations

import errno
import os
import stat

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# A hundred times what any configuration, description or key takes.
TEXT_BYTES = 1024 * 1024
# What is asked for at once until more is there: the kernel clears as much before it gives a byte of /proc/sys.
_FIRST_BYTES = 16 * 1024
# More than any kernel or engine has, of a mebibyte each.
_PROGRAM_CHUNKS = 512
_KINDS = {
    stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}  # fmt: skip


def open_plain(path: Path, *, follow: bool = True) -> int:
    """Return a descriptor of a plain file, for reading. Without `follow` a symbolic link is refused.

    Raises:
        OSError: as open(2) does; EINVAL for what is no plain file.
    """
    # A FIFO would wait for a writer; a device may do something when it is opened, a terminal become ours.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = os.open(path, flags)
    except ValueError as error:  # a NUL in it, which no path of the kernel's has
        raise OSError(errno.EINVAL, "no path holds a NUL", repr(str(path))) from error
    try:
        _refuse(path, os.fstat(fd).st_mode)
    except OSError:
        os.close(fd)
        raise
    return fd


def refuse_unplain(path: Path) -> None:
    """Raise OSError where a program that vmm calls would find no plain file at `path`, or none at all."""
    _refuse(path, path.stat().st_mode)


def _refuse(path: Path, mode: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, and no plain file", str(path))


def read_bytes(path: Path, *, most: int = TEXT_BYTES, follow: bool = True) -> bytes:
    """Return what a plain file holds.

    Raises:
        OSError: it cannot be opened (as `open_plain` says), or holds more than `most` bytes (EFBIG).
    """
    fd = open_plain(path, follow=follow)
    parts: list[bytes] = []
    asked, left = _FIRST_BYTES, most + 1
    try:
        while left and (part := os.read(fd, min(asked, left))):
            parts.append(part)
            left -= len(part)
            if len(part) == asked:
                asked = TEXT_BYTES
    finally:
        os.close(fd)
    if not left:
        raise OSError(errno.EFBIG, f"it holds more than {most} bytes", str(path))
    return b"".join(parts)


def read_text(path: Path, *, most: int = TEXT_BYTES, follow: bool = True, errors: str = "strict") -> str:
    """Return the text (UTF-8) in a plain file; `errors` is as for bytes.decode.

    Raises:
        OSError: as `read_bytes` says, and EILSEQ for what is no text.
    """
    content = read_bytes(path, most=most, follow=follow)
    try:
        return content.decode(errors=errors)
    except UnicodeDecodeError as error:
        words = f"it is no text (UTF-8): byte {error.start + 1} is 0x{content[error.start]:02x}"
        raise OSError(errno.EILSEQ, words, str(path)) from error


def read_object(path: Path, *, most: int = TEXT_BYTES) -> dict[str, object]:
    """Return the JSON object in a plain file.

    Raises:
        OSError: as `read_text` says.
        ValueError: it holds no JSON object.
    """
    return parse_object(read_text(path, most=most))


def parse_object(text: str) -> dict[str, object]:
    """Return the JSON object in a text; ValueError where it holds none."""
    import json

    try:
        found: object = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON (line {error.lineno}, column {error.colno})") from error
    if type(found) is not dict:
        raise ValueError("it holds no JSON object")
    return found  # pyright: ignore[reportUnknownVariableType]  # JSON's own types


def bring_into_memory(path: Path) -> None:
    """Read a plain file of a program's size, for whoever needs it next. Raises OSError as `open_plain` does."""
    with os.fdopen(open_plain(path), "rb", buffering=0) as stream:
        for _ in range(_PROGRAM_CHUNKS):
            if not stream.read(TEXT_BYTES):
                break
