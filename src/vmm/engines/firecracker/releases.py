"""What is known of Firecracker's releases: pinned digests, published holes, and what is fit for use."""

import re
from pathlib import Path

from vmm.host import process
from vmm.host.reading import read_object
from vmm.model.value import Value

# The newest stable release, and the least one for real use (guest-visible fixes and both holes below).
NEWEST = "1.16.1"
FLOOR = "1.15.1"
# The release that a package registry mirrors; fit for a lab, named by `doctor` for its jailer.
MIRRORED = "1.12.1"

# SHA-256 of the binaries of releases that were checked by hand, by (version, architecture).
PINS: dict[tuple[str, str], dict[str, str]] = {
    (MIRRORED, "x86_64"): {
        "firecracker": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930",
        "jailer": "86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5",
    },
}

Version = tuple[int, int, int]


class Hole(Value):
    """A published security hole; `where` says which part of Firecracker has it."""

    name: str
    where: str
    what: str


def known_holes(version: str) -> tuple[Hole, ...]:
    """Return the published holes of a release (sources: the CVE records, as in the project's design)."""
    number = parse(version)
    holes: list[Hole] = []
    if number <= (1, 13, 1) or number == (1, 14, 0):
        holes.append(Hole(name="CVE-2026-1386", where="jailer", what="the jailer follows symbolic links"))
    if (1, 13, 0) <= number <= (1, 14, 3) or number == (1, 15, 0):
        holes.append(
            Hole(name="CVE-2026-5747", where="virtio-pci", what="open only with --enable-pci, which vmm never gives")
        )
    return tuple(holes)


def parse(version: str) -> Version:
    """Return (major, minor, patch); (0, 0, 0) for a text that is no version."""
    match = re.search(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", version)
    return (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)


def version_of(binary: Path) -> str:
    """Return the version that a firecracker binary reports, such as `1.12.1`; raise HostError when it cannot be run."""
    words = process.run([str(binary), "--version"], timeout_s=10).stdout
    return ".".join(str(part) for part in parse(words))


def installed_version(binary: Path) -> str:
    """Return the version of an installed firecracker: as `setup` wrote it down beside it, else as it says itself."""
    try:
        return str(read_object(binary.parent / "firecracker.json")["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return version_of(binary)
