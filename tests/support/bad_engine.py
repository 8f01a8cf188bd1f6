"""An engine that behaves as none does: its API socket is missing, or what it answers is garbage, endless or slow.

Vmm starts it in the place of firecracker or qemu. `MODE` in a file beside it says how it is to behave; what it was asked
before that can be well answered is. It stays until it is killed.
"""

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import sys
import time
from pathlib import Path

TUNSETIFF, TAP_NO_PI_VNET_HDR = 0x400454CA, 0x0002 | 0x1000 | 0x4000
GARBAGE = bytes(range(256)) * 4
OK = b"HTTP/1.1 200 OK\r\n"
RUNNING = {
    "http": OK + b'Content-Length: 20\r\n\r\n{"state": "Running"}',
    "qmp": b'{"return": {"status": "running", "running": true}}\r\n',
}
GREETING = {"http": b"", "qmp": b'{"QMP": {"version": {}, "capabilities": []}}\r\n'}
CAPABLE = b'{"return": {}}\r\n'


def body(content: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(content), content)


# What is sent, once; then the connection stays open. By the protocol that it is said in.
ANSWERS = {
    ("http", "garbage"): GARBAGE + b"\r\n\r\n",
    ("http", "another protocol"): b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ("http", "no status"): b"HTTP/1.1\r\n\r\n",
    ("http", "no JSON"): body(b"<html>running</html>"),
    ("http", "no object"): body(b'["Running"]'),
    ("http", "an unknown state"): body(b'{"state": "Exploded"}'),
    ("http", "an odd state"): body(b'{"state": {"Running": true}}'),
    ("http", "deep JSON"): body(b"[" * 60000),
    ("http", "a negative length"): OK + b"Content-Length: -1\r\n\r\n",
    ("http", "a refusal"): body(b'{"fault_message": "no way"}', b"HTTP/1.1 400 Bad Request\r\n"),
    ("http", "10 GB"): OK + b"Content-Length: 10737418240\r\n\r\n",
    ("http", "never started"): body(b'{"state": "Not started"}'),
    ("qmp", "garbage"): GARBAGE + b"\n",
    ("qmp", "another protocol"): b"HTTP/1.1 200 OK\n",
    ("qmp", "no greeting"): CAPABLE,
    ("qmp", "no object"): b"[]\n",
    ("qmp", "deep JSON"): b"[" * 60000 + b"\n",
    ("qmp", "an unknown state"): GREETING["qmp"] + CAPABLE + b'{"return": {"status": "exploded"}}\r\n',
    ("qmp", "an odd state"): GREETING["qmp"] + CAPABLE + b'{"return": "running"}\r\n',
    ("qmp", "no end of events"): GREETING["qmp"] + CAPABLE,
    ("qmp", "a refusal"): GREETING["qmp"] + b'{"error": {"class": "GenericError", "desc": "no way"}}\r\n',
}
# What is sent again and again, without end.
ENDLESS = {
    ("http", "10 GB"): b"x" * 65536,
    ("http", "no end of headers"): b"X-Header: and another one\r\n",
    ("http", "no end of line"): b"x" * 4096,
    ("qmp", "no end of line"): b"x" * 65536,
    ("qmp", "no end of events"): b'{"event": "STOP", "timestamp": {}}\r\n',
}
MODES = {
    "http": sorted({mode for kind, mode in (*ANSWERS, *ENDLESS) if kind == "http"} | {"drip", "closes", "silent"}),
    "qmp": sorted({mode for kind, mode in (*ANSWERS, *ENDLESS) if kind == "qmp"} | {"drip", "closes", "silent"}),
}


def serve(path: str, protocol: str, mode_file: Path) -> None:
    """Answer each connection as the mode is then."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(64)
        kept = []
        while True:
            connection, _ = server.accept()
            kept.append(connection)
            with contextlib.suppress(OSError):
                answer(connection, protocol, mode_file.read_text())


def answer(connection: socket.socket, protocol: str, mode: str) -> None:
    match mode:
        case "well":
            connection.sendall(GREETING[protocol] + (CAPABLE if protocol == "qmp" else b"") + RUNNING[protocol])
        case "silent":
            return
        case "closes":
            connection.close()
        case "killed while it answers":
            connection.sendall(RUNNING[protocol][:10])
            os.kill(os.getpid(), signal.SIGKILL)
        case "drip":
            for byte in GREETING[protocol] + RUNNING[protocol]:
                connection.sendall(bytes([byte]))
                time.sleep(0.5)
        case _:
            connection.sendall(ANSWERS.get((protocol, mode), b""))
            while endless := ENDLESS.get((protocol, mode)):
                connection.sendall(endless)


def open_tap(arguments: list[str]) -> int | None:
    """Open the machine's tap as every engine does, and keep it open; None when it was given none."""
    named = " ".join(arguments)
    if "--config-file" in arguments:
        named = Path(arguments[arguments.index("--config-file") + 1]).read_text()
    found = re.search(r'(?:ifname=|"host_dev_name": ?")([^",]+)', named)
    if found is None:
        return None
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("=16sH22x", found[1].encode(), TAP_NO_PI_VNET_HDR))
    return tap


def main(arguments: list[str]) -> None:
    if "--version" in arguments:
        print("Firecracker v1.16.1\nQEMU emulator version 7.2.0")
        return
    mode_file = Path(__file__).with_name("MODE")
    mode = mode_file.read_text()
    if mode == "killed at once":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "hangs":
        os.kill(os.getpid(), signal.SIGSTOP)
    if mode == "ends":
        sys.exit("out of cheese")
    line = " ".join(arguments)
    found = re.search(r"--api-sock (\S+)", line) or re.search(r"unix:([^, ]+)", line)
    assert found is not None
    open_tap(arguments)
    if mode != "no socket":
        serve(found[1], "http" if "--api-sock" in arguments else "qmp", mode_file)
    time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1:])
