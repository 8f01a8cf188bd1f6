"""What a jail decides; what it keeps out is shown by the system tests, which have the users and mounts for it."""

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from machines import a_plan

from vmm.engines.firecracker import jail as jailing
from vmm.engines.firecracker.engine import FirecrackerEngine
from vmm.engines.firecracker.jail import Jail
from vmm.errors import EngineError, HostError
from vmm.model.engine import Disk

ID = "0123456789abcdef0123456789abcdef"


@dataclass
class Placed:
    """A directory as `refuse_unsafe` sees it, with those above it: (path, mode, owner), itself first."""

    chain: list[tuple[str, int, int]]

    def is_dir(self) -> bool:
        return True

    def resolve(self) -> "Placed":
        return self

    @property
    def parents(self) -> list["Placed"]:
        return [Placed([entry]) for entry in self.chain[1:]]

    def lstat(self) -> os.stat_result:
        _, mode, owner = self.chain[0]
        return os.stat_result((stat.S_IFDIR | mode, 0, 0, 0, owner, 0, 0, 0, 0, 0))

    def __str__(self) -> str:
        return self.chain[0][0]


ROOT = ("/", 0o755, 0)
PLACES = {
    "as vmm makes it": ([("/var/lib/vmm/jail", 0o700, 0), ("/var/lib/vmm", 0o755, 0), ROOT], None),
    "read by others": ([("/var/lib/vmm/jail", 0o755, 0), ROOT], None),
    "another user's": ([("/data/jail", 0o700, 1000), ("/data", 0o755, 0), ROOT], "/data/jail"),
    "a group may write": ([("/data/jail", 0o770, 0), ROOT], "/data/jail"),
    "anyone may write": ([("/data/jail", 0o702, 0), ROOT], "/data/jail"),
    "sticky is not enough for itself": ([("/data/jail", 0o1777, 0), ROOT], "/data/jail"),
    "below a directory of another user's": ([("/home/me/jail", 0o700, 0), ("/home/me", 0o700, 1000), ROOT], "/home/me"),
    "below one that a group may write": ([("/srv/x/jail", 0o700, 0), ("/srv/x", 0o775, 0), ROOT], "/srv/x"),
    "far below one that anyone may write": (
        [("/srv/x/y/jail", 0o700, 0), ("/srv/x/y", 0o755, 0), ("/srv/x", 0o757, 0), ROOT],
        "/srv/x",
    ),
    "below /tmp": ([("/tmp/x/jail", 0o700, 0), ("/tmp/x", 0o755, 0), ("/tmp", 0o1777, 0), ROOT], None),
    "below another's /tmp": ([("/tmp/jail", 0o700, 0), ("/tmp", 0o1777, 1000), ROOT], "/tmp"),
    "a root that a group may write": ([("/data/jail", 0o700, 0), ("/", 0o775, 0)], "/"),
}


@pytest.mark.fault(26)
@pytest.mark.parametrize("place", PLACES)
def test_a_jail_stands_where_nobody_else_can_put_anything(place: str) -> None:
    chain, refused = PLACES[place]
    if refused is None:
        jailing.refuse_unsafe(Placed(chain))  # type: ignore[arg-type]
        return
    with pytest.raises(HostError, match="The data directory is open to other users") as caught:
        jailing.refuse_unsafe(Placed(chain))  # type: ignore[arg-type]
    assert caught.value.details.startswith(f"{refused} is d")
    assert f"chmod go-w {refused})" in caught.value.resolution


@pytest.mark.fault(26)
def test_a_directory_that_others_may_write_is_refused_as_it_lies_on_disk(tmp_path: Path) -> None:
    base = tmp_path / "jail"
    base.mkdir()
    base.chmod(0o777)
    (tmp_path / "link").symlink_to(base)
    for way in (base, tmp_path / "link"):
        with pytest.raises(HostError) as caught:
            jailing.refuse_unsafe(way)
        assert caught.value.details.startswith(f"{base} is drwxrwxrwx")


@pytest.mark.fault(26)
@pytest.mark.parametrize("what", ["a link", "a file", "a link above"])
def test_what_is_no_directory_of_ours_is_left_alone(tmp_path: Path, what: str) -> None:
    precious = tmp_path / "precious"
    (precious / ID).mkdir(parents=True)
    (precious / ID / "file").write_text("x")
    jail = Jail(base=tmp_path / "jail", program=Path("/opt/firecracker"), id=ID)
    jail.base.mkdir()
    if what == "a link above":
        jail.directory.parent.symlink_to(precious)
    else:
        jail.directory.parent.mkdir()
        if what == "a link":
            jail.directory.symlink_to(precious)
        else:
            jail.directory.write_text("x")
    with pytest.raises(HostError, match="not vmm's") as caught:
        jailing.demolish(jail)
    assert "left alone" in caught.value.details
    assert (precious / ID / "file").read_text() == "x"


def test_no_jail_is_no_error(tmp_path: Path) -> None:
    jailing.demolish(Jail(base=tmp_path / "none", program=Path("/opt/firecracker"), id=ID))
    FirecrackerEngine(binary=Path("/x")).clean_up(ID, jails=tmp_path / "none")


@pytest.mark.fault(16)
@pytest.mark.parametrize("wrong", ["", "..", "a/b", "/etc"])
def test_a_jail_is_below_its_base_whatever_the_machines_id(tmp_path: Path, wrong: str) -> None:
    jail = Jail(base=tmp_path, program=Path("/opt/firecracker"), id=wrong)
    with pytest.raises(ValueError, match="leads out"):
        jailing.demolish(jail)


