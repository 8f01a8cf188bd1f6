"""The one table of Firecracker's releases: floor, newest, holes, and where each is from."""

import pytest

from vmm.engines.firecracker import releases

NAMES = {
    "1.12.1": ["CVE-2026-1386"], "1.13.0": ["CVE-2026-1386", "CVE-2026-5747"], "1.13.1": ["CVE-2026-1386", "CVE-2026-5747"],
    "1.14.0": ["CVE-2026-1386", "CVE-2026-5747"], "1.14.1": ["CVE-2026-5747"], "1.14.3": ["CVE-2026-5747"], "1.14.4": [],
    "1.15.0": ["CVE-2026-5747"], "1.15.1": [], "1.16.1": [],
}  # fmt: skip


@pytest.mark.fault(27)
@pytest.mark.parametrize("version", NAMES)
def test_holes_of_a_release(version: str) -> None:
    assert [hole.name for hole in releases.known_holes(version)] == NAMES[version]


def test_the_newest_and_the_floor_have_none_and_are_in_order() -> None:
    assert releases.known_holes(releases.NEWEST) == releases.known_holes(releases.FLOOR) == ()
    assert releases.is_older(releases.MIRRORED, releases.FLOOR)
    assert not releases.is_older(releases.NEWEST, releases.FLOOR)


def test_every_hole_has_a_source() -> None:
    assert all(hole.source.startswith("https://") and hole.name in hole.source for hole in releases.HOLES)
