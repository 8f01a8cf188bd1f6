"""What a kernel says of its own end, looked for in the kernel itself.

An end that no hook of vmm's announces (an init other than systemd, `halt -f`, SysRq) is told by the kernel's last words
on the console. So a kernel that has none of those that vmm knows, or others besides, is named when it is imported, and
not found out when its first machine is never seen to end.
"""

import mmap
import re
from pathlib import Path

from vmm.model.last_words import says_off, says_reboot

# Printed at KERN_EMERG (kern_levels.h: SOH and '0'); the prefix is kernel/reboot.c's own, in every release since 3.11.
_EMERGENCY = re.compile(rb"\x010(reboot: [ -~]{1,200})")
_PANIC = b"Kernel panic - not syncing"
_ABOUT_AN_END = re.compile(r"\b(halt|stop|power|restart|reboot)", re.IGNORECASE)
# Of an overheated machine: said before its end, and not at it (kernel/reboot.c, hw_protection_shutdown).
_BEFORE_THE_END = re.compile(r"hardware protection", re.IGNORECASE)
# An argument, whose text cannot be known.
_ARGUMENT = re.compile(r"%[a-z]+")


def lacking(vmlinux: Path) -> tuple[str, ...]:
    """Return what of its end this kernel does not say in words that vmm knows, a phrase each."""
    with vmlinux.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as image:
        said = sorted({_ARGUMENT.sub("x", match[1].decode("ascii")) for match in _EMERGENCY.finditer(image)})
        panics = image.find(_PANIC) >= 0
    found = {
        "it never says that it has powered off or halted": any(map(says_off, said)),
        "it never says that it reboots": any(map(says_reboot, said)),
        "it never says that it panics": panics,
        **{f"it says {line!r}, which vmm does not know": not _is_new(line) for line in said},
    }
    return tuple(phrase for phrase, is_well in found.items() if not is_well)


def _is_new(line: str) -> bool:
    words = line.removeprefix("reboot: ")
    if says_off(line) or says_reboot(line) or _BEFORE_THE_END.search(words):
        return False
    return _ABOUT_AN_END.search(words) is not None