def test_the_jailers_arguments(tmp_path: Path) -> None:
    disk, seed = tmp_path / "disk", tmp_path / "seed"
    for path, mib in ((disk, 300), (seed, 1)):
        path.touch()
        os.truncate(path, mib << 20)
    jail = Jail(base=tmp_path / "jail", program=Path("/opt/fc/firecracker"), id=ID)
    plan = a_plan(id=ID, uid=100_002, disks=(Disk(path=disk), Disk(path=seed, read_only=True)))
    argv = jailing.arguments(jail, plan, jailer=Path("/opt/fc/jailer"))
    jailers, engines = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert jailers[0] == "/opt/fc/jailer"
    options = dict(zip(jailers[1::2], jailers[2::2], strict=False))
    assert (options["--uid"], options["--gid"], options["--id"]) == ("100002", "100002", ID)
    assert "--new-pid-ns" in jailers
    # It would send all that is said to nowhere, and make cgroups of its own.
    assert not {"--daemonize", "--cgroup", "--parent-cgroup"} & set(jailers)
    # As large as its largest disk: its own files must not stop at less, and nothing may grow to more.
    assert f"fsize={300 << 20}" in jailers
    assert "no-file=1024" in jailers
    assert engines[:2] == ["--api-sock", f"/{ID}.sock"]
    assert jail.marker == f"/{ID}.sock"
    assert "--enable-pci" not in engines
    assert "--no-seccomp" not in engines


def test_small_disks_leave_room_for_the_console(tmp_path: Path) -> None:
    jail = Jail(base=tmp_path, program=Path("/x/firecracker"), id=ID)
    for disks in ((), (Disk(path=Path("/dev/null")),)):
        argv = jailing.arguments(jail, a_plan(disks=disks), jailer=Path("/x/jailer"))
        assert f"fsize={64 << 20}" in argv


def test_inside_paths_are_the_jails() -> None:
    inside = jailing._inside(a_plan())
    text = json.dumps(inside)
    assert inside["boot-source"]["kernel_image_path"] == "/vmlinux"  # type: ignore[index]
    assert inside["boot-source"]["initrd_path"] == "/initrd"  # type: ignore[index]
    assert [drive["path_on_host"] for drive in inside["drives"]] == ["/disk0", "/disk1"]  # type: ignore[attr-defined]
    assert "/d,1" not in text
    assert "/seed" not in text


@pytest.mark.parametrize("content", [None, "", "no pid\n"])
def test_a_pid_that_the_jailer_did_not_write_is_told(tmp_path: Path, content: str | None) -> None:
    jail = Jail(base=tmp_path, program=Path("/x/firecracker"), id=ID)
    jail.root.mkdir(parents=True)
    pid = jail.root / "firecracker.pid"
    if content is not None:
        pid.write_text(content)
    with pytest.raises((OSError, ValueError)):
        jail.pid()
    pid.write_text("4711\n")
    assert jail.pid() == 4711


@pytest.mark.fault(27)
def test_without_a_jailer_it_is_said_what_there_is_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "firecracker"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setattr("vmm.engines.firecracker.engine._KVM", tmp_path)
    with pytest.raises(EngineError, match="jailer is not on this host") as caught:
        FirecrackerEngine(binary=binary).spawn(a_plan(jails=tmp_path / "jails"))
    assert "vmm set m --no-jail" in caught.value.resolution


@pytest.mark.fault(26)
def test_a_disk_is_put_back_only_where_the_jail_has_its_last_name(tmp_path: Path) -> None:
    jail = Jail(base=tmp_path / "jails", program=Path("firecracker"), id="a" * 32)
    jail.root.mkdir(parents=True)
    disk, held = tmp_path / "vms" / "m" / "disk.ext4", jail.root / "disk0"
    assert not jailing.put_back(jail, disk)
    secret = tmp_path / "secret"
    secret.write_text("root's")
    held.symlink_to(secret)
    assert not jailing.put_back(jail, disk)
    held.unlink()
    os.mkfifo(held)
    assert not jailing.put_back(jail, disk)
    held.unlink()
    # Of root is what a disk of another file system was bound over.
    held.write_text("a disk")
    assert not jailing.put_back(jail, disk)
    os.chown(held, 1000, 1000)
    os.link(held, tmp_path / "moved")
    assert not jailing.put_back(jail, disk)
    assert not disk.exists()
    (tmp_path / "moved").unlink()
    assert jailing.put_back(jail, disk)
    assert disk.read_text() == "a disk"
    assert disk.samefile(held)
    # What stands there by now is never replaced.
    held.unlink()
    held.write_text("another")
    os.chown(held, 1000, 1000)
    assert not jailing.put_back(jail, disk)
    assert disk.read_text() == "a disk"


def test_a_disk_is_put_back_from_the_jail_of_another_release(tmp_path: Path) -> None:
    old = Jail(base=tmp_path / "jails", program=Path("firecracker-v1.10"), id="a" * 32)
    old.root.mkdir(parents=True)
    (old.root / "disk0").write_text("a disk")
    os.chown(old.root / "disk0", 1000, 1000)
    disk = tmp_path / "vms" / "m" / "disk.ext4"
    engine = FirecrackerEngine(binary=tmp_path / "firecracker")
    assert not engine.put_back("b" * 32, disk, jails=old.base)
    assert engine.put_back("a" * 32, disk, jails=old.base)
    assert disk.samefile(old.root / "disk0")
    assert not engine.put_back("a" * 32, disk, jails=tmp_path / "none")
