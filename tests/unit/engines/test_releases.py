"""The one table of Firecracker's releases: floor, newest, holes, and where each is from."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from vmm.engines.firecracker import acquire, releases
from vmm.errors import EngineError

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


def test_an_archive_that_is_cut_off_is_told_by_its_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        member = tarfile.TarInfo("release-v1/firecracker-v1-x86_64")
        member.size = 100_000
        made.addfile(member, io.BytesIO(os.urandom(100_000)))
    own = tmp_path / "given"
    for content in (buffer.getvalue()[:50_000], b"<html>not found</html>" * 1000):
        own.write_bytes(content)
        with pytest.raises(EngineError, match="no archive that can be read") as caught:
            acquire._from_archive(own, tmp_path, name="fc.tgz")
        assert caught.value.brief.startswith("fc.tgz is ")
        assert caught.value.details
