"""A tar archive, read once from its beginning to its end. It has one meaning, or it is refused.

Python's tarfile takes headers of any size into memory and searches them with expressions that can take hours, and what
it reads in an archive is not always what GNU tar then writes. Here one reader serves both. The formats: ustar and pax
(POSIX, pax(1), "pax Interchange Format"), and GNU's with its sparse files (its manual, appendix "Tar Internals").
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import BinaryIO

from vmm.images import sparse
from vmm.images.sparse import BadArchive, Piece
from vmm.model.value import Value

_BLOCK = 512
_CHUNK = 1024 * 1024
# A path has at most 4 KiB, all of a file's attributes on ext4 some 64 KiB.
_MOST_HEADER_BYTES = 1024 * 1024
# A million entries, each with a pax header.
_MOST_HEADERS_BYTES = 2 * 1024**3
# An archive is filled up to a whole record; the largest that GNU tar's manual speaks of have a few MiB.
_MOST_TRAILING_BYTES = 16 * 1024 * 1024
_XATTR = b"SCHILY.xattr."
# What cannot be the same for several entries.
_OF_ONE_ENTRY = (b"path", b"linkpath", b"size", b"GNU.sparse.", _XATTR)
_SECOND_NS = 1_000_000_000
# What ext4 can hold: 34 bits of seconds, from 1901 on.
_TIMES_S = (-(2**31), 2**34 - 2**31 - 1)


class Kind(StrEnum):
    FILE = "file"
    HARD_LINK = "hard link"
    SYMLINK = "symbolic link"
    DEVICE = "device"
    DIRECTORY = "directory"
    FIFO = "FIFO"


_KINDS = {
    b"\0": Kind.FILE, b"0": Kind.FILE, b"7": Kind.FILE, b"S": Kind.FILE, b"1": Kind.HARD_LINK, b"2": Kind.SYMLINK,
    b"3": Kind.DEVICE, b"4": Kind.DEVICE, b"5": Kind.DIRECTORY, b"6": Kind.FIFO,
}  # fmt: skip


class Entry(Value):
    """What an archive says of one file. `size` is the file's own; `pieces` say which parts of it are in the archive."""

    path: bytes
    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: bytes
    pieces: tuple[Piece, ...]
    xattrs: Mapping[str, bytes]

    @property
    def stored(self) -> int:
        """The bytes of it that are in the archive."""
        return sum(length for _, length in self.pieces)


class TarReader:
    """The entries of an archive, in order; `content` gives that of the entry that came last."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._unread = 0  # of the entry that came last, with what fills its last block
        self._pieces: tuple[Piece, ...] = ()
        self._headers = 0
        self._defaults: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Give every entry. Raises BadArchive."""
        while (entry := self._next()) is not None:
            yield entry

    def content(self) -> Iterator[tuple[int, bytes]]:
        """Give the entry's content as (offset in the file, data), a MiB at most at once."""
        for offset, length in self._pieces:
            at, end = offset, offset + length
            while at < end:
                data = self._read(min(end - at, _CHUNK))
                self._unread -= len(data)
                yield at, data
                at += len(data)

    def _next(self) -> Entry | None:
        long: dict[bytes, bytes] = {}
        records: list[tuple[bytes, bytes]] = []
        while True:
            self._skip()
            block = self._header(_BLOCK)
            if not any(block):
                return self._finish()
            _check_sum(block)
            kind, size = block[156:157], _number(block[124:136])
            if kind in (b"L", b"K"):
                long[b"path" if kind == b"L" else b"linkpath"] = self._long(size).split(b"\0", 1)[0]
            elif kind in (b"x", b"X"):
                records = list(_records(self._long(size)))
            elif kind == b"g":
                self._defaults.update(_global_records(self._long(size)))
            elif kind != b"V":  # a label of the whole archive
                return self._entry(block, {**self._defaults, **long, **dict(records)}, records)

    def _entry(self, block: bytes, told: Mapping[bytes, bytes], records: list[tuple[bytes, bytes]]) -> Entry:
        kind = _KINDS.get(block[156:157])
        path = told.get(b"GNU.sparse.name") or told.get(b"path") or _path(block)
        if kind is None:
            raise BadArchive(f"The entry {shown(path)} is of a kind that vmm does not know: {block[156:157]!r}.")
        if kind is Kind.FILE and path.endswith(b"/"):
            kind = Kind.DIRECTORY
        stored = _decimal(told, b"size", _number(block[124:136]))
        if stored and kind is not Kind.FILE:
            # Readers differ in whether content follows: what one takes for it is entries to another.
            raise BadArchive(f"The entry {shown(path)} is a {kind} with a size of {stored}.")
        self._unread = stored + -stored % _BLOCK
        size, pieces = self._sparse(block, records, stored) if kind is Kind.FILE else (0, ())
        self._pieces = pieces
        return Entry(
            path=path,
            kind=kind,
            mode=_number(block[100:108]) & 0o7777,
            uid=_owner(path, _decimal(told, b"uid", _number(block[108:116]))),
            gid=_owner(path, _decimal(told, b"gid", _number(block[116:124]))),
            mtime_ns=_time_ns(told.get(b"mtime"), block[136:148]),
            size=size,
            link=told.get(b"linkpath") or _text(block[157:257]),
            pieces=pieces,
            xattrs={key[len(_XATTR) :].decode(errors="replace"): told[key] for key in told if key.startswith(_XATTR)},
        )

    def _sparse(self, block: bytes, records: list[tuple[bytes, bytes]], stored: int) -> tuple[int, tuple[Piece, ...]]:
        """Return the file's own size and which pieces of it are stored."""

        def take() -> bytes:
            self._unread -= _BLOCK
            if self._unread < 0:
                raise BadArchive("A sparse file's map is longer than its content.")
            return self._header(_BLOCK)

        if block[156:157] == b"S":
            # These blocks lie before the content and do not count as part of it.
            size, pieces = sparse.of_gnu_header(block, lambda: self._header(_BLOCK), number=_number)
        elif (found := sparse.of_records(records, take)) is not None:
            size, pieces = found
            stored = self._unread_content(stored)
        else:
            return stored, ((0, stored),) if stored else ()
        return size, sparse.checked(pieces, size=size, stored=stored)

    def _unread_content(self, stored: int) -> int:
        """Return what is left of `stored` bytes when some blocks of them have been read."""
        return self._unread - (-stored % _BLOCK)

    def _long(self, size: int) -> bytes:
        if size > _MOST_HEADER_BYTES:
            raise BadArchive(f"It has a header of {size} bytes.")
        return self._header(size + -size % _BLOCK)[:size]

    def _header(self, count: int) -> bytes:
        self._headers += count
        if self._headers > _MOST_HEADERS_BYTES:
            raise BadArchive(f"Its headers have more than {_MOST_HEADERS_BYTES >> 20} MiB.")
        return self._read(count)

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise BadArchive("It is cut off.")
        return data

    def _skip(self) -> None:
        while self._unread:
            self._unread -= len(self._read(min(self._unread, _CHUNK)))

    def _finish(self) -> None:
        """Read on to the end of the file: only there a packed archive's own checksum is seen."""
        trailing = 0
        while data := self._stream.read(_CHUNK):
            trailing += len(data)
            if trailing > _MOST_TRAILING_BYTES:
                raise BadArchive("More follows after its end.")


