"""Partition tables: MBR with its logical partitions, and GPT for sectors of 512 and of 4096 bytes.

The UEFI specification, 5.2 and 5.3; the types of partitions: the Discoverable Partitions Specification.
"""

import struct
import uuid
from typing import BinaryIO

from vmm.images.ext4 import is_ext4
from vmm.model.value import Value

_SECTORS = (512, 4096)
_MOST_PARTITIONS = 128
_MOST_ENTRY_BYTES = 4096
_SIGNATURE = b"EFI PART"
# Roots by their type: of x86-64, x86, arm64, arm, riscv64. Then what may be one.
_GPT_ROOTS = (
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "44479540-f297-41b2-9af7-d131d5f0458a",
    "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
)
_GPT_LINUX = (
    "0fc63daf-8483-4772-8e79-3d69d8477de4",
    "e6d6d379-f507-44c2-a23c-238f2a3df928",  # LVM
    "a19d880f-05fc-4d3b-a006-743f0f84911e",  # RAID
    "ca7d7ccb-63ed-4c53-861c-1742536059cc",  # LUKS
)
_MBR_LINUX = (0x83, 0x8E, 0xFD, 0xE8)  # a file system, LVM, RAID, LUKS
_MBR_EXTENDED = (0x05, 0x0F, 0x85)


class Partition(Value):
    """`start` and `sectors` in sectors of the table. `rank`: 2 for a root by its type, 1 for what may be one."""

    number: int
    start: int
    sectors: int
    rank: int


class Table(Value):
    """A partition table; `sector` in bytes."""

    name: str
    sector: int
    partitions: tuple[Partition, ...]


def is_partitioned(head: bytes) -> bool:
    """Whether a file that begins with `head` is a disk with partitions; a boot loader may lie before an ext4, too."""
    return _gpt_sector(head) is not None or (head[510:512] == b"\x55\xaa" and not is_ext4(head))


def table_of(head: bytes, stream: BinaryIO | None) -> Table:
    """Return the table; `stream` is the disk itself, where it is no packed one."""
    if (sector := _gpt_sector(head)) is not None:
        return Table(name="GPT", sector=sector, partitions=tuple(_gpt(head, stream, sector)))
    return Table(name="MBR", sector=512, partitions=tuple(_mbr(head, stream)))


def likely_root(table: Table, stream: BinaryIO | None) -> Partition | None:
    """Return the partition that most likely has the root: by its type, then by what it holds, then by its size."""

    def likelihood(part: Partition) -> tuple[bool, int, int]:
        holds = stream is not None and is_ext4(beginning_of(stream, part, table.sector, 2048))
        return holds, part.rank, part.sectors

    found = sorted(((likelihood(part), part) for part in table.partitions), key=lambda pair: pair[0], reverse=True)
    return found[0][1] if found and (found[0][0][0] or found[0][0][1]) else None


def beginning_of(stream: BinaryIO, part: Partition, sector: int, count: int) -> bytes:
    """Return the first `count` bytes of a partition; fewer where the disk is shorter than its table says."""
    return _read(stream, part.start * sector, count)


def _read(stream: BinaryIO, offset: int, count: int) -> bytes:
    try:
        stream.seek(offset)
        return stream.read(count)
    except (OSError, OverflowError, ValueError):  # further away than any file reaches
        return b""


def _gpt_sector(head: bytes) -> int | None:
    return next((sector for sector in _SECTORS if head.startswith(_SIGNATURE, sector)), None)


def _gpt(head: bytes, stream: BinaryIO | None, sector: int) -> list[Partition]:
    first, count, size = struct.unpack_from("<QII", head, sector + 72)
    if not 128 <= size <= _MOST_ENTRY_BYTES:
        return []
    at, length = first * sector, min(count, _MOST_PARTITIONS) * size
    table = head[at : at + length] if stream is None else _read(stream, at, length)
    found: list[Partition] = []
    for number in range(len(table) // size):
        entry = table[number * size : number * size + 128]
        start, end = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and end >= start:
            kind = str(uuid.UUID(bytes_le=entry[:16]))
            rank = 2 if kind in _GPT_ROOTS else int(kind in _GPT_LINUX)
            found.append(Partition(number=number + 1, start=start, sectors=end - start + 1, rank=rank))
    return found


def _mbr(head: bytes, stream: BinaryIO | None) -> list[Partition]:
    found: list[Partition] = []
    for number, (kind, start, sectors) in enumerate(_entries(head), 1):
        if kind in _MBR_EXTENDED and stream is not None:
            found += _logical(stream, start)
        elif kind and sectors:
            found.append(Partition(number=number, start=start, sectors=sectors, rank=int(kind in _MBR_LINUX)))
    return found


def _logical(stream: BinaryIO, first: int) -> list[Partition]:
    """Return the partitions in an extended one: a chain of tables, each with one partition and the next table."""
    found: list[Partition] = []
    at = first
    for number in range(5, 5 + _MOST_PARTITIONS):
        block = _read(stream, at * 512, 512)
        if block[510:512] != b"\x55\xaa":
            break
        (kind, start, sectors), (_, following, more), *_ = _entries(block)
        if kind and sectors:
            found.append(Partition(number=number, start=at + start, sectors=sectors, rank=int(kind in _MBR_LINUX)))
        if not more:
            break
        at = first + following
    return found


def _entries(block: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, sectors) of the four entries in a block."""
    return [(block[at + 4], *struct.unpack_from("<II", block, at + 8)) for at in range(446, 510, 16)]
