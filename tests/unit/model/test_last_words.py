"""What the end of a console says of a guest's end: kernels' words, stage-1's, the hook's, and all that is none of it."""

import pytest

from vmm.model.last_words import SILENT_MARK, Ending, behind_mark, is_down, is_over, last_word

END = "[   12.345678] reboot: Restarting system\n"


@pytest.mark.fault(46)
@pytest.mark.parametrize(
    ("words", "ending", "line"),
    [
        ("[ 9.1] reboot: Power down\n", Ending.POWERED_OFF, "[ 9.1] reboot: Power down"),
        ("[ 9.1] reboot: System halted\r\n", Ending.POWERED_OFF, None),
        ("[ 9.1][    T1] reboot: Power off not available: System halted instead\n", Ending.POWERED_OFF, None),
        # A prompt has no newline; a kernel without printk.time no time.
        ("dev login: [ 9.1] reboot: Power down\n", Ending.POWERED_OFF, None),
        ("reboot: Power down\n", Ending.POWERED_OFF, None),
        (END, Ending.REBOOTED, None),
        ("[ 9.1] reboot: Restarting system with command 'bootloader'\n", Ending.REBOOTED, None),
        # vmm's hook ends the engine's process by a reboot, whatever was asked for.
        (f"vmm: the guest powers off\n{END}", Ending.POWERED_OFF, "vmm: the guest powers off"),
        (f"vmm: the guest halts\n{END}", Ending.HALTED, None),
        (f"vmm: the guest reboots\n{END}", Ending.REBOOTED, None),
        (f"vmm: stage-1 FAILED: no disk /dev/vda\n{END}", Ending.BOOT_FAILED, "no disk /dev/vda"),
        ("[ 1.0] Kernel panic - not syncing: no init\n[ 1.0] Rebooting in 1 seconds..\n", Ending.PANICKED, None),
        (f"Kernel panic - not syncing: x\n{END}", Ending.PANICKED, "Kernel panic - not syncing: x"),
        (SILENT_MARK.format(name="dev", why="no word for 60 s"), Ending.SILENT, "no word for 60 s"),
        # What it wrote after a boot that failed in a guest's own words is the guest's; the last of vmm's words counts.
        (f"vmm: the guest halts\nvmm: the guest reboots\n{END}", Ending.REBOOTED, None),
    ],
)
def test_each_end_is_told_from_its_words(words: str, ending: Ending, line: str | None) -> None:
    found = last_word("[ 0.5] something else\n" + words)
    assert found is not None
    assert found.ending is ending
    assert line is None or found.line == line
    assert is_down(words) is (ending in (Ending.POWERED_OFF, Ending.HALTED, Ending.REBOOTED))


@pytest.mark.parametrize(
    "words",
    [
        "",
        "dev login: ",
        "see reboot: Power down and up\n",
        "a Kernel panic - not syncing is what I fear\n",
        "echo vmm: the guest halts\n",
        "vmm: the guest is well\n",
        "vmm: stage-1 done\n",
    ],
)
def test_what_is_no_end_is_none(words: str) -> None:
    assert last_word(words) is None


@pytest.mark.fault(49)
def test_what_is_told_is_short_and_drives_no_terminal() -> None:
    found = last_word("\x1b]0;PWNED\x07\n[ 1.0] Kernel panic - not syncing: \x1b[2J" + "x" * 10_000 + "\n")
    assert found is not None
    assert len(found.line) <= 300
    assert found.line.isprintable()


def test_what_is_left_of_the_mark_is_no_word_of_the_guests() -> None:
    assert behind_mark("2026-01-01T00:00:00Z ===\n") == ""
    assert behind_mark("2026-01-01T00:00:00Z ===\nhello\n=== x ===\n") == "hello\n=== x ===\n"
    assert behind_mark("the end\nof a flood === \n x ===\n") == "the end\nof a flood === \n x ===\n"


def test_a_guest_is_over_when_its_kernel_has_said_its_last() -> None:
    assert is_over(END)
    assert is_over("[1.0] reboot: System halted\r\n")
    assert not is_over(END + "login: ")
    assert not is_over("[1.0] Kernel panic - not syncing: x\n[1.0] Rebooting in 1 seconds..\n")


STANDS = "[    3.1] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100 ]---\n"


@pytest.mark.parametrize(
    "before", ["", "[    2.9] Kernel panic - not syncing: Attempted to kill init!\n[    3.0] Call Trace:\n"]
)
def test_a_panic_that_does_not_reboot_is_an_end_too(before: str) -> None:
    """An image's sysctl may say kernel.panic=0: the machine was listed as running for ever."""
    assert is_over(before + STANDS)
    found = last_word(before + STANDS)
    assert found is not None
    assert found.ending is Ending.PANICKED
    assert found.line == (before.partition("\n")[0] or STANDS.strip())
