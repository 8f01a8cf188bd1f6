"""Stage-1: the small initramfs that every machine boots through, so that the host never touches a guest's disk."""

import gzip
import re
from collections.abc import Sequence
from pathlib import Path

from vmm.errors import HostError
from vmm.guest.cpio import Archive
from vmm.host import files, process
from vmm.model.value import Value

_BUSYBOX = (Path("/usr/bin/busybox"), Path("/bin/busybox"), Path("/usr/lib/busybox/busybox-static"))
_GROW_TOOL = "resize2fs"
# Level 6 decompresses as fast as 9 and is 1 % larger.
_GZIP_LEVEL = 6


class Module(Value):
    """A kernel module, uncompressed. `name` is its file's name, such as `virtio_net.ko`."""

    name: str
    content: bytes


def build_stage1(modules: Sequence[Module], out: Path) -> None:
    """Write the initramfs: static busybox, and the modules in their load order. The scripts come with the facts.

    Raises:
        HostError: the host has no static busybox, or the file cannot be written.
    """
    archive = Archive()
    archive.add_character_device("dev/console", 5, 1)
    archive.add_file("bin/busybox", _busybox().read_bytes(), mode=0o755)
    for name in ("proc", "sys", "run", "newroot", "vmm"):
        archive.add_directory(name)
    for number, module in enumerate(modules):
        archive.add_file(f"modules/{number:02d}-{module.name}", module.content)
    files.write_atomic(out, gzip.compress(archive.to_bytes(), _GZIP_LEVEL, mtime=0))


def build_grow_archive(out: Path) -> None:
    """Write an archive with the host's resize2fs, its loader and its libraries, under `grow/`.

    busybox has no resize2fs, and an image may lack it; so a machine whose disk has grown brings its own.

    Raises:
        HostError: resize2fs is missing, or ldd does not understand it.
    """
    tool = Path("/usr/sbin") / _GROW_TOOL
    if not tool.exists():
        raise HostError(
            "resize2fs is not on this host.",
            details=f"{tool} does not exist; it grows a machine's file system.",
            resolution="sudo apt-get install e2fsprogs",
        )
    archive = Archive()
    archive.add_file(f"grow/{_GROW_TOOL}", tool.read_bytes(), mode=0o755)
    # One directory for all: the loader is called by name, with this directory as its library path.
    for path in _libraries(process.run(["ldd", str(tool)]).stdout):
        archive.add_file(f"grow/{path.name}", path.read_bytes(), mode=0o755)
    loader = next(path.name for path in _libraries(process.run(["ldd", str(tool)]).stdout) if "ld-linux" in path.name)
    archive.add_link("grow/loader", loader)
    files.write_atomic(out, gzip.compress(archive.to_bytes(), _GZIP_LEVEL, mtime=0))


def _libraries(listing: str) -> list[Path]:
    """Return the files that ldd's listing names; the vDSO has none."""
    return [Path(match) for match in re.findall(r"(?:=> )?(/\S+) \(0x", listing)]


def _busybox() -> Path:
    for path in _BUSYBOX:
        # A program that names no interpreter (PT_INTERP) is static; its string is within the first page.
        if path.is_file() and b"/ld-" not in path.read_bytes()[:4096]:
            return path
    raise HostError(
        "There is no static busybox on this host.",
        details=f"Looked at {', '.join(str(path) for path in _BUSYBOX)}; stage-1 is built around it.",
        resolution="sudo apt-get install busybox-static (sudo vmm setup --install-packages does it)",
    )
