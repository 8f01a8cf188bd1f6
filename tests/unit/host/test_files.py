import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmm.errors import ConflictError, HostError
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


def test_remove_tree_outlasts_whoever_still_writes_into_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As dpkg-deb's tar does for a moment, when dpkg-deb itself was ended."""
    # However slow this host is.
    monkeypatch.setattr(files, "_WRITERS_S", 30.0)
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for number in range(2000):
        (tree / "deep" / str(number)).touch()
    # What comes into a directory while what lies below it is being removed.
    script = 'n=0; while [ $n -lt 4000 ]; do : >"$1/$n" || exit 0; n=$((n+1)); done 2>/dev/null'
    with subprocess.Popen(["sh", "-c", script, "sh", str(tree)]) as writer:
        deadline = time.monotonic() + 10
        while len(list(tree.iterdir())) < 50 and time.monotonic() < deadline:
            pass
        files.remove_tree(tree)
        assert not tree.exists()
        writer.wait(timeout=10)


def test_remove_tree_that_is_written_into_for_good_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WRITERS_S", 0.1)

    def full(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr("shutil.rmtree", full)
    with pytest.raises(HostError, match="cannot be removed"):
        files.remove_tree(tmp_path)


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


# Locks


def test_a_lock_is_taken_seen_and_given_back(tmp_path: Path) -> None:
    lock = tmp_path / "state" / "supervisor"
    assert not files.is_locked(lock)
    held = files.try_lock(lock)
    assert held is not None
    assert files.is_locked(lock)
    assert files.try_lock(lock) is None
    os.close(held)
    assert not files.is_locked(lock)
    assert lock.stat().st_mode & 0o777 == 0o600


def test_whoever_looks_whether_it_is_locked_does_not_hold_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        assert not files.is_locked(lock)
    with files.locked(lock, what="it", timeout_s=0.05):
        for _ in range(20):
            assert files.is_locked(lock)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.fault(1)
def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = "import sys, time; from vmm.host import files; from pathlib import Path\n"
    script += "files.try_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert files.is_locked(lock)
        with pytest.raises(ConflictError, match="working on it"), files.locked(lock, what="it", timeout_s=0.05):
            pass
        holder.kill()
        holder.wait()
    assert not files.is_locked(lock)


def test_a_lock_is_not_inherited_by_what_is_started(tmp_path: Path) -> None:
    """An engine outlives the command that started it; it must not hold the machine's lock for its whole life."""
    lock = tmp_path / "lock"
    with files.locked(lock, what="it", timeout_s=1):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not files.is_locked(lock)
    finally:
        child.kill()
        child.wait()


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(HostError, match="cannot be opened"):
        files.try_lock(tmp_path / "lock")


# What a killed command left


@pytest.mark.fault(1)
def test_working_directories_of_the_dead_are_swept_and_of_the_living_not(tmp_path: Path) -> None:
    root = tmp_path / "staging"
    with files.staging_dir(root, prefix="mine") as mine:
        (root / "pull-1-0123abcd").mkdir()
        (root / "pull-1-0123abcd" / "half").write_text("x")
        (root / "not-of-ours").mkdir()
        (root / "pull-1-0123abce").write_text("a file")
        assert files.sweep_staging(root) == ["pull-1-0123abcd"]
        assert sorted(path.name for path in root.iterdir()) == sorted([mine.name, "not-of-ours", "pull-1-0123abce"])
        assert files.sweep_staging(root) == []
    assert files.sweep_staging(tmp_path / "none") == []
    assert files.sweep_staging(root / "pull-1-0123abce") == []


@pytest.mark.fault(1, 2)
def test_a_sweep_takes_nothing_from_a_command_at_work(tmp_path: Path) -> None:
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            files.sweep_staging(tmp_path)
            files.sweep_temporaries(tmp_path)

    sweepers = [threading.Thread(target=sweep) for _ in range(3)]
    for sweeper in sweepers:
        sweeper.start()
    try:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            files.write_atomic(tmp_path / "written", "x", durable=False)
            with files.staging_dir(tmp_path, prefix="work") as work:
                (work / "half").write_text("x")
    finally:
        ended.set()
        for sweeper in sweepers:
            sweeper.join()
    assert [path.name for path in tmp_path.iterdir()] == ["written"]


@pytest.mark.fault(2)
def test_a_lock_that_is_held_keeps_its_name(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = files.try_lock(lock)
    assert held is not None
    files.remove_lock(lock)
    assert lock.exists()
    os.close(held)
    files.remove_lock(lock)
    assert not lock.exists()


@pytest.mark.fault(26)
def test_a_sweep_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    root = tmp_path / "staging"
    root.mkdir()
    (root / "pull-1-0123abcd").symlink_to(tmp_path / "precious")
    files.sweep_staging(root)
    assert (tmp_path / "precious" / "file").exists()


# File systems


@pytest.mark.fault(35)
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/vmm", "nfs4"),
        ("/srv/vmm/state", "nfs4"),
        ("/srv/vmm/local/state", None),
        ("/srv/vmm2", None),
        ("/home/a b/x", "cifs"),
        ("/var/lib/vmm", None),
    ],
)
def test_a_network_file_system_is_known_by_the_mount_that_counts(tmp_path: Path, path: str, kind: str | None) -> None:
    table = tmp_path / "mounts"
    table.write_text(
        "/dev/vda / ext4 rw 0 0\nserver:/x /srv/vmm nfs4 rw 0 0\n/dev/vdb /srv/vmm/local xfs rw 0 0\n"
        "//server/x /home/a\\040b cifs rw 0 0\n"
    )
    assert files.network_file_system(Path(path), table) == kind


def test_a_new_disk_is_never_anyone_elses_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even before it has its mode: a descriptor of that moment reads all that a guest writes later."""
    (tmp_path / "image").write_bytes(b"x" * 4096)
    modes: list[int] = []
    fchmod = os.fchmod

    def watched(fd: int, mode: int) -> None:
        modes.append(os.fstat(fd).st_mode & 0o777)
        fchmod(fd, mode)

    monkeypatch.setattr(os, "fchmod", watched)
    before = os.umask(0)
    try:
        files.copy_disk(tmp_path / "image", tmp_path / "disk", size_mib=1)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_directory_is_not_made_by_way_of_another_users_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (tmp_path / "own").symlink_to(victim)
    (tmp_path / "theirs").symlink_to(victim)
    os.chown(tmp_path / "theirs", 65534, 65534, follow_symlinks=False)
    with pytest.raises(HostError, match="cannot be made"):
        files.make_dir(tmp_path / "theirs", mode=0o700)
    assert victim.stat().st_mode & 0o777 == 0o755
    files.make_dir(tmp_path / "own", mode=0o700)
    assert victim.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_writes_into_no_data_directory_of_another_users(tmp_path: Path) -> None:
    from vmm.app import open_site
    from vmm.app.configure import initialise

    data, victim = tmp_path / "data", tmp_path / "victim"
    data.mkdir()
    victim.mkdir(mode=0o755)
    (data / "sockets").symlink_to(victim)
    os.chown(data, 65534, 65534)
    for write in (lambda: open_site(data_dir=data), lambda: initialise(data_dir=data)):
        with pytest.raises(HostError, match="open to other users") as caught:
            write()
        assert caught.value.details.startswith(f"{data} is drwxr-xr-x, of user 65534")
    assert (victim.stat().st_mode & 0o777, len(list(data.iterdir()))) == (0o755, 1)
    assert open_site(data_dir=data, read_only=True).read_only
    os.chown(data, 0, 0)
    assert not open_site(data_dir=data).read_only
