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
    """From now on SIGTERM and SIGHUP raise `Ended`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001  # a signal handler's own shape
    raise Ended(number)
