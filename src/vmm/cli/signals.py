"""Signals that ask vmm to end: treated like Ctrl-C, so that what is under way is undone."""

from __future__ import annotations

import signal

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


class Ended(KeyboardInterrupt):
    """A signal that asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_in_good_order() -> None:
    """From now on SIGTERM and SIGHUP raise `Ended`; a SIGHUP that nohup has us ignore stays ignored.

    So does SIGINT in what a shell starts with `&`: Python leaves it so. SIGTERM ends vmm whatever was inherited.
    """
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  # a signal handler's own shape
    raise Ended(number)
