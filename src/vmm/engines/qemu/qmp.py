"""The part of QMP that vmm speaks: a greeting, then one command and its answer (qemu's docs/interop/qmp-spec)."""

import json
from pathlib import Path

from vmm.engines.sockets import BoundedSocket, silent
from vmm.errors import EngineError


def execute(socket: Path, command: str, arguments: object | None = None, *, timeout_s: float) -> object:
    """Return a command's `return` value; events that come in between are passed over.

    Raises:
        EngineError: no whole answer in time, no QMP, or qemu refused (its description is in the details).
    """
    with BoundedSocket(socket, timeout_s=timeout_s) as connection:
        if "QMP" not in _object(socket, connection.until(b"\n")):
            raise silent(socket, "it did not greet with QMP")
        _ask(socket, connection, {"execute": "qmp_capabilities"})
        question = {"execute": command} if arguments is None else {"execute": command, "arguments": arguments}
        return _ask(socket, connection, question)


def _ask(socket: Path, connection: BoundedSocket, question: object) -> object:
    connection.send(json.dumps(question).encode() + b"\r\n")
    while True:
        answer = _object(socket, connection.until(b"\n"))
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            raise EngineError(
                "qemu refused.",
                details=json.dumps(answer["error"]),
                resolution=f"See the machine's state: vmm show {socket.name.removesuffix('.sock')}",
            )


def _object(socket: Path, line: bytes) -> dict[str, object]:
    try:
        answer: dict[str, object] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise silent(socket, f"its answer is no JSON: {error}") from error
    if type(answer) is not dict:
        raise silent(socket, "its answer is no JSON object")
    return answer
