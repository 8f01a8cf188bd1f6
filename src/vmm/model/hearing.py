"""What is heard of a guest, and when silence means that it hangs. Only decides: whoever listens brings what it heard.

A guest is heard by a frame from its tap or a word on its console. One that is slow is told from one that hangs by what
its engine does meanwhile: on a busy host a guest that boots gets little of the CPU, but works through it; one that
hangs uses a lot for nothing, or none at all.
"""

from __future__ import annotations

from enum import Enum

from vmm.model.value import Value

# Silence after which a guest is asked for a sign (any frame to it makes its kernel answer), and again.
ASK_S = 15.0
# A guest that was heard before and gives no sign for so long, though asked, is told; it goes on running.
SILENT_S = 120.0
# A boot that says nothing: at least this long by the clock, and either that much of the CPU, or next to none of it.
# On a host that has half a CPU for it, it is reset before a start gives up (120 s).
BOOT_S = 60.0
BOOT_CPU_S = 30.0
STILL_S, STILL_CPU_S = 30.0, 0.3


class Verdict(Enum):
    WELL = "well"
    ASK = "ask"  # give it a reason to answer
    SILENT = "silent"  # nothing has been heard for long
    STUCK = "stuck"  # nothing at all since it was started, and it does not work on its boot
    HEARD_AGAIN = "heard again"


class Heard(Value):
    """What is known at one moment: frames and bytes since the start, and the CPU time of the engine in seconds."""

    frames: int
    console: int
    cpu_s: float


class Ear:
    """Listens to one engine from its start, or from when a new supervisor found it."""

    def __init__(self, heard: Heard, now: float, *, quiet_so_far: bool, told: bool = False) -> None:
        self._last, self._first = heard, heard
        self._asked_at = now
        self._worked_at, self._worked = now, heard.cpu_s
        self.heard_at = now
        self.ever = not quiet_so_far
        self._told = told

    def listen(self, heard: Heard, now: float) -> Verdict:
        """Return what this means."""
        if (heard.frames, heard.console) != (self._last.frames, self._last.console):
            told, self._told = self._told, False
            self._last, self.heard_at, self.ever = heard, now, True
            return Verdict.HEARD_AGAIN if told else Verdict.WELL
        if heard.cpu_s - self._worked > STILL_CPU_S:
            self._worked_at, self._worked = now, heard.cpu_s
        silence = now - self.heard_at
        if not self.ever and silence >= BOOT_S and self._is_stuck(heard, now):
            return Verdict.STUCK
        if silence >= SILENT_S and not self._told:
            return Verdict.SILENT
        if silence >= ASK_S and now - self._asked_at >= ASK_S:
            self._asked_at = now
            return Verdict.ASK
        return Verdict.WELL

    def excuse(self, now: float) -> None:
        """Begin anew: there is a reason for the silence, such as a pause."""
        self.heard_at = self._worked_at = now

    def was_told(self) -> None:
        """Say no more of this silence."""
        self._told = True

    def _is_stuck(self, heard: Heard, now: float) -> bool:
        return heard.cpu_s - self._first.cpu_s >= BOOT_CPU_S or now - self._worked_at >= STILL_S
