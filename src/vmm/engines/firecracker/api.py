"""The part of Firecracker's API that vmm speaks: HTTP/1.1 with JSON over a unix socket.

Written by hand and not with http.client, because it lies on the way from `start` to a running guest: importing
http.client costs as much as ten of these requests, and this one is bounded in time and bytes.
"""

import json
from pathlib import Path

from vmm.engines.sockets import BoundedSocket, silent
from vmm.errors import EngineError


def request(socket: Path, method: str, path: str, body: object | None = None, *, timeout_s: float) -> dict[str, object]:
    """Return the answer's JSON object ({} when it has no body).

    Raises:
        EngineError: no whole answer in time, no HTTP, or Firecracker refused (its fault message is in the details).
    """
    payload = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if payload:
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    with BoundedSocket(socket, timeout_s=timeout_s) as connection:
        connection.send(head.encode() + b"\r\n" + payload)
        status, length = _parse_head(socket, connection.until(b"\r\n\r\n"))
        content = connection.exactly(length)
    return _parse_body(socket, status, content)


def _parse_head(socket: Path, head: bytes) -> tuple[int, int]:
    try:
        lines = head.decode("ascii").split("\r\n")
        version, code = lines[0].split(" ")[:2]
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        fields = {name.lower(): value for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(fields.get("content-length", "0"))
        if not 0 <= length <= 64 * 1024:
            raise ValueError(f"an answer of {length} bytes")
        return int(code), length
    except ValueError as error:
        raise silent(socket, f"its answer is no HTTP: {error}") from error


def _parse_body(socket: Path, status: int, content: bytes) -> dict[str, object]:
    try:
        answer: dict[str, object] = json.loads(content) if content.strip() else {}
    except (ValueError, RecursionError) as error:
        raise silent(socket, f"its answer is no JSON: {error}") from error
    if type(answer) is not dict:
        raise silent(socket, "its answer is no JSON object")
    if status >= 300:
        raise EngineError(
            "Firecracker refused.",
            details=str(answer.get("fault_message", f"status {status}")),
            resolution=f"See the machine's state: vmm show {socket.name.removesuffix('.sock')}",
        )
    return answer
