"""What both engines' clients share: a unix socket that is bounded in time and in bytes."""

from __future__ import annotations

import socket
import time

from vmm import TYPE_CHECKING
from vmm.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

# No answer that vmm asks for comes near this; an engine that says more is not sane.
_MOST_BYTES = 64 * 1024


class BoundedSocket:
    """A connection to an engine that ends at a deadline, whatever the other side does or says without end."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        self._path = path
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._read = 0
        self._rest = b""

    def __enter__(self) -> Self:
        try:
            self._socket.settimeout(self._remaining())
            self._socket.connect(str(self._path))
        except OSError as error:
            self._socket.close()
            raise silent(self._path, str(error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        try:
            self._socket.settimeout(self._remaining())
            self._socket.sendall(data)
        except OSError as error:
            raise silent(self._path, str(error)) from error

    def until(self, end: bytes) -> bytes:
        """Return what comes up to and with `end`."""
        while end not in self._rest:
            self._rest += self._receive()
        found, _, self._rest = self._rest.partition(end)
        return found + end

    def exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._rest += self._receive()
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def _receive(self) -> bytes:
        if self._read > _MOST_BYTES:
            raise silent(self._path, f"it sent more than {_MOST_BYTES} bytes")
        try:
            self._socket.settimeout(self._remaining())
            data = self._socket.recv(4096)
        except OSError as error:
            raise silent(self._path, str(error)) from error
        if not data:
            raise silent(self._path, "it closed the connection in the middle of an answer")
        self._read += len(data)
        return data

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"no whole answer within {self._timeout_s:g} s")
        return remaining


def silent(path: Path, details: str) -> EngineError:
    """Return the error for an engine that does not answer as one should."""
    name = path.name.removesuffix(".sock")
    return EngineError(
        f"The engine of {name!r} gives no usable answer.",
        details=f"{path}: {details}",
        resolution=f"See its state (vmm show {name}); if it hangs: vmm stop --force {name}",
    )
