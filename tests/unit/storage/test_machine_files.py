"""A machine's own directory: whole or not there, and what was lost is made again where that harms nothing."""

from pathlib import Path

import pytest
from machines import a_machine

from vmm.config import Paths
from vmm.errors import HostError
from vmm.guest.keys import make_key
from vmm.model.image import Image, Kernel
from vmm.storage import machine_files
from vmm.storage.machine_files import MachineDirectories

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


def test_the_console_is_marked_and_bounded(files: MachineDirectories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_files, "CONSOLE_BYTES", 1000)
    console = files.console("m")
    console.parent.mkdir(parents=True)
    files.mark_boot("m", at="first")
    with console.open("ab") as stream:
        stream.write(b"x" * 2000 + b"the newest\n")
    assert files.last_words("m").endswith("the newest\n")
    files.mark_boot("m", at="second")
    assert console.stat().st_size < 600
    assert "the newest" in console.read_text()
    assert "second" in files.last_words("m")
    assert "the newest" not in files.last_words("m")


def test_removing_is_repeatable(files: MachineDirectories, image: Image) -> None:
    files.make(a_machine("m"), image)
    files.remove("m")
    files.remove("m")
    assert not files.is_made("m")
