import os
from pathlib import Path

import pytest

from vmm.errors import HostError
from vmm.host import files

MIB = 1024 * 1024


@pytest.mark.fault(16)
@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "a\0b", "../x"])
def test_a_join_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        files.confined(tmp_path, name)


@pytest.mark.fault(24)
def test_modes_hold_under_any_umask(tmp_path: Path) -> None:
    for mask in (0o000, 0o077):
        old = os.umask(mask)
        try:
            directory = files.make_dir(tmp_path / f"d{mask}", mode=0o700)
            files.write_atomic(directory / "f", "secret", mode=0o600)
            files.write_atomic(directory / "g", "public", mode=0o644)
        finally:
            os.umask(old)
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / "f").stat().st_mode & 0o777 == 0o600
        assert (directory / "g").stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_and_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "f"
    files.write_atomic(target, "old")
    (tmp_path / "d").mkdir()
    with pytest.raises(HostError):
        files.write_atomic(tmp_path / "d", "x")  # a directory cannot be replaced by a file
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


def test_a_copy_keeps_holes_grows_and_is_private(tmp_path: Path) -> None:
    source = tmp_path / "image"
    with source.open("wb") as stream:
        stream.write(b"start" * 1000)
        stream.seek(64 * MIB)
        stream.write(b"middle" * 1000)
        stream.truncate(128 * MIB)
    files.copy_disk(source, tmp_path / "disk", size_mib=256)
    disk = tmp_path / "disk"
    assert disk.stat().st_size == 256 * MIB
    assert disk.stat().st_mode & 0o777 == 0o600
    assert disk.stat().st_blocks * 512 < 2 * MIB
    with source.open("rb") as one, disk.open("rb") as two:
        while block := one.read(MIB):
            assert two.read(MIB) == block
        assert set(two.read(MIB)) == {0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "image"]


def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        files.copy_disk(tmp_path / "none", tmp_path / "disk", size_mib=1)
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_copy_left_is_not_taken_for_a_disk(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"whole")
    (tmp_path / ".disk.partial").write_bytes(b"half of an older one, and longer")
    files.copy_disk(tmp_path / "image", tmp_path / "disk", size_mib=1)
    assert (tmp_path / "disk").read_bytes()[:8] == b"whole\0\0\0"


def test_remove_tree_never_follows_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(outside)
    files.remove_tree(tree)
    (tmp_path / "direct").symlink_to(outside)
    files.remove_tree(tmp_path / "direct")
    assert (outside / "precious").exists()
    assert not tree.exists()
    files.remove_tree(tree)


@pytest.mark.fault(31)
def test_staging_is_gone_however_it_ends(tmp_path: Path) -> None:
    def work() -> None:
        with files.staging_dir(tmp_path / "s", prefix="x") as path:
            assert path.stat().st_mode & 0o777 == 0o700
            (path / "f").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list((tmp_path / "s").iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_still_locks(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with files.locked(lock, what="it", timeout_s=1):
        lock.unlink()
    with files.locked(lock, what="it", timeout_s=1):
        assert lock.exists()


def test_no_directory_is_told_in_three_parts() -> None:
    with pytest.raises(HostError) as caught:
        files.make_dir(Path("/proc/nothing/here"))
    assert "/proc/nothing/here" in caught.value.brief
    assert caught.value.resolution
