"""An HTTP server of release files with the faults of real ones: `release_server.py ROOT PORT`.

The first part of a path says how it is served: `good`; `cut` ends the first answer to each file half-way and honours
Range afterwards; `forever` always ends half-way; `slow` trickles. `refuses` ends half-way and then answers Range with
416, `other` with another part than was asked for. `short`, `long` and `odd` lie about the length, `endless` names none
and never ends. As a proxy it serves what is asked of any host by http, and refuses tunnels. `error` and `unavailable` are 500 and 503. `drip` and `drip-head` send a byte now and then, of the content or of the head, without end. Those in
REDIRECTS lead elsewhere. Checksums (.txt) are served well, but where the mode ends in `-all`.
"""

import http.server
import sys
import time
from pathlib import Path

ROOT = Path(sys.argv[1])
REDIRECTS = {
    "away": "http://192.0.2.9/{name}",
    "file": "file:///etc/passwd",
    "ftp": "ftp://127.0.0.1/{name}",
    "loop": "/loop/{name}",
    "nonsense": "http://[::1/{name}",
}
_asked: set[str] = set()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        self._asked_of("")
        self._head(403, 0, {})

    def _asked_of(self, host: str) -> None:
        with (ROOT / "proxied").open("a") as log:
            log.write(f"{host}{self.path}\n")

    def do_GET(self) -> None:
        if self.path.startswith("http://"):
            # As from a proxy.
            host, _, rest = self.path.removeprefix("http://").partition("/")
            self.path = f"/{rest}"
            self._asked_of(host)
        mode, _, name = self.path.strip("/").partition("/")
        path = ROOT / name
        if mode in REDIRECTS:
            self._head(302, 0, {"Location": REDIRECTS[mode].format(name=name)})
        elif mode in LIES and not name.endswith(".txt"):
            LIES[mode](self, path.read_bytes())
        elif mode.endswith("-all"):
            LIES[mode.removesuffix("-all")](self, path.read_bytes())
        elif not path.is_file():
            self._head(404, 0, {})
        else:
            self._send(mode, path.read_bytes(), whole=name.endswith(".txt"))

    def _send(self, mode: str, content: bytes, *, whole: bool) -> None:
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if wanted and mode == "cut" else 0
        rest = content[start:]
        fields = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self._head(206 if start else 200, len(rest), fields)
        cut = not whole and (mode == "forever" or (mode == "cut" and self.path not in _asked))
        _asked.add(self.path)
        with (ROOT / "asked").open("a") as log:
            log.write(f"{self.path} {start}\n")
        if mode == "slow" and not whole:
            for number in range(0, len(rest), len(rest) // 50):
                self.wfile.write(rest[number : number + len(rest) // 50])
                time.sleep(0.1)
            return
        self.wfile.write(rest[: len(rest) // 2] if cut else rest)
        if cut:
            self.close_connection = True

    def _refuses(self, content: bytes) -> None:
        if self.headers.get("Range"):
            self._head(416, 0, {"Content-Range": f"bytes */{len(content)}"})
        else:
            self._first_half(content)

    def _other(self, content: bytes) -> None:
        if self.headers.get("Range"):
            rest = content[100:]
            self._head(206, len(rest), {"Content-Range": f"bytes 100-{len(content) - 1}/{len(content)}"})
            self.wfile.write(rest)
        else:
            self._first_half(content)

    def _first_half(self, content: bytes) -> None:
        """Only the first time; whoever begins anew gets all of it."""
        self._head(200, len(content), {})
        self.wfile.write(content if self.path in _asked else content[: len(content) // 2])
        self.close_connection = self.path not in _asked
        _asked.add(self.path)

    def _short(self, content: bytes) -> None:
        self._head(200, len(content) // 2, {})
        self.wfile.write(content[: len(content) // 2])

    def _long(self, content: bytes) -> None:
        self._head(200, len(content) + 1000, {})
        self.wfile.write(content)
        self.close_connection = True

    def _odd(self, content: bytes) -> None:
        self._head(200, len(content), {"Content-Length": "many"})
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def _endless(self, content: bytes) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(content)

    def _error(self, content: bytes) -> None:
        self._head(500, 0, {})

    def _unavailable(self, content: bytes) -> None:
        self._head(503, 0, {"Retry-After": "120"})

    def _drip(self, content: bytes) -> None:
        self._head(200, len(content), {})
        self._now_and_then(content)

    def _drip_head(self, content: bytes) -> None:
        self._now_and_then(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1_000_000)

    def _now_and_then(self, data: bytes) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)

    def _head(self, code: int, length: int, fields: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(length), **fields}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


LIES = {
    "refuses": Answer._refuses, "other": Answer._other, "short": Answer._short, "long": Answer._long, "odd": Answer._odd,
    "endless": Answer._endless, "drip": Answer._drip, "drip-head": Answer._drip_head,
    "error": Answer._error, "unavailable": Answer._unavailable,
}  # fmt: skip
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Answer)
print("ready", flush=True)
server.serve_forever()
