"""The smallest guest that lives: an ELF kernel of a few hundred bytes that greets on the serial port and halts.

Both engines boot it: Firecracker enters at the ELF's entry in long mode, qemu through the PVH note in 32-bit mode; the
code is the same bytes in both. `python tiny_kernel.py OUT` writes one.
"""

import struct
import sys
from enum import Enum
from pathlib import Path

GREETING = b"hello from a tiny guest\n"
# What Linux says last, in its own words (kernel/reboot.c, kernel/panic.c).
POWERED_OFF = b"[    1.000000] reboot: Power down\n"
REBOOTED = b"[    1.000000] reboot: Restarting system\n"
PANICKED = b"[    1.000000] Kernel panic - not syncing: no working init found\n"
_LOAD = 0x100000  # 1 MiB, where kernels are loaded
_HEADERS = 64 + 2 * 56
_XEN_ELFNOTE_PHYS32_ENTRY = 18  # the PVH boot protocol's note (xen/include/public/elfnote.h)


class Then(Enum):
    """What the guest does after its last word."""

    HALT = "halt"
    FLOOD = "flood"
    RESET = "reset"
    EAT = "eat"  # write to all of its 128 MiB, and run through what it wrote


def build(then: Then = Then.HALT, greeting: bytes = GREETING, *, last: bytes | None = None) -> bytes:
    """Return the kernel as an ELF file.

    With `last` the guest waits, awake, for a key of its keyboard (Firecracker's SendCtrlAltDel), and says that first.
    """
    code = b"".join(_put(byte) for byte in greeting)
    if last is not None:
        code += _AWAIT_KEY + b"".join(_put(byte) for byte in last)
    code += _END[then]
    note = struct.pack("<III", 4, 4, _XEN_ELFNOTE_PHYS32_ENTRY) + b"Xen\0" + struct.pack("<I", _LOAD + _HEADERS + 20)
    assert len(note) == 20
    size = _HEADERS + len(note) + len(code)
    entry = _LOAD + _HEADERS + len(note)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 0, _LOAD, _LOAD, size, size, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, _HEADERS, _LOAD + _HEADERS, _LOAD + _HEADERS, len(note), len(note), 4)
    return header + load + notes + note + code


def _put(byte: int) -> bytes:
    # mov dx, 0x3f8; mov al, byte; out dx, al
    return b"\x66\xba\xf8\x03\xb0" + bytes([byte]) + b"\xee"


# mov dx, 0x64; in al, dx; test al, 1 (the keyboard controller has a byte); jump back to the in while it has none
_AWAIT_KEY = b"\x66\xba\x64\x00\xec\xa8\x01\x74\xfb"

_END = {
    # cli; hlt; jmp to the hlt
    Then.HALT: b"\xfa\xf4\xeb\xfd",
    # mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the out
    Then.FLOOD: b"\x66\xba\xf8\x03\xb0x\xee\xeb\xfd",
    # mov dx, 0x64; mov al, 0xfe; out dx, al: the keyboard controller pulls the reset line; then halt
    Then.RESET: b"\x66\xba\x64\x00\xb0\xfe\xee\xfa\xf4\xeb\xfd",
    # mov edi, 2 MiB; mov ecx, 125 MiB; mov al, 0x90 (nop); rep stosb; cli, hlt and jmp behind it; jump to its last 16 MiB
    Then.EAT: b"\xbf\x00\x00\x20\x00\xb9\x00\x00\xd0\x07\xb0\x90\xf3\xaa\xc7\x07\xfa\xf4\xeb\xfd\xbb\x00\x00\xf0\x06\xff\xe3",
}


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(build())
