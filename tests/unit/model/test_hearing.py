"""When silence means that a guest hangs: a slow one, a paused one and one that only has nothing to say are not taken for it."""

from dataclasses import dataclass

import pytest

from vmm.model.hearing import ASK_S, BOOT_CPU_S, BOOT_S, SILENT_S, STILL_S, Ear, Heard, Verdict

EVERY_S = 5.0


@dataclass
class Guest:
    """One that is listened to every five seconds; `cpu` is the share of a CPU that its engine uses."""

    cpu: float
    quiet: bool = True

    def __post_init__(self) -> None:
        self.now, self.frames, self.cpu_s = 1000.0, 0, 0.0
        self.ear = Ear(self.heard(), self.now, quiet_so_far=self.quiet)

    def heard(self) -> Heard:
        return Heard(frames=self.frames, console=0, cpu_s=self.cpu_s)

    def listen(self) -> Verdict:
        self.now += EVERY_S
        self.cpu_s += EVERY_S * self.cpu
        return self.ear.listen(self.heard(), self.now)

    def until(self, verdict: Verdict, *, within_s: float) -> float | None:
        """Return after how many seconds this was the verdict, None where it was not."""
        began = self.now
        while self.now - began < within_s:
            if self.listen() is verdict:
                return self.now - began
        return None


@pytest.mark.fault(46)
def test_a_boot_that_does_nothing_is_stuck_after_a_minute() -> None:
    assert Guest(cpu=0.0).until(Verdict.STUCK, within_s=200) == BOOT_S


@pytest.mark.fault(46)
def test_a_boot_that_only_spins_is_stuck_once_it_had_the_cpu_for_longer_than_any_takes() -> None:
    assert Guest(cpu=0.4).until(Verdict.STUCK, within_s=200) == BOOT_CPU_S / 0.4
    assert Guest(cpu=2.0).until(Verdict.STUCK, within_s=200) == BOOT_S


@pytest.mark.fault(46)
def test_a_slow_boot_is_none_that_hangs() -> None:
    """On a busy host: it gets a twentieth of a CPU, and works through it."""
    slow = Guest(cpu=0.05)
    assert slow.until(Verdict.STUCK, within_s=500) is None


def test_what_was_heard_once_is_never_stuck() -> None:
    guest = Guest(cpu=0.0)
    guest.frames = 1
    assert guest.listen() is Verdict.WELL
    assert guest.until(Verdict.STUCK, within_s=1000) is None


def test_what_owes_no_word_is_never_stuck_but_told() -> None:
    guest = Guest(cpu=1.0, quiet=False)
    assert guest.until(Verdict.STUCK, within_s=100) is None
    assert guest.until(Verdict.SILENT, within_s=100) is not None


@pytest.mark.fault(46)
def test_a_guest_without_a_sign_is_asked_and_told_once_and_heard_again() -> None:
    guest = Guest(cpu=0.0)
    guest.frames = 1
    guest.listen()
    found = []
    for _ in range(60):
        found.append(guest.listen())
        if found[-1] is Verdict.SILENT:
            guest.ear.was_told()
    first = [verdict for verdict in found if verdict is not Verdict.WELL]
    assert first[0] is Verdict.ASK
    assert found.index(Verdict.ASK) == ASK_S / EVERY_S - 1
    assert found.index(Verdict.SILENT) == SILENT_S / EVERY_S - 1
    assert found.count(Verdict.SILENT) == 1
    guest.frames += 1
    assert [guest.listen() for _ in range(3)] == [Verdict.HEARD_AGAIN, Verdict.WELL, Verdict.WELL]


def test_a_guest_that_answers_is_never_told() -> None:
    guest = Guest(cpu=0.0)
    for _ in range(1000):
        verdict = guest.listen()
        assert verdict in (Verdict.WELL, Verdict.ASK)
        guest.frames += verdict is Verdict.ASK


def test_a_pause_is_no_silence() -> None:
    guest = Guest(cpu=0.0)
    for _ in range(20):
        guest.until(Verdict.STUCK, within_s=STILL_S)
        guest.ear.excuse(guest.now)
        assert guest.listen() is Verdict.WELL
