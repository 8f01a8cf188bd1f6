"""Files in an ext4 file system, read as plain bytes: nothing is mounted, and no program with root's rights reads it.

What is read may be hostile. So every step is bounded, and whatever does not fit is `UnreadableError`. The format: the
kernel's Documentation/filesystems/ext4 (dynamic structures).
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from vmm.model.value import Value

_MIB = 1024 * 1024
_ROOT_INODE = 2
_META_BG, _64BIT = 0x10, 0x80
_EXTENTS, _INLINE = 0x80000, 0x10000000
_EXTENT_MAGIC, _LONGEST = 0xF30A, 0x8000
_MOST_LINKS, _MOST_NODES, _MOST_DEPTH = 40, 512, 5
# For all that is asked of one file system. A root's own answers take some hundred steps and a MiB or two.
_MOST_BYTES, _MOST_STEPS = 64 * _MIB, 10_000
_LINK, _DIRECTORY, _FILE = 0xA000, 0x4000, 0x8000


class UnreadableError(Exception):
    """What is asked for cannot be read here: damaged, or of a feature that this reader does not know."""


class Inode(Value):
    """A file. `kind` is its type in the mode, `blocks` the 60 bytes that say where its data are."""

    mode: int
    size: int
    flags: int
    blocks: bytes

    @property
    def kind(self) -> int:
        return self.mode & 0xF000


class FileSystem:
    """An ext4 file system in a file. `read` and `names` take absolute paths; links are followed, within it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._bytes, self._steps = _MOST_BYTES, _MOST_STEPS
        block = self._at(1024, 1024)
        self.uuid = block[0x68:0x78].hex()
        self.label = block[0x78:0x88].split(b"\0", 1)[0].decode(errors="replace")
        log: int = struct.unpack_from("<I", block, 0x18)[0]
        if log > 6:
            raise UnreadableError(f"blocks of 2^{log} KiB")
        self._block = 1024 << log
        # The groups' table is in the block behind the superblock's. The first data block does not tell (bigalloc: 0).
        self._table = (1024 // self._block + 1) * self._block
        self._per_group: int = struct.unpack_from("<I", block, 0x28)[0]
        self._inode_size: int = struct.unpack_from("<H", block, 0x58)[0]
        features: int = struct.unpack_from("<I", block, 0x60)[0]
        if features & _META_BG or not self._per_group or not 128 <= self._inode_size <= self._block:
            raise UnreadableError("a layout of its tables that is not known here")
        self._descriptor = max(32, struct.unpack_from("<H", block, 0xFE)[0]) if features & _64BIT else 32

    def exists(self, path: str) -> bool:
        return self._find(path) is not None

    def is_program(self, path: str) -> bool:
        """Whether there is a file that may be executed."""
        found = self._find(path)
        return found is not None and found.kind == _FILE and bool(found.mode & 0o111)

    def read(self, path: str, *, most: int = _MIB) -> bytes | None:
        """Return a plain file's content, `most` bytes of it; None where there is none."""
        found = self._find(path)
        return None if found is None or found.kind != _FILE else self._data(found, most)

    def names(self, path: str) -> list[str]:
        """Return what is in a directory; empty where there is none."""
        found = self._find(path)
        entries = [] if found is None or found.kind != _DIRECTORY else self._entries(found)
        return [name.decode(errors="replace") for name, _ in entries if name not in (b".", b"..")]

    def _find(self, path: str) -> Inode | None:
        """Return what a path leads to."""
        waiting = [part.encode() for part in reversed(path.split("/")) if part]
        above: list[Inode] = [self._inode(_ROOT_INODE)]
        links = 0
        while waiting:
            part = waiting.pop()
            self._spend(0)
            if part in (b".", b""):
                continue
            if part == b"..":
                above = above[:-1] or above
                continue
            number = dict(self._entries(above[-1])).get(part) if above[-1].kind == _DIRECTORY else None
            if number is None:
                return None
            found = self._inode(number)
            if found.kind == _LINK:
                links += 1
                if links > _MOST_LINKS:
                    return None
                target = found.blocks[: found.size] if found.size < 60 else self._data(found, 4096)
                above = above[:1] if target.startswith(b"/") else above
                waiting += list(reversed(target.split(b"/")))
            else:
                above.append(found)
        return above[-1]

    def _inode(self, number: int) -> Inode:
        group, index = divmod(number - 1, self._per_group)
        table = self._at(self._table + group * self._descriptor, self._descriptor)
        start = struct.unpack_from("<I", table, 8)[0]
        if self._descriptor >= 64:
            start |= struct.unpack_from("<I", table, 0x28)[0] << 32
        raw = self._at(start * self._block + index * self._inode_size, 128)
        size = struct.unpack_from("<I", raw, 4)[0] | struct.unpack_from("<I", raw, 0x6C)[0] << 32
        return Inode(
            mode=struct.unpack_from("<H", raw)[0],
            size=size,
            flags=struct.unpack_from("<I", raw, 0x20)[0],
            blocks=raw[0x28:0x64],
        )

    def _entries(self, directory: Inode) -> list[tuple[bytes, int]]:
        """Return a directory's entries; blocks of its index look like empty ones."""
        data = self._data(directory, 4 * _MIB)
        found: list[tuple[bytes, int]] = []
        at = 4 if directory.flags & _INLINE else 0
        while at + 8 <= len(data):
            number, length, name_length = struct.unpack_from("<IHB", data, at)
            if length < 8:
                raise UnreadableError("a directory that is damaged")
            if number:
                found.append((data[at + 8 : at + 8 + name_length], number))
            at += length
        return found

    def _data(self, inode: Inode, most: int) -> bytes:
        size = min(inode.size, most)
        self._spend(size)
        if inode.flags & _INLINE:
            return inode.blocks[:size]
        pieces = self._extents(inode.blocks) if inode.flags & _EXTENTS else self._mapped(inode.blocks)
        data = bytearray(size)
        for logical, physical, count in pieces:
            at = logical * self._block
            if at >= size:
                break
            part = self._at(physical * self._block, min(count * self._block, size - at))
            data[at : at + len(part)] = part
        return bytes(data)

    def _extents(self, top: bytes) -> Iterator[tuple[int, int, int]]:
        """Give the pieces of a file as (logical block, physical block, blocks), one behind the other."""
        waiting: list[int | bytes] = [top]
        nodes = end = 0
        while waiting:
            node = waiting.pop()
            if isinstance(node, int):
                node = self._at(node * self._block, self._block)
            nodes += 1
            magic, count, _, depth = struct.unpack_from("<HHHH", node)
            if magic != _EXTENT_MAGIC or depth > _MOST_DEPTH or nodes > _MOST_NODES or 12 + 12 * count > len(node):
                raise UnreadableError("a file whose map is damaged")
            below: list[int | bytes] = []
            for at in range(12, 12 + 12 * count, 12):
                if depth:
                    low, high = struct.unpack_from("<IH", node, at + 4)
                    below.append(high << 32 | low)
                    continue
                logical, length, high, low = struct.unpack_from("<IHHI", node, at)
                # A longer one is set aside, and holds nothing yet.
                blocks = length if length <= _LONGEST else length - _LONGEST
                if logical < end:
                    raise UnreadableError("a file whose map has a block twice")
                end = logical + blocks
                if length <= _LONGEST:
                    yield logical, high << 32 | low, blocks
            waiting += reversed(below)

    def _mapped(self, blocks: bytes) -> Iterator[tuple[int, int, int]]:
        """Give the first pieces of a file in the older way: what is named directly, and through one block of names."""
        numbers = list(struct.unpack_from("<13I", blocks))
        if indirect := numbers.pop():
            numbers += struct.unpack(f"<{self._block // 4}I", self._at(indirect * self._block, self._block))
        yield from ((logical, physical, 1) for logical, physical in enumerate(numbers) if physical)

    def _spend(self, count: int) -> None:
        """Take a step and `count` bytes from what may be read of this file system."""
        self._steps -= 1
        self._bytes -= count
        if self._steps < 0 or self._bytes < 0:
            raise UnreadableError("more to be read than any root file system has")

    def _at(self, offset: int, count: int) -> bytes:
        self._spend(count)
        self._stream.seek(offset)
        data = self._stream.read(count)
        if len(data) < count:
            raise UnreadableError("it is shorter than it says")
        return data
