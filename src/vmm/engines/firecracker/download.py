"""Downloads that are bounded, resumed, and never seen half-done."""

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from vmm.errors import EngineError, HostError
from vmm.model.progress import Step

_TIMEOUT_S = 30.0
_TRIES = 3
_CHUNK = 256 * 1024
_TEXT_BYTES = 64 * 1024


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
    try:
        with _open(url, start=0) as answer:
            return answer.read(_TEXT_BYTES).decode("ascii", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise _failed(url, error) from error


def fetch(url: str, out: Path, *, most: int, step: Step) -> None:
    """Fetch `url` into `out`, at most `most` bytes; a connection that breaks is taken up where it broke.

    Raises:
        HostError: it could not be had whole.
        EngineError: it is larger than `most`.
    """
    last: Exception | None = None
    for _ in range(_TRIES):
        try:
            _append(url, out, most=most, step=step)
        except (OSError, http.client.HTTPException) as error:
            last = error
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 416:
                break
        else:
            return
    out.unlink(missing_ok=True)
    raise _failed(url, last) from last


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mismatch(name: str, found: str, wanted: str) -> EngineError:
    """Return the error for a file that is not what it should be."""
    return EngineError(
        f"{name} is not what it should be; nothing was installed.",
        details=f"Its SHA-256 is {found}; expected: {wanted}.",
        resolution="Fetch it again from where it is published, and check its digest (--firecracker-sha256 HEX).",
    )


def _append(url: str, out: Path, *, most: int, step: Step) -> None:
    have = out.stat().st_size if out.exists() else 0
    try:
        answer = _open(url, start=have)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is no beginning of what is there
            out.unlink(missing_ok=True)
        raise
    with answer, out.open("ab") as stream:
        if have and answer.status != http.client.PARTIAL_CONTENT:
            stream.truncate(0)
            have = 0
        expected = have + int(answer.headers.get("Content-Length", most + 1))
        while chunk := answer.read(_CHUNK):
            have += len(chunk)
            if have > most:
                out.unlink(missing_ok=True)
                raise EngineError(
                    f"{url} is refused.", details=f"It is larger than {most} bytes.", resolution="Check the address."
                )
            stream.write(chunk)
            step.advance(len(chunk))
        if have != expected and expected <= most:
            raise http.client.IncompleteRead(b"", expected - have)


def _open(url: str, *, start: int) -> Any:  # noqa: ANN401  # urllib types its answers so
    if urllib.parse.urlsplit(url).scheme not in ("https", "http"):
        raise urllib.error.URLError(f"{url} is no http address")
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310  # checked above
    return urllib.request.build_opener(_SafeRedirects).open(request, timeout=_TIMEOUT_S)


def _failed(url: str, error: Exception | None) -> HostError:
    return HostError(
        f"{url} cannot be fetched.",
        details=str(error) or repr(error),
        resolution="Check the network, or give the file by path: sudo vmm setup --firecracker FILE",
    )
