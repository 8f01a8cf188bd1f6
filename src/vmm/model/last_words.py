"""What the end of a console says of a guest's end: the one place that knows these words.

Three speak there, and what each says is in the order of trust: vmm's own hook and stage-1 (whatever the kernel's
release), the guest's kernel, and vmm on the host, which ends a guest that hangs. A guest can write all of it, and
decides by it about its own machine alone.
"""

from __future__ import annotations

import re
from enum import StrEnum

from vmm import TYPE_CHECKING
from vmm.model.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable


class Ending(StrEnum):
    """How a guest came to its end. What is none of these is a crash of the engine."""

    POWERED_OFF = "powered off"
    HALTED = "halted"
    REBOOTED = "rebooted"
    PANICKED = "panicked"
    BOOT_FAILED = "stage-1 failed"
    SILENT = "silent"


class LastWord(Value):
    """An ending and the line that says it."""

    ending: Ending
    line: str


# guest/stage1-init.sh says these two, the second by the hook that it lays down for the guest's shutdown.
_STAGE1_FAILED = re.compile(r"^vmm: stage-1 FAILED: (.*)")
_HOOK = re.compile(r"^vmm: the guest (powers off|halts|reboots)$")
_HOOK_ENDINGS = {"powers off": Ending.POWERED_OFF, "halts": Ending.HALTED, "reboots": Ending.REBOOTED}
# What vmm writes there itself before it ends a guest of which nothing is heard.
SILENT_MARK = "\n=== vmm: {name} is reset: {why} ===\n"
_SILENT = re.compile(r"^=== vmm: \S+ is reset: (.*) ===$")
# The kernel's (kernel/reboot.c, kernel/panic.c), all at a level that `loglevel=1` lets through. A prompt without a
# newline may stand before them. From Linux 6.8 on a power-off that the machine cannot do is "Power off not available:
# System halted instead"; before, it was "System halted".
_OFF = re.compile(r"reboot: (?:Power down|(?:Power off not available: )?System halted(?: instead)?)$")
_REBOOT = re.compile(r"reboot: (?:Restarting system(?: with command '.*')?|machine restart)$")
_PANIC = re.compile(r"(?:^|\] )Kernel panic - not syncing.*$")
# What a kernel says when it has panicked and stands: it was not to reboot (kernel.panic=0), or could not.
_PANIC_STANDS = re.compile(r"(?:^|\] )---\[ end Kernel panic - not syncing.*$")
# What a kernel says of its end and we do not know is looked for when it is imported: see `images/kernel_words.py`.
_LINE_LETTERS = 300


def last_word(words: str) -> LastWord | None:
    """Return how the end of a console says that its guest ended, None where it says nothing of that."""
    lines = [line.strip() for line in words.splitlines()]
    for find in (_panic, _silence, _own_words, _kernel_words):
        found = find(lines)
        if found is not None:
            return LastWord(ending=found.ending, line=_bounded(found.line))
    return None


def behind_mark(words: str) -> str:
    """Return what a boot wrote, without what is left of the mark before it."""
    mark, found, rest = words.partition(" ===\n")
    return rest if found and "\n" not in mark else words


def is_down(words: str) -> bool:
    """Whether a guest has shut down: Firecracker's process outlives a power-off, and every engine's a halt."""
    found = last_word(words)
    return found is not None and found.ending in (Ending.POWERED_OFF, Ending.HALTED, Ending.REBOOTED)


def is_off(words: str) -> bool:
    """Whether the very last line is what a kernel says when it has powered off or halted, and nothing behind it."""
    return _OFF.search(words.strip().rpartition("\n")[2].strip()) is not None


def is_over(words: str) -> bool:
    """Whether the very last line is a kernel's last: one that could not reboot its machine, or panicked, stands."""
    last = words.strip().rpartition("\n")[2].strip()
    return is_off(words) or says_reboot(last) or _PANIC_STANDS.search(last) is not None


def says_off(line: str) -> bool:
    return _OFF.search(line) is not None


def says_reboot(line: str) -> bool:
    return _REBOOT.search(line) is not None


# Every line that stage-1 says (guest/stage1-init.sh, stage1-facts.sh); most boots have none.
_NOTE = re.compile(r"^vmm: (?!stage-1 FAILED: |the guest )(.+)")
_MOST_NOTES = 12


def boot_notes(words: str) -> tuple[str, ...]:
    """Return what stage-1 said in the beginning of a boot's console: what it left, mended or could not do."""
    found = filter(None, (_NOTE.match(line.strip()) for line in words.splitlines()))
    return tuple(_bounded(match[1]) for match, _ in zip(found, range(_MOST_NOTES), strict=False))


def _panic(lines: list[str]) -> LastWord | None:
    for words in (_PANIC, _PANIC_STANDS):
        # The first says it best, and may lie further back than the end of the console that is looked at.
        for line in reversed(lines):
            if words.search(line):
                return LastWord(ending=Ending.PANICKED, line=line)
    return None


def _silence(lines: list[str]) -> LastWord | None:
    return _last(lines, lambda line: (m := _SILENT.match(line)) and LastWord(ending=Ending.SILENT, line=m[1]))


def _own_words(lines: list[str]) -> LastWord | None:
    def look(line: str) -> LastWord | None:
        if failed := _STAGE1_FAILED.match(line):
            return LastWord(ending=Ending.BOOT_FAILED, line=failed[1])
        said = _HOOK.match(line)
        return said and LastWord(ending=_HOOK_ENDINGS[said[1]], line=line)

    return _last(lines, look)


def _kernel_words(lines: list[str]) -> LastWord | None:
    def look(line: str) -> LastWord | None:
        if _OFF.search(line):
            return LastWord(ending=Ending.POWERED_OFF, line=line)
        return LastWord(ending=Ending.REBOOTED, line=line) if _REBOOT.search(line) else None

    return _last(lines, look)


def _last(lines: list[str], look: Callable[[str], LastWord | None]) -> LastWord | None:
    return next(filter(None, map(look, reversed(lines))), None)


def _bounded(line: str) -> str:
    """Return a line of a guest's as it may be shown: short, and nothing in it that drives a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in line[:_LINE_LETTERS]).strip()
