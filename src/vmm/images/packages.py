"""Kernels out of the distribution's package registry, by apt, with its signatures checked."""

import platform
import re
from pathlib import Path

from vmm.errors import HostError, ImageError
from vmm.host import process
from vmm.host.reading import read_text
from vmm.model.progress import Progress

_OS_RELEASE = Path("/etc/os-release")
_DEBIAN_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_FETCH_S = 600.0


def os_release(path: Path = _OS_RELEASE) -> dict[str, str]:
    """Return the fields of os-release(5), unquoted."""
    try:
        lines = read_text(path, errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key: value.strip().strip("\"'") for key, _, value in pairs}


def cloud_kernel() -> str:
    """Return the name of the package with the distribution's own kernel for virtual machines."""
    release = os_release()
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    if "ubuntu" in family:
        return "linux-image-virtual"
    if "debian" in family:
        return f"linux-image-cloud-{_DEBIAN_ARCH.get(platform.machine(), platform.machine())}"
    raise HostError(
        "vmm knows no kernel package of this distribution.",
        details=f"{_OS_RELEASE} names {release.get('ID', 'nothing')!r}; Debian and Ubuntu are known.",
        resolution="Import a kernel of your own: sudo vmm kernel import PATH --modules DIR --name default",
    )


def fetch_kernel(package: str, work: Path, *, progress: Progress) -> tuple[Path, str]:
    """Fetch a kernel package and what holds its modules, and unpack them below `work`; nothing is installed.

    Returns the unpacked tree and the name of the package that was really fetched (a metapackage leads to it).
    """
    with progress.step(f"Looking for {package}"):
        if not _dependencies(package):
            process.run(["apt-get", "update", "-q"], timeout_s=_FETCH_S, env=process.proxies())
    wanted = _resolve(package)
    tree = work / "tree"
    tree.mkdir()
    with progress.step(f"Fetching {', '.join(wanted)}"):
        # The work directory is root's alone; apt's own download user could not write into it.
        argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "--", *wanted]
        process.run(argv, cwd=work, timeout_s=_FETCH_S, env=process.proxies())
    with progress.step("Unpacking"):
        for archive in sorted(work.glob("*.deb")):
            process.run(["dpkg-deb", "-x", str(archive), str(tree)], timeout_s=_FETCH_S)
    return tree, wanted[0]


def kernel_image(tree: Path) -> Path:
    """Return the kernel in an unpacked tree; the newest where there are several."""
    found = sorted(tree.glob("boot/vmlinuz-*"))
    if not found:
        raise ImageError(
            "The package holds no kernel.",
            details="There is no boot/vmlinuz-* in it.",
            resolution="Name a package that has one, such as linux-image-cloud-amd64.",
        )
    return found[-1]


def _resolve(package: str) -> list[str]:
    """Return the package with the kernel itself and the one with its modules, following metapackages."""
    current = package
    for _ in range(4):
        needed = _dependencies(current)
        if not needed:
            raise ImageError(
                f"There is no package {current!r}.",
                details="apt does not know it, from the sources that this host is configured with.",
                resolution="sudo apt-get update; apt-cache search linux-image",
            )
        real = [name for name in needed[1:] if re.match(r"linux-image-(unsigned-)?\d", name)]
        modules = [name for name in needed if re.match(r"linux-modules-\d", name)]
        if not real:
            return [current, *modules]
        current = real[0]
    return [current]


def _dependencies(package: str) -> list[str]:
    """Return the names that a package depends on, its own first; empty when apt does not know it."""
    done = process.run(["apt-cache", "depends", "--important", "--no-recommends", "--", package], check=False)
    if done.code != 0 or not done.stdout.strip():
        return []
    return [package, *re.findall(r"^\s*\|?Depends: ([a-z0-9][a-z0-9.+-]*)", done.stdout, re.MULTILINE)]
