"""The system programs that vmm needs, and the packages of Debian and Ubuntu that bring them."""

import platform
import shutil
from pathlib import Path

from vmm.errors import HostError
from vmm.host import process
from vmm.model.progress import Progress

_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL_S = 1800.0
# program -> package. What only some commands need is named by them when it is missing.
_QEMU = {"x86_64": ("qemu-system-x86_64", "qemu-system-x86"), "aarch64": ("qemu-system-aarch64", "qemu-system-arm")}
PROGRAMS: dict[str, str] = {
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "mke2fs": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "busybox": "busybox-static",
    "mmdebstrap": "mmdebstrap",
    "dpkg-deb": "dpkg",
    "lz4": "lz4",
    "zstd": "zstd",
    "xz": "xz-utils",
    "bzip2": "bzip2",
    "xorriso": "xorriso",
    **({_QEMU[platform.machine()][0]: _QEMU[platform.machine()][1]} if platform.machine() in _QEMU else {}),
}


def missing() -> dict[str, str]:
    """Return the programs that are not on this host, each with its package."""
    return {program: package for program, package in PROGRAMS.items() if shutil.which(program, path=_SEARCH) is None}


def install(packages: tuple[str, ...], *, progress: Progress) -> None:
    """Install packages with apt; raise HostError where there is no apt, or when it fails."""
    if shutil.which("apt-get", path=_SEARCH) is None:
        raise HostError(
            "The missing programs cannot be installed.",
            details=f"This host has no apt-get; needed: {', '.join(packages)} (Debian's names).",
            resolution="Install them with this host's own package manager, then give the command again: vmm setup",
        )
    with progress.step(f"Installing {', '.join(packages)}"):
        argv = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
        env = process.proxies()
        if (
            not any(Path("/var/lib/apt/lists").glob("*_Packages*"))
            or process.run(argv, timeout_s=_INSTALL_S, env=env, check=False).code
        ):
            # No package lists yet, or ones that name versions which are gone.
            process.run(["apt-get", "update", "-q"], timeout_s=_INSTALL_S, env=env)
            process.run(argv, timeout_s=_INSTALL_S, env=env)