def shown(path: bytes) -> str:
    """Return a name as a message may show it: nothing in it that a terminal would obey, and not without end."""
    text = repr(path.decode(errors="surrogateescape"))
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_header(block: bytes) -> bool:
    """Whether a block is the header of an entry. Its checksum tells: the oldest form (v7) has no other mark."""
    try:
        _check_sum(block[:_BLOCK])
    except (BadArchive, IndexError):
        return False
    return len(block) >= _BLOCK


def _check_sum(block: bytes) -> None:
    told, rest = _number(block[148:156]), block[:148] + b" " * 8 + block[156:]
    # Old tars summed signed bytes.
    if told != sum(rest) and told != sum(memoryview(rest).cast("b")):
        raise BadArchive("A header of it is damaged: its checksum is wrong.")


def _number(field: bytes) -> int:
    """Return a header's number: octal digits, or (GNU) binary when the first bit is set; never a negative one."""
    number = _signed(field)
    if number < 0:
        raise BadArchive(f"A header of it is damaged: {number} where none can be.")
    return number


def _signed(field: bytes) -> int:
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    text = _text(field).strip(b" ") or b"0"
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise BadArchive(f"A header of it is damaged: {text!r} is no number.")
    return int(text, 8)


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _path(block: bytes) -> bytes:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give the records of a pax header: each is its own length, a space, `key=value` and a line's end."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        length = int(data[at:space]) if data[at : max(space, at)].isdigit() else 0
        if space < 0 or length < space - at + len(" k=\n"):  # one that does not lead on would be read for ever
            raise BadArchive("A pax header of it is damaged.")
        record = data[space + 1 : at + length - 1]
        key, equals, value = record.partition(b"=")
        if at + length > len(data) or data[at + length - 1 : at + length] != b"\n" or not (key and equals):
            raise BadArchive("A pax header of it is damaged.")
        if b"\0" in value and not key.startswith(_XATTR):
            raise BadArchive(f"A pax header of it has a zero byte in {shown(key)}.")
        yield key, value
        at += length


def _global_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for key, value in _records(data):
        if key.startswith(_OF_ONE_ENTRY):
            raise BadArchive(f"A global header of it sets {shown(key)}.")
        if key in (b"uid", b"gid", b"mtime"):
            yield key, value


def _decimal(told: Mapping[bytes, bytes], key: bytes, default: int) -> int:
    """Return a record's number, which goes before the header's own."""
    value = told.get(key)
    return sparse.decimal(value) if value else default


def _owner(path: bytes, number: int) -> int:
    # The last is no owner but chown's word for "leave it".
    if number >= 2**32 - 1:
        raise BadArchive(f"The entry {shown(path)} has the owner {number}.")
    return number


def _time_ns(record: bytes | None, field: bytes) -> int:
    """Return a time, brought to the nearest that a file system can keep."""
    low, high = _TIMES_S
    if not record:
        return min(max(_signed(field), low), high) * _SECOND_NS
    match = re.fullmatch(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?", record)
    if match is None:
        raise BadArchive("A pax header of it has a time that is none.")
    time_ns = int(match[2]) * _SECOND_NS + int(((match[3] or b"") + b"0" * 9)[:9])
    return min(max(-time_ns if match[1] else time_ns, low * _SECOND_NS), high * _SECOND_NS)
