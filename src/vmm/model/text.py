"""Text of others' - guests, engines, programs, names of files - made fit to be shown."""

from __future__ import annotations

# What tells lines apart, for texts that may have several.
LINES = "\n\t"
# A reason, or a line of an event, is one that somebody can read.
MOST_LETTERS = 2000


def harmless(text: str, *, keep: str = "", most: int | None = None) -> str:
    """Return the text as one line that drives no terminal: whatever is no printable character is written as an escape.

    That is every control character (C0, DEL, C1), what turns the direction of writing, what has no glyph, and the bytes
    of a file's name that are no UTF-8. `keep` names those that stay; of a longer text the first `most` letters do.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]} ..."
    if text.isprintable():
        return text
    return text.translate(_tables.setdefault(keep, _Escapes(keep)))


class _Escapes(dict[int, str]):
    """What stands for each letter, for str.translate; a loop over letters takes ten times as long."""

    def __init__(self, keep: str) -> None:
        super().__init__((ord(letter), letter) for letter in keep)

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        shown = letter if letter.isprintable() else _escaped(letter)
        if code < _KEPT:
            self[code] = shown
        return shown


# Of the letters that come most; a text of all that there are must not stay in memory.
_KEPT = 0x400
# By what is kept of control characters: callers name a few.
_tables: dict[str, _Escapes] = {}


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        # How Python holds a byte that it could not decode (PEP 383).
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
