"""What goes to a child process and comes from it, bounded."""

from __future__ import annotations

import contextlib
import os

from vmm import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess
    from typing import IO

# Of complaints the newest are kept.
_MOST_COMPLAINTS = 64 * 1024
_PIPE_BYTES = 4096  # PIPE_BUF: what a pipe that is ready takes without making us wait


class Talk:
    """What goes to a child and comes from it, by pipes, and is bounded: subprocess's own takes what comes."""

    def __init__(self, child: subprocess.Popen[bytes], stdin: bytes, *, most_bytes: int) -> None:
        import select

        self.said = bytearray()
        self.complained = bytearray()
        self.is_too_long = False
        self._most_bytes = most_bytes
        self._rest = memoryview(stdin)
        self._child = child
        self._poller = select.poll()
        self._open: dict[int, IO[bytes]] = {}
        # An empty input is an end of file at once: what /dev/null would give.
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                self._poller.register(pipe, select.POLLOUT if pipe is child.stdin else select.POLLIN)
                self._open[pipe.fileno()] = pipe
        if not stdin and child.stdin is not None:
            self._close(child.stdin)

    def goes_on(self) -> bool:
        return bool(self._open) and not self.is_too_long

    def step(self, timeout_s: float) -> None:
        """Pass on what is ready; wait for it no longer than that."""
        for fd, _ in self._poller.poll(timeout_s * 1000):
            pipe = self._open[fd]
            if pipe is self._child.stdin:
                self._give(pipe)
            else:
                self._take(pipe)

    def _give(self, pipe: IO[bytes]) -> None:
        try:
            self._rest = self._rest[os.write(pipe.fileno(), self._rest[:_PIPE_BYTES]) :]
        except BrokenPipeError:
            self._rest = self._rest[:0]
        if not self._rest:
            self._close(pipe)

    def _take(self, pipe: IO[bytes]) -> None:
        part = os.read(pipe.fileno(), 64 * 1024)
        if not part:
            self._close(pipe)
        elif pipe is self._child.stdout:
            self.said += part
            self.is_too_long = len(self.said) > self._most_bytes
        else:
            self.complained += part
            del self.complained[:-_MOST_COMPLAINTS]

    def _close(self, pipe: IO[bytes]) -> None:
        del self._open[pipe.fileno()]
        self._poller.unregister(pipe)
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
