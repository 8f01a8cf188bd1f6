"""A terminal of a program's own: what it shows, and what would drive it."""

import contextlib
import os
import pty
import subprocess
from collections.abc import Mapping, Sequence


def on_a_terminal(argv: Sequence[str], env: Mapping[str, str], *, stdout: int | None = None) -> tuple[int, str]:
    """Run a program on a terminal of its own; return its exit code and what the terminal is sent."""
    ours, its = pty.openpty()
    out = its if stdout is None else stdout
    with subprocess.Popen(["setsid", "-c", "-w", *argv], stdin=its, stdout=out, stderr=its, env=dict(env)) as process:
        os.close(its)
        shown = b""
        # EIO: the last of its programs has ended.
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                shown += part
        code = process.wait(timeout=60)
    os.close(ours)
    return code, shown.decode(errors="surrogateescape")
