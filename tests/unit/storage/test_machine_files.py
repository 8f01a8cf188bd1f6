"""A machine's own directory: whole or not there, and what was lost is made again where that harms nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from machines import a_machine

from vmm.config import Paths
from vmm.errors import HostError, UsageError
from vmm.guest.keys import make_key
from vmm.model.image import Image, Kernel
from vmm.storage import machine_files
from vmm.storage.machine_files import MachineDirectories

KIB = 1024
TIMES = {"created_at": "2026-01-01T00:00:00Z", "sha256": "0", "source": "test"}


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "image"
    with path.open("wb") as stream:
        stream.write(b"begin" + b"\0" * 4091)
        stream.seek(100 << 20)
        stream.write(b"middle")
        stream.truncate(256 << 20)
    return Image(name="default", path=path, size_mib=256, **TIMES)


@pytest.fixture
def files(tmp_path: Path) -> MachineDirectories:
    def write_initrd(out: Path, **facts: object) -> None:
        out.write_text(f"grow={facts['grow']} key={Path(str(facts['host_key'])).exists()}")

    def make_seed(machine: object, user_data: Path, out: Path) -> None:
        out.write_bytes(b"seed of " + user_data.read_bytes())

    return MachineDirectories(
        paths=Paths(data_dir=tmp_path / "data"), write_initrd=write_initrd, make_host_key=make_key, make_seed=make_seed
    )


def test_a_disk_is_the_image_grown_and_sparse(files: MachineDirectories, image: Image) -> None:
    files.make(a_machine("m", disk_mib=512), image)
    disk = files.disk("m")
    assert disk.stat().st_size == 512 << 20
    assert disk.stat().st_blocks * 512 < 2 << 20
    with disk.open("rb") as stream:
        assert stream.read(5) == b"begin"
        stream.seek(100 << 20)
        assert stream.read(6) == b"middle"
    assert files.is_made("m")
    assert disk.stat().st_mode & 0o777 == 0o600
    known = files.known_hosts("m").read_text().split()
    assert known[0] == a_machine("m").id
    assert known[1:] == (disk.with_name("ssh_host_ed25519_key.pub").read_text().split()[:2])


def test_what_fails_half_way_is_not_made(files: MachineDirectories, image: Image) -> None:
    image.path.unlink()
    with pytest.raises(HostError):
        files.make(a_machine("m"), image)
    assert not files.is_made("m")
    assert [path.name for path in files.disk("m").parent.glob(".*")] == []


def test_growing_is_asked_for_until_a_guest_did_it(files: MachineDirectories, image: Image, tmp_path: Path) -> None:
    machine = a_machine("m", disk_mib=512)
    kernel = Kernel(name="k", path=tmp_path / "k", stage1=tmp_path / "s", version="6", **TIMES)
    files.make(machine, image)
    initrd = files.prepare_boot(machine, kernel, ())
    assert initrd is not None
    assert initrd.read_text() == "grow=True key=True"
    files.grown("m")
    files.prepare_boot(machine, kernel, ())
    assert initrd.read_text() == "grow=False key=True"
    files.grow("m", 600)
    assert files.disk("m").stat().st_size == 600 << 20
    files.prepare_boot(machine, kernel, ())
    assert initrd.read_text() == "grow=True key=True"


def test_a_disk_that_is_larger_than_its_record_is_not_cut(files: MachineDirectories, image: Image) -> None:
    files.make(a_machine("m", disk_mib=512), image)
    os.truncate(files.disk("m"), (4096 << 20) - 1)
    with pytest.raises(UsageError, match="cannot shrink to 2048 MiB") as caught:
        files.grow("m", 2048)
    assert caught.value.details == "It is recorded as smaller, and has 4096 MiB; a disk can only grow."
    assert caught.value.resolution == "Give --disk 4096 or more."
    assert files.disk("m").stat().st_size == (4096 << 20) - 1
    files.grow("m", 4096)
    assert files.disk("m").stat().st_size == 4096 << 20


@pytest.mark.parametrize("lost", ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "known_hosts"])
def test_a_host_key_that_was_lost_is_made_anew(
    files: MachineDirectories, image: Image, tmp_path: Path, lost: str
) -> None:
    machine = a_machine("m")
    kernel = Kernel(name="k", path=tmp_path / "k", stage1=tmp_path / "s", version="6", **TIMES)
    files.make(machine, image)
    directory = files.disk("m").parent
    (directory / lost).unlink()
    files.prepare_boot(machine, kernel, ())
    public = (directory / "ssh_host_ed25519_key.pub").read_text().split()[1]
    assert public in (directory / "known_hosts").read_text()
    before = (directory / "ssh_host_ed25519_key").read_text()
    files.prepare_boot(machine, kernel, ())
    assert (directory / "ssh_host_ed25519_key").read_text() == before


def test_user_data_becomes_a_seed_that_only_root_reads(files: MachineDirectories, image: Image) -> None:
    machine = a_machine("m", user_data="#cloud-config")
    files.make(machine, image)
    assert files.seed_disk(machine) == files.disk("m").with_name("cidata.iso")
    assert files.disk("m").with_name("user-data").stat().st_mode & 0o777 == 0o600


# Consoles and logs


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can fill: a console of 16 KiB, a log of 8."""
    monkeypatch.setattr(machine_files, "CONSOLE_BYTES", 16 * KIB)
    monkeypatch.setattr(machine_files, "LOG_BYTES", 8 * KIB)


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        stream.write(text)


