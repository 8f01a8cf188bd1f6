"""What kernels of different ages say of their end, and what is found of it in the kernel itself."""

from pathlib import Path

import pytest

from vmm.images.kernel_words import lacking

# As they stand in the read-only data of vmlinux: a level (SOH and a digit), the text, a zero.
OLD = b"\x010reboot: Restarting system\n\0\x010reboot: System halted\n\0\x010reboot: Power down\n\0"
WITH_COMMAND = b"\x010reboot: Restarting system with command '%s'\n\0"
SINCE_6_8 = b"\x010reboot: Power off not available: System halted instead\n\0"
PROTECTION = b"\x010reboot: HARDWARE PROTECTION shutdown (%s)\n\0\x010reboot: Hardware protection timed-out.\n\0"
PANIC = b"\x010Kernel panic - not syncing: %s\n\0"


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (OLD + PANIC, []),
        (OLD + WITH_COMMAND + SINCE_6_8 + PROTECTION + PANIC, []),
        (OLD, ["it never says that it panics"]),
        (PANIC + b"\x010reboot: Restarting system\n\0", ["it never says that it has powered off or halted"]),
        (PANIC + b"\x010reboot: Power down\n\0", ["it never says that it reboots"]),
        (
            OLD + PANIC + b"\x010reboot: The power is off now\n\0",
            ["it says 'reboot: The power is off now', which vmm does not know"],
        ),
        # A level that `loglevel=1` keeps from the console is as good as nothing.
        (
            PANIC + b"\x016reboot: Power down\n\0\x010reboot: Restarting system\n\0",
            ["it never says that it has powered off or halted"],
        ),
        (
            b"\x7fELF" + bytes(100),
            [
                "it never says that it has powered off or halted",
                "it never says that it reboots",
                "it never says that it panics",
            ],
        ),
    ],
)
def test_what_a_kernel_does_not_say_is_found_in_it(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\0" * 4096 + content + b"\0" * 4096)
    assert list(lacking(kernel)) == expected
