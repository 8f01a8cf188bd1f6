"""An HTTP server of release files with the faults of real ones: `release_server.py ROOT PORT`.

The first part of a path says how it is served: `good`; `cut` ends the first answer to each file half-way and honours
Range afterwards; `forever` always ends half-way; `away` redirects to another host; `slow` trickles.
"""

import http.server
import sys
import time
from pathlib import Path

ROOT = Path(sys.argv[1])
_asked: set[str] = set()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        mode, _, name = self.path.strip("/").partition("/")
        path = ROOT / name
        if mode == "away":
            self._head(302, 0, {"Location": f"http://192.0.2.9/{name}"})
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

    def _head(self, code: int, length: int, fields: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(length), **fields}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Answer)
print("ready", flush=True)
server.serve_forever()