@pytest.mark.fault(22)
def test_the_console_is_marked_and_bounded(files: MachineDirectories, small: None) -> None:
    console, older = files.console("m"), files.older_console("m")
    console.parent.mkdir(parents=True)
    files.mark_boot("m", at="first")
    written(console, "x" * 20 * KIB + "the newest\n")
    assert files.last_words("m").endswith("the newest\n")
    files.mark_boot("m", at="second")
    # Turned over: what was written is kept beside it, the newest of it.
    assert console.read_text() == "\n=== vmm: m boots at second ===\n"
    assert older.stat().st_size == 16 * KIB
    assert older.read_text().endswith("the newest\n")
    assert "the newest" not in files.last_words("m")
    assert (older.stat().st_mode & 0o777, console.stat().st_mode & 0o777) == (0o600, 0o600)


@pytest.mark.fault(22)
def test_a_console_is_turned_over_under_its_writer(files: MachineDirectories, small: None) -> None:
    """The engine goes on at the end of the file, wherever that is."""
    console = files.console("m")
    console.parent.mkdir(parents=True)
    with console.open("ab", buffering=0) as engine:
        for number in range(200):
            engine.write(b"%06d %s\n" % (number, b"x" * 500))
            files.trim("m")
            assert console.stat().st_size + _size(files.older_console("m")) <= 33 * KIB
    lines = (files.older_console("m").read_text() + console.read_text()).splitlines()
    numbers = [int(line.split()[0]) for line in lines if line[:6].isdigit()]
    # Nothing between the oldest that is kept and the newest is missing.
    assert numbers == list(range(numbers[0], 200))
    assert files.last_words("m").splitlines()[-1].startswith("000199")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def test_a_console_within_its_bound_is_left_alone(files: MachineDirectories, small: None) -> None:
    written(files.console("m"), "x" * 16 * KIB)
    written(files.log("m"), "x" * 8 * KIB)
    files.trim("m")
    assert files.console("m").stat().st_size == 16 * KIB
    assert files.log("m").stat().st_size == 8 * KIB
    assert not files.older_console("m").exists()


def test_a_hole_is_not_what_fills_a_disk(files: MachineDirectories, small: None) -> None:
    """One that was cut under a writer which keeps its own place: what is not there need not be cut again."""
    written(files.console("m"), "")
    with files.console("m").open("r+b") as stream:
        stream.seek(1024 * KIB)
        stream.write(b"the newest\n")
    files.trim("m")
    assert not files.older_console("m").exists()
    assert files.last_words("m").endswith("the newest\n")


@pytest.mark.fault(22)
def test_a_log_is_cut_to_its_newest(files: MachineDirectories, small: None) -> None:
    log = files.log("m")
    written(log, "x" * 20 * KIB + "\nthe newest\n")
    files.trim("m")
    assert log.stat().st_size == 4 * KIB
    assert log.read_text().endswith("the newest\n")
    assert sorted(path.name for path in log.parent.iterdir()) == ["m.log"]


def test_words_of_this_boot_are_found_across_a_turn(files: MachineDirectories, small: None) -> None:
    console = files.console("m")
    written(console, "of the boot before\n")
    files.mark_boot("m", at="now")
    written(console, "early\n")
    machine_files.turn_over(console, files.older_console("m"))
    written(console, "late\n")
    assert files.last_words("m").endswith(" ===\nearly\nlate\n")
    assert "before" not in files.last_words("m")
    # The console alone has more than what is asked for.
    written(console, "y" * 5000)
    assert set(files.last_words("m")) == {"y"}


FILL = """
import resource, sys
from pathlib import Path
from vmm.storage import machine_files
machine_files.CONSOLE_BYTES = 64 * 1024
# No file may grow beyond this: to a writer it is as a disk that is full.
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
console = Path(sys.argv[1])
machine_files.turn_over(console, console.with_name("older"))
"""


@pytest.mark.fault(11, 22)
@pytest.mark.parametrize("room", [0, 1, 10_000, 65_535])
def test_on_a_full_disk_the_flood_goes_with_what_cannot_be_kept(tmp_path: Path, room: int) -> None:
    console, older = tmp_path / "console", tmp_path / "older"
    console.write_bytes(b"f" * 100_000)
    older.write_bytes(b"of before")
    done = subprocess.run([sys.executable, "-c", FILL, str(console), str(room)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert console.stat().st_size == 0
    # A part is not the newest of it; and the room is needed.
    assert older.stat().st_size == 0


@pytest.mark.fault(11, 22, 26)
@pytest.mark.parametrize("way", ["a link", "a directory", "no directory"])
def test_the_flood_goes_where_nothing_can_be_kept(tmp_path: Path, way: str) -> None:
    console, older, precious = tmp_path / "console", tmp_path / "older", tmp_path / "precious"
    console.write_bytes(b"f" * 1000)
    precious.write_text("x")
    if way == "a link":
        older.symlink_to(precious)
    elif way == "a directory":
        older.mkdir()
    else:
        older = tmp_path / "none" / "older"
    machine_files.turn_over(console, older)
    assert console.stat().st_size == 0
    assert precious.read_text() == "x"


def test_removing_is_repeatable(files: MachineDirectories, image: Image) -> None:
    files.make(a_machine("m"), image)
    files.remove("m")
    files.remove("m")
    assert not files.is_made("m")


@pytest.mark.parametrize("options", [(), ("-O", "^has_journal")])
def test_a_disk_that_was_not_unmounted_says_so_itself(files: MachineDirectories, options: tuple[str, ...]) -> None:
    disk = files.disk("m")
    disk.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", *options, str(disk), "16M"], check=True, capture_output=True)
    assert files.is_unmounted("m")
    # What the kernel does when it mounts it.
    word = "feature +needs_recovery" if not options else "ssv state 0"
    subprocess.run(["debugfs", "-w", "-R", word, str(disk)], check=True, capture_output=True)
    assert not files.is_unmounted("m")
    disk.write_bytes(b"no file system")
    assert files.is_unmounted("m")
