"""What is known of Firecracker's releases: the one table of what is fit for use, of published holes, and of digests."""

import re
from pathlib import Path

from vmm.host import process
from vmm.host.reading import read_object
from vmm.model.value import Value

# The newest stable release (github.com/firecracker-microvm/firecracker/releases).
NEWEST = "1.16.1"
# The least one for real use: the first without the holes below (its CHANGELOG.md, and the sources of HOLES).
FLOOR = "1.15.1"
# The release that a package registry mirrors; for a lab, and taken only when it is asked for by name.
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
    """A published security hole. `where` says which part of Firecracker has it, `releases` which, first and last."""

    name: str
    where: str
    what: str
    source: str
    releases: tuple[tuple[Version, Version], ...]


HOLES: tuple[Hole, ...] = (
    Hole(
        name="CVE-2026-1386",
        where="jailer",
        what="the jailer follows symbolic links",
        source="https://www.cve.org/CVERecord?id=CVE-2026-1386",
        releases=(((0, 0, 0), (1, 13, 1)), ((1, 14, 0), (1, 14, 0))),
    ),
    Hole(
        name="CVE-2026-5747",
        where="virtio-pci",
        what="open only with --enable-pci, which vmm never gives",
        source="https://www.cve.org/CVERecord?id=CVE-2026-5747",
        releases=(((1, 13, 0), (1, 14, 3)), ((1, 15, 0), (1, 15, 0))),
    ),
)


def known_holes(version: str) -> tuple[Hole, ...]:
    """Return the published holes of a release."""
    number = parse(version)
    return tuple(hole for hole in HOLES if any(first <= number <= last for first, last in hole.releases))


def is_older(version: str, than: str) -> bool:
    return parse(version) < parse(than)


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
