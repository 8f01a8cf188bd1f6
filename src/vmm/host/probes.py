"""What `doctor` asks the host: small questions, each answered without changing anything that stays."""

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

from vmm.errors import HostError
from vmm.host import process
from vmm.host.copy import reflink

# adjtimex(2): TIME_ERROR is returned while the clock is not synchronised.
_TIME_ERROR = 5


def opens(path: Path) -> bool:
    """Whether this process may open `path` for reading and writing."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Return the room on the file system that `path` lies on, or would lie on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def reflinks(path: Path) -> bool | None:
    """Whether files in `path` can share blocks; None when that cannot be tried (no right to write there)."""
    try:
        with tempfile.TemporaryFile(dir=path) as one, tempfile.TemporaryFile(dir=path) as two:
            one.write(b"x" * 4096)
            one.flush()
            return reflink(one.fileno(), two.fileno())
    except OSError:
        return None


def clock_is_synchronised() -> bool:
    """Whether the kernel's clock is kept by NTP or the like."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct timex has 208 bytes
    return 0 <= libc.adjtimex(buffer) != _TIME_ERROR


def tap_filters_work() -> tuple[bool, str]:
    """Whether this kernel takes filters of links (clsact, cls_bpf); tried in a network that is gone at once."""
    wish = "qdisc add dev lo clsact\nfilter add dev lo ingress bpf bytecode '1,6 0 0 4294967295' direct-action\n"
    try:
        done = process.run(["unshare", "--net", "tc", "-batch", "-"], stdin=wish, check=False)
    except HostError as error:
        return False, error.brief
    return done.code == 0, "" if done.code == 0 else " ".join(done.words.split())


def nftables_works() -> tuple[bool, str]:
    """Whether this kernel takes rules of both families that vmm uses; checked (nft -c), not set."""
    rules = (
        "add table ip vmm-probe\nadd chain ip vmm-probe c { type nat hook output priority 0; }\n"
        "add table bridge vmm-probe\nadd chain bridge vmm-probe c { type filter hook prerouting priority 0; }\n"
    )
    try:
        done = process.run(["nft", "-c", "-f", "-"], stdin=rules, check=False)
    except HostError as error:
        return False, error.brief
    return done.code == 0, "" if done.code == 0 else done.words
