"""Which pieces of a sparse file a tar holds: GNU's old header, and the three ways it has of saying it in pax records.

The manual of GNU tar, appendix "Storing Sparse Files". A piece is (offset in the file, length).
"""

from collections.abc import Callable, Iterator, Sequence

Piece = tuple[int, int]

# A file of a terabyte with data in every fourth MiB.
_MOST_PIECES = 250_000
_MOST_DIGITS = 20


class BadArchive(Exception):  # noqa: N818  # it says what is wrong with the archive, in words for a person
    """What is wrong with an archive."""


def of_gnu_header(
    block: bytes, more: Callable[[], bytes], *, number: Callable[[bytes], int]
) -> tuple[int, list[Piece]]:
    """Return size and pieces from a header of type `S`, and from the blocks that follow it while one says so."""
    pieces = list(_gnu_pieces(block[386:482], number))
    extended = block[482]
    while extended:
        follows = more()
        pieces.extend(_gnu_pieces(follows[:504], number))
        extended = follows[504]
        _count(len(pieces))
    return number(block[483:495]), pieces


def _gnu_pieces(table: bytes, number: Callable[[bytes], int]) -> Iterator[Piece]:
    for at in range(0, len(table), 24):
        if table[at + 12] == 0:  # the first that is not used
            return
        yield number(table[at : at + 12]), number(table[at + 12 : at + 24])


def of_records(records: Sequence[tuple[bytes, bytes]], take: Callable[[], bytes]) -> tuple[int, list[Piece]] | None:
    """Return size and pieces where pax records say that a file is sparse; `take` gives a block of its content."""
    told = dict(records)
    if (told.get(b"GNU.sparse.major"), told.get(b"GNU.sparse.minor")) == (b"1", b"0"):
        return decimal(told.get(b"GNU.sparse.realsize", b"")), _map_before_content(take)
    if b"GNU.sparse.map" in told:
        numbers = [decimal(text) for text in told[b"GNU.sparse.map"].split(b",")]
    elif b"GNU.sparse.numblocks" in told:
        # The one place where a key comes more than once.
        numbers = [decimal(value) for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    elif any(key.startswith(b"GNU.sparse.") for key in told):
        raise BadArchive("It has a sparse file of a form that vmm does not know.")
    else:
        return None
    if len(numbers) % 2:
        raise BadArchive("A sparse file's map is damaged.")
    return decimal(told.get(b"GNU.sparse.size", b"")), list(zip(numbers[::2], numbers[1::2], strict=True))


def _map_before_content(take: Callable[[], bytes]) -> list[Piece]:
    """Read the map of the form 1.0: the count of pieces, then two numbers for each, a line each, in whole blocks."""
    numbers = _lines(take)
    count = next(numbers)
    _count(count)
    return [(next(numbers), next(numbers)) for _ in range(count)]


def _lines(take: Callable[[], bytes]) -> Iterator[int]:
    rest = b""
    while True:
        *lines, rest = (rest + take()).split(b"\n")
        for line in lines:
            yield decimal(line)
        if len(rest) > _MOST_DIGITS:
            raise BadArchive("A sparse file's map is damaged.")


def checked(pieces: Sequence[Piece], *, size: int, stored: int) -> tuple[Piece, ...]:
    """Return the pieces that hold something; they must lie in the file, in order, and be what is stored of it."""
    end = total = 0
    for offset, length in pieces:
        if min(offset - end, length, size - offset - length) < 0:
            raise BadArchive("A sparse file's map is damaged: its pieces overlap, or lie beyond its end.")
        end = offset + length
        total += length
    if total != stored:
        raise BadArchive(f"A sparse file's map is damaged: it has {total} bytes, of which {stored} are stored.")
    return tuple(piece for piece in pieces if piece[1])


def decimal(text: bytes) -> int:
    """Return a number of pax records."""
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise BadArchive(f"A header of it is damaged: {text[:40]!r} is no number.")
    return int(text)


def _count(pieces: int) -> None:
    if pieces > _MOST_PIECES:
        raise BadArchive(f"It has a sparse file in {pieces} pieces.")
