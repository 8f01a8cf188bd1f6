"""Downloads that are bounded in size and in time, resumed, and never seen half-done."""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from vmm.errors import EngineError, HostError
from vmm.host.reading import open_plain
from vmm.model.progress import Step

_SILENCE_S = 30.0
# All of it, tries included: 10 MiB at 6 KiB/s.
_FETCH_S = 1800.0
_TEXT_S = 120.0
_TRIES = 3
_CHUNK = 256 * 1024
_TEXT_BYTES = 64 * 1024
# What a server's answer can make of urllib; ValueError: a redirect to an address that is none.
_BROKEN = (OSError, http.client.HTTPException, ValueError)


class _Deadline:
    """Shuts every connection that was made through it when its time is over.

    A timeout of a socket is one of silence: a server that sends a byte now and then is never silent.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._handles: list[socket.socket] = []
        self.over = False

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        timer = threading.Timer(self.seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            for handle in self._handles:
                handle.close()

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:  # noqa: ANN401  # of socket.create_connection
        made = socket.create_connection(*arguments, **options)
        with self._lock:
            # A descriptor of its own: TLS takes the socket itself away.
            self._handles.append(socket.socket(fileno=os.dup(made.fileno())))
        if self.over:
            self._end()
        return made

    def _end(self) -> None:
        with self._lock:
            self.over = True
            for handle in self._handles:
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)


class _BoundedHandler(urllib.request.AbstractHTTPHandler):
    """Makes urllib connect through a deadline."""

    deadline: _Deadline

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> http.client.HTTPResponse:  # noqa: ANN401  # urllib's own signature
        def connection(*arguments: Any, **keywords: Any) -> http.client.HTTPConnection:  # noqa: ANN401  # as above
            made: Any = http_class(*arguments, **keywords)
            # The one place that every kind of connection goes through, before the first byte.
            made._create_connection = self.deadline.connect  # noqa: SLF001  # kept replaceable by http.client, for tests
            return made

        kind: Any = connection
        return super().do_open(kind, req, **options)


class _Http(_BoundedHandler, urllib.request.HTTPHandler):
    pass


class _Https(_BoundedHandler, urllib.request.HTTPSHandler):
    pass


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where it is as safe: https to https; plain http stays on the host that was asked."""

    def redirect_request(  # urllib's own signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,  # noqa: ANN401  # as above
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme != "https" and (new.scheme, new.hostname) != (old.scheme, old.hostname):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch_text(url: str) -> str:
    """Return a small text, such as a checksum; raise HostError when it cannot be had."""
    deadline = _Deadline(_TEXT_S)
    try:
        with deadline.running(), _open(url, start=0, deadline=deadline) as answer:
            text = answer.read(_TEXT_BYTES)
            if deadline.over:  # what has come is a part of it
                raise TimeoutError
            return text.decode("ascii", errors="replace")
    except _BROKEN as error:
        raise _failed(url, error, deadline) from error


def fetch(url: str, out: Path, *, most: int, step: Step) -> None:
    """Fetch `url` into `out`, at most `most` bytes; a connection that breaks is taken up where it broke.

    Raises:
        HostError: it could not be had whole, or not in time.
        EngineError: it is larger than `most`.
    """
    last: Exception | None = None
    deadline = _Deadline(_FETCH_S)
    with deadline.running():
        for _ in range(_TRIES):
            try:
                _append(url, out, most=most, step=step, deadline=deadline)
            except _BROKEN as error:
                last = error
                if not _worth_another_try(error) or deadline.over:
                    break
            else:
                return
    out.unlink(missing_ok=True)
    raise _failed(url, last, deadline) from last


def sha256_of(path: Path) -> str:
    with os.fdopen(open_plain(path), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mismatch(name: str, found: str, wanted: str) -> EngineError:
    """Return the error for a file that is not what it should be."""
    return EngineError(
        f"{name} is not what it should be; nothing was installed.",
        details=f"Its SHA-256 is {found}; expected: {wanted}.",
        resolution="Fetch it again from where it is published, and check its digest (--firecracker-sha256 HEX).",
    )


def _append(url: str, out: Path, *, most: int, step: Step, deadline: _Deadline) -> None:
    have = out.stat().st_size if out.exists() else 0
    try:
        answer = _open(url, start=have, deadline=deadline)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is no beginning of what is there
            out.unlink(missing_ok=True)
        raise
    with answer, out.open("ab") as stream:
        first = _first_byte(answer)
        if first != have:
            stream.truncate(0)
            if first != 0:
                raise http.client.HTTPException("it sent another part than was asked for")
            have = 0
        length = answer.headers.get("Content-Length", "")
        expected = have + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        _refuse_more(url, expected or 0, most)
        while chunk := answer.read(_CHUNK):
            have += len(chunk)
            _refuse_more(url, have, most)
            stream.write(chunk)
            step.advance(len(chunk))
        if expected is not None and have != expected:
            raise http.client.IncompleteRead(b"", expected - have)


def _first_byte(answer: http.client.HTTPResponse) -> int:
    """Return which byte of the file an answer begins with; -1 where it does not say."""
    if answer.status != http.client.PARTIAL_CONTENT:
        return 0
    match = re.match(r"bytes ([0-9]{1,15})-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _refuse_more(url: str, size: int, most: int) -> None:
    if size > most:
        raise EngineError(
            f"{url} is refused.", details=f"It is larger than {most} bytes.", resolution="Check the address."
        )


def _worth_another_try(error: Exception) -> bool:
    """Whether network, server, or what it was asked to go on with may be at fault; what it refuses it refuses."""
    return not isinstance(error, urllib.error.HTTPError) or error.code >= 500 or error.code == 416


def _open(url: str, *, start: int, deadline: _Deadline) -> Any:  # noqa: ANN401  # urllib types its answers so
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise urllib.error.URLError(f"{url} is no http address")
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  # checked above
    handlers = (_Http(), _Https())
    for handler in handlers:
        handler.deadline = deadline
    proxy = urllib.request.ProxyHandler(_proxies())
    return urllib.request.build_opener(_SafeRedirects, proxy, *handlers).open(request, timeout=_SILENCE_S)


def _proxies() -> dict[str, str]:
    """Return the proxies of the environment; urllib takes `all_proxy` for those of a scheme called "all"."""
    given = urllib.request.getproxies()
    every = given.get("all", "")
    both = dict.fromkeys(("http", "https"), every) if every.startswith("http") else {}
    return both | given


def _words(error: Exception | None) -> str:
    """Return what went wrong, in words that are not Python's."""
    match error:
        case urllib.error.HTTPError():
            return f"The server answered {error.code} {error.reason}."
        case urllib.error.URLError():
            reason = error.reason
            return _words(reason) if isinstance(reason, Exception) else str(reason)
        case http.client.IncompleteRead():
            return "The connection ended before the file did."
        case TimeoutError():
            return f"Nothing came for {_SILENCE_S:.0f} s."
        case _:
            return str(error) or repr(error)


def _failed(url: str, error: Exception | None, deadline: _Deadline) -> HostError:
    late = f"it took longer than {deadline.seconds:.0f} s"
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return HostError(
        f"{url} cannot be fetched.",
        details=late if deadline.over else _words(error),
        resolution="Make room on the file system of the data directory: df -h"
        if full
        else "Check the network, or give the file by path: sudo vmm setup --firecracker FILE",
    )
